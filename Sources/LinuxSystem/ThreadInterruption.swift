internal import CLinux
internal import Glibc

/// A signal that does nothing but end a system call that waits (EINTR): SIGUSR1.
package enum ThreadInterruption {
    /// Once for the process, before any is sent.
    package static func prepare() {
        var action = sigaction()
        action.__sigaction_handler.sa_handler = { _ in }
        sigaction(SIGUSR1, &action, nil)
    }

    /// Sends it to the thread of this number (gettid(2)); one that has ended is no harm.
    package static func interrupt(_ thread: Int32) {
        _ = cl_signal_thread(thread, SIGUSR1)
    }

    /// Lets a thread run before all that are not as urgent, where that is allowed (root); its niceness before.
    package static func hurry(_ thread: Int32) -> Int32 {
        let before = niceness(of: thread)
        setpriority(PRIO_PROCESS, id_t(thread), urgent)
        return before
    }

    /// Gives a thread the niceness that it had before `hurry`.
    package static func calm(_ thread: Int32, _ before: Int32) {
        setpriority(PRIO_PROCESS, id_t(thread), before)
    }

    package static func niceness(of thread: Int32) -> Int32 {
        getpriority(PRIO_PROCESS, id_t(thread))
    }

    private static let urgent: Int32 = -20

    /// The calling thread's number.
    package static var ownThread: Int32 { cl_thread_number() }
}
