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

    /// The calling thread's number.
    package static var ownThread: Int32 { cl_thread_number() }
}
