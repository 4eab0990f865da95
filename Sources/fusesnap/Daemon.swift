import CLinux
import ControlSocket
import FuseSession
import Glibc
import LinuxSystem
import SnapshotCore
import SnapshotMount
import SnapshotRecord
import SourceWatch
import Synchronization
import SystemPackage

/// The process behind a mount: puts the parts together, serves until the mount is gone, and leaves no
/// trace. The only place where the modules are wired together.
struct Daemon {
    private var configuration: DaemonConfiguration

    /// Mounts, calls `ready` once the file system answers, and serves until the mount is gone. Returns
    /// the process's exit code. A failure before `ready` is told to whoever called `fusesnap mount`.
    static func run(
        _ configuration: DaemonConfiguration, ready: @escaping @Sendable () -> Void
    ) throws(CommandFailure) -> Int32 {
        var daemon = Daemon(configuration: configuration)
        return try daemon.run(ready)
    }

    /// Workers at the most, where -o max_threads does not say.
    private static let threadsMax: UInt32 = 10

    private var attempt: String {
        "cannot mount \(configuration.source) at \(configuration.mountpoint)"
    }

    private mutating func run(_ ready: @escaping @Sendable () -> Void) throws(CommandFailure) -> Int32 {
        raiseDescriptorLimit()
        raiseFileSizeLimit()
        protectFromReclaim()
        // Tables go back to the system when the kernel has forgotten what they held.
        cl_return_memory(256 << 10)
        let signals = TerminationSignals()
        let opened = try openSource()
        let users = SourceUsers(configuration: configuration)
        try users.refuse(opened)
        try users.tellOfMountsBelow()
        let privateMount = try makePrivateMount(opened)
        let root = privateMount?.directory ?? opened
        let store = try openStore(root)
        defer { store.close() }
        configuration.policy = try PolicyChoice(configuration: configuration).resolve(store)
        let credentials: Credentials
        let source: SourceTree
        do throws(Errno) {
            credentials = try Credentials()
            source = try SourceTree(
                root: root, hidden: store.hidden,
                mayUseHandles: configuration.options.usesFileHandles)
        } catch {
            throw CommandFailure("\(attempt): the source cannot be used: \(error)")
        }
        let lifecycle = SnapshotLifecycle(
            source: source, store: store, credentials: credentials,
            deltaBytesMax: configuration.maxDelta?.bytes, redirects: configuration.mode == .redirect,
            boot: try bootIdentity(opened), foreignChanges: privateMount.map { ForeignChanges($0, source) })
        try recover(lifecycle, source)
        let server = try openControl()
        defer { server.close() }
        let fileSystem = MountedFileSystem(
            lifecycle: lifecycle, credentials: credentials, policy: cachePolicy,
            snapshotName: FileName(configuration.options.snapshotDirectory), didStartServing: ready)
        let session = try openSession(fileSystem)
        // Whatever ends the serving: the mount goes, then the snapshot, then the socket.
        defer { session.unmount() }
        let mountpoint = configuration.mountpoint
        // Looked for once: later something else may be mounted there.
        let device = MutexBox<BackingDevice?>(nil)
        session.whenAgreed {
            let found = BackingDevice(mountpoint)
            found?.raise()
            device.mutex.withLock { $0 = found }
        }
        follow(session, fileSystem, device)
        lifecycle.resume()
        let controller = Controller(
            configuration, lifecycle, store: store.path, requestCounts: { session.requestCounts })
        do throws(ControlSocketError) {
            try server.serve(controller)
        } catch {
            throw CommandFailure("\(attempt): \(error)")
        }
        controller.takeUp()
        signals.wait {
            ServiceManager.standard.tell("STOPPING=1\nSTATUS=Unmounting")
            session.exit()
        }
        let result = session.run()
        signals.finish()
        ServiceManager.standard.tell("STOPPING=1")
        controller.refuseStarts()
        session.unmount()
        removeAbortedMount()
        controller.finish()
        endSnapshot(lifecycle)
        if result < 0 {
            Log.standard.error("\(configuration.mountpoint): serving failed: \(Errno(rawValue: -result))")
            return 1
        }
        return 0
    }

