package import SystemPackage

/// A thread that does something now and then, until it is ended. Safe for use by all threads.
package final class PeriodicThread: Sendable {
    private let monitor = Monitor()
    /// Guarded by `monitor`.
    nonisolated(unsafe) private var isEnding = false
    nonisolated(unsafe) private var isRunning = false

    package init() {}

    /// Calls `first`, then `body` every `period`, from a thread of its own. Throws EAGAIN where none can be had. To be ended before it
    /// is started again.
    package func start(
        every period: Duration, first: @escaping @Sendable () -> Void, _ body: @escaping @Sendable () -> Void
    ) throws(Errno) {
        monitor.withLock {
            precondition(!isRunning, "it has been ended before it is started again")
            (isRunning, isEnding) = (true, false)
        }
        do throws(Errno) {
            try Thread.start { [self] in
                first()
                while wait(period) { body() }
                monitor.withLock {
                    isRunning = false
                    monitor.wake()
                }
            }
        } catch {
            monitor.withLock { isRunning = false }
            throw error
        }
    }

    /// Waits for `period`; false where it is to end.
    private func wait(_ period: Duration) -> Bool {
        let deadline = ContinuousClock.now + period
        return monitor.withLock {
            while !isEnding, monitor.wait(until: deadline) {}
            return !isEnding
        }
    }

    /// Whether `end` waits: for whoever does something that takes long.
    package var isToEnd: Bool { monitor.withLock { isEnding } }

    /// Returns when the thread has ended, if there was one.
    package func end() {
        monitor.withLock {
            isEnding = true
            monitor.wake()
            while isRunning { monitor.wait() }
        }
    }
}
