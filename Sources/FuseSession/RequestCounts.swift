internal import Synchronization

/// How many requests of each kind the kernel has sent: what an operation of an application costs in round trips. Kept
/// only where the mount asks for it. Safe for use by all threads.
final class RequestCounts: Sendable {
    private let counts: [AtomicBox]

    init() {
        counts = (0..<Self.names.count).map { _ in AtomicBox() }
    }

    func count(_ opcode: Int) {
        counts[opcode < counts.count ? opcode : 0].value.add(1, ordering: .relaxed)
    }

    /// Those that came, by the names of the protocol; `OTHER` is what has no name here.
    var byName: [String: UInt64] {
        var found: [String: UInt64] = [:]
        for (opcode, box) in counts.enumerated() {
            let count = box.value.load(ordering: .relaxed)
            if count > 0 { found[Self.names[opcode], default: 0] += count }
        }
        return found
    }

    /// By opcode (include/uapi/linux/fuse.h).
    private static let names = [
        "OTHER", "LOOKUP", "FORGET", "GETATTR", "SETATTR", "READLINK", "SYMLINK", "OTHER", "MKNOD", "MKDIR",
        "UNLINK", "RMDIR", "RENAME", "LINK", "OPEN", "READ", "WRITE", "STATFS", "RELEASE", "OTHER", "FSYNC",
        "SETXATTR", "GETXATTR", "LISTXATTR", "REMOVEXATTR", "FLUSH", "INIT", "OPENDIR", "READDIR", "RELEASEDIR",
        "FSYNCDIR", "GETLK", "SETLK", "SETLKW", "ACCESS", "CREATE", "INTERRUPT", "BMAP", "DESTROY", "IOCTL",
        "POLL",
        "NOTIFY_REPLY", "BATCH_FORGET", "FALLOCATE", "READDIRPLUS", "RENAME2", "LSEEK", "COPY_FILE_RANGE",
        "SETUPMAPPING", "REMOVEMAPPING", "SYNCFS", "TMPFILE", "STATX",
    ]
}

/// An atomic number that can stand in an array.
private final class AtomicBox: Sendable {
    let value = Atomic<UInt64>(0)
}
