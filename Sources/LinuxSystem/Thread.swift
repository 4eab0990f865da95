internal import CLinux
internal import Glibc
package import SystemPackage

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
        do throws(Errno) { try start(body) } catch { body() }
    }

    /// Runs `body` on a thread of its own, which nobody waits for, with a stack of that size. Throws EAGAIN where
    /// none can be had.
    package static func start(
        stackBytes: Int? = nil, _ body: @escaping @Sendable () -> Void
    ) throws(Errno) {
        let argument = Unmanaged.passRetained(Body(body))
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        defer { pthread_attr_destroy(&attributes) }
        pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        if let stackBytes { pthread_attr_setstacksize(&attributes, stackBytes) }
        var thread = pthread_t()
        let result = pthread_create(
            &thread, &attributes,
            { argument in
                guard let argument else { return nil }
                Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
                return nil
            }, argument.toOpaque())
        if result != 0 {
            argument.release()
            throw Errno(rawValue: result)
        }
    }
}
