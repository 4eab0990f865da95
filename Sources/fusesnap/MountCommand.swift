import ArgumentParser
import Glibc
import LinuxSystem
import SystemPackage

/// How a snapshot is kept.
enum Mode: String, ExpressibleByArgument, CaseIterable {
    case preserve
}

struct MountCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "mount", abstract: "Mount a directory through fusesnap.",
        discussion: """
            Without MOUNTPOINT, or with the same path twice, the mount lies over the directory itself: no application \
            changes a path.
            """)

    @Option(help: "How snapshots are kept: preserve stores the original of what changes.")
    var mode = Mode.preserve

    @Option(help: "Where originals are stored (default: SOURCE/.fusesnap).")
    var store: String?

    @Flag(name: [.customShort("f"), .long], help: "Stay in the foreground, and log to standard error.")
    var foreground = false

    @Option(help: "Let the store grow to this size at most, such as 500M or 20G; a snapshot ends beyond it.")
    var maxDelta: ByteCount?

    @Option(
        name: .customShort("o"), parsing: .unconditionalSingleValue,
        help:
            "Mount options, with commas: allow_other, ro, fsname=NAME, snapshot_dir=NAME, attr_timeout=SECONDS, ..."
    )
    var options: [String] = []

    @Option(help: .hidden)
    var readyFd: Int32?

    @Argument(help: "The directory to take snapshots of.", completion: .directory)
    var source: String

    @Argument(help: "Where it appears (default: SOURCE).", completion: .directory)
    var mountpoint: String?

    mutating func validate() throws {
        _ = try MountOptions(options)
        if source.isEmpty { throw ValidationError("SOURCE is empty.") }
    }

    func run() throws {
        let options = try MountOptions(options)
        if !foreground && readyFd == nil {
            throw ExitCode(try spawnDaemon())
        }
        try exiting { () throws(CommandFailure) in
            let configuration = try DaemonConfiguration(
                source: source, mountpoint: mountpoint, mode: mode, store: store,
                deltaBytesMax: maxDelta?.bytes, options: options)
            let log = Log(toSystem: !foreground)
            try Daemon(configuration, log).run { [foreground, readyFd] in
                Self.didStart(log, foreground: foreground, readyFd: readyFd)
            }
        }
    }

    /// The mount answers: lets the parent go, and stands on its own from now on.
    private static func didStart(_ log: Log, foreground: Bool, readyFd: Int32?) {
        if let readyFd {
            _ = write(readyFd, "1", 1)
            close(readyFd)
        }
        if foreground { return }
        _ = chdir("/")
        let null = open("/dev/null", O_RDWR)
        for standard in [STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO] { dup2(null, standard) }
        if null > STDERR_FILENO { close(null) }
        log.detach()
    }

    /// Runs this same command as a daemon, and waits until its mount answers or it ends: the exit code to end with.
    ///
    /// A new process rather than a fork: the Swift runtime may have threads by now.
    private func spawnDaemon() throws -> Int32 {
        var ends: [Int32] = [-1, -1]
        guard pipe2(&ends, O_CLOEXEC) == 0 else {
            complain("cannot start the daemon: \(currentErrno())")
            return ExitStatus.failed
        }
        let childEnd: Int32 = 3
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, ends[1], childEnd)
        posix_spawn_file_actions_addclosefrom_np(&actions, childEnd + 1)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSID))

        let words = ["fusesnap", "mount", "--ready-fd", "\(childEnd)"] + CommandLine.arguments.dropFirst(2)
        var argv: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        defer { for word in argv { free(word) } }
        var child = pid_t()
        let result = posix_spawn(&child, "/proc/self/exe", &actions, &attributes, &argv, environ)
        close(ends[1])
        guard result == 0 else {
            complain("cannot start the daemon: \(String(cString: strerror(result)))")
            return ExitStatus.failed
        }
        var byte: UInt8 = 0
        let count = Glibc.read(ends[0], &byte, 1)
        if count == 1 { return 0 }
        // It has said why on standard error.
        var status: Int32 = 0
        guard waitpid(child, &status, 0) == child, status & 0x7f == 0 else {
            complain("cannot mount \(source): the daemon was killed (status \(status))")
            return ExitStatus.failed
        }
        let code = status >> 8 & 0xff
        return code == 0 ? ExitStatus.failed : code
    }
}
