internal import FuseSession
internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import SystemPackage

// Listings: in the source's order, with the source's positions, so that a directory that changes while it is listed
// behaves as it does there.
extension LiveView {
    func openDirectory(_ context: RequestContext, _ node: UInt64) throws(Errno) -> OpenReply {
        let descriptor = try openAgain(directory: node)
        let directory: OpenDirectory
        if let share = budget.take() {
            directory = OpenDirectory(descriptor, share, of: context.process)
        } else if source.usesHandles {
            directory = OpenDirectory(of: context.process) { [self] () throws(Errno) in
                try openAgain(directory: node)
            }
        } else {
            // An ordinary user's daemon may not open it a second time: its mode may have changed.
            directory = OpenDirectory(descriptor, budget.overdraw(), of: context.process)
        }
        return OpenReply(
            handle: Handle.make(directory), keepsCache: policy.keepsListings, cachesListing: policy.keepsListings)
    }

    private func openAgain(directory node: UInt64) throws(Errno) -> Descriptor {
        let inode = try descriptor(of: node)
        let flags = O_RDONLY | O_DIRECTORY
        return try policy.readsQuietly
            ? Descriptor.reopenQuietly(inode, flags) : Descriptor.open(at: inode, ".", flags)
    }

    /// Where the names begin of which the layers of a redirect say something: behind all positions that file systems
    /// give (ext4 has hashes of 63 bits, but not of the highest values), but for the highest, which ext4 and btrfs give for
    /// the end.
    private static let redirectedStart: Int64 = 0x7fff_ffff_0000_0000

    func readDirectory(
        _ node: UInt64, _ handle: UInt64, offset: Int64, into buffer: inout DirectoryBuffer
    ) throws(Errno) {
        let directory = Handle.object(handle, as: OpenDirectory.self)
        let reference = try reference(of: node)
        // In a file system mounted below the source the store's inode numbers mean other files.
        let holdsStore = reference.device == source.device
        var isEmpty = true
        let tellsAttributes = buffer.wantsEntries && (offset == 0 || habits.looksUp(directory.process))
        if buffer.wantsEntries && !tellsAttributes { habits.didListPlainly(directory.process, node) }
        try directory.read(from: offset < Self.redirectedStart ? offset : 0) { (reader) throws(Errno) in
            let descriptor = reader.descriptor
            directory.begin(at: offset) { lifecycle.redirect?.entries(of: reference.key) ?? [:] }
            if offset >= Self.redirectedStart {
                // The last value is a file system's own, for the end of what it lists.
                let start = offset == .max ? 0 : Int(offset - Self.redirectedStart)
                return try addRedirected(
                    node, directory, descriptor, tellsAttributes, from: start, &buffer, isEmpty: true)
            }
            var isFull = false
            var isNew = false
            while try reader.next({ (entry) throws(Errno) -> Bool in
                do throws(Errno) {
                    if holdsStore && !entry.isDot && source.hides(entry) { return true }
                    // These come later, if they stand for anything.
                    if !directory.redirected.isEmpty, directory.redirected[FileName(entry.name)] != nil {
                        return true
                    }
                    let isAdded = try add(entry, of: node, descriptor, tellsAttributes, &buffer, isNew: &isNew)
                    if isAdded { isEmpty = false }
                    isFull = !isAdded
                    return isAdded
                } catch  where !isEmpty {
                    // What is listed so far is told first; the error comes with the next call.
                    isFull = true
                    return false
                }
            }) {}
            if isFull || directory.redirected.isEmpty { return }
            try addRedirected(
                node, directory, descriptor, tellsAttributes, from: 0, &buffer, isEmpty: isEmpty)
        }
    }

    /// Adds the names of which the layers of a redirect said something when the listing began, as far as they stand for
    /// something now.
    private func addRedirected(
        _ node: UInt64, _ directory: OpenDirectory, _ descriptor: Descriptor, _ tellsAttributes: Bool,
        from start: Int, _ buffer: inout DirectoryBuffer, isEmpty: Bool
    ) throws(Errno) {
        var isEmpty = isEmpty
        var isNew = false
        for index in start..<max(start, directory.redirectedNames.count) {
            let name = directory.redirectedNames[index]
            guard case .present(let reference) = directory.redirected[name] else { continue }
            let isAdded: Bool
            do throws(Errno) {
                isAdded = try name.withCString { (string) throws(Errno) in
                    let entry = DirectoryEntry(
                        inode: reference.key.inode, next: Self.redirectedStart + Int64(index) + 1,
                        kind: UInt8(reference.kind >> 12), name: string)
                    return try add(entry, of: node, descriptor, tellsAttributes, &buffer, isNew: &isNew)
                }
            } catch {
                if isEmpty { throw error }
                return
            }
            if !isAdded { return }
            isEmpty = false
        }
    }

    /// Adds one entry; false where there is no room. `isNew`: as in `entry`.
    private func add(
        _ entry: DirectoryEntry, of node: UInt64, _ directory: Descriptor, _ tellsAttributes: Bool,
        _ buffer: inout DirectoryBuffer, isNew: inout Bool
    ) throws(Errno) -> Bool {
        if node == NodeTable.mountRoot && snapshotName.equals(entry.name) { return true }
        if entry.isDot || !tellsAttributes {
            return buffer.append(
                entry.name, inode: entry.inode, kind: entry.kind, next: entry.next)
        }
        guard buffer.hasRoom(for: entry.name) else { return false }
        do throws(Errno) {
            let found = try self.entry(node, directory, entry.name, isNew: &isNew)
            buffer.append(entry.name, found, next: entry.next)
            return true
        } catch .noSuchFileOrDirectory {
            // Removed beside the mount since it was listed.
            return true
        } catch {
            // It has a name all the same (no descriptor is left, it is damaged, ...); whoever looks it up gets the error.
            return buffer.append(entry.name, inode: entry.inode, kind: entry.kind, next: entry.next)
        }
    }
}
