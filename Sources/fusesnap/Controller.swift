import ControlSocket
import Glibc
import LinuxSystem
import SnapshotCore
import SnapshotMount
import SnapshotRecord
import Synchronization
import SystemPackage

/// Carries out what comes over the control socket.
final class Controller: SnapshotController {
    let configuration: DaemonConfiguration
    let lifecycle: SnapshotLifecycle
    private let storePath: String
    /// How many requests of each kind came; nil where they are not counted.
    private let requestCounts: @Sendable () -> [String: UInt64]?

    init(
        _ configuration: DaemonConfiguration, _ lifecycle: SnapshotLifecycle, store: String,
        requestCounts: @escaping @Sendable () -> [String: UInt64]?
    ) {
        self.configuration = configuration
        self.lifecycle = lifecycle
        storePath = store
        self.requestCounts = requestCounts
    }

    private var mountpoint: String { configuration.mountpoint }

    /// What belongs to the snapshot that is active.
    private struct Active: Sendable {
        var serial: UInt64
        var scope: Scope
        /// nil: an earlier daemon began it.
        var freeze: Freezer.Report?
        var lease: Lease?
        var ownHooks: [HookResult]
        /// What the client told of its own.
        var clientHooks: [HookResult]

        /// In the order in which they were run: the client's are around the mount's.
        var hooks: [HookResult] {
            clientHooks.filter { $0.action == .freeze } + ownHooks + clientHooks.filter { $0.action == .thaw }
        }
    }

    /// What a start asked for: whose files, in the order given; both nil: everybody's.
    struct Scope: Sendable, Equatable {
        var users: [UInt32]?
        var groups: [UInt32]?
        var isSinglePass = false

        init(users: [UInt32]? = nil, groups: [UInt32]? = nil, isSinglePass: Bool = false) {
            (self.users, self.groups, self.isSinglePass) = (users, groups, isSinglePass)
        }

        /// What a daemon that was killed left of it.
        init(_ terms: SnapshotTerms) {
            func list(_ numbers: Set<UInt32>?) -> [UInt32]? { numbers.flatMap { $0.isEmpty ? nil : $0.sorted() } }
            self.init(
                users: list(terms.scope?.users), groups: list(terms.scope?.groups),
                isSinglePass: terms.isSinglePass)
        }

        func terms(for requester: UInt32?) -> SnapshotTerms {
            let isLimited = users != nil || groups != nil
            return SnapshotTerms(
                scope: isLimited ? SnapshotScope(users: Set(users ?? []), groups: Set(groups ?? [])) : nil,
                isSinglePass: isSinglePass, requester: requester)
        }
    }

    /// Held by whoever begins or ends a snapshot, hooks and all: never by a worker.
    private let active = Mutex<Active?>(nil)
    /// What the status tells of the lease of the snapshot of that number: a status does not wait for hooks.
    private let shownLease = Mutex<(serial: UInt64, lease: Status.Lease)?>(nil)
    /// What the status tells of the snapshot of that number: whose files it is of; and the ordinary user who began it.
    private let shownScope = Mutex<(serial: UInt64, scope: Scope, user: UInt32?)?>(nil)
    /// Set once the daemon ends: no snapshot begins any more.
    private let isEnding = Atomic<Bool>(false)
    /// How the last snapshot ended, where nobody stopped it.
    private let lastEnd = Mutex<String?>(nil)

