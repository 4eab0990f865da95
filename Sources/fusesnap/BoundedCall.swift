internal import Glibc
internal import Synchronization

/// Calls what may wait for ever.
enum BoundedCall {
    private final class Outcome: Sendable {
        let value = Mutex<Int32?>(nil)
    }

    /// What `body` returns; nil where it takes longer, or no thread can be had. Its thread is left
    /// behind then.
    static func run(milliseconds: Int32, _ body: @escaping @Sendable () -> Int32) -> Int32? {
        final class Job {
            let body: @Sendable () -> Void
            init(_ body: @escaping @Sendable () -> Void) { self.body = body }
        }
        var ends: [Int32] = [-1, -1]
        guard pipe2(&ends, O_CLOEXEC) == 0 else { return nil }
        let outcome = Outcome()
        let writing = ends[1]
        let job = Unmanaged.passRetained(
            Job {
                let value = body()
                outcome.value.withLock { $0 = value }
                close(writing)
            })
        var thread = pthread_t()
        let failure = pthread_create(
            &thread, nil,
            { argument in
                if let argument { Unmanaged<Job>.fromOpaque(argument).takeRetainedValue().body() }
                return nil
            }, job.toOpaque())
        defer { close(ends[0]) }
        if failure != 0 {
            job.release()
            close(writing)
            return nil
        }
        pthread_detach(thread)
        var entry = pollfd(fd: ends[0], events: Int16(POLLIN), revents: 0)
        poll(&entry, 1, milliseconds)
        return outcome.value.withLock { $0 }
    }
}
