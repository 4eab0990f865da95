internal import ArgumentParser
internal import ControlSocket
internal import Glibc

struct Doctor: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor",
        abstract: "Check what works on this machine, and say how to mend what does not.",
        discussion: """
            With PATH it also checks the directory, as one that is to be mounted. Nothing is changed. Exits with 0 where \
            all that is needed works, with 1 otherwise.
            """)

    @Flag(help: "Print the findings as JSON.")
    var json = false

    @Argument(help: "A directory to be mounted, or a mount.", completion: .directory)
    var path: String?

    func validate() throws {
        if path?.isEmpty == true { throw ValidationError("PATH is empty; name a directory") }
    }

    func run() throws {
        var findings = MachineChecks().findings()
        if let path { findings += PathChecks(path).findings() }
        let report = DoctorReport(findings: findings)
        if json {
            try StandardOutput.writeLine(report.jsonText)
        } else {
            for finding in findings { try StandardOutput.writeLine(finding.text) }
        }
        if !report.healthy { throw ExitCode.failed }
    }
}

/// What `doctor` found.
struct DoctorReport: Encodable {
    var schema = 1
    /// Whether all that is needed works.
    var healthy: Bool
    var findings: [Finding]

    init(findings: [Finding]) {
        self.findings = findings
        healthy = !findings.contains { $0.verdict == .problem }
    }
}

struct Finding: Encodable, Equatable {
    enum Verdict: String, Encodable {
        case ok
        /// Something that not everybody needs does not work.
        case note
        /// It works, and may stop to.
        case warning
        /// It does not work.
        case problem
    }

    /// What was looked at, for programs.
    var check: String
    var verdict: Verdict
    var message: String
    /// How to mend it.
    var advice: String?

    init(_ check: String, _ verdict: Verdict, _ message: String, _ advice: String? = nil) {
        self.check = check
        self.verdict = verdict
        self.message = message
        self.advice = advice
    }

    var text: String {
        let head = (verdict == .problem ? "PROBLEM" : verdict.rawValue).padded(to: 9)
        return head + message.onOneLine
            + (advice.map { "\n" + String(repeating: " ", count: 9) + "-> " + $0 } ?? "")
    }
}