    func start(_ options: StartOptions) throws(ControlFailure) -> StartReport {
        var limits = Freezer.Limits()
        if let milliseconds = options.stallMaxMilliseconds {
            limits.stallMax = .milliseconds(milliseconds)
        }
        if let attempts = options.attemptsMax { limits.attemptsMax = attempts }
        let scope = try scope(of: options, limits)
        return try active.withLock { (active) throws(ControlFailure) in
            if lifecycle.summary != nil { throw failure(.isActive, limits) }
            let lease = try Lease(options)
            try keep(lease, options)
            var hooks = ownHooks(options)
            var user: UInt32?
            if case .user(let number) = options.requester { user = number }
            let started = try start(limits, scope.terms(for: user), &hooks)
            shownScope.withLock { $0 = (started.serial, scope, user) }
            ServiceManager.standard.tellActive(since: started.cut.rfc3339)
            lastEnd.withLock { $0 = nil }
            active = Active(
                serial: started.serial, scope: scope, freeze: started.freeze, lease: lease,
                ownHooks: hooks.results,
                clientHooks: options.hooks ?? [])
            show(lease, options, started.serial)
            try watch(lease, started.serial)
            var report = StartReport(
                started: started.cut.rfc3339, stallMicroseconds: started.freeze.stall.microseconds,
                attempts: started.freeze.attempts, filesFrozen: started.freeze.files,
                snapshotDirectory: configuration.snapshotPath)
            report.snapshot = started.serial
            report.hooks = hooks.results
            (report.users, report.groups) = (scope.users, scope.groups)
            return report
        }
    }

    /// Makes a lease known to the status.
    private func show(_ lease: Lease?, _ options: StartOptions, _ serial: UInt64) {
        var summary = lease?.summary
        if options.leaseConnection == true {
            summary = summary ?? Status.Lease()
            summary?.connection = true
            // One of `run`; with --lease too, that process is the one to be told.
            if let client = options.clientProcess, summary?.process == nil {
                summary?.process = client
                summary?.command = ProcessIdentity.command(client)
            }
        }
        shownLease.withLock { $0 = summary.map { (serial, $0) } }
    }

    /// Takes up, once requests are served, the snapshot that an earlier daemon began; ends it where nobody holds it any
    /// more who did.
    func takeUp() {
        guard let summary = lifecycle.summary else { return }
        ServiceManager.standard.tellActive(since: summary.cut.rfc3339)
        var over: String?
        let terms = lifecycle.terms ?? SnapshotTerms()
        let scope = Scope(terms)
        shownScope.withLock { $0 = (summary.serial, scope, terms.requester) }
        active.withLock { active in
            active = Active(
                serial: summary.serial, scope: scope, freeze: nil, lease: nil, ownHooks: [], clientHooks: [])
            do throws(KeptLease.Ended) {
                guard let (lease, options) = try keptLease() else { return }
                active?.lease = lease
                show(lease, options, summary.serial)
                try watchTakenUp(lease) { [self] reason in end(summary.serial, because: reason) }
            } catch {
                over = error.reason
            }
        }
        // By a thread of its own: the kernel is told to forget, which answers once the mount is served.
        if let over { Thread.detach { [self] in end(summary.serial, because: over) } }
    }

    private func ownHooks(_ options: StartOptions) -> HookSession {
        let seconds = min(
            max(options.hookTimeoutSeconds ?? HookLimits.timeoutSeconds, 1), HookLimits.timeoutSecondsMax)
        // They freeze what is not an ordinary user's.
        let hooks = options.requester == .controller ? configuration.hooks : []
        return HookSession(
            hooks, mountpoint: mountpoint, timeout: .seconds(seconds), signals: nil,
            ignoresFailures: options.ignoresHookFailures ?? false)
    }

    /// Takes the cut between the mount's own hooks.
    private func start(
        _ limits: Freezer.Limits, _ terms: SnapshotTerms, _ hooks: inout HookSession
    ) throws(ControlFailure) -> SnapshotLifecycle.Started {
        hooks.freeze()
        if hooks.hasFailed {
            hooks.thaw()
            throw ControlFailure(.hookFailed, hooks.message)
        }
        if isEnding.load(ordering: .sequentiallyConsistent) {
            hooks.thaw()
            throw ControlFailure(.failed, "the mount is being ended")
        }
        let started: SnapshotLifecycle.Started
        do throws(SnapshotLifecycle.StartFailure) {
            started = try lifecycle.start(limits, terms)
        } catch {
            hooks.thaw()
            for problem in hooks.problems { Log.standard.lines(.warning, mountpoint, problem) }
            throw failure(error, limits)
        }
        hooks.thaw()
        if hooks.hasFailed {
            endUnused(started.serial)
            throw ControlFailure(.hookFailed, hooks.message)
        }
        for problem in hooks.problems { Log.standard.lines(.warning, mountpoint, problem) }
        return started
    }