    private func follow(
        _ session: Session, _ fileSystem: MountedFileSystem, _ device: MutexBox<BackingDevice?>
    ) {
        let mountpoint = configuration.mountpoint
        fileSystem.follow(
            session,
            launcher: FreezeHelperCommand.Launcher(mountpoint: mountpoint),
            willFreeze: { isFreezing in device.mutex.withLock { $0 }?.gather(isFreezing: isFreezing) },
            didBecomeInexact: { reason in
                Log.standard.error("\(mountpoint): the snapshot is not exact any more: \(reason)")
            })
    }

    private func bootIdentity(_ source: Descriptor) throws(CommandFailure) -> BootIdentity {
        do throws(Errno) {
            return try BootIdentity.current(source: source)
        } catch {
            throw CommandFailure("\(attempt): it cannot be told whether the machine was started anew: \(error)")
        }
    }

    /// Takes up what an earlier daemon left, before anything is served.
    private func recover(_ lifecycle: SnapshotLifecycle, _ source: SourceTree) throws(CommandFailure) {
        if configuration.mode == .redirect && !source.usesHandles {
            throw CommandFailure(
                "\(attempt): mode redirect finds files by file handles, which need root and a file system that has them;"
                    + " use --mode preserve")
        }
        do throws(RecordError) {
            try lifecycle.recover(countsClones: configuration.policy != .passthrough) {
                Log.standard.warning($0)
            }
        } catch {
            throw CommandFailure("\(attempt): \(error.description)")
        }
    }

    private func openSource() throws(CommandFailure) -> Descriptor {
        do throws(Errno) {
            return try FileName(configuration.source).withCString { (path) throws(Errno) in
                try Descriptor.open(at: .workingDirectory, path, O_RDONLY | O_DIRECTORY)
            }
        } catch {
            throw CommandFailure("\(attempt): the source cannot be opened: \(error)")
        }
    }

    /// A mount of the source for the daemon alone, by which its own writes are told from others'. nil without the
    /// privilege; and where file systems are mounted below the source, which such a mount does not show.
    private func makePrivateMount(_ source: Descriptor) throws(CommandFailure) -> PrivateMount? {
        guard try SourceUsers.mountsBelow(configuration.source).isEmpty else { return nil }
        do throws(Errno) {
            return try PrivateMount(of: source)
        } catch {
            return nil
        }
    }

    private func openStore(_ root: Descriptor) throws(CommandFailure) -> Store {
        do throws(StoreError) {
            return try Store(source: root, sourcePath: configuration.source, path: configuration.store)
        } catch {
            throw CommandFailure("\(attempt): \(Self.message(error))")
        }
    }

    static func message(_ error: StoreError) -> String {
        switch error {
        case .inUse(let path):
            "\(path): the store is in use by another fusesnap; is this source mounted already (`findmnt -t fuse.fusesnap`)?"
        case .wrongStore(let path, let found):
            "\(path): the store belongs to another directory (\(found)); give this one a store of its own with --store"
        case .damaged(let file, let problem):
            "\(file): \(problem); give another directory with --store, or move it away if it is not needed"
        case .system(.readOnlyFileSystem, _, let path):
            "\(path): cannot make the store: the file system is read-only; give a place to write with --store DIR"
        case .system(let error, let action, let path):
            "cannot \(action) \(path): \(error)"
        }
    }

    private func openControl() throws(CommandFailure) -> ControlServer {
        do throws(ControlSocketError) {
            return try ControlServer(
                mountpoint: configuration.mountpoint, in: try SocketDirectory.openForDaemon(),
                admitsUsers: configuration.options.admitsUsers
            ) { Log.standard.warning($0) }
        } catch {
            throw CommandFailure("\(attempt): \(error)")
        }
    }

