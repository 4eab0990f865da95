internal import CLinux
internal import Glibc
package import SystemPackage

/// A point in time as the kernel gives it: seconds since 1970 and nanoseconds.
package struct Timestamp: Hashable, Sendable {
    package var seconds: Int64
    package var nanoseconds: UInt32

    package init(seconds: Int64, nanoseconds: UInt32) {
        self.seconds = seconds
        self.nanoseconds = nanoseconds
    }

    init(_ time: cl_time) {
        seconds = time.seconds
        nanoseconds = time.nanoseconds
    }

    /// Stands for «leave as it is» in `changeTimes`.
    package static var omitted: Timestamp {
        Timestamp(seconds: 0, nanoseconds: UInt32(cl_utime_omit))
    }

    /// Stands for the present time in `changeTimes`.
    package static var now: Timestamp {
        Timestamp(seconds: 0, nanoseconds: UInt32(cl_utime_now))
    }

    var timespec: timespec {
        Glibc.timespec(tv_sec: Int(seconds), tv_nsec: Int(nanoseconds))
    }
}

/// The attributes of an inode: what statx(2) tells.
package struct FileStatus: Hashable, Sendable {
    package var device: UInt64
    package var inode: UInt64
    package var mode: UInt32
    package var links: UInt32
    package var user: UInt32
    package var group: UInt32
    package var specialDevice: UInt64
    package var size: Int64
    package var blocks: Int64
    package var blockSize: Int32
    package var accessed: Timestamp
    package var modified: Timestamp
    package var changed: Timestamp
    /// The time of birth in nanoseconds since 1970, 0 where the file system knows none.
    package var birth: Int64

    /// The kind of file: S_IFREG, S_IFDIR, ...
    package var kind: UInt32 { mode & UInt32(S_IFMT) }
    package var isDirectory: Bool { kind == UInt32(S_IFDIR) }
    package var isRegular: Bool { kind == UInt32(S_IFREG) }
    package var isSymbolicLink: Bool { kind == UInt32(S_IFLNK) }

    /// Those of a made-up inode: all zero, to be filled in.
    package init() {
        (device, inode, specialDevice) = (0, 0, 0)
        (mode, links, user, group) = (0, 0, 0, 0)
        (size, blocks, blockSize, birth) = (0, 0, 0, 0)
        accessed = Timestamp(seconds: 0, nanoseconds: 0)
        (modified, changed) = (accessed, accessed)
    }

    /// statx(2) of what `descriptor` refers to; an O_PATH descriptor will do.
    package init(of descriptor: Descriptor) throws(Errno) {
        var empty: CChar = 0
        try self.init(at: descriptor, &empty, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW)
    }

    /// statx(2) of the name in a directory; a symbolic link is not followed.
    package init(
        at directory: Descriptor, _ name: UnsafePointer<CChar>,
        _ flags: Int32 = AT_SYMLINK_NOFOLLOW
    ) throws(Errno) {
        var buffer = cl_status()
        try checked { cl_statx(directory.raw, name, flags, &buffer) }
        device = buffer.device
        inode = buffer.inode
        mode = buffer.mode
        links = buffer.links
        user = buffer.user
        group = buffer.group
        specialDevice = buffer.special_device
        size = buffer.size
        blocks = buffer.blocks
        blockSize = buffer.block_size
        accessed = Timestamp(buffer.accessed)
        modified = Timestamp(buffer.modified)
        changed = Timestamp(buffer.changed)
        birth =
            buffer.knows_birth != 0
            ? buffer.birth.seconds &* 1_000_000_000 &+ Int64(buffer.birth.nanoseconds) : 0
    }
}

/// Whether an inode is immutable or append-only (`chattr +i`, `+a`), as far as its file system tells: statx(2).
package func isProtected(_ descriptor: Descriptor) throws(Errno) -> Bool {
    try checked { cl_is_protected(descriptor.raw) } == 1
}

/// The number by which the kind of a file system is known: fstatfs(2).
package func fileSystemType(of descriptor: Descriptor) throws(Errno) -> UInt32 {
    var type: UInt32 = 0
    try checked { cl_file_system_type(descriptor.raw, &type) }
    return type
}

extension Timestamp {
    /// clock_gettime(2) of CLOCK_REALTIME.
    package static var current: Timestamp {
        var now = Glibc.timespec()
        clock_gettime(CLOCK_REALTIME, &now)
        return Timestamp(seconds: Int64(now.tv_sec), nanoseconds: UInt32(now.tv_nsec))
    }

    /// clock_gettime(2) of CLOCK_REALTIME_COARSE: the time that the kernel stamps files with.
    package static var coarse: Timestamp {
        var now = Glibc.timespec()
        clock_gettime(CLOCK_REALTIME_COARSE, &now)
        return Timestamp(seconds: Int64(now.tv_sec), nanoseconds: UInt32(now.tv_nsec))
    }
}
