internal import ArgumentParser
internal import ControlSocket

struct ControlStop: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stop",
        abstract: "End the snapshot.",
        discussion: "Exits with 3 if the snapshot was not exact to its end.")

    @Flag(
        help:
            "Throw the changes since the start away (mode redirect only; not with --user, --group, --single-pass)."
    )
    var discard = false

    @Flag(help: "Print the report as JSON.")
    var json = false

    @Argument(help: "The mount.", completion: .directory)
    var mountpoint: String

    func run() throws {
        let attempt = "cannot stop the snapshot of \(mountpoint)"
        let target = try MountTarget(mountpoint, attempt)
        let options = StopOptions(discard: discard)
        let meter = ProgressMeter()
        defer { meter.end() }
        let report = try target.request(attempt) { client throws(ControlClientError) in
            if discard, try client.status().mode == Mode.preserve.rawValue {
                throw .failure(
                    ControlFailure(
                        .refused,
                        "--discard throws changes away, which only mode redirect can; in preserve "
                            + "they are in the "
                            + "source already: stop without it"))
            }
            return try client.stop(options) { meter.show($0) }
        }
        meter.end()
        var unwritten: CommandFailure?
        do throws(CommandFailure) {
            try StandardOutput.writeLine(json ? report.jsonText : Self.text(report))
        } catch {
            unwritten = CommandFailure(
                "the snapshot of \(mountpoint) has ended, but its report is lost: \(error.message)")
        }
        if !report.exact {
            let reason = report.reason ?? "the daemon gives no reason"
            StandardError.write(
                "the snapshot of \(mountpoint) was not exact to its end: \(reason); do not rely on "
                    + "a backup made "
                    + "from it, and make another")
            throw ExitCode.inexact
        }
        if let unwritten { throw unwritten }
    }

    private static func text(_ report: StopReport) -> String {
        let size = ByteSize(bytes: report.deltaBytes).text
        return "Snapshot ended: \(report.changedAreas) areas had changed, \(size) were kept for it"
    }
}

extension String {
    /// With blanks at the end.
    func padded(to width: Int) -> String {
        self + String(repeating: " ", count: max(0, width - count))
    }
}