    private var cachePolicy: CachePolicy {
        // Over the source itself nothing but the mount changes it; beside it, somebody may.
        let seconds: Double = configuration.isOverSource ? 86400 : 1
        let options = configuration.options
        return CachePolicy(
            entrySeconds: options.entryTimeoutSeconds ?? seconds,
            attributeSeconds: options.attributeTimeoutSeconds ?? seconds,
            negativeSeconds: options.negativeTimeoutSeconds ?? (configuration.isOverSource ? seconds : 0),
            // In redirect a listing has names that are not of the source, at positions that end with the merge.
            keepsListings: configuration.isOverSource && options.entryTimeoutSeconds == nil
                && configuration.mode != .redirect,
            gathersWrites: configuration.policy == .writeBack,
            // In redirect nothing of the source changes before a merge, not even a time of access.
            readsQuietly: options.readsQuietly || configuration.mode == .redirect)
    }

    private func openSession(_ fileSystem: MountedFileSystem) throws(CommandFailure) -> Session {
        let options = configuration.options
        let isRoot = geteuid() == 0
        var words = options.sessionOptions(source: configuration.source, isRoot: isRoot)
        words = sourceFlags(isRoot: isRoot) + words
        do throws(Errno) {
            let session = try Session(
                SessionOptions(
                    mountOptions: words, threadsMax: options.threadsMax ?? Self.threadsMax,
                    ownsSource: configuration.isOverSource, gathersWrites: configuration.policy == .writeBack,
                    passthroughDepth: configuration.policy == .passthrough ? 1 : nil,
                    logsDebug: options.logsRequests, countsRequests: options.countsRequests),
                fileSystem)
            try session.mount(at: configuration.mountpoint)
            return session
        } catch {
            let why = error == .ioError ? "the kernel refused; see above" : "\(error)"
            throw CommandFailure("\(attempt): \(why)")
        }
    }

    /// Set-id bits, devices and programs work as on the source; libfuse alone would forbid the first two. One that is
    /// read-only has a mount that is: access(2) then says so, and nothing is asked for that must fail.
    private func sourceFlags(isRoot: Bool) -> [String] {
        var status = statvfs()
        guard statvfs(configuration.source, &status) == 0 else { return [] }
        func has(_ flag: Int) -> Bool { status.f_flag & UInt(flag) != 0 }
        let access = has(Int(ST_RDONLY)) ? "ro" : "rw"
        guard isRoot else { return [access] }
        return [
            access, has(Int(ST_NOSUID)) ? "nosuid" : "suid", has(Int(ST_NODEV)) ? "nodev" : "dev",
            has(Int(ST_NOEXEC)) ? "noexec" : "exec",
        ]
    }

    /// Applications that still use a mount whose connection was aborted get errors; a new one can be made in its place.
    private func removeAbortedMount() {
        do throws(CommandFailure) {
            guard try MountTable.current().mount(at: configuration.mountpoint)?.isFusesnap == true else { return }
            let target = try MountTarget(configuration.mountpoint, "cannot unmount \(configuration.mountpoint)")
            try StaleMount(target).removeAborted()
        } catch {
            Log.standard.error(error.message)
        }
    }

    /// A snapshot that is still active ends with the mount.
    private func endSnapshot(_ lifecycle: SnapshotLifecycle) {
        do throws(Errno) {
            if lifecycle.summary == nil { return try lifecycle.finishMerge() }
            _ = try lifecycle.stop(isServing: false)
            Log.standard.warning(
                "\(configuration.mountpoint): unmounted while a snapshot was active: it has ended")
        } catch {
            if lifecycle.redirect != nil {
                return Log.standard.error(
                    "\(configuration.mountpoint): what changed since the snapshot's start could not be merged into the"
                        + " source: \(error); nothing is lost: the next mount goes on with it")
            }
            Log.standard.error("\(configuration.mountpoint): the snapshot's store could not be removed: \(error)")
        }
    }
}

