internal import CLinux
internal import Glibc
internal import SystemPackage

/// The socket of one daemon, bound and listening under its name in a socket directory.
///
/// It is bound under a name of its own and renamed when it listens, under a lock of the directory:
/// so the name leads to a socket that answers or to one whose daemon is dead, and never are two
/// daemons behind one name.
struct ListeningSocket: ~Copyable, Sendable {
    let descriptor: OwnedDescriptor
    private let directory: SocketDirectory
    private let name: String
    private let inode: ino_t

    var path: String { "\(directory.path)/\(name)" }

    private static let backlog: Int32 = 16
    /// How long another daemon of the directory may take to bind its socket.
    private static let lockAttemptsMax = 100
    private static let lockRetryMicroseconds: UInt32 = 50_000

    /// `mode`: who may connect.
    init(
        _ directory: consuming SocketDirectory, mountpoint: String, mode: mode_t = 0o600
    ) throws(ControlSocketError) {
        let name = SocketDirectory.socketName(mountpoint: mountpoint)
        let path = "\(directory.path)/\(name)"
        do throws(Errno) {
            let lock = try Self.lock(directory)
            if try Self.isAnswered(directory.address(name)) {
                throw Errno.addressInUse
            }
            let raw = try SystemCalls.checked { cl_unix_socket() }
            let descriptor = OwnedDescriptor(raw)
            // bind makes the file with the socket's mode: it is never there with a wider one.
            try SystemCalls.checked { fchmod(raw, mode) }
            let temporary = ".\(name).\(getpid())"
            let at = directory.descriptor.rawValue
            unlinkat(at, temporary, 0)
            try SystemCalls.checked { cl_unix_bind(raw, directory.address(temporary)) }
            // Wider than the umask allows where it is to be.
            if mode & 0o077 != 0 { try SystemCalls.checked { fchmodat(at, temporary, mode, 0) } }
            try SystemCalls.checked { listen(raw, Self.backlog) }
            var status = stat()
            try SystemCalls.checked { fstatat(at, temporary, &status, AT_SYMLINK_NOFOLLOW) }
            try SystemCalls.checked { renameat(at, temporary, at, name) }
            self.descriptor = descriptor
            inode = status.st_ino
            _ = consume lock
        } catch {
            if error == .addressInUse {
                throw ControlSocketError(
                    "another daemon answers for \(mountpoint) at \(path); unmount it first")
            }
            throw ControlSocketError("cannot make the control socket \(path): \(error)")
        }
        self.directory = directory
        self.name = name
    }

    /// flock(2) on a file of the directory that only its owner can open. Closing lets it go.
    private static func lock(_ directory: borrowing SocketDirectory) throws(Errno)
        -> OwnedDescriptor
    {
        let file = directory.address("lock")
        let descriptor = OwnedDescriptor(
            try SystemCalls.checked {
                cl_openat(AT_FDCWD, file, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0o600)
            })
        let raw = descriptor.rawValue
        for _ in 1..<lockAttemptsMax {
            if flock(raw, LOCK_EX | LOCK_NB) == 0 { return descriptor }
            usleep(lockRetryMicroseconds)
        }
        try SystemCalls.checked { flock(raw, LOCK_EX | LOCK_NB) }
        return descriptor
    }

    /// Whether a daemon is behind the socket; one that is there and too busy to accept counts.
    private static func isAnswered(_ address: String) throws(Errno) -> Bool {
        let probe = OwnedDescriptor(try SystemCalls.checked { cl_unix_socket() })
        let raw = probe.rawValue
        try SystemCalls.boundSending(raw, seconds: 1)
        do throws(Errno) {
            try SystemCalls.checked { cl_unix_connect(raw, address) }
            return true
        } catch {
            if error == .noSuchFileOrDirectory || error == .connectionRefused { return false }
            if error == .resourceTemporarilyUnavailable { return true }
            throw error
        }
    }

    /// Takes the name away, unless it leads to another daemon's socket by now.
    func unlinkName() {
        let at = directory.descriptor.rawValue
        var status = stat()
        if fstatat(at, name, &status, AT_SYMLINK_NOFOLLOW) == 0 && status.st_ino == inode {
            unlinkat(at, name, 0)
        }
    }
}
