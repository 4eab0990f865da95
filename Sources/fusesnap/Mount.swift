internal import ArgumentParser
internal import ControlSocket
internal import Glibc
internal import Synchronization

struct Mount: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "mount",
        abstract: "Mount a directory so that it can be snapshotted.",
        discussion: """
            Returns when the file system answers; the daemon goes on in the background. With MOUNTPOINT left out, \
            or equal to SOURCE, it is mounted over the source itself.

            Mount options (-o): io=write-through|writeback|passthrough|auto, snapshot_dir=NAME, attr_timeout=SECONDS, entry_timeout=SECONDS, \
            negative_timeout=SECONDS, max_threads=N, no_file_handles, count_requests, user_snapshots, debug; allow_other, default_permissions, ro, rw, nosuid, suid, \
            nodev, dev, noexec, exec, noatime, atime, dirsync, sync, fsname=NAME; and \
            mode=MODE, store=DIR and max_delta=SIZE, which \
            mean what the options of those names do. What mount(8) and fstab(5) mean for themselves is passed over.
            """)

    @Option(
        help: "How a snapshot is kept: preserve (what changes is stored first) or redirect (changes are).",
        transform: Mode.parse)
    var mode = Mode.preserve

    @Option(help: "Where what changes is kept (default: SOURCE/.fusesnap).", completion: .directory)
    var store: String?

    @Flag(
        name: [.customShort("f"), .long], help: "Stay in the foreground and log to standard error.")
    var foreground = false

    @Flag(help: "Mount over the source although somebody uses it past the mount.")
    var force = false

    @Option(
        help: "End the snapshot as overflowed beyond this size, such as 10G (K, M, G, T).",
        transform: ByteSize.parse)
    var maxDelta: ByteSize?

    @Option(
        help: ArgumentHelp(
            "At each start of a snapshot, call FILE with `freeze` before the cut and `thaw` after it, as the daemon; may be given several times.",
            valueName: "file"), completion: .file())
    var hook: [String] = []

    @Option(
        name: .customShort("o", allowingJoined: true),
        help: ArgumentHelp("Mount options, separated by commas.", valueName: "opt,..."))
    var optionLists: [String] = []

    @Option(help: .hidden)
    var readyFd: Int32?

    @Argument(help: "The directory with the data.", completion: .directory)
    var source: String

    @Argument(help: "Where it is to be seen.", completion: .directory)
    var mountpoint: String?

    func validate() throws {
        let options = try parsedOptions()
        if store != nil && options.store != nil || maxDelta != nil && options.maxDelta != nil {
            throw ValidationError("the store or its bound is given twice: by its own option, and by -o")
        }
        if source.isEmpty || mountpoint?.isEmpty == true || store?.isEmpty == true {
            throw ValidationError("a path is empty; name a directory")
        }
        if hook.count > HookLimits.hooksMax {
            throw ValidationError("--hook can be given \(HookLimits.hooksMax) times at the most")
        }
    }

    func run() throws {
        if readyFd == nil && !foreground { return try Background.launch() }
        if let readyFd { try Background.adoptReadyPipe(readyFd) }
        ServiceManager.adopt()
        let isReady = Atomic<Bool>(false)
        let code: Int32
        do {
            let configuration = try configured()
            code = try Daemon.run(configuration) { [foreground, readyFd] in
                isReady.store(true, ordering: .sequentiallyConsistent)
                ServiceManager.standard.tellReady(
                    mountpoint: configuration.mountpoint, source: configuration.source)
                if !foreground { Background.detach() }
                if let readyFd { Background.sayReady(readyFd) }
            }
        } catch {
            guard isReady.load(ordering: .sequentiallyConsistent) else { throw error }
            let failure = error as? CommandFailure
            Log.standard.error(failure?.message ?? "the daemon ends: \(error)")
            throw failure.map { ExitCode($0.exitCode.rawValue) } ?? .failed
        }
        throw ExitCode(code)
    }

    private func parsedOptions() throws -> MountOptions {
        do {
            return try MountOptions(parsing: optionLists)
        } catch {
            throw ValidationError(error.message)
        }
    }

    private func configured() throws -> DaemonConfiguration {
        let options = try parsedOptions()
        let paths = try MountChecks.resolve(
            source: source, mountpoint: mountpoint, options: options)
        return DaemonConfiguration(
            sourceAsGiven: source, source: paths.source, mountpoint: paths.mountpoint, mode: options.mode ?? mode,
            store: (store ?? options.store).map(Paths.absolute), maxDelta: maxDelta ?? options.maxDelta,
            options: options, isForeground: foreground, isForced: force, hooks: try Hook.named(hook, .mount))
    }
}
