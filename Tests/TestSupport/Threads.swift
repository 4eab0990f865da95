internal import CTestSupport
internal import Glibc
internal import Synchronization
internal import SystemPackage

/// What a test says when a helper cannot do what the test rests on.
package struct TestFailure: Error, CustomStringConvertible {
    package let description: String
    package init(_ description: String) { self.description = description }
}

private final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
}

/// A thread of the test, whose error is kept for `join`.
package final class Worker: Sendable {
    private let handle: Mutex<UInt?>
    private let failure = Mutex<(any Error)?>(nil)
    private let isDone = Atomic<Bool>(false)

    package init(_ body: @escaping @Sendable () throws -> Void) throws {
        handle = Mutex(nil)
        let run = Body { [self] in
            do {
                try body()
            } catch {
                failure.withLock { $0 = error }
            }
            isDone.store(true, ordering: .sequentiallyConsistent)
        }
        let context = Unmanaged.passRetained(run).toOpaque()
        guard
            let thread = ts_thread(
                { pointer in
                    guard let pointer else { return }
                    Unmanaged<Body>.fromOpaque(pointer).takeRetainedValue().run()
                }, context)
        else { throw TestFailure("no thread") }
        handle.withLock { $0 = UInt(bitPattern: thread) }
    }

    /// Interrupts the thread's system calls, again and again, until `isOver`.
    package func interrupt(until isOver: Flag) throws {
        while !isOver.isSet {
            handle.withLock { handle in
                if let handle, let thread = UnsafeMutableRawPointer(bitPattern: handle) { ts_interrupt(thread) }
            }
            usleep(200)
        }
    }

    package var hasEnded: Bool { isDone.load(ordering: .sequentiallyConsistent) }

    /// Waits for the end of the thread and throws what its body threw.
    package func join() throws {
        let taken = handle.withLock { handle in
            defer { handle = nil }
            return handle
        }
        if let taken, let thread = UnsafeMutableRawPointer(bitPattern: taken) { ts_join(thread) }
        if let error = failure.withLock({ $0 }) { throw error }
    }
}

/// A flag that threads look at.
package final class Flag: Sendable {
    private let value = Atomic<Bool>(false)
    package init() {}
    package var isSet: Bool { value.load(ordering: .sequentiallyConsistent) }
    package func set() { value.store(true, ordering: .sequentiallyConsistent) }
}

/// A number that threads count up.
package final class Counter: Sendable {
    private let value = Atomic<Int>(0)
    package init() {}
    package var current: Int { value.load(ordering: .sequentiallyConsistent) }
    package func set(_ number: Int) { value.store(number, ordering: .sequentiallyConsistent) }
    package func increment() { value.add(1, ordering: .sequentiallyConsistent) }
}

/// Runs `body` in a thread with a umask of its own and, where `user` is not 0, as that user, with `groups` as the
/// supplementary ones.
package func asUser(
    _ user: UInt32, group: UInt32? = nil, groups: [UInt32] = [], mask: UInt32 = 0o022,
    _ body: () throws -> Void
) throws {
    var failure: (any Error)?
    let became = withoutActuallyEscaping(body) { body in
        var call: () -> Void = {
            do {
                try body()
            } catch {
                failure = error
            }
        }
        return withUnsafeMutablePointer(to: &call) { pointer in
            ts_as_user(
                user, group ?? user, groups, groups.count, mask,
                { pointer in pointer?.assumingMemoryBound(to: (() -> Void).self).pointee() }, pointer)
        }
    }
    if became != 0 { throw TestFailure("cannot become user \(user)") }
    if let failure { throw failure }
}

/// Waits until `condition` holds, `seconds` at most: then throws.
package func wait(
    _ what: String, seconds: Double = 30, until condition: () throws -> Bool
) throws {
    let end = ContinuousClock.now + .seconds(seconds)
    while try !condition() {
        if ContinuousClock.now > end { throw TestFailure("\(what): not within \(seconds) s") }
        usleep(2000)
    }
}

/// Waits until the clock by which the kernel stamps files has moved on, so that a later stamp differs from all so far.
package func waitForClockTick() throws {
    func coarse() -> timespec {
        var now = timespec()
        clock_gettime(CLOCK_REALTIME_COARSE, &now)
        return now
    }
    let start = coarse()
    try wait("a tick of the clock") {
        let now = coarse()
        return (now.tv_sec, now.tv_nsec) > (start.tv_sec, start.tv_nsec)
    }
}
