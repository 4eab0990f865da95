internal import CLinux
internal import Glibc
internal import Synchronization

/// What the daemon has to say: on standard error, with journald's level in front where that leads to the journal, or, in
/// the background, to syslog. Any thread may call it.
final class Log: Sendable {
    enum Level: Int, Comparable, Sendable {
        case error, warning, notice, debug

        static func < (one: Level, other: Level) -> Bool { one.rawValue < other.rawValue }

        fileprivate var priority: Int32 {
            switch self {
            case .error: LOG_ERR
            case .warning: LOG_WARNING
            case .notice: LOG_NOTICE
            case .debug: LOG_DEBUG
            }
        }

        fileprivate var prefix: String {
            switch self {
            case .error: "error: "
            case .warning: "warning: "
            case .notice: ""
            case .debug: "debug: "
            }
        }
    }

    enum Destination: Sendable {
        case standardError, syslog
    }

    private struct State: Sendable {
        var destination = Destination.standardError
        var verbosity = Level.notice
    }

    /// Guards where messages go, and keeps lines whole: it spans their writing.
    private let state = Mutex(State())

    /// The log of this process.
    static let standard = Log()

    func send(to destination: Destination) {
        state.withLock { $0.destination = destination }
    }

    func setVerbosity(_ verbosity: Level) {
        state.withLock { $0.verbosity = verbosity }
    }

    func write(_ level: Level, _ message: String) {
        let line = message.onOneLine
        state.withLock { state in
            if level > state.verbosity { return }
            switch state.destination {
            case .standardError where StandardError.isJournal:
                StandardError.writeText("<\(level.priority)>\(line)\n")
            case .standardError: StandardError.write(level.prefix + line)
            case .syslog: cl_syslog(LOG_DAEMON | level.priority, line)
            }
        }
    }

    /// A text of several lines, each of which is an entry of its own and names the mount.
    func lines(_ level: Level, _ mountpoint: String, _ text: String) {
        for line in text.split(separator: "\n") { write(level, "\(mountpoint): \(line)") }
    }

    var isSyslog: Bool { state.withLock { $0.destination == .syslog } }

    func error(_ message: String) { write(.error, message) }
    func warning(_ message: String) { write(.warning, message) }
    func notice(_ message: String) { write(.notice, message) }
    func debug(_ message: String) { write(.debug, message) }
}
