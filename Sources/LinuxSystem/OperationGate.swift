internal import CLinux
internal import Glibc
internal import Synchronization

/// The gate that every operation which changes anything passes, and that a cut closes.
///
/// Invariants:
/// 1. While `withClosed` runs its body, no operation is between `enter` and `leave`.
/// 2. An operation that entered before the gate closed is let finish; one that comes later waits.
///
/// An operation enters by counting itself in, then looking whether the gate is closed; the closer closes it, then
/// looks at the counts. Both are sequentially consistent, so at least one of the two sees the other. The counts are
/// spread over slots, one for each thread as far as they go, so that threads do not meet on a cache line.
///
/// An operation must not enter twice, and must not wait, while inside, for anything that needs the gate.
package final class OperationGate: @unchecked Sendable {
    private static let slotCount = 64
    private static let slotStride = 64

    private let slots: UnsafeMutableRawPointer
    private let closed = Atomic<Bool>(false)
    private let threads = Atomic<Int>(0)
    /// Guards the waiting on both sides; taken after no other lock.
    private let monitor = Monitor()

    package init() {
        let bytes = Self.slotCount * Self.slotStride
        slots = .allocate(byteCount: bytes, alignment: Self.slotStride)
        for index in 0..<Self.slotCount {
            (slots + index * Self.slotStride)
                .bindMemory(to: Atomic<Int>.self, capacity: 1).initialize(to: Atomic(0))
        }
    }

    deinit {
        slots.deallocate()
    }

    private func slot(_ index: Int) -> UnsafeMutablePointer<Atomic<Int>> {
        (slots + index * Self.slotStride).assumingMemoryBound(to: Atomic<Int>.self)
    }

    private var ownSlot: UnsafeMutablePointer<Atomic<Int>> {
        guard let worker = cl_this_worker() else {
            preconditionFailure("every thread has thread-local storage")
        }
        if worker.pointee.slot == 0 {
            let number = threads.add(1, ordering: .relaxed).oldValue
            worker.pointee.slot = UInt32(number % Self.slotCount) + 1
        }
        return slot(Int(worker.pointee.slot) - 1)
    }

    private func inside() -> Int {
        var sum = 0
        for index in 0..<Self.slotCount {
            sum += slot(index).pointee.load(ordering: .sequentiallyConsistent)
        }
        return sum
    }

    /// Enters, waiting while the gate is closed. `leave` must follow, on the same thread.
    package func enter() {
        let own = ownSlot
        while true {
            own.pointee.add(1, ordering: .sequentiallyConsistent)
            if !closed.load(ordering: .sequentiallyConsistent) { return }
            leave()
            monitor.withLock {
                while closed.load(ordering: .sequentiallyConsistent) { monitor.wait() }
            }
        }
    }

    package func leave() {
        ownSlot.pointee.subtract(1, ordering: .sequentiallyConsistent)
        if closed.load(ordering: .sequentiallyConsistent) {
            monitor.withLock { monitor.wake() }
        }
    }

    /// Runs `body` with the gate open for the calling operation.
    @inline(__always)
    package func pass<Result, Failure: Error>(
        _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        enter()
        defer { leave() }
        return try body()
    }

    /// Closes the gate, waits until every operation inside has left, runs `body`, opens the gate. One caller at a
    /// time; `body` must be short, since every change waits for it.
    package func withClosed<Result>(_ body: () -> Result) -> Result {
        closed.store(true, ordering: .sequentiallyConsistent)
        defer { open() }
        monitor.withLock {
            while inside() != 0 { monitor.wait() }
        }
        return body()
    }

    /// `withClosed`; but where an operation is still inside at `deadline`, the gate opens again and nil is returned.
    package func withClosed<Result>(
        until deadline: ContinuousClock.Instant, _ body: () -> Result
    ) -> Result? {
        closed.store(true, ordering: .sequentiallyConsistent)
        defer { open() }
        let isEmpty = monitor.withLock {
            while inside() != 0 {
                if !monitor.wait(until: deadline) { return inside() == 0 }
            }
            return true
        }
        return isEmpty ? body() : nil
    }

    private func open() {
        monitor.withLock {
            closed.store(false, ordering: .sequentiallyConsistent)
            monitor.wake()
        }
    }
}
