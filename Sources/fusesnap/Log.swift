import CLinux
import Glibc
import Synchronization

/// The daemon's log: standard error until it stands on its own, then the system's. Safe for use by all threads.
final class Log: Sendable {
    enum Level: Int32 {
        // The levels of syslog(3).
        case error = 3
        case warning = 4
        case notice = 5
    }

    private let isDetached = Atomic<Bool>(false)
    private let mayDetach: Bool

    /// `toSystem`: the system's log takes over once the daemon stands on its own.
    init(toSystem: Bool) {
        mayDetach = toSystem
    }

    /// Standard error is gone from now on.
    func detach() {
        isDetached.store(mayDetach, ordering: .sequentiallyConsistent)
    }

    func write(_ level: Level, _ message: String) {
        if isDetached.load(ordering: .sequentiallyConsistent) {
            cl_syslog(3 << 3 | level.rawValue, message)  // facility: daemon
        } else {
            complain(message)
        }
    }
}
