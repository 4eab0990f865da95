internal import ArgumentParser
internal import ControlSocket

struct ControlStart: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "start",
        abstract: "Begin a snapshot.",
        discussion: "Returns when the cut is made: the snapshot is there until `ctl stop`.")

    @Flag(help: "Print the report as JSON.")
    var json = false

    @Option(
        help: ArgumentHelp(
            "For how long an attempt to freeze the files that are open for writing may stall applications.",
            valueName: "milliseconds"))
    var stallMax: Int = 200

    @Option(help: ArgumentHelp("How often that is tried.", valueName: "number"))
    var attempts: Int = 25

    @Argument(help: "The mount.")
    var mountpoint: String

    func validate() throws {
        if !(1...600_000).contains(stallMax) {
            throw ValidationError("--stall-max needs a number of milliseconds from 1 to 600000")
        }
        if !(1...10_000).contains(attempts) {
            throw ValidationError("--attempts needs a number from 1 to 10000")
        }
    }

    func run() throws {
        let target = try MountTarget(mountpoint)
        let report = try target.request("cannot start a snapshot of \(mountpoint)") {
            client throws(ControlClientError) in
            try client.start(StartOptions(stallMaxMilliseconds: stallMax, attemptsMax: attempts))
        }
        if json {
            print(report.jsonText)
            return
        }
        let place = report.snapshotDirectory ?? "\(target.mountpoint)/.snapshot"
        print("Snapshot started at \(report.started); read it at \(place)")
    }
}
