internal import ControlSocket
internal import Glibc
internal import SystemPackage

/// A mount whose daemon does not answer its control socket.
struct StaleMount {
    private let target: MountTarget
    private var attempt: String { "cannot unmount \(target.path)" }

    init(_ target: MountTarget) {
        self.target = target
    }

    /// Unmounts where the daemon is dead. One that is alive goes on only with `force`: what it is
    /// doing is not known.
    func remove(force: Bool) throws(CommandFailure) {
        switch probe() {
        case .dead:
            // Nothing can be read or written there any more: whoever has files open in it has lost
            // them already.
            SocketDirectory.removeStaleSocket(mountpoint: target.mountpoint, owner: target.owner)
            try detach(isLazy: true)
        case .alive where force:
            try detach(isLazy: false)
        case .alive:
            throw CommandFailure(
                "\(attempt): its daemon serves files, but its control socket is not found (is "
                    + "XDG_RUNTIME_DIR another "
                    + "than at the mount?); --force unmounts all the same, and ends an active "
                    + "snapshot")
        case .hanging:
            throw CommandFailure(
                "\(attempt): its daemon hangs; end it with `kill -9 PID` and try again")
        }
    }

    /// Unmounts where the connection has ended: libfuse leaves a mount whose connection was aborted through fusectl.
    func removeAborted() throws(CommandFailure) {
        if probe() == .dead { try detach(isLazy: true) }
    }

    enum Condition { case dead, alive, hanging }

    private static let probeTimeoutMilliseconds: Int32 = 5_000

    /// Asks the file system for its size, which the daemon must answer, on a thread that may be
    /// left behind.
    private func probe() -> Condition { Self.probe(target.mountpoint) }

    /// Of the mount at a path.
    static func probe(_ path: String) -> Condition {
        let answer = BoundedCall.run(milliseconds: probeTimeoutMilliseconds) { () -> Int32 in
            var status = statvfs()
            return statvfs(path, &status) == 0 ? 0 : errno
        }
        guard let answer else { return .hanging }
        return answer == ENOTCONN || answer == ECONNABORTED ? .dead : .alive
    }

    private func detach(isLazy: Bool) throws(CommandFailure) {
        if geteuid() == 0 {
            let flags = UMOUNT_NOFOLLOW | (isLazy ? MNT_DETACH : 0)
            if umount2(target.mountpoint, Int32(flags)) == 0 { return }
            let error = Errno(rawValue: errno)
            let advice =
                error == .resourceBusy
                ? "; see who uses it with `fuser -vm \(target.path)` or `lsof +f -- \(target.path)`"
                : ""
            throw CommandFailure("\(attempt): \(error)\(advice)")
        }
        try runHelper(["fusermount3", isLazy ? "-uz" : "-u", "--", target.mountpoint])
    }

    /// fusermount3 says on standard error what goes wrong.
    private func runHelper(_ words: [String]) throws(CommandFailure) {
        var arguments = words.map { strdup($0) } + [nil]
        defer { for case let word? in arguments { free(word) } }
        var child: pid_t = 0
        let failure = posix_spawnp(&child, words[0], nil, nil, &arguments, environ)
        if failure != 0 {
            throw CommandFailure(
                "\(attempt): fusermount3 cannot be run: \(Errno(rawValue: failure)); install fuse3 "
                    + "or run as root")
        }
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0 && errno == EINTR {}
        if status != 0 {
            throw CommandFailure("\(attempt): fusermount3 failed; see its message above")
        }
    }
}