/// Descriptors follow what is open: up to the hard limit, and where that may be raised (CAP_SYS_RESOURCE), beyond it,
/// since all users of the mount are served by one process.
func raiseDescriptorLimit() {
    let resource = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
    var limit = rlimit()
    guard getrlimit(resource, &limit) == 0 else { return }
    let wanted = max(descriptorsWanted, limit.rlim_max)
    var raised = rlimit(rlim_cur: wanted, rlim_max: wanted)
    if setrlimit(resource, &raised) == 0 { return }
    limit.rlim_cur = limit.rlim_max
    setrlimit(resource, &limit)
}

/// How long a file may be is the business of the application that writes it, and the kernel sees to that: the limit of
/// whoever mounts must not be everybody's. One that may not be raised makes writes fail (EFBIG), and the daemon live.
private func raiseFileSizeLimit() {
    signal(SIGXFSZ, SIG_IGN)
    let resource = __rlimit_resource_t(RLIMIT_FSIZE.rawValue)
    var limit = rlimit()
    guard getrlimit(resource, &limit) == 0 else { return }
    // RLIM_INFINITY, which Swift does not import.
    var raised = rlimit(rlim_cur: .max, rlim_max: .max)
    if setrlimit(resource, &raised) == 0 { return }
    limit.rlim_cur = limit.rlim_max
    setrlimit(resource, &limit)
}

/// Keeps the daemon out of the deadlock in which the kernel, short of memory, writes dirty pages of the mount out to find
/// some for the daemon, which is to store them. Threads and processes that come after inherit it, so it is called while
/// there is one thread; and before `Credentials` gives CAP_SYS_RESOURCE up, which it needs. An ordinary user's daemon
/// goes without: EPERM.
private func protectFromReclaim() {
    if cl_protect_from_reclaim() == 0 { return }
    let error = currentErrno()
    if error != .notPermitted && error != .invalidArgument {  // EINVAL: before Linux 5.6.
        Log.standard.warning("the daemon cannot be kept out of memory reclaim (PR_SET_IO_FLUSHER): \(error)")
    }
}

/// What the kernel allows by default (fs.nr_open).
private let descriptorsWanted: rlim_t = 1 << 20

/// SIGTERM, SIGINT and SIGHUP: waited for by a thread, so that what they do is not bound by a signal handler's limits.
private final class TerminationSignals: Sendable {
    private let isFinished = Atomic<Bool>(false)

    /// Blocks the signals in this thread and all that it makes.
    init() {
        var set = Self.signals
        pthread_sigmask(SIG_BLOCK, &set, nil)
        signal(SIGPIPE, SIG_IGN)
        // The kernel's word that somebody opens a file whose lease is held for a moment (io=passthrough).
        signal(SIGIO, SIG_IGN)
        ThreadInterruption.prepare()
    }

    private static var signals: sigset_t {
        var set = sigset_t()
        sigemptyset(&set)
        for number in [SIGTERM, SIGINT, SIGHUP] { sigaddset(&set, number) }
        return set
    }

    /// Calls `exit` at the first signal, and wakes the calling thread until `finish`.
    func wait(_ exit: @escaping @Sendable () -> Void) {
        let main = ThreadInterruption.ownThread
        Thread.detach { [self] in
            var set = Self.signals
            var number: Int32 = 0
            while sigwait(&set, &number) != 0 {}
            exit()
            while !isFinished.load(ordering: .sequentiallyConsistent) {
                ThreadInterruption.interrupt(main)
                var pause = pollfd(fd: -1, events: 0, revents: 0)
                poll(&pause, 1, 10)
            }
        }
    }

    func finish() {
        isFinished.store(true, ordering: .sequentiallyConsistent)
    }
}
