internal import ArgumentParser
internal import ControlSocket

struct ControlList: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "List the fusesnap mounts of this machine.",
        discussion:
            "Dead ones too, and those in other mount name spaces; another user's mounts without their state.")

    @Flag(help: "Print the list as JSON.")
    var json = false

    func run() throws {
        let listing = try MountListing.current()
        if json { return try StandardOutput.writeLine(listing.jsonText) }
        if listing.mounts.isEmpty {
            try StandardOutput.writeLine("No fusesnap mounts")
        } else {
            try Self.printTable(listing)
        }
        let stale = listing.staleSockets.count
        if stale > 0 {
            try StandardOutput.writeLine(
                stale == 1
                    ? "1 control socket of a daemon that was killed is left; it does no harm"
                    : "\(stale) control sockets of daemons that were killed are left; they do no harm"
            )
        }
        for item in listing.mounts {
            if let problem = item.problem { try StandardOutput.writeLine("\(Self.name(item)): \(problem)") }
        }
    }

    private static func printTable(_ listing: MountListing) throws(CommandFailure) {
        // The paths last: they are of any length, and on a terminal only they are to go on to the next line.
        var rows = [["STATE", "AGE", "DELTA", "USER", "MOUNT"]]
        let now = Instant.secondsNow
        for item in listing.mounts {
            let status = item.status.flatMap { $0.state == .idle ? nil : $0 }
            let age = status?.started.flatMap { Instant.seconds($0) }.map { Instant.span(now - $0) }
            rows.append([
                state(item), age ?? "-", status.map { ByteSize(bytes: $0.deltaBytes).text } ?? "-", "\(item.user)",
                name(item)
                    + (item.source == item.mountpoint ? "" : item.source.map { " of \($0.onOneLine)" } ?? ""),
            ])
        }
        let widths = rows[0].indices.map { column in (rows.map { $0[column].count }.max() ?? 0) + 2 }
        for row in rows {
            let line = zip(row, widths).map { $0.padded(to: $1) }.joined()
            try StandardOutput.writeLine(String(line.reversed().drop { $0 == " " }.reversed()))
        }
    }

    private static func name(_ item: MountListing.Item) -> String {
        (item.mountpoint ?? item.socket)?.onOneLine ?? "?"
    }

    static func state(_ item: MountListing.Item) -> String {
        let exact = item.status?.inexactReason == nil ? "" : ", not exact"
        let progress = item.status?.merge.map { " \(ProgressText($0).percent) %" } ?? ""
        return item.state.rawValue + progress + exact + (item.visible || item.status == nil ? "" : " (elsewhere)")
    }
}
