internal import ArgumentParser
internal import ControlSocket

struct ControlMetrics: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "metrics", abstract: "Tell figures of all mounts, for Prometheus.",
        discussion: """
            In OpenMetrics text, which node_exporter's textfile collector takes too: --output replaces the file at one \
            stroke.
            """)

    @Option(
        help: ArgumentHelp("Write to this file instead of standard output.", valueName: "file"),
        completion: .file())
    var output: String?

    func validate() throws {
        if output?.isEmpty == true { throw ValidationError("--output needs the path of a file") }
    }

    func run() throws {
        let text = Metrics(try MountListing.current()).text
        guard let output else { return try StandardOutput.write(text.utf8) }
        do throws(OutputFile.Problem) {
            // The collector is another user.
            try OutputFile(output, mode: 0o644).write(text)
        } catch {
            throw CommandFailure("cannot write the metrics to \(output): \(error.text)")
        }
    }
}

/// Figures of mounts in OpenMetrics text. Gauges alone: the text format before OpenMetrics, which the textfile
/// collector reads, has the same lines for them.
struct Metrics {
    private let listing: MountListing

    init(_ listing: MountListing) {
        self.listing = listing
    }

    private struct Family: Sendable {
        let name: String
        let help: String
        var unit: String?
        let value: @Sendable (MountListing.Item) -> Double?
    }

    private static let families = [
        Family(name: "up", help: "Whether the daemon of the mount answers.") { $0.status == nil ? 0 : 1 },
        Family(name: "snapshot_active", help: "Whether a snapshot is active.") {
            $0.status.map { $0.state == .idle ? 0 : 1 }
        },
        Family(name: "snapshot_exact", help: "Whether the active snapshot is exact.") { item in
            item.active.map { $0.inexactReason == nil ? 1 : 0 }
        },
        Family(
            name: "snapshot_start_timestamp_seconds", help: "The instant of the active snapshot.", unit: "seconds"
        ) { $0.active?.started.flatMap { Instant.seconds($0) } },
        Family(name: "snapshot_delta_bytes", help: "What is kept for the active snapshot.", unit: "bytes") {
            $0.active.map { Double($0.deltaBytes) }
        },
        Family(name: "delta_limit_bytes", help: "What may be kept for a snapshot (--max-delta).", unit: "bytes") {
            $0.status?.deltaBytesMax.map { Double($0) }
        },
        Family(name: "merge_bytes", help: "What the merge that goes on has to put in its place.", unit: "bytes") {
            $0.status?.merge.map { Double($0.bytesTotal) }
        },
        Family(name: "merge_done_bytes", help: "What of that it has put there.", unit: "bytes") {
            $0.status?.merge.map { Double($0.bytesDone) }
        },
        Family(
            name: "snapshot_changed_areas", help: "Blocks, names and sets of attributes changed since the start."
        ) { $0.active.map { Double($0.changedAreas) } },
        Family(name: "snapshot_read_bytes", help: "What was read of the active snapshot.", unit: "bytes") {
            $0.active.map { Double($0.snapshotBytesRead) }
        },
        Family(name: "source_watched", help: "Whether changes past the mount are seen by the active snapshot.") {
            $0.active?.sourceWatched.map { $0 ? 1 : 0 }
        },
        Family(
            name: "last_stall_seconds", help: "For how long the last start may have stalled applications.",
            unit: "seconds"
        ) { $0.status?.lastStallMicroseconds.map { Double($0) / 1e6 } },
    ]

    var text: String {
        var lines: [String] = []
        for family in Self.families {
            let name = "fusesnap_" + family.name
            lines.append("# TYPE \(name) gauge")
            if let unit = family.unit { lines.append("# UNIT \(name) \(unit)") }
            lines.append("# HELP \(name) \(family.help)")
            // Whether another user's daemon answers is not known.
            for item in listing.mounts where item.mountpoint != nil && item.state != .denied {
                guard let value = family.value(item) else { continue }
                lines.append("\(name){\(Self.labels(item))} \(Self.number(value))")
            }
        }
        return lines.joined(separator: "\n") + "\n# EOF\n"
    }

    private static func labels(_ item: MountListing.Item) -> String {
        let pairs = [
            ("mountpoint", item.mountpoint ?? ""), ("source", item.source ?? ""),
            // Mounts in two mount name spaces may have the same place.
            ("namespace", item.visible ? "" : item.socket ?? ""),
        ]
        return pairs.filter { !$0.1.isEmpty }.map { "\($0.0)=\"\(escape($0.1))\"" }.joined(separator: ",")
    }

    static func escape(_ value: String) -> String {
        value.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"").replacing("\n", with: "\\n")
    }

    private static func number(_ value: Double) -> String {
        value == value.rounded() && abs(value) < 1e15 ? "\(Int64(value))" : "\(value)"
    }
}

extension MountListing.Item {
    /// The status where a snapshot is active.
    fileprivate var active: Status? { status.flatMap { $0.state == .idle ? nil : $0 } }
}
