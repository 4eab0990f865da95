import ControlSocket

/// What `run --report` writes: the fields of `ctl stop --json`, and those of the command. `Docs/Json.md` is its
/// description.
struct RunReport: Encodable {
    private let mountpoint: String
    private let command: [String]
    private var started: StartReport?
    private var outcome: CommandRun.Outcome?
    var snapshot: StopReport?
    /// What `run` exits with.
    var exitCode: Int32 = 125
    /// Why there is no report of the snapshot's end.
    private var failure: String?

    init(mountpoint: String, command: [String]) {
        self.mountpoint = mountpoint
        self.command = command
    }

    mutating func began(_ report: StartReport) { started = report }
    mutating func ended(_ result: CommandRun.Outcome) { outcome = result }
    mutating func failed(_ message: String) { failure = message }

    private enum Key: String, CodingKey {
        case schema, exact, reason, mountpoint, command, version, cut, hooks
        case commandExitCode = "command_exit_code"
        case commandSignal = "command_signal"
        case commandStarted = "command_started"
        case commandEnded = "command_ended"
        case exitCode = "exit_code"
        case inPlace = "in_place"
    }

    func encode(to encoder: any Encoder) throws {
        var fields = encoder.container(keyedBy: Key.self)
        if let snapshot {
            try snapshot.encode(to: encoder)
        } else {
            // Nothing is known to be in order.
            try fields.encode(StopReport.currentSchema, forKey: .schema)
            try fields.encode(false, forKey: .exact)
            try fields.encode(failure ?? "the snapshot's end is not known", forKey: .reason)
            try fields.encode(Version.text, forKey: .version)
            try fields.encode(mountpoint, forKey: .mountpoint)
            try fields.encodeIfPresent(started?.started, forKey: .cut)
            try fields.encodeIfPresent(started?.hooks, forKey: .hooks)
        }
        try fields.encode(command, forKey: .command)
        try fields.encode(exitCode, forKey: .exitCode)
        guard let outcome, outcome.hasRun else { return }
        try fields.encode(outcome.isInPlace, forKey: .inPlace)
        if outcome.signal == nil { try fields.encode(outcome.exitCode, forKey: .commandExitCode) }
        try fields.encodeIfPresent(outcome.signal, forKey: .commandSignal)
        try fields.encode(outcome.began.rfc3339Nanoseconds, forKey: .commandStarted)
        try fields.encode(outcome.ended.rfc3339Nanoseconds, forKey: .commandEnded)
    }
}

/// The file that `--report` names.
struct ReportFile {
    private let path: String
    private let file: OutputFile

    /// Makes sure that it can be written, as far as that can be known before.
    init(_ path: String) throws(CommandFailure) {
        self.path = path
        do throws(OutputFile.Problem) {
            file = try OutputFile(path, mode: 0o600)
        } catch {
            throw Self.failure(path, error)
        }
    }

    private static func failure(_ path: String, _ problem: OutputFile.Problem) -> CommandFailure {
        CommandFailure("the report \(path) cannot be written: \(problem.text)")
    }

    func write(_ report: RunReport) throws(CommandFailure) {
        do throws(OutputFile.Problem) {
            try file.write(report.jsonText + "\n")
        } catch {
            throw Self.failure(path, error)
        }
    }
}
