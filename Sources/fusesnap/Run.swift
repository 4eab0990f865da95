internal import ArgumentParser
internal import ControlSocket
internal import Glibc
internal import SystemPackage

struct Run: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run",
        abstract: "Begin a snapshot, run a command that reads it, and end it.",
        usage: "fusesnap run [<options>] <mountpoint> -- <command> ...",
        discussion: """
            The command sees the snapshot at the mount point itself, in a mount namespace of its own, so that a backup \
            program stores the same paths every time. The snapshot ends with the command, whatever becomes of it, and \
            also where fusesnap itself is killed.

            In the command's environment: FUSESNAP_SNAPSHOT, the directory that shows the snapshot; \
            FUSESNAP_MOUNTPOINT; FUSESNAP_STARTED, the instant of the cut.

            Exit codes: those of the command, 128+N where signal N ended it; 125 where fusesnap failed, or the \
            snapshot was not exact to its end although the command succeeded; 126 the command cannot be executed; 127 \
            it is not found; 64 wrong usage.
            """)

    @OptionGroup var stall: StallOptions

    @OptionGroup var scope: ScopeOptions

    @OptionGroup(title: "Hooks") var hooks: HookOptions

    @Option(
        help:
            "Whether the command sees the snapshot at the mount point: auto, always, or never (then only FUSESNAP_SNAPSHOT leads to it)."
    )
    var inPlace: InPlaceChoice = .auto

    @Option(
        help: ArgumentHelp(
            "Write what the backup may claim to this file, as JSON (Json.md describes it).", valueName: "file"),
        completion: .file())
    var report: String?

    @Argument(help: "The mount.", completion: .directory)
    var mountpoint: String

    @Argument(parsing: .postTerminator, help: ArgumentHelp("The command and its arguments.", valueName: "command"))
    var command: [String] = []

    enum InPlaceChoice: String, ExpressibleByArgument, CaseIterable {
        case auto, always, never
    }

    func validate() throws {
        if command.isEmpty {
            throw ValidationError(
                "there is no command to run; name it after `--`: fusesnap run MOUNTPOINT -- COMMAND...")
        }
        if command.first == "" { throw ValidationError("the command's name is empty") }
        if report == "" { throw ValidationError("--report needs the name of a file") }
    }

    func run() throws {
        throw ExitCode(try runBackup())
    }

    private func runBackup() throws(CommandFailure) -> Int32 {
        do throws(CommandFailure) {
            return try Backup.run(self)
        } catch {
            throw CommandFailure(error.message, exitCode: .runFailed)
        }
    }

    /// The command's words, byte for byte: arguments need not be UTF-8.
    static func rawWords(_ count: Int) -> [UnsafeMutablePointer<CChar>?] {
        let total = Int(CommandLine.argc)
        return (total - count..<total).map { CommandLine.unsafeArgv[$0] } + [nil]
    }
}

/// What `run` does, from the first check to the report.
private struct Backup {
    private let arguments: Run
    private let signals: SignalReceiver
    private let target: MountTarget
    private let start: SnapshotStart

    /// Runs the command and writes the report, whatever happens on the way.
    static func run(_ arguments: Run) throws(CommandFailure) -> Int32 {
        let file = try arguments.report.map { (path) throws(CommandFailure) in try ReportFile(path) }
        var report = RunReport(mountpoint: Paths.absolute(arguments.mountpoint), command: arguments.command)
        let code: Int32
        do throws(CommandFailure) {
            code = try Backup(arguments).run(&report)
        } catch {
            report.failed(error.message)
            if let problem = write(report, to: file) { StandardError.write(problem.message) }
            throw error
        }
        if let problem = write(report, to: file) {
            if code == 0 { throw problem }
            StandardError.write(problem.message)
        }
        return code
    }

    private static func write(_ report: RunReport, to file: ReportFile?) -> CommandFailure? {
        do throws(CommandFailure) {
            try file?.write(report)
            return nil
        } catch {
            return error
        }
    }

    /// Checks all that can be checked; nothing has begun yet.
    private init(_ arguments: Run) throws(CommandFailure) {
        self.arguments = arguments
        do throws(Errno) {
            signals = try SignalReceiver()
        } catch {
            throw CommandFailure("cannot take signals by descriptor: \(error)")
        }
        target = try MountTarget(arguments.mountpoint, "cannot start a snapshot of \(arguments.mountpoint)")
        var start = try SnapshotStart(target, arguments.stall, arguments.hooks, signals)
        do {
            start.options = try arguments.scope.resolve(start.options)
        } catch {
            // It was valid a moment ago.
            throw CommandFailure("cannot start a snapshot of \(target.path): \(error)")
        }
        start.options.leaseConnection = true
        self.start = start
    }

    private func run(_ report: inout RunReport) throws(CommandFailure) -> Int32 {
        var client: ControlClient
        do throws(ControlClientError) {
            client = try target.connect()
        } catch {
            throw target.failure("cannot start a snapshot of \(target.path)", error)
        }
        let started = try start.start(&client)
        // From here on the snapshot ends with the connection, where nobody gets to ending it.
        report.began(started)
        let outcome = CommandRun(arguments, target, started, signals).run()
        report.ended(outcome)
        let stopped = try stop(&client, started, outcome)
        report.snapshot = stopped
        let code = try exitCode(outcome, stopped)
        report.exitCode = code
        return code
    }

    private func stop(
        _ client: inout ControlClient, _ started: StartReport, _ outcome: CommandRun.Outcome
    ) throws(CommandFailure) -> StopReport {
        do throws(ControlClientError) {
            return try client.stop(StopOptions(snapshot: started.snapshot)) { _ in }
        } catch {
            if let problem = outcome.problem { StandardError.write(problem) }
            throw target.failure(
                "the snapshot of \(target.path) did not last until its command ended; do not rely on a backup made from"
                    + " it, and make another", error)
        }
    }

    private func exitCode(
        _ outcome: CommandRun.Outcome, _ stopped: StopReport
    ) throws(CommandFailure) -> Int32 {
        if let problem = outcome.problem { StandardError.write(problem) }
        if !stopped.exact {
            StandardError.write(
                "the snapshot of \(target.path) was not exact to its end:"
                    + " \(stopped.reason ?? "the daemon gives no reason"); do not rely on a backup made from it, and"
                    + " make another")
            if outcome.exitCode == 0 { return ExitCode.runFailed.rawValue }
        }
        return outcome.exitCode
    }
}
