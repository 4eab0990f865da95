import CLinux
import Glibc
import LinuxSystem
import SystemPackage

/// The signals that would end this command, taken by descriptor instead: what was begun is brought to an end first.
/// Those that the caller had ignored stay so.
final class SignalReceiver: Sendable {
    let descriptor: Descriptor
    /// What was blocked before.
    let maskBefore: sigset_t
    /// What was ignored before, among all signals.
    let ignoredBefore: [Int32]

    private static let received = [SIGINT, SIGTERM, SIGHUP, SIGQUIT]

    /// To be made before any thread.
    init() throws(Errno) {
        ignoredBefore = (1..<Int32(SIGSYS + 1)).filter(Self.isIgnored)
        var set = sigset_t()
        sigemptyset(&set)
        for number in Self.received where !ignoredBefore.contains(number) { sigaddset(&set, number) }
        var before = sigset_t()
        pthread_sigmask(SIG_BLOCK, &set, &before)
        maskBefore = before
        // Whoever reads what this command says may be gone; the end of a child must be told.
        signal(SIGPIPE, SIG_IGN)
        signal(SIGCHLD, SIG_DFL)
        descriptor = Descriptor(owning: try checked { cl_signal_descriptor(&set) })
    }

    private static func isIgnored(_ number: Int32) -> Bool {
        var action = sigaction()
        guard sigaction(number, nil, &action) == 0 else { return false }
        return unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self) == 1  // SIG_IGN
    }

    struct Received {
        let number: Int32
        /// The terminal sent it.
        let isFromTerminal: Bool
    }

    /// The next signal that has come; nil where none has.
    func next() -> Received? {
        var isFromKernel: Int32 = 0
        let number = cl_next_signal(descriptor.raw, &isFromKernel)
        return number == 0 ? nil : Received(number: number, isFromTerminal: isFromKernel != 0)
    }

    /// Whether a signal has come and was not taken.
    var isPending: Bool {
        var entry = pollfd(fd: descriptor.raw, events: Int16(POLLIN), revents: 0)
        return poll(&entry, 1, 0) > 0
    }
}
