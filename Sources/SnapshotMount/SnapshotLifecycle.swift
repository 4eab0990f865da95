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
        /// For how long changes waited at the gate.
        package let gateClosedMicroseconds: Int
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
    }

    private final class Generation: Sendable {
        let preserve: Preserve
        let cut: Timestamp
        let bytesRead = Atomic<UInt64>(0)
        /// Whether the store's space was given back before the end.
        let isDiscarded = Atomic<Bool>(false)

        init(_ preserve: Preserve, cut: Timestamp) {
            self.preserve = preserve
            self.cut = cut
        }
    }

    package let gate = OperationGate()
    package let source: SourceTree
    private let store: Store
    private let credentials: Credentials
    private let deltaBytesMax: UInt64?
    /// Held by whoever changes the phase or gives space back, across I/O; never by a worker inside the gate.
    private let transitions = Mutex<Void>(())
    private let generation = Mutex<Generation?>(nil)
    private let observer = MutexBox<Observer?>(nil)

    /// Who is told of the phases, apart from workers: the view that has to make the kernel forget.
    package struct Observer: Sendable {
        package var didStart: @Sendable (Preserve) -> Void
        /// The snapshot has ended: nothing of it may be served any more.
        package var didStop: @Sendable () -> Void
        /// Makes the kernel forget what it has cached of the snapshot. It may wait for requests that are under way,
        /// so it is called without any lock.
        package var forget: @Sendable () -> Void
        /// The snapshot has become inexact, for the reason given. Called by a worker: must not wait.
        package var didBecomeInexact: @Sendable (String) -> Void
    }

    package init(
        source: SourceTree, store: Store, credentials: Credentials, deltaBytesMax: UInt64?
    ) {
        self.source = source
        self.store = store
        self.credentials = credentials
        self.deltaBytesMax = deltaBytesMax
    }

    package func observe(_ observer: Observer) {
        self.observer.mutex.withLock { $0 = observer }
    }

    /// The snapshot that is active.
    package var current: Preserve? { generation.withLock { $0?.preserve } }

    /// What there is to tell of the snapshot that is active; nil where none is.
    package var summary: Summary? {
        generation.withLock { $0 }.map { Self.summary($0) }
    }

    private static func summary(_ generation: Generation) -> Summary {
        Summary(
            cut: generation.cut, inexactReason: generation.preserve.end.inexactReason,
            isOverflowed: !generation.preserve.end.isRecording,
            deltaBytes: generation.preserve.store.storedBytes,
            changedAreas: generation.preserve.map.changedAreas,
            bytesRead: generation.bytesRead.load(ordering: .relaxed))
    }

    package func countBytesRead(_ number: Int) {
        generation.withLock { $0 }?.bytesRead.add(UInt64(number), ordering: .relaxed)
    }

    /// Takes the cut. Throws EALREADY where a snapshot is active, and what making its place in the store threw.
    package func start() throws(Errno) -> Started {
        try transitions.withLock { (_) throws(Errno) -> Started in
            if current != nil { throw .alreadyInProcess }
            try credentials.assumeDaemon()
            let delta = try DeltaStore(in: store, bytesMax: deltaBytesMax)
            let preserve = Preserve(source: source, store: delta, credentials: credentials) {
                [observer] reason in
                observer.mutex.withLock { $0 }?.didBecomeInexact(reason)
            }
            let began = ContinuousClock.now
            let cut = gate.withClosed {
                let now = Timestamp.current
                generation.withLock { $0 = Generation(preserve, cut: now) }
                return now
            }
            let closed = ContinuousClock.now - began
            observer.mutex.withLock { $0 }?.didStart(preserve)
            return Started(
                cut: cut,
                gateClosedMicroseconds: Int(closed.components.attoseconds / 1_000_000_000_000)
                    + Int(closed.components.seconds) * 1_000_000)
        }
    }

    /// Ends the snapshot and gives its space back. Throws ENODATA where none is active, and what removing the
    /// store's files threw: the snapshot has ended then all the same. `isServing` false: no worker answers the
    /// kernel any more, so it is not spoken to.
    package func stop(isServing: Bool = true) throws(Errno) -> Summary {
        let (summary, problem) = try transitions.withLock { (_) throws(Errno) -> (Summary, Errno?) in
            guard let ending = generation.withLock({ $0 }) else { throw .noData }
            // First its readers learn of it, then changes go by unrecorded (`SnapshotEnd`).
            let summary = gate.withClosed {
                let summary = Self.summary(ending)
                ending.preserve.end.end()
                generation.withLock { $0 = nil }
                return summary
            }
            observer.mutex.withLock { $0 }?.didStop()
            do throws(Errno) {
                try credentials.assumeDaemon()
                try ending.preserve.store.discard()
                return (summary, nil)
            } catch {
                return (summary, error)
            }
        }
        // Not under the lock: the kernel may hold a directory for a request whose worker waits for it.
        if isServing { observer.mutex.withLock { $0 }?.forget() }
        if let problem { throw problem }
        return summary
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

    /// Removes what the store keeps of a snapshot that is not exact any more; whether that freed anything.
    @discardableResult
    package func discardInexact() -> Bool {
        transitions.withLock { _ in
            guard let now = generation.withLock({ $0 }), !now.preserve.end.isRecording,
                !now.isDiscarded.exchange(true, ordering: .sequentiallyConsistent)
            else { return false }
            // Operations that began before it became inexact may still be storing.
            gate.withClosed {}
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
