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
        let line = Self.singleLine(message)
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

    func error(_ message: String) { write(.error, message) }
    func warning(_ message: String) { write(.warning, message) }
    func notice(_ message: String) { write(.notice, message) }
    func debug(_ message: String) { write(.debug, message) }

    /// A file's name may hold a line break, and must not forge a line of the log.
    private static func singleLine(_ message: String) -> String {
        guard message.utf8.contains(where: { $0 < 0x20 || $0 == 0x7f }) else { return message }
        return message.unicodeScalars.reduce(into: "") { line, scalar in
            line += scalar.value < 0x20 || scalar.value == 0x7f ? "?" : String(scalar)
        }
    }
}
