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
        let inode = try descriptor(of: node)
        let flags = O_RDONLY | O_DIRECTORY
        let descriptor =
            try policy.readsQuietly
            ? Descriptor.reopenQuietly(inode, flags) : Descriptor.open(at: inode, ".", flags)
        return OpenReply(
            handle: Handle.make(OpenDirectory(descriptor, of: context.process)), keepsCache: policy.keepsListings,
            cachesListing: policy.keepsListings)
    }

    func readDirectory(
        _ node: UInt64, _ handle: UInt64, offset: Int64, into buffer: inout DirectoryBuffer
    ) throws(Errno) {
        let directory = Handle.object(handle, as: OpenDirectory.self)
        directory.lock.lock()
        defer { directory.lock.unlock() }
        try directory.reader.seek(to: offset)
        // In a file system mounted below the source the store's inode numbers mean other files.
        let holdsStore = try reference(of: node).device == source.device
        var isEmpty = true
        let tellsAttributes = buffer.wantsEntries && (offset == 0 || habits.looksUp(directory.process))
        if buffer.wantsEntries && !tellsAttributes { habits.didListPlainly(directory.process, node) }
        while try directory.reader.next({ (entry) throws(Errno) -> Bool in
            do throws(Errno) {
                if holdsStore && !entry.isDot && source.hides(entry) { return true }
                let isAdded = try add(entry, of: node, directory, tellsAttributes, &buffer)
                if isAdded { isEmpty = false }
                return isAdded
            } catch  where !isEmpty {
                // What is listed so far is told first; the error comes with the next call.
                return false
            }
        }) {}
    }

    /// Adds one entry; false where there is no room.
    private func add(
        _ entry: DirectoryEntry, of node: UInt64, _ directory: OpenDirectory, _ tellsAttributes: Bool,
        _ buffer: inout DirectoryBuffer
    ) throws(Errno) -> Bool {
        if node == NodeTable.mountRoot && snapshotName.equals(entry.name) { return true }
        if entry.isDot || !tellsAttributes {
            return buffer.append(
                entry.name, inode: entry.inode, kind: entry.kind, next: entry.next)
        }
        guard buffer.hasRoom(for: entry.name) else { return false }
        do throws(Errno) {
            let found = try self.entry(node, directory.descriptor, entry.name)
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
