internal import Glibc
package import LinuxSystem
package import SnapshotCore
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

/// The snapshot that is active, and how one begins and ends: the phases of the daemon.
///
/// idle -> active, by `start`; active -> idle, by `stop`. A snapshot that became inexact stays active (its reads
/// fail) until it is stopped, so that nobody takes its absence for success.
///
/// `current` changes only while the gate is closed, so an operation that looks inside the gate sees one snapshot for
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

    private final class Generation: Sendable {
        let preserve: Preserve
        let cut: Timestamp
        let serial: UInt64
        let bytesRead = Atomic<UInt64>(0)
        /// Whether the store's space was given back before the end.
        let isDiscarded = Atomic<Bool>(false)

        init(_ preserve: Preserve, cut: Timestamp, serial: UInt64) {
            self.preserve = preserve
            self.cut = cut
            self.serial = serial
        }
    }

    package let gate = OperationGate()
    package let source: SourceTree
    private let store: Store
    private let credentials: Credentials
    private let deltaBytesMax: UInt64?
    /// Held by whoever changes the phase or gives space back, across I/O; never by a worker inside the gate.
    private let transitions = Mutex<Void>(())
    private let generation = MutexBox<Generation?>(nil)
    private let observer = MutexBox<Observer?>(nil)
    private let freezer = MutexBox<Freezer?>(nil)
    /// Nil where the source cannot be watched.
    let foreignChanges: ForeignChanges?
    private let lastFreeze = Mutex<Freezer.Report?>(nil)
    /// Of the last snapshot.
    private let serial = Atomic<UInt64>(0)

    /// Who is told of the phases, apart from workers: the view that has to make the kernel forget.
    package struct Observer: Sendable {
        package var didStart: @Sendable (Preserve) -> Void
        /// The snapshot can be read no more: nothing of it may be held open.
        package var releaseDescriptors: @Sendable () -> Void
        /// The snapshot has ended: nothing of it may be served any more.
        package var didStop: @Sendable () -> Void
        /// Makes the kernel forget what it has cached of the snapshot. It may wait for requests that are under way,
        /// so it is called without any lock.
        package var forget: @Sendable () -> Void
        /// The snapshot has become inexact, for the reason given. Called by a worker: must not wait.
        package var didBecomeInexact: @Sendable (String) -> Void
    }

    package init(
        source: SourceTree, store: Store, credentials: Credentials, deltaBytesMax: UInt64?,
        foreignChanges: ForeignChanges? = nil
    ) {
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

    /// The snapshot that is active.
    package var current: Preserve? { generation.mutex.withLock { $0?.preserve } }

    /// What there is to tell of the snapshot that is active; nil where none is.
    package var summary: Summary? {
        generation.mutex.withLock { $0 }.map { Self.summary($0) }
    }

    private static func summary(_ generation: Generation) -> Summary {
        Summary(
            cut: generation.cut, inexactReason: generation.preserve.end.inexactReason,
            isOverflowed: !generation.preserve.end.isRecording,
            deltaBytes: generation.preserve.store.storedBytes,
            changedAreas: generation.preserve.map.changedAreas,
            bytesRead: generation.bytesRead.load(ordering: .relaxed), serial: generation.serial,
            deltaPeakBytes: generation.preserve.store.peakBytes, scope: generation.preserve.scope,
            releasedBytes: generation.preserve.released.map { $0.count * UInt64(RecordLimits.blockBytes) })
    }

    package func countBytesRead(_ number: Int) {
        generation.mutex.withLock { $0 }?.bytesRead.add(UInt64(number), ordering: .relaxed)
    }

    /// Freezes the writers and takes the cut.
    package func start(
        _ limits: Freezer.Limits, of scope: SnapshotScope? = nil, singlePass: Bool = false
    ) throws(StartFailure) -> Started {
        try transitions.withLock { (_) throws(StartFailure) -> Started in
            if current != nil { throw .isActive }
            let delta = try makeDelta()
            let preserve = Preserve(
                source: source, store: delta, credentials: credentials, scope: scope, isSinglePass: singlePass
            ) { [observer] reason in
                observer.mutex.withLock { $0 }?.didBecomeInexact(reason)
            }
            let number = serial.add(1, ordering: .relaxed).newValue
            let (cut, report) = try takeCut(limits, preserve, number)
            lastFreeze.withLock { $0 = report }
            observer.mutex.withLock { $0 }?.didStart(preserve)
            return Started(cut: cut, freeze: report, serial: number)
        }
    }

    private func makeDelta() throws(StartFailure) -> DeltaStore {
        do throws(Errno) {
            try credentials.assumeDaemon()
            return try DeltaStore(in: store, bytesMax: deltaBytesMax)
        } catch {
            throw .store(error)
        }
    }

    private func takeCut(
        _ limits: Freezer.Limits, _ preserve: Preserve, _ serial: UInt64
    ) throws(StartFailure) -> (Timestamp, Freezer.Report) {
        let begin = { [generation, foreignChanges] in
            foreignChanges?.begin()
            let now = Timestamp.current
            generation.mutex.withLock { $0 = Generation(preserve, cut: now, serial: serial) }
            return now
        }
        guard let freezer = freezer.mutex.withLock({ $0 }) else {
            preconditionFailure("a snapshot is started once the mount is served")
        }
        foreignChanges?.prepare(preserve)
        do throws(Freezer.Obstacle) {
            return try freezer.freeze(limits, of: preserve.scope, begin)
        } catch {
            foreignChanges?.end()
            do throws(Errno) {
                try preserve.store.discard()
            } catch {
                // The next start, or mount, removes what is left; the obstacle is what the user must know.
            }
            throw .freeze(error)
        }
    }

    /// Ends the snapshot, that of number `only` if it is given, and gives its space back. Throws ENODATA where it is
    /// not active, and what removing the
    /// store's files threw: the snapshot has ended then all the same. `isServing` false: no worker answers the
    /// kernel any more, so it is not spoken to.
    package func stop(only: UInt64? = nil, isServing: Bool = true) throws(Errno) -> Ended {
        let (ended, problem) = try transitions.withLock { (_) throws(Errno) -> (Ended, Errno?) in
            guard let ending = generation.mutex.withLock({ $0 }), only == nil || only == ending.serial
            else { throw .noData }
            let wasWatching = isWatchingSource
            foreignChanges?.finish()
            // First its readers learn of it, then changes go by unrecorded (`SnapshotEnd`).
            let summary = gate.withClosed {
                let summary = Self.summary(ending)
                ending.preserve.end.end()
                generation.mutex.withLock { $0 = nil }
                return summary
            }
            foreignChanges?.end()
            observer.mutex.withLock { $0 }?.didStop()
            let ended = Ended(
                summary: summary, end: .current, changes: ending.preserve.changes,
                wasWatchingSource: wasWatching)
            do throws(Errno) {
                try credentials.assumeDaemon()
                try ending.preserve.store.discard()
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
        var finder = ChangeFinder(now.preserve)
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
            guard let now = generation.mutex.withLock({ $0 }), !now.preserve.end.isRecording,
                !now.isDiscarded.exchange(true, ordering: .sequentiallyConsistent)
            else { return false }
            // Operations that began before it became inexact may still be storing.
            gate.withClosed {}
            // A removed file's space is free once nobody holds the file.
            observer.mutex.withLock { $0 }?.releaseDescriptors()
            now.preserve.willRemoveGraves()
            do throws(Errno) {
                try credentials.assumeDaemon()
                try now.preserve.store.discard()
                return true
            } catch {
                return false
            }
        }
    }
}
