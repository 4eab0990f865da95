internal import Glibc
package import LinuxSystem
package import SnapshotRecord
package import SystemPackage

/// The primary area: the source directory, reached by descriptors only, so that it can be mounted over.
package final class SourceTree: Sendable {
    /// The source directory itself, opened for reading.
    package let root: Descriptor
    package let rootReference: InodeReference
    /// The device of what a snapshot covers; other devices are file systems mounted below the source.
    package let device: UInt64
    /// Whether inodes are found by file handles; else by parent and name.
    package let usesHandles: Bool
    /// The store's directories, which the mount does not show.
    package let hidden: [InodeKey]

    /// Takes `root` as the source. `hidden` is what the mount must not show. `mayUseHandles` false finds inodes by
    /// parent and name even where there are handles.
    package init(
        root: Descriptor, hidden: [InodeKey], mayUseHandles: Bool = true
    ) throws(Errno) {
        self.root = root
        self.hidden = hidden
        let status = try FileStatus(of: root)
        device = status.device
        let handle = mayUseHandles ? Self.workingHandle(of: root) : nil
        usesHandles = handle != nil
        rootReference = InodeReference(status, handle: handle ?? FileHandle())
    }

    /// The handle of the source's root, if handles can be made and opened here.
    private static func workingHandle(of root: Descriptor) -> FileHandle? {
        do throws(Errno) {
            let handle = try FileHandle(of: root)
            _ = try handle.open(mount: root, O_PATH)
            return handle
        } catch {
            // No handles on this file system (EOPNOTSUPP), longer ones than we keep, or no privilege.
            return nil
        }
    }

    /// Whether an inode is one of the store's.
    package func hides(_ status: FileStatus) -> Bool {
        status.device == device && hidden.contains(InodeKey(status))
    }

    /// Whether an entry of a listing is one of the store's.
    package func hides(_ entry: DirectoryEntry) -> Bool {
        hidden.contains { $0.inode == entry.inode }
    }

    /// The attributes of an inode without what the store's directory adds to the root: a link, where the file system
    /// counts directories so.
    package func withoutStore(_ status: FileStatus) -> FileStatus {
        guard !hidden.isEmpty, status.device == device, InodeKey(status) == rootReference.key, status.links > 2
        else {
            return status
        }
        var status = status
        status.links -= 1
        return status
    }

    /// What the descriptor refers to, with a handle where they are used.
    package func reference(
        of descriptor: Descriptor, _ status: FileStatus
    ) throws(Errno) -> InodeReference {
        let handle = usesHandles ? try FileHandle(of: descriptor) : FileHandle()
        return InodeReference(status, handle: handle)
    }

    /// Opens an inode by its handle.
    package func open(_ reference: InodeReference, _ flags: Int32) throws(Errno) -> Descriptor {
        precondition(usesHandles, "without handles an inode is found by parent and name")
        return try reference.handle.open(mount: root, flags)
    }
}