    private func endUnused(_ serial: UInt64) {
        do throws(Errno) {
            _ = try lifecycle.stop(only: serial)
            ServiceManager.standard.tellIdle(mountpoint: mountpoint, source: configuration.source)
        } catch {
            Log.standard.error("\(mountpoint): the snapshot's store could not be removed: \(error)")
        }
    }

    private func watch(_ lease: Lease?, _ serial: UInt64) throws(ControlFailure) {
        guard let lease else { return }
        do throws(Errno) {
            try lease.watch { [self] reason in end(serial, because: reason) }
        } catch {
            endUnused(serial)
            throw ControlFailure(.failed, "the lease cannot be watched: \(error)")
        }
    }

    func connectionEnded(holding snapshot: UInt64) {
        end(snapshot, because: "the command that held it has gone without stopping it")
    }

    /// Ends a snapshot whose lease is over; nothing where it has been stopped.
    private func end(_ serial: UInt64, because reason: String) {
        active.withLock { active in
            let ended: SnapshotLifecycle.Ended
            do throws(Errno) {
                ended = try lifecycle.stop(only: serial)
                ServiceManager.standard.tellIdle(mountpoint: mountpoint, source: configuration.source)
            } catch {
                if error != .noData {
                    Log.standard.error("\(mountpoint): the snapshot's store could not be removed: \(error)")
                }
                return
            }
            active?.lease?.cancel()
            active = nil
            let inexact = ended.summary.inexactReason.map { "; it was not exact: \($0)" } ?? ""
            let message = "the snapshot of \(ended.summary.cut.rfc3339) has been ended: \(reason)\(inexact)"
            lastEnd.withLock { $0 = message }
            Log.standard.warning("\(mountpoint): \(message)")
        }
    }

    /// Lets no further snapshot begin: the mount is about to go.
    func refuseStarts() {
        isEnding.store(true, ordering: .sequentiallyConsistent)
    }

    /// Waits for whoever just begins or ends a snapshot, so that hooks that froze are thawed, and the end of a lease is
    /// logged. No further one begins.
    func finish() {
        refuseStarts()
        active.withLock { _ in }
    }

    func noteHooks(_ options: HooksOptions) throws(ControlFailure) {
        try active.withLock { (active) throws(ControlFailure) in
            guard active?.serial == options.snapshot else { throw notActive }
            active?.clientHooks = options.hooks
        }
    }

    private var notActive: ControlFailure {
        let why = lastEnd.withLock { $0 }.map { "; \($0)" } ?? ""
        return ControlFailure(.notActive, "no snapshot is active\(why)")
    }

    private func failure(
        _ failure: SnapshotLifecycle.StartFailure, _ limits: Freezer.Limits
    ) -> ControlFailure {
        switch failure {
        case .isActive:
            let active = status()
            return ControlFailure(
                .alreadyActive, ActiveAlready.text(since: active.started, active.lease, mountpoint))
        case .isMerging:
            return ControlFailure(
                .alreadyActive,
                "the changes of the last one are still being merged; see `fusesnap ctl status \(mountpoint)`")
        case .isUnmerged(let error):
            return ControlFailure(
                .failed,
                "the changes of the last one could not be merged (\(error)); try again with `fusesnap ctl stop"
                    + " \(mountpoint)`")
        case .store(let error):
            return ControlFailure(.failed, "making its place in the store \(storePath): \(error)")
        case .freeze(let obstacle):
            let message = FreezeMessage(mountpoint: mountpoint, limits: limits)
            return ControlFailure(.notFrozen, message.text(obstacle))
        }
    }

