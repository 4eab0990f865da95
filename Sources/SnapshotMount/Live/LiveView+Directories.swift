internal import FuseSession
internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import SystemPackage

// Listings: in the source's order, with the source's positions, so that a directory that changes while it is listed
// behaves as it does there.
extension LiveView {
    func openDirectory(_ node: UInt64) throws(Errno) -> OpenReply {
        let descriptor = try openAgain(directory: node)
        let directory: OpenDirectory
        if let share = budget.take() {
            directory = OpenDirectory(descriptor, share)
        } else if source.usesHandles {
            directory = OpenDirectory { [self] () throws(Errno) in try openAgain(directory: node) }
        } else {
            // An ordinary user's daemon may not open it a second time: its mode may have changed.
            directory = OpenDirectory(descriptor, budget.overdraw())
        }
        return OpenReply(handle: Handle.make(directory), keepsCache: false)
    }

    private func openAgain(directory node: UInt64) throws(Errno) -> Descriptor {
        let inode = try descriptor(of: node)
        let flags = O_RDONLY | O_DIRECTORY
        return try policy.readsQuietly
            ? Descriptor.reopenQuietly(inode, flags) : Descriptor.open(at: inode, ".", flags)
    }

    func readDirectory(
        _ node: UInt64, _ handle: UInt64, offset: Int64, into buffer: inout DirectoryBuffer
    ) throws(Errno) {
        let directory = Handle.object(handle, as: OpenDirectory.self)
        // In a file system mounted below the source the store's inode numbers mean other files.
        let holdsStore = try reference(of: node).device == source.device
        var isEmpty = true
        try directory.read(from: offset) { (reader) throws(Errno) in
            let descriptor = reader.descriptor
            while try reader.next({ (entry) throws(Errno) -> Bool in
                do throws(Errno) {
                    if holdsStore && !entry.isDot && source.hides(entry) { return true }
                    let isAdded = try add(entry, of: node, descriptor, &buffer)
                    if isAdded { isEmpty = false }
                    return isAdded
                } catch  where !isEmpty {
                    // What is listed so far is told first; the error comes with the next call.
                    return false
                }
            }) {}
        }
    }

    /// Adds one entry; false where there is no room.
    private func add(
        _ entry: DirectoryEntry, of node: UInt64, _ directory: Descriptor,
        _ buffer: inout DirectoryBuffer
    ) throws(Errno) -> Bool {
        if node == NodeTable.mountRoot && snapshotName.equals(entry.name) { return true }
        if entry.isDot || !buffer.wantsEntries {
            return buffer.append(
                entry.name, inode: entry.inode, kind: entry.kind, next: entry.next)
        }
        guard buffer.hasRoom(for: entry.name) else { return false }
        do throws(Errno) {
            let found = try self.entry(node, directory, entry.name)
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
