internal import Glibc

/// Threads of the daemon beside libfuse's workers.
package enum Thread {
    private final class Body: Sendable {
        let run: @Sendable () -> Void

        init(_ run: @escaping @Sendable () -> Void) {
            self.run = run
        }
    }

    /// Runs `body` on a thread of its own, which nobody waits for. Where none can be had (EAGAIN), the calling
    /// thread runs it.
    package static func detach(_ body: @escaping @Sendable () -> Void) {
        let argument = Unmanaged.passRetained(Body(body))
        var thread = pthread_t()
        let result = pthread_create(
            &thread, nil,
            { argument in
                guard let argument else { return nil }
                Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
                return nil
            }, argument.toOpaque())
        if result == 0 {
            pthread_detach(thread)
        } else {
            argument.takeRetainedValue().run()
        }
    }
}
