internal import LinuxSystem
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// What a redirect still has to make durable, and who waits for that: one thread commits for all that have come until
/// it begins (group commit); who comes meanwhile is in the next.
///
/// Safe for use by all threads. `leader` is held by the thread that commits, across I/O; `state` never is. What is run
/// after a mark is run by the thread that commits, without the gate.
final class CommitQueue: Sendable {
    /// What one commit is for.
    struct Batch: Sendable {
        /// Whose data are asked for.
        var inodes: [InodeKey: InodeReference] = [:]
        /// Whether the data of all inodes are.
        var isForAll = false
    }

    private struct State {
        var gathering = Batch()
        /// The number of the batch that is gathered; those before `done` are durable.
        var number: UInt64 = 1
        var done: UInt64 = 0
        /// Inodes whose data in the delta have changed since they were flushed last.
        var dirty: [InodeKey: InodeReference] = [:]
        /// Those that have replaced another under its name: their data are flushed with the next mark.
        var replacing: [InodeKey: InodeReference] = [:]
        var hasChanges = false
        /// What is to be given back, in the order of the sequence that a mark must cover.
        var afterMarks: [(sequence: UInt64, body: @Sendable () -> Void)] = []
    }

    private let state = Mutex(State())
    private let leader = Mutex<Void>(())

    /// Something was recorded that no mark covers.
    func noteChange() { state.withLock { $0.hasChanges = true } }

    var hasChanges: Bool { state.withLock { $0.hasChanges } }

    func noteData(of reference: InodeReference) {
        state.withLock { $0.dirty[reference.key] = reference }
    }

    func noteReplacing(_ reference: InodeReference) {
        state.withLock { $0.replacing[reference.key] = reference }
    }

    /// Calls `body` once a mark covers all records before `sequence`.
    func afterMark(covering sequence: UInt64, _ body: @escaping @Sendable () -> Void) {
        state.withLock { $0.afterMarks.append((sequence, body)) }
    }

    /// Returns when all that was recorded before is durable, with the data of `reference`, or of all inodes where that is
    /// nil and `isForAll`. `perform` does it for all that wait: it gets what `moment` returned before anything else, what is
    /// asked for, what must be flushed besides, and returns the sequence through which its mark counts.
    func commit<Moment>(
        _ reference: InodeReference?, isForAll: Bool = false,
        at moment: () -> Moment, _ perform: (Moment, Batch, [InodeReference]) throws(Errno) -> UInt64
    ) throws(Errno) {
        let ticket = state.withLock { state in
            if let reference { state.gathering.inodes[reference.key] = reference }
            if isForAll { state.gathering.isForAll = true }
            return state.number
        }
        let ready = try leader.withLock { (_) throws(Errno) -> [@Sendable () -> Void] in
            if state.withLock({ $0.done >= ticket }) { return [] }
            let (batch, number) = state.withLock { state in
                // A batch that failed is gone; whoever waits for it asks again here.
                if let reference { state.gathering.inodes[reference.key] = reference }
                if isForAll { state.gathering.isForAll = true }
                defer {
                    state.gathering = Batch()
                    state.number += 1
                }
                return (state.gathering, state.number)
            }
            return try lead(batch, number, moment, perform)
        }
        for body in ready { body() }
    }

    private func lead<Moment>(
        _ batch: Batch, _ number: UInt64, _ moment: () -> Moment,
        _ perform: (Moment, Batch, [InodeReference]) throws(Errno) -> UInt64
    ) throws(Errno) -> [@Sendable () -> Void] {
        // First: what the mark will cover is among what is flushed, since who records it notes it before `moment` can pass.
        let moment = moment()
        let (dirty, replacing) = state.withLock { state in
            state.hasChanges = false
            let dirty = batch.isForAll ? state.dirty : state.dirty.filter { batch.inodes[$0.key] != nil }
            for key in dirty.keys { state.dirty[key] = nil }
            defer { state.replacing = [:] }
            return (dirty, state.replacing)
        }
        do throws(Errno) {
            var flushed = batch.inodes
            flushed.merge(dirty) { old, _ in old }
            flushed.merge(replacing) { old, _ in old }
            let through = try perform(moment, batch, Array(flushed.values))
            return state.withLock { state in
                state.done = max(state.done, number)
                let ready = state.afterMarks.filter { $0.sequence <= through }
                state.afterMarks.removeAll { $0.sequence <= through }
                return ready.map(\.body)
            }
        } catch {
            // Nothing of it is durable: it is all still to be done.
            state.withLock { state in
                state.hasChanges = true
                state.dirty.merge(dirty) { _, new in new }
                state.replacing.merge(replacing) { _, new in new }
            }
            throw error
        }
    }

    /// Forgets what was to be done after marks: the layer that they are in has gone.
    func forgetAfterMarks() {
        state.withLock { $0.afterMarks = [] }
    }
}
