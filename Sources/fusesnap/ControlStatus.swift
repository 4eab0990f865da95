internal import ArgumentParser
internal import ControlSocket

struct ControlStatus: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Tell what a mount and its snapshot are doing.")

    @Flag(help: "Print the status as JSON.")
    var json = false

    @Argument(help: "The mount.")
    var mountpoint: String

    func run() throws {
        let target = try MountTarget(mountpoint)
        let status = try target.request("cannot get the status of \(mountpoint)") {
            client throws(ControlClientError) in
            try client.status()
        }
        print(json ? status.jsonText : Self.summary(status))
    }

    static func summary(_ status: Status) -> String {
        var rows = [
            ("Mount point", status.mountpoint),
            ("Source", status.source),
            ("Store", status.store),
            ("Mode", "\(status.mode), io=\(status.io)" + (status.ioRequested == "auto" ? " (auto)" : "")),
            ("State", status.state.rawValue),
        ]
        if let started = status.started { rows.append(("Started", started)) }
        if status.state != .idle {
            rows.append(("Delta", ByteSize(bytes: status.deltaBytes).text))
            rows.append(("Changed areas", "\(status.changedAreas)"))
            rows.append(("Snapshot read", ByteSize(bytes: status.snapshotBytesRead).text))
        }
        if let stall = status.lastStallMicroseconds {
            rows.append(("Last stall", "\(stall / 1000).\(stall % 1000 / 100) ms"))
        }
        if status.sourceWatched == false {
            rows.append(("Not watched", "changes of the source past the mount are not seen"))
        }
        if let reason = status.inexactReason { rows.append(("Not exact", reason)) }
        rows.append(("Daemon", "process \(status.pid), version \(status.version)"))
        let width = (rows.map(\.0.count).max() ?? 0) + 2
        return rows.map { "\($0.0):".padded(to: width) + $0.1 }.joined(separator: "\n")
    }
}
