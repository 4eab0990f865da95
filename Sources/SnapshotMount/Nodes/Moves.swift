internal import LinuxSystem

/// The renames that are under way, in a source without handles: whoever finds nothing at an inode's noted place waits
/// for those, and looks again. Safe for use by all threads; a thread that moves must not wait.
final class Moves: Sendable {
    /// Guards both numbers.
    private let monitor = Monitor()
    nonisolated(unsafe) private var underWay = 0
    nonisolated(unsafe) private var ended: UInt64 = 0

    /// How many have ended so far.
    var count: UInt64 { monitor.withLock { ended } }

    /// Runs a move; `body` also notes the new places.
    func run<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
        monitor.withLock { underWay += 1 }
        defer {
            monitor.withLock {
                underWay -= 1
                ended += 1
                monitor.wake()
            }
        }
        return try body()
    }

    /// Whether anything has moved since `count` was `seen`; waits where something is moving.
    func waitForAny(since seen: UInt64) -> Bool {
        monitor.withLock {
            while ended == seen && underWay > 0 { monitor.wait() }
            return ended != seen
        }
    }
}
