internal import ArgumentParser
internal import ControlSocket

struct ControlStart: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "start",
        abstract: "Begin a snapshot.",
        discussion: "Returns when the cut is made: the snapshot is there until `ctl stop`.")

    @Flag(help: "Print the report as JSON.")
    var json = false

    @Argument(help: "The mount.")
    var mountpoint: String

    func run() throws {
        let target = try MountTarget(mountpoint)
        let report = try target.request("cannot start a snapshot of \(mountpoint)") {
            client throws(ControlClientError) in
            try client.start(StartOptions())
        }
        if json {
            print(report.jsonText)
            return
        }
        let place = report.snapshotDirectory ?? "\(target.mountpoint)/.snapshot"
        print("Snapshot started at \(report.started); read it at \(place)")
    }
}
