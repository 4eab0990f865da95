internal import Glibc
package import LinuxSystem
package import SnapshotCore
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

/// The snapshot that is active, and how one begins and ends: the phases of the daemon.
///
/// idle -> active, by `start`; active -> idle, by `stop`. In redirect active -> merging -> idle: the snapshot is over when
/// the merge begins, and changes are redirected until it ends. A snapshot that became inexact stays active (its reads
/// fail) until it is stopped, so that nobody takes its absence for success.
///
/// `current` and `redirect` change only while the gate is closed, so an operation that looks inside the gate sees one snapshot for
/// its whole duration. Order of locks: `transitions`, then the gate.
package final class SnapshotLifecycle: Sendable {
    /// What a start tells.
    package struct Started: Sendable {
        /// The cut, in seconds and nanoseconds of UTC.
        package let cut: Timestamp
        /// What it cost the applications.
        package let freeze: Freezer.Report
        /// Its number among the snapshots of this daemon, from 1.
        package let serial: UInt64
    }

    /// Why no snapshot began; nothing has changed then.
    package enum StartFailure: Error, Sendable, Equatable {
        case isActive
        /// What an earlier one redirected is still being merged.
        case isMerging
        /// What an earlier one redirected could not be merged, and has to be first.
        case isUnmerged(Errno)
        /// Its place in the store could not be made.
        case store(Errno)
        /// The writers could not be frozen within the limits.
        case freeze(Freezer.Obstacle)
    }

    /// What a snapshot amounts to, while active and when it ends.
    package struct Summary: Sendable {
        package let cut: Timestamp
        package let inexactReason: String?
        /// Whether nothing of it can be read any more.
        package let isOverflowed: Bool
        package let deltaBytes: UInt64
        package let changedAreas: UInt64
        package let bytesRead: UInt64
        package let serial: UInt64
        /// The most that it stored; less is there once its space has been given back.
        package let deltaPeakBytes: UInt64
        /// Whose files it is of; nil: everybody's.
        package let scope: SnapshotScope?
        /// What has been read and need not be kept; nil where the backup may read more than once.
        package let releasedBytes: UInt64?
    }

    /// What a snapshot amounted to.
    package struct Ended: Sendable {
        package let summary: Summary
        package let end: Timestamp
        package let changes: DeltaMap.Changes
        package let wasWatchingSource: Bool
    }

    /// How a mount keeps a snapshot: `Preserve` or `Redirect`.
    package enum Embodiment: Sendable {
        case preserve(Preserve)
        case redirect(Redirect)

        /// What the snapshot shows.
        var cut: SnapshotCut {
            switch self {
            case .preserve(let preserve): preserve.cut
            case .redirect(let redirect): redirect.cut
            }
        }

    }

    final class Generation: Sendable {
        let embodiment: Embodiment
        let cut: Timestamp
        let serial: UInt64
        let bytesRead = Atomic<UInt64>(0)
        /// Whether the store's space was given back before the end.
        let isDiscarded = Atomic<Bool>(false)

        init(_ embodiment: Embodiment, cut: Timestamp, serial: UInt64) {
            self.embodiment = embodiment
            self.cut = cut
            self.serial = serial
        }

        var preserve: Preserve? {
            if case .preserve(let preserve) = embodiment { preserve } else { nil }
        }

        var end: SnapshotEnd { embodiment.cut.end }
    }

    package let gate = OperationGate()
    package let source: SourceTree
    let store: Store
    let credentials: Credentials
    let deltaBytesMax: UInt64?
    /// Whether snapshots are kept by redirecting changes.
    package let redirects: Bool
    /// Held by whoever changes the phase, must meet no such change half done, or gives space back, across I/O; never by a worker inside the gate.
    let transitions = Mutex<Void>(())
    let generation = MutexBox<Generation?>(nil)
    /// Where changes go in redirect, from the start of a snapshot until its merge has ended.
    let redirecting = MutexBox<Redirect?>(nil)
    let merging = MutexBox<MergeProgress?>(nil)
    /// Why the last merge ended before its end; nil where it did not.
    let mergeFailure = Mutex<Errno?>(nil)
    let committer = PeriodicThread()
    let vanished = VanishedInodes()
    /// This boot and this mount of the source; nil where snapshots are not redirected, and nothing is to be taken up.
    let boot: BootIdentity?
    let observer = MutexBox<Observer?>(nil)
    private let freezer = MutexBox<Freezer?>(nil)
    /// Nil where the source cannot be watched.
    let foreignChanges: ForeignChanges?
    private let lastFreeze = Mutex<Freezer.Report?>(nil)
    /// Of the last snapshot.
    let serial = Atomic<UInt64>(0)

    /// Who is told of the phases, apart from workers: the view that has to make the kernel forget.
    package struct Observer: Sendable {
        package var didStart: @Sendable (SnapshotCut) -> Void
        /// The snapshot can be read no more: nothing of it may be held open.
        package var releaseDescriptors: @Sendable () -> Void
        /// The snapshot has ended: nothing of it may be served any more.
        package var didStop: @Sendable () -> Void
        /// Makes the kernel forget what it has cached of the snapshot. It may wait for requests that are under way,
        /// so it is called without any lock.
        package var forget: @Sendable () -> Void
        /// The snapshot has become inexact, for the reason given. Called by a worker: must not wait.
        package var didBecomeInexact: @Sendable (String) -> Void
        /// Opens an inode that has no name any more, where the kernel remembers it.
        package var openUnnamed: @Sendable (InodeReference) -> Descriptor?
        /// The live tree has been set back to the cut: the kernel is to forget what that concerns. As `forget`.
        package var didDiscard: @Sendable (DeltaMap) -> Void
    }

    package init(
        source: SourceTree, store: Store, credentials: Credentials, deltaBytesMax: UInt64?,
        redirects: Bool = false, boot: BootIdentity? = nil, foreignChanges: ForeignChanges? = nil
    ) {
        self.redirects = redirects
        self.boot = boot
        self.foreignChanges = foreignChanges
        self.source = source
        self.store = store
        self.credentials = credentials
        self.deltaBytesMax = deltaBytesMax
    }

    package func observe(_ observer: Observer) {
        self.observer.mutex.withLock { $0 = observer }
    }

    /// Freezes the mount's writers for each cut from now on.
    func freeze(with freezer: Freezer) {
        self.freezer.mutex.withLock { $0 = freezer }
    }

    /// What the last cut cost the applications; nil before the first.
    package var lastReport: Freezer.Report? { lastFreeze.withLock { $0 } }

    /// The snapshot that is active and has to be preserved from changes.
    package var current: Preserve? {
        redirects ? nil : generation.mutex.withLock { $0?.preserve }
    }

    /// Where changes go, and what applications see; nil where the source is changed as it is.
    package var redirect: Redirect? {
        redirects ? redirecting.mutex.withLock { $0 } : nil
    }

    /// What there is to tell of the snapshot that is active; nil where none is.
    package var summary: Summary? {
        generation.mutex.withLock { $0 }.map { Self.summary($0) }
    }

    /// `sealed`: in redirect the layer of the snapshot, where another lies on it by now.
    static func summary(_ generation: Generation, _ sealed: Layer? = nil) -> Summary {
        let cut = generation.embodiment.cut
        let (bytes, peak, areas) =
            switch generation.embodiment {
            case .preserve(let preserve):
                (preserve.store.storedBytes, preserve.store.peakBytes, preserve.map.changedAreas)
            case .redirect(let redirect):
                (sealed ?? redirect.stack.top).amount
            }
        return Summary(
            cut: generation.cut, inexactReason: cut.end.inexactReason, isOverflowed: !cut.end.isRecording,
            deltaBytes: bytes, changedAreas: areas,
            bytesRead: generation.bytesRead.load(ordering: .relaxed), serial: generation.serial,
            deltaPeakBytes: peak, scope: cut.scope,
            releasedBytes: cut.singlePass.map { $0.released.count * UInt64(RecordLimits.blockBytes) })
    }

    /// After whole blocks of a file have been read by the backup itself: in a single pass they need not be kept.
    func didRead(_ blocks: Range<UInt64>, of reference: InodeReference, in tree: SnapshotTree) {
        if blocks.isEmpty { return }
        // A seal must not come in between.
        let due: (Redirect, ReleasedBlocks)? = gate.pass {
            guard let cut = generation.mutex.withLock({ $0?.embodiment.cut }), tree.shows(cut) else { return nil }
            if let redirect { return redirect.didRead(blocks, of: reference).map { (redirect, $0) } }
            cut.didRead(blocks, of: reference.key)
            return nil
        }
        if let (redirect, released) = due { redirect.moveUnlessBusy(released, gate) }
    }

    package func countBytesRead(_ number: Int) {
        generation.mutex.withLock { $0 }?.bytesRead.add(UInt64(number), ordering: .relaxed)
    }

    /// Freezes the writers and takes the cut.
    package func start(
        _ limits: Freezer.Limits, _ terms: SnapshotTerms = SnapshotTerms()
    ) throws(StartFailure) -> Started {
        try transitions.withLock { (_) throws(StartFailure) -> Started in
            if generation.mutex.withLock({ $0 }) != nil { throw .isActive }
            if redirect != nil {
                throw mergeFailure.withLock { $0 }.map { .isUnmerged($0) } ?? .isMerging
            }
            let number = serial.add(1, ordering: .relaxed).newValue
            let embodiment = try makeEmbodiment(number, terms)
            let (cut, report) = try takeCut(limits, embodiment, number)
            lastFreeze.withLock { $0 = report }
            observer.mutex.withLock { $0 }?.didStart(embodiment.cut)
            if case .redirect(let redirect) = embodiment { keepDurable(redirect) }
            return Started(cut: cut, freeze: report, serial: number)
        }
    }

    private func makeEmbodiment(
        _ serial: UInt64, _ terms: SnapshotTerms
    ) throws(StartFailure) -> Embodiment {
        do throws(Errno) {
            try credentials.assumeDaemon()
            if redirects { return .redirect(try makeRedirect(serial, terms)) }
            let whyUnjournaled = Self.whyUnjournaled(terms)
            let head =
                whyUnjournaled != nil
                ? nil
                : boot.map { boot in
                    JournalHead(
                        embodiment: .preserve, layer: serial, isContinued: false, source: source.rootReference.key,
                        cut: .current, serial: serial, boot: boot)
                }
            return .preserve(
                Preserve(
                    source: source,
                    store: try DeltaStore(
                        in: store, bytesMax: deltaBytesMax, head: head, whyUnjournaled: whyUnjournaled),
                    credentials: credentials, scope: terms.scope, isSinglePass: terms.isSinglePass,
                    didBecomeInexact: tellInexact))
        } catch {
            throw .store(error)
        }
    }

    /// Whose files a snapshot is of, and what of it has been read and given up, is in no journal: after a kill it could not
    /// be known to be exact.
    private static func whyUnjournaled(_ terms: SnapshotTerms) -> String? {
        if terms.scope != nil {
            return "it was of some users' files (--user, --group), and of such no journal is kept"
        }
        return terms.isSinglePass
            ? "it was for a single pass (--single-pass), and of such no journal is kept" : nil
    }

    /// Tells that a snapshot has become inexact.
    var tellInexact: @Sendable (String) -> Void {
        { [observer] reason in observer.mutex.withLock { $0 }?.didBecomeInexact(reason) }
    }

    private func takeCut(
        _ limits: Freezer.Limits, _ embodiment: Embodiment, _ serial: UInt64
    ) throws(StartFailure) -> (Timestamp, Freezer.Report) {
        let begin = { [generation, redirecting, foreignChanges] in
            foreignChanges?.begin()
            let now = Timestamp.current
            if case .redirect(let redirect) = embodiment { redirecting.mutex.withLock { $0 = redirect } }
            generation.mutex.withLock { $0 = Generation(embodiment, cut: now, serial: serial) }
            return now
        }
        guard let freezer = freezer.mutex.withLock({ $0 }) else {
            preconditionFailure("a snapshot is started once the mount is served")
        }
        foreignChanges?.prepare(embodiment.cut)
        do throws(Freezer.Obstacle) {
            let (cut, report) = try freezer.freeze(limits, of: embodiment.cut.scope, begin)
            switch embodiment {
            case .preserve(let preserve): preserve.didStart(cut)
            case .redirect(let redirect): redirect.didStart(cut)
            }
            return (cut, report)
        } catch {
            foreignChanges?.end()
            do throws(Errno) {
                try discard(embodiment)
            } catch {
                // The next start, or mount, removes what is left; the obstacle is what the user must know.
            }
            throw .freeze(error)
        }
    }

    /// Gives back what the store holds for a snapshot that never was.
    private func discard(_ embodiment: Embodiment) throws(Errno) {
        switch embodiment {
        case .preserve(let preserve): try preserve.store.discard()
        case .redirect(let redirect): try store.removeLayer(redirect.stack.top.number)
        }
    }

    /// Ends the snapshot, that of number `only` if it is given, and gives its space back. Throws ENODATA where it is
    /// not active, and what removing the
    /// store's files threw: the snapshot has ended then all the same. `isServing` false: no worker answers the
    /// kernel any more, so it is not spoken to.
    package func stop(
        only: UInt64? = nil, isServing: Bool = true, report: @escaping (MergeProgress) -> Void = { _ in }
    ) throws(Errno) -> Ended {
        if redirects {
            return try transitions.withLock { (_) throws(Errno) in
                try stopRedirect(only: only, isServing: isServing, report)
            }
        }
        let (ended, problem) = try transitions.withLock { (_) throws(Errno) -> (Ended, Errno?) in
            guard let ending = generation.mutex.withLock({ $0 }), only == nil || only == ending.serial,
                let preserve = ending.preserve
            else { throw .noData }
            let wasWatching = isWatchingSource
            foreignChanges?.finish()
            // A daemon that is killed from now on leaves no snapshot.
            let forsaking = Result { () throws(Errno) in try preserve.store.forsake() }
            // First its readers learn of it, then changes go by unrecorded (`SnapshotEnd`).
            let summary = gate.withClosed {
                let summary = Self.summary(ending)
                preserve.end.end()
                generation.mutex.withLock { $0 = nil }
                return summary
            }
            foreignChanges?.end()
            observer.mutex.withLock { $0 }?.didStop()
            let ended = Ended(
                summary: summary, end: .current, changes: preserve.changes,
                wasWatchingSource: wasWatching)
            do throws(Errno) {
                try credentials.assumeDaemon()
                try preserve.store.discard()
                try forsaking.get()
                return (ended, nil)
            } catch {
                return (ended, error)
            }
        }
        // Not under the lock: the kernel may hold a directory for a request whose worker waits for it.
        if isServing { observer.mutex.withLock { $0 }?.forget() }
        if let problem { throw problem }
        return ended
    }

    /// Hands what changed since the cut to `emit`, which answers false where no more is wanted; the snapshot as it is
    /// at the end of that.
    package func changes(_ emit: (Change) -> Bool) throws(ChangesFailure) -> Summary {
        guard let now = generation.mutex.withLock({ $0 }) else { throw .ended }
        var finder =
            switch now.embodiment {
            case .preserve(let preserve): ChangeFinder(preserve)
            case .redirect(let redirect): ChangeFinder(redirect)
            }
        try finder.forEach(emit)
        return Self.summary(now)
    }

    /// Gives the space of the active snapshot's delta back, which makes it inexact, where that helps an operation that
    /// failed with `error`: with ENOSPC, or with EDQUOT, since removed files that are kept count in their owners'
    /// quotas. Whether to try again. Called outside the gate.
    package func giveSpaceBack(after error: Errno) -> Bool {
        guard let preserve = current else { return false }
        // Where another operation is giving it back already, this one waits for that.
        switch error {
        case .noSpace:
            if preserve.store.storedBytes > 0 {
                preserve.becomeInexact(
                    "the source's file system is full: the delta was given back")
            }
        case .diskQuotaExceeded:
            if preserve.store.buriedBytes > 0 {
                preserve.becomeInexact(
                    "a user's quota is used up: what removed files held was given back")
            }
        default:
            return false
        }
        if preserve.end.isRecording { return false }
        discardInexact()
        return true
    }

    /// Whether changes that do not come through the mount are seen; only while a snapshot is active.
    package var isWatchingSource: Bool { foreignChanges?.isWatching ?? false }

    /// Removes what the store keeps of a snapshot that is not exact any more; whether that freed anything.
    @discardableResult
    package func discardInexact() -> Bool {
        transitions.withLock { _ in
            guard let now = generation.mutex.withLock({ $0 }), let preserve = now.preserve,
                !preserve.end.isRecording, !now.isDiscarded.exchange(true, ordering: .sequentiallyConsistent)
            else { return false }
            // Operations that began before it became inexact may still be storing.
            gate.withClosed {}
            // A removed file's space is free once nobody holds the file.
            observer.mutex.withLock { $0 }?.releaseDescriptors()
            preserve.willRemoveGraves()
            do throws(Errno) {
                try credentials.assumeDaemon()
                try preserve.store.discard()
                return true
            } catch {
                return false
            }
        }
    }
}

extension Layer {
    /// Bytes stored, now and at the most, and areas changed.
    fileprivate var amount: (bytes: UInt64, peak: UInt64, areas: UInt64) {
        (files.storedBytes, files.storedBytes, map.changedAreas)
    }
}