    func stop(
        _ options: StopOptions, progress: @escaping @Sendable (StopProgress) -> Void
    ) throws(ControlFailure) -> StopReport {
        if options.discard, configuration.mode == .preserve {
            throw ControlFailure(
                .badRequest,
                "--discard is for mounts in redirect mode; this one preserves, and its live files are"
                    + " never set back")
        }
        return try active.withLock { (active) throws(ControlFailure) in
            let ended = try options.discard ? discard() : stop(options.snapshot, progress)
            defer {
                active?.lease?.cancel()
                active = nil
            }
            return report(ended, active)
        }
    }

    private func discard() throws(ControlFailure) -> SnapshotLifecycle.Ended {
        do throws(Errno) {
            let ended = try lifecycle.discard()
            ServiceManager.standard.tellIdle(mountpoint: mountpoint, source: configuration.source)
            return ended
        } catch {
            if error == .noData { throw notActive }
            if error == .resourceBusy {
                throw ControlFailure(
                    .refused,
                    "the snapshot has ended, and its changes are being merged: they cannot be thrown away any more"
                )
            }
            if error == .notPermitted {
                throw ControlFailure(
                    .refused,
                    "the snapshot is of some users' files, or for a single pass: a part of what was changed since is in the"
                        + " source already, and cannot be thrown away; stop it without --discard")
            }
            throw ControlFailure(.failed, "the changes could not be thrown away: \(error); nothing has changed")
        }
    }

    private func stop(
        _ snapshot: UInt64?, _ progress: @escaping @Sendable (StopProgress) -> Void
    ) throws(ControlFailure) -> SnapshotLifecycle.Ended {
        do throws(Errno) {
            let ended = try lifecycle.stop(only: snapshot) { done in
                progress(StopProgress(bytesDone: done.bytesDone, bytesTotal: done.bytesTotal))
            }
            ServiceManager.standard.tellIdle(mountpoint: mountpoint, source: configuration.source)
            return ended
        } catch {
            if error == .noData { throw notActive }
            if lifecycle.summary != nil {
                throw ControlFailure(
                    .failed,
                    "the changes could not be made durable in \(storePath): \(error); the snapshot goes on")
            }
            if lifecycle.redirect != nil {
                throw ControlFailure(
                    .failed,
                    "the snapshot has ended, but its changes could not all be merged into \(configuration.source):"
                        + " \(error). Nothing is lost, and applications go on; mend that, then stop again")
            }
            throw ControlFailure(
                .failed,
                "the snapshot has ended, but what it stored in \(storePath) could not be removed:"
                    + " \(error)")
        }
    }

    private func report(_ ended: SnapshotLifecycle.Ended, _ active: Active?) -> StopReport {
        let summary = ended.summary
        var report = StopReport(
            exact: summary.inexactReason == nil, reason: summary.inexactReason,
            deltaBytes: summary.deltaBytes, changedAreas: summary.changedAreas)
        report.version = Version.text
        report.source = configuration.source
        report.mountpoint = mountpoint
        report.mode = configuration.mode.rawValue
        report.io = configuration.policy.rawValue
        report.cut = summary.cut.rfc3339Nanoseconds
        report.ended = ended.end.rfc3339Nanoseconds
        report.stallMicroseconds = active?.freeze?.stall.microseconds
        report.attempts = active?.freeze?.attempts
        report.filesFrozen = active?.freeze?.files
        report.gateMicroseconds = active?.freeze?.gate.microseconds
        report.hooks = active?.hooks ?? []
        report.level = HookResult.level(active?.hooks ?? [])
        report.deltaPeakBytes = summary.deltaPeakBytes
        report.changedFiles = ended.changes.files
        report.changedBytes = ended.changes.bytes
        report.createdFiles = ended.changes.created
        report.snapshotBytesRead = summary.bytesRead
        report.sourceWatched = ended.wasWatchingSource
        (report.users, report.groups) = (active?.scope.users, active?.scope.groups)
        report.releasedBytes = summary.releasedBytes
        return report
    }

