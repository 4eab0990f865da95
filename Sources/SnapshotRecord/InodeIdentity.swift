package import LinuxSystem

/// Names an inode of the source's device, for as long as it lives and after it: its number, and a stamp that tells
/// it from a later inode of the same number.
///
/// The stamp is the time of birth. Where a file system tells none it is 0; then a number used again is noticed
/// when the newcomer is recorded as born (`DeltaMap.insertBorn`).
package struct InodeKey: Hashable, Sendable {
    package let inode: UInt64
    package let birth: Int64

    package init(inode: UInt64, birth: Int64) {
        self.inode = inode
        self.birth = birth
    }

    package init(_ status: FileStatus) {
        self.init(inode: status.inode, birth: status.birth)
    }

    /// The name of what the store keeps for the inode.
    package var fileName: FileName {
        FileName(
            String(inode, radix: 16) + "-" + String(UInt64(bitPattern: birth), radix: 16))
    }

    package func hash(into hasher: inout Hasher) {
        hasher.combine(inode)
        hasher.combine(birth)
    }
}

/// An inode, what kind of file it is, and how to find it again; the handle is empty in a source without handles.
package struct InodeReference: Hashable, Sendable {
    package let key: InodeKey
    package let device: UInt64
    /// S_IFREG, S_IFDIR, ...
    package let kind: UInt32
    package let handle: FileHandle

    package init(_ status: FileStatus, handle: FileHandle) {
        key = InodeKey(status)
        device = status.device
        kind = status.kind
        self.handle = handle
    }
}
