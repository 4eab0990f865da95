internal import FuseSession
internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
package import SystemPackage

/// Freezes the mount's writers for a cut, so that every operation is before it or after it in whole, also a write(2)
/// that the kernel splits into many requests, and also where the kernel gathers writes in its page cache.
///
/// What freezes a file is an fsync(2) of it through the mount: the kernel takes the inode's lock, writes what is dirty,
/// sends FSYNC and keeps the lock until that is answered; a write(2) that was under way has ended by then, and none
/// begins. What does not need the lock of a file that is open for writing is one request, and the gate
/// (`OperationGate`) keeps it on one side of the cut. Order of steps:
///
/// 1. A helper process opens every file that is open for writing and flushes it. Nobody waits.
/// 2. Openings for writing, and what makes files, are kept back (`Intake.park`); now no file becomes open for writing.
///    The helper opens those that have become so since 1.
/// 3. The helper calls fsync on all of them; the answers are withheld until the request of each has come.
/// 4. Writes sent before those are let finish: asynchronous direct I/O, which goes on after its lock is let go
///    (`Intake.settle`).
/// 5. The gate closes, which waits for operations inside; the cut is taken; the gate opens.
/// 6. Where the kernel writes to the source's files by itself, the frozen ones are cloned.
/// 7. The fsyncs are answered, the openings let go, the helper ends.
///
/// From 2 to 7 applications may stall; that lasts `stallMax` at the most: then all is let go, and tried again.
/// Where a snapshot is of some users' files (`SnapshotScope`), those of others are not frozen: the snapshot shows nothing of
/// them. A change of any owner between the look at the owners and the cut makes it be tried again, with all.
///
/// No deadlock: what waits in 2 holds at most the lock of a directory, and the helper's fsyncs need none of a
/// directory, nor do its opens, since it finds files in a directory of its own. An operation that waits for a frozen
/// file (a rename over it) may hold a directory's lock; others then wait for it, but the helper does not. Should
/// something hold a file's lock for long (a request that the source does not finish), the bound ends the attempt.
///
/// Why it is exact. Let A have finished before B begins, and B be in the snapshot. B's effect is before the cut in the
/// gate's order. If A is one request, it was answered before B began, so it is before the cut. If A is a write to a
/// file, then it was either done before the file was frozen, and its data were flushed then; or it began after the
/// answer in 7, so it ended after the cut, and B began after the cut. A file that was not frozen was not open for
/// writing, and what was written to it before was flushed when it was closed (`fuse_flush`, `fuse_vma_close`).
package final class Freezer: Sendable {
    /// How long applications may stall, and how often a freeze is tried.
    package struct Limits: Sendable, Equatable {
        package var stallMax: Duration
        package var attemptsMax: Int

        package init(stallMax: Duration = .milliseconds(200), attemptsMax: Int = 25) {
            self.stallMax = stallMax
            self.attemptsMax = attemptsMax
        }
    }

    /// What a freeze cost.
    package struct Report: Sendable, Equatable {
        /// For how long operations that change anything may have waited, in the attempt that succeeded.
        package var stall: Duration
        package var attempts: Int
        /// The files that were open for writing.
        package var files: Int
        /// For how long the gate was closed.
        package var gate: Duration
    }

    /// What was in the way at the last attempt.
    package enum Obstacle: Error, Sendable, Equatable {
        /// A file that is open for writing was not frozen in time; `inode` is its number.
        case file(inode: UInt64, Errno?)
        /// An operation on the source did not end in time.
        case operation
        /// The helper could not be started, or died.
        case helper(Errno?)
    }

    private let session: Session
    private let live: LiveView
    private let gate: OperationGate
    private let launcher: any FreezeHelperLauncher
    /// Called with true before a freeze, and with false after it: where the kernel gathers writes, what it may gather is
    /// bounded meanwhile.
    private let willFreeze: @Sendable (Bool) -> Void
    private var intake: Intake { session.intake }

    /// For what does not stall anybody: opening and flushing the files at first, and closing them at the end.
    private static let patience = Duration.seconds(30)

    init(
        _ session: Session, _ live: LiveView, gate: OperationGate, launcher: any FreezeHelperLauncher,
        willFreeze: @escaping @Sendable (Bool) -> Void
    ) {
        self.willFreeze = willFreeze
        self.session = session
        self.live = live
        self.gate = gate
        self.launcher = launcher
    }

    /// Runs `cut` while everything is frozen and the gate is closed. One caller at a time, no worker. `scope`: files of
    /// others need not be frozen.
    func freeze<Result>(
        _ limits: Limits, of scope: SnapshotScope? = nil, _ cut: () -> Result
    ) throws(Obstacle) -> (Result, Report) {
        let round = Round(intake, scope)
        let thread = ThreadInterruption.ownThread
        let niceness = ThreadInterruption.hurry(thread)
        if live.policy.gathersWrites { willFreeze(true) }
        defer {
            if live.policy.gathersWrites { willFreeze(false) }
            ThreadInterruption.calm(thread, niceness)
            end(round)
        }
        var last = Obstacle.operation
        for attempt in 1...max(1, limits.attemptsMax) {
            if attempt > 1 { pause(beforeAttempt: attempt) }
            do throws(Obstacle) {
                try prepare(round)
                let began = ContinuousClock.now
                let deadline = began + limits.stallMax
                defer { letGo(round) }
                let files = try hold(round, until: deadline)
                let closing = ContinuousClock.now
                let taken = gate.withClosed(until: deadline) { () -> Result? in
                    // What was left out may be somebody else's by now: then all is frozen the next time.
                    if round.ownersHaveChanged(live.writers) { return nil }
                    return cut()
                }
                guard let result = taken ?? nil else { throw .operation }
                let gateTime = ContinuousClock.now - closing
                preserveUnseen(files)
                letGo(round)
                return (
                    result,
                    Report(
                        stall: ContinuousClock.now - began, attempts: attempt, files: files.count, gate: gateTime)
                )
            } catch {
                last = error
                if round.helper?.isGone == true { end(round) }
            }
        }
        throw last
    }

    /// Step 6: what is written to unseen is preserved while it is frozen, and so are the files of mappings that
    /// outlived their descriptors: what is stored there now, since such stores cannot be stopped.
    private func preserveUnseen(_ frozen: Set<UInt64>) {
        guard live.backings.areUsed else { return }
        for node in frozen.union(live.lingeringWriters()) {
            do throws(Errno) {
                try live.preserveUnseen(node)
            } catch {
                // It has been forgotten, so nobody has it open. What cannot be stored makes the snapshot inexact.
            }
        }
    }

    /// The state of one freeze, over its attempts.
    private final class Round {
        let intake: Intake
        var helper: FreezeHelper?
        var name: FileName?
        var opened: Set<UInt64> = []
        var isHeld = false
        /// Whether the helper is started although nothing is open for writing yet.
        var needsHelper = false
        /// Whose files are frozen; nil: everybody's.
        private var scope: SnapshotScope?
        /// What is open for writing and is not frozen, and how often owners had changed before that was looked at.
        private var others: Set<UInt64> = []
        private var ownerChanges: UInt64 = 0

        init(_ intake: Intake, _ scope: SnapshotScope?) {
            self.intake = intake
            self.scope = scope
        }

        /// The nodes open for writing that are to be frozen.
        func nodes(_ live: LiveView) -> Set<UInt64> {
            let nodes = live.writers.nodes
            guard let scope else { return nodes }
            let now = live.writers.ownerChanges
            if now != ownerChanges { others = [] }
            ownerChanges = now
            let new = nodes.subtracting(others)
            let concerned = new.filter { live.isWriter($0, in: scope) }
            others.formUnion(new.subtracting(concerned))
            return concerned
        }

        /// Whether what was not frozen has to be: then nothing is left out any more.
        func ownersHaveChanged(_ writers: Writers) -> Bool {
            guard scope != nil, ownerChanges != writers.ownerChanges else { return false }
            scope = nil
            return true
        }
    }

    /// Applications get to run before they are stalled again, the longer the more often that was in vain.
    private func pause(beforeAttempt attempt: Int) {
        var time = timespec(tv_sec: 0, tv_nsec: min(attempt, 50) * 10_000_000)
        nanosleep(&time, nil)
    }

    /// Steps 1: stalls nobody.
    private func prepare(_ round: Round) throws(Obstacle) {
        let nodes = round.nodes(live)
        if nodes.isEmpty && !round.needsHelper { return }
        if round.helper == nil { try startHelper(round) }
        try open(nodes.subtracting(round.opened), round, until: .now + Self.patience)
        if live.backings.areUsed { flush(nodes) }
    }

    /// Where the kernel writes to the source's files by itself, their dirty data are in the source's cache.
    private func flush(_ nodes: Set<UInt64>) {
        for node in nodes {
            do throws(Errno) {
                try live.flush(node)
            } catch {
                // The clone will tell, or the file has been closed meanwhile.
            }
        }
    }

    private func startHelper(_ round: Round) throws(Obstacle) {
        let name = live.freezeDirectory.open()
        round.name = name
        round.opened = []
        do throws(Errno) {
            let helper = try FreezeHelper(launcher, name: name) { [intake] in intake.stopWaiting() }
            live.freezeDirectory.admit(helper.process)
            round.helper = helper
        } catch {
            throw .helper(error)
        }
    }

    private func open(
        _ nodes: Set<UInt64>, _ round: Round, until deadline: ContinuousClock.Instant
    ) throws(Obstacle) {
        guard let helper = round.helper, !nodes.isEmpty else { return }
        guard helper.open(nodes, until: deadline) else { throw .helper(nil) }
        let failures = helper.takeFailures()
        round.opened.formUnion(nodes.subtracting(failures.keys))
        // One that has been closed meanwhile need not be frozen.
        let writers = live.writers.nodes
        for (node, error) in failures where writers.contains(node) { throw obstacle(node, error) }
    }

    private func obstacle(_ node: UInt64, _ error: Errno?) -> Obstacle {
        do throws(Errno) {
            return .file(inode: try live.reference(of: node).key.inode, error)
        } catch {
            return .operation  // It has been closed since.
        }
    }

    /// Steps 2 to 4. Returns the nodes that are frozen.
    private func hold(
        _ round: Round, until deadline: ContinuousClock.Instant
    ) throws(Obstacle) -> Set<UInt64> {
        round.isHeld = true
        guard intake.park(exceptOf: round.helper?.process ?? 0, until: deadline) else {
            throw .operation
        }
        let nodes = round.nodes(live)
        let late = nodes.subtracting(round.opened)
        if !late.isEmpty {
            guard round.helper != nil else {
                // The first writers came after all; now it will be there in time.
                round.needsHelper = true
                throw .operation
            }
            try open(late, round, until: deadline)
        }
        guard let helper = round.helper, !nodes.isEmpty else { return [] }
        _ = helper.takeFailures()  // Of an earlier attempt.
        intake.withhold()
        guard helper.synchronize() else { throw .helper(nil) }
        let missing = intake.waitUntilWithheld(nodes, until: deadline) {
            !helper.isGone && !helper.hasFailure(of: nodes)
        }
        if let node = missing.first {
            if helper.isGone { throw .helper(nil) }
            let failure = helper.takeFailures().first { missing.contains($0.key) }
            throw obstacle(failure?.key ?? node, failure?.value)
        }
        guard intake.settle(.data, until: deadline) else { throw .operation }
        try restoreTimes(of: nodes)
        return nodes
    }

    /// Of files whose data the kernel has just written back.
    private func restoreTimes(of nodes: Set<UInt64>) throws(Obstacle) {
        guard live.policy.gathersWrites else { return }
        for node in nodes {
            do throws(Errno) {
                try live.restoreTimes(of: node)
            } catch {
                throw obstacle(node, error)
            }
        }
    }

    /// Step 7, and the end of an attempt that failed.
    private func letGo(_ round: Round) {
        guard round.isHeld else { return }
        round.isHeld = false
        intake.answerWithheld()
        intake.unpark()
    }

    private func end(_ round: Round) {
        guard let name = round.name else { return }
        round.name = nil
        if let helper = round.helper {
            helper.end()
            // It closes its files; a call of it that waits for an application's lock ends when that is free.
            if !helper.waitForEnd(until: .now + .seconds(2)) { helper.kill() }
        }
        round.helper = nil
        live.freezeDirectory.close()
        session.invalidateEntry(parent: NodeTable.mountRoot, name)
    }
}
