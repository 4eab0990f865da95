internal import ArgumentParser
internal import ControlSocket

struct ControlChanged: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "changed", abstract: "List what changed since the snapshot's start.",
        discussion: """
            By path, as at the start and now, with what changed: data (which bytes), attributes, created, removed, renamed, \
            linked, entries (of a directory), past_mount (beside the mount: what, is not known). Changes go on \
            meanwhile: each line is true of some moment during the call. With -0 each change is three fields that end \
            with a NUL byte: kinds, path at the start, path now; a path is empty where there is none. Exits with 3 where \
            the snapshot is not exact any more, and so the list not complete.
            """)

    @Flag(help: "Print the changes as JSON.")
    var json = false

    @Flag(name: [.customShort("0"), .customLong("null")], help: "Print fields that end with a NUL byte.")
    var null = false

    @Argument(help: "The mount.", completion: .directory)
    var mountpoint: String

    func validate() throws {
        if json && null { throw ValidationError("--json and -0 are two forms of the list: choose one") }
    }

    func run() throws {
        let attempt = "cannot list the changes of \(mountpoint)"
        let target = try MountTarget(mountpoint, attempt)
        // All of it is taken first: the daemon gives a client up that reads as slowly as a person does.
        var items: [ChangeItem] = []
        let report = try target.request(attempt) {
            client throws(ControlClientError) in
            try client.changed { items.append($0) }
        }
        items.sort { Self.key($0).lexicographicallyPrecedes(Self.key($1)) }
        if json {
            try printJSON(items, report)
        } else if null {
            for item in items { try StandardOutput.write(Self.fields(item)) }
        } else {
            for item in items { try StandardOutput.writeLine(Self.line(item)) }
        }
        if !report.exact {
            StandardError.write(
                "the list is not complete, since the snapshot of \(mountpoint) is not exact any more: "
                    + (report.reason ?? "the daemon gives no reason"))
            throw ExitCode.inexact
        }
    }

    private static func key(_ item: ChangeItem) -> [UInt8] { (item.pathAtCut ?? item.path)?.bytes ?? [] }

    private static func fields(_ item: ChangeItem) -> [UInt8] {
        func path(_ path: ChangePath?) -> [UInt8] {
            path.map { $0.bytes.isEmpty ? Array(".".utf8) : $0.bytes } ?? []
        }
        return Array(item.kinds.joined(separator: ",").utf8) + [0] + path(item.pathAtCut) + [0] + path(item.path)
            + [0]
    }

    /// One document, written piece by piece.
    private func printJSON(_ items: [ChangeItem], _ report: ChangesReport) throws {
        struct Head: Encodable {
            let schema = 1
            let started: String
            let exact: Bool
            let reason: String?
        }
        let head = Head(started: report.started, exact: report.exact, reason: report.reason).jsonLine.dropLast()
        try StandardOutput.writeLine(head + ",\"changes\":[")
        for (index, item) in items.enumerated() {
            try StandardOutput.writeLine(item.jsonLine + (index < items.count - 1 ? "," : ""))
        }
        try StandardOutput.writeLine("]}")
    }

    // MARK: For people

    private static func line(_ item: ChangeItem) -> String {
        var text = item.kinds.joined(separator: ",").padded(to: 20) + " "
        switch (item.pathAtCut, item.path) {
        case (let old?, let new?):
            text += old == new ? old.text.onOneLine : "\(old.text.onOneLine) -> \(new.text.onOneLine)"
        case (let old?, nil): text += old.text.onOneLine
        case (nil, let new?): text += new.text.onOneLine
        case (nil, nil): text += "(inode \(item.inode), whose name is not found)"
        }
        let details = details(item)
        return details.isEmpty ? text : text + "  (\(details.joined(separator: ", ")))"
    }

    private static func details(_ item: ChangeItem) -> [String] {
        var details: [String] = []
        if let entries = item.entries { details.append(entries == 1 ? "1 name" : "\(entries) names") }
        if !item.attributes.isEmpty { details.append(item.attributes.joined(separator: " ")) }
        if let range = item.ranges.first {
            let size = ByteSize(bytes: UInt64(item.bytes)).text
            details.append(
                item.ranges.count == 1 ? "\(size) at \(range.offset)" : "\(size) in \(item.ranges.count) ranges")
        } else if item.bytes > 0 {
            details.append(ByteSize(bytes: UInt64(item.bytes)).text)
        }
        return details
    }
}
