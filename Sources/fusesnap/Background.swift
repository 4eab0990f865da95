internal import ArgumentParser
internal import Glibc
internal import SystemPackage

/// Runs the daemon in the background: the same command, started anew, which takes a session of its own once it serves, with
/// a pipe on which it says that it is ready. Not by fork, which would take threads and locks
/// halfway along.
enum Background {
    /// Where the child finds the pipe; nothing else but the standard descriptors is passed on.
    private static let readyDescriptor: Int32 = 3
    private static let readyMessage = "ready\n"

    /// Starts the daemon with the arguments of this process and waits until it is ready. Passes on
    /// its exit code where it fails: it has said why by then.
    static func launch() throws {
        var ends: [Int32] = [-1, -1]
        guard pipe2(&ends, O_CLOEXEC) == 0 else {
            throw CommandFailure("cannot start the daemon: no pipe: \(Errno(rawValue: errno))")
        }
        let child = try spawn(readyPipe: ends[1])
        close(ends[1])
        defer { close(ends[0]) }
        if waitForReadiness(ends[0]) { return }
        try passOn(try waitForEnd(child))
    }

    private static func spawn(readyPipe: Int32) throws(CommandFailure) -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, readyPipe, readyDescriptor)
        posix_spawn_file_actions_addclosefrom_np(&actions, readyDescriptor + 1)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // Signals that a shell's background job ignores must end the daemon cleanly all the same.
        var none = sigset_t()
        var defaults = sigset_t()
        sigemptyset(&none)
        sigemptyset(&defaults)
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGCHLD] {
            sigaddset(&defaults, signal)
        }
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &defaults)
        let flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF
        posix_spawnattr_setflags(&attributes, Int16(flags))

        var child: pid_t = 0
        var arguments = childArguments()
        defer { for case let word? in arguments { free(word) } }
        let failure = posix_spawn(&child, executable(), &actions, &attributes, &arguments, environ)
        if failure != 0 {
            throw CommandFailure("cannot start the daemon: \(Errno(rawValue: failure))")
        }
        return child
    }

    /// The words of this command, byte for byte, with the hidden option after the verb.
    private static func childArguments() -> [UnsafeMutablePointer<CChar>?] {
        var words = (0..<Int(CommandLine.argc)).compactMap { index in
            CommandLine.unsafeArgv[index].map { strdup($0) }
        }
        words.insert(strdup("--ready-fd=\(readyDescriptor)"), at: min(2, words.count))
        return words + [nil]
    }

    /// The program's file by its name, by which `ps` shows it; where that is gone, by way of /proc.
    private static func executable() -> String {
        let link = "/proc/self/exe"
        guard let path = try? Paths.canonical(link), access(path, X_OK) == 0 else { return link }
        return path
    }

    /// False where the child ends, or closes the pipe, without a word.
    private static func waitForReadiness(_ pipe: Int32) -> Bool {
        var received: [UInt8] = []
        var byte: UInt8 = 0
        while received.count < readyMessage.utf8.count {
            let count = read(pipe, &byte, 1)
            if count < 0 && errno == EINTR { continue }
            if count <= 0 { return false }
            received.append(byte)
        }
        return received.elementsEqual(readyMessage.utf8)
    }

    private static func waitForEnd(_ child: pid_t) throws(CommandFailure) -> Int32 {
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0 {
            if errno != EINTR {
                throw CommandFailure("cannot wait for the daemon: \(Errno(rawValue: errno))")
            }
        }
        return status
    }

    private static func passOn(_ status: Int32) throws {
        let signal = status & 0x7f
        if signal != 0 {
            throw CommandFailure("the daemon was killed by signal \(signal) before it was ready")
        }
        let code = (status >> 8) & 0xff
        if code == 0 { throw CommandFailure("the daemon ended before it was ready") }
        throw ExitCode(code)
    }

    // MARK: In the child

    /// Lets go of the terminal, the session and the working directory; from now on the log goes to syslog.
    ///
    /// Not before the mount is made: at an automount only systemd's own process group, in which it starts mount(8), may
    /// look at the mount point until then. Anybody else waits for the mount.
    static func detach() {
        // A child in its parent's group leads none, so that this cannot fail.
        setsid()
        let null = open("/dev/null", O_RDWR | O_CLOEXEC)
        if null >= 0 {
            for descriptor: Int32 in 0...2 { dup2(null, descriptor) }
            if null > 2 { close(null) }
        }
        chdir("/")
        Log.standard.send(to: .syslog)
    }

    /// Keeps the pipe from fusermount3 and others that the daemon starts.
    static func adoptReadyPipe(_ descriptor: Int32) throws(CommandFailure) {
        if fcntl(descriptor, F_SETFD, FD_CLOEXEC) != 0 {
            throw CommandFailure("--ready-fd \(descriptor): \(Errno(rawValue: errno))")
        }
        pthread_setname_np(pthread_self(), "fusesnap")
    }

    /// Tells whoever waits. Nobody may wait any more, which is no harm.
    static func sayReady(_ descriptor: Int32) {
        signal(SIGPIPE, SIG_IGN)
        _ = write(descriptor, readyMessage, readyMessage.utf8.count)
        close(descriptor)
    }
}