    func status() -> Status {
        let summary = lifecycle.summary
        let state: Status.State =
            if let summary {
                summary.isOverflowed ? .overflowed : .active
            } else {
                lifecycle.redirect == nil ? .idle : .merging
            }
        var status = Status(
            pid: getpid(), version: Version.text, source: configuration.source,
            mountpoint: mountpoint, mode: configuration.mode.rawValue, state: state,
            started: summary?.cut.rfc3339, deltaBytes: summary?.deltaBytes ?? 0,
            changedAreas: summary?.changedAreas ?? 0, snapshotBytesRead: summary?.bytesRead ?? 0,
            store: storePath, io: configuration.policy.rawValue,
            ioRequested: configuration.options.policy.rawValue,
            inexactReason: summary?.inexactReason,
            lastStallMicroseconds: lifecycle.lastReport?.stall.microseconds,
            sourceWatched: summary == nil ? nil : lifecycle.isWatchingSource,
            snapshotDirectory: configuration.snapshotPath, deltaBytesMax: configuration.maxDelta?.bytes)
        if state == .merging {
            status.merge = lifecycle.mergeProgress.map {
                StopProgress(bytesDone: $0.bytesDone, bytesTotal: $0.bytesTotal)
            }
            status.mergeProblem = lifecycle.mergeProblem.map { "\($0)" }
        }
        status.lease = shownLease.withLock { shown in shown?.serial == summary?.serial ? shown?.lease : nil }
        status.requests = requestCounts()
        let scope = shownScope.withLock { shown in shown?.serial == summary?.serial ? shown?.scope : nil }
        (status.users, status.groups) = (scope?.users, scope?.groups)
        status.releasedBytes = summary?.releasedBytes
        return status
    }

    func ownSnapshot(of user: UInt32) -> UInt64? {
        let shown = shownScope.withLock { $0 }
        guard let shown, shown.user == user, lifecycle.summary?.serial == shown.serial else { return nil }
        return shown.serial
    }

    func unmount(_ options: UnmountOptions) throws(ControlFailure) -> UnmountReport {
        let wasActive = lifecycle.summary != nil
        if configuration.mode == .redirect { try mergeBeforeUnmount() }
        if let problem = Unmounting.unmount(mountpoint) {
            throw ControlFailure(problem.isBusy ? .busy : .failed, problem.message)
        }
        do throws(Errno) {
            _ = try lifecycle.stop(isServing: false)
        } catch {
            // None was active; or its files could not be removed, which the next mount tries again.
        }
        return UnmountReport(endedSnapshot: wasActive)
    }

    /// Applications get what they wrote: first the source has it all.
    private func mergeBeforeUnmount() throws(ControlFailure) {
        do throws(Errno) {
            if lifecycle.summary != nil {
                _ = try lifecycle.stop()
            } else {
                try lifecycle.finishMerge()
            }
        } catch {
            if error == .noData { return }
            throw ControlFailure(
                .failed,
                "the changes since the snapshot's start could not be merged into \(configuration.source): \(error)."
                    + " Nothing is lost; the mount stays")
        }
    }
}

extension Timestamp {
    /// RFC 3339, UTC, to the microsecond.
    var rfc3339: String { rfc3339(digits: 6) }

    var rfc3339Nanoseconds: String { rfc3339(digits: 9) }

    private func rfc3339(digits: Int) -> String {
        var seconds = time_t(self.seconds)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        func padded(_ value: Int32, _ width: Int) -> String {
            let digits = String(value)
            return String(repeating: "0", count: max(0, width - digits.count)) + digits
        }
        let date = [
            padded(parts.tm_year + 1900, 4), padded(parts.tm_mon + 1, 2), padded(parts.tm_mday, 2),
        ]
        let time = [padded(parts.tm_hour, 2), padded(parts.tm_min, 2), padded(parts.tm_sec, 2)]
        return date.joined(separator: "-") + "T" + time.joined(separator: ":") + "."
            + padded(Int32(nanoseconds), 9).prefix(digits) + "Z"
    }
}
