import ArgumentParser
import ControlSocket
import FoundationEssentials
import Glibc

struct StartCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "start", abstract: "Start a snapshot: take the cut.")

    @Flag(help: "Print what was done as JSON.")
    var json = false

    @Argument(help: "The mount point.", completion: .directory)
    var mountpoint: String

    func run() throws {
        try exiting { () throws(CommandFailure) in
            let connection = try MountConnection(mountpoint)
            guard let started = try connection.send(Request(.start)).started else {
                throw CommandFailure("\(mountpoint): the daemon's answer was not understood")
            }
            if json { return printJSON(started) }
            print("Snapshot started at \(started.started): read it in \(started.snapshot)")
        }
    }
}

struct StopCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stop", abstract: "Stop the snapshot, and give its space back.",
        discussion:
            "The exit code is 3 if the snapshot was not exact to its end: a backup of it is not to be trusted.")

    @Flag(help: "Redirect mode: throw away what changed since the start.")
    var discard = false

    @Flag(help: "Print what was done as JSON.")
    var json = false

    @Argument(help: "The mount point.", completion: .directory)
    var mountpoint: String

    func run() throws {
        try exiting { () throws(CommandFailure) in
            let connection = try MountConnection(mountpoint)
            let request = Request(.stop, discard: discard)
            guard let stopped = try connection.send(request).stopped else {
                throw CommandFailure("\(mountpoint): the daemon's answer was not understood")
            }
            if json {
                printJSON(stopped)
            } else if stopped.exact {
                print(
                    "Snapshot of \(stopped.started) stopped: exact to its end; \(stopped.changedAreas) areas changed,"
                        + " \(humanBytes(stopped.deltaBytes)) stored for it")
            }
            if !stopped.exact {
                throw CommandFailure(
                    "\(mountpoint): the snapshot of \(stopped.started) was not exact to its end"
                        + " (\(stopped.inexactReason ?? "no reason known")): do not trust a backup of it",
                    status: ExitStatus.inexact)
            }
        }
    }
}

struct StatusCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Show the state of a mount and its snapshot.")

    @Flag(help: "Print it as JSON.")
    var json = false

    @Argument(help: "The mount point.", completion: .directory)
    var mountpoint: String

    func run() throws {
        try exiting { () throws(CommandFailure) in
            let connection = try MountConnection(mountpoint)
            guard let status = try connection.send(Request(.status)).status else {
                throw CommandFailure("\(mountpoint): the daemon's answer was not understood")
            }
            if json { return printJSON(status) }
            var rows = [
                ("mount point", status.mountpoint), ("source", status.source),
                ("store", status.store), ("mode", status.mode), ("I/O", status.io),
                ("daemon", "process \(status.pid), version \(status.version)"),
                ("state", status.state.rawValue),
            ]
            if let started = status.started {
                rows += [
                    ("started", started), ("changed areas", "\(status.changedAreas)"),
                    ("stored", humanBytes(status.deltaBytes)),
                    ("read from it", humanBytes(status.snapshotBytesRead)),
                ]
            }
            if let reason = status.inexactReason { rows.append(("not exact", reason)) }
            let width = rows.map(\.0.count).max() ?? 0
            for (name, value) in rows {
                print(name + String(repeating: " ", count: width - name.count + 2) + value)
            }
        }
    }
}

private func printJSON(_ value: some Encodable) {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    do {
        print(String(decoding: try encoder.encode(value), as: UTF8.self))
    } catch {
        preconditionFailure("a report can be encoded: \(error)")
    }
}

/// A number of bytes for people: three digits and a unit.
func humanBytes(_ bytes: UInt64) -> String {
    var value = Double(bytes)
    var unit = 0
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024, unit + 1 < units.count {
        value /= 1024
        unit += 1
    }
    if unit == 0 { return bytes == 1 ? "1 byte" : "\(bytes) bytes" }
    let tenths = Int((value * 10).rounded())
    return value >= 100 ? "\(tenths / 10) \(units[unit])" : "\(tenths / 10).\(tenths % 10) \(units[unit])"
}
