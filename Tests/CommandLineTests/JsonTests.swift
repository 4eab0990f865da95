import SystemPackage
import TestSupport
import Testing

/// What `--json` prints is what Docs/Json.md describes.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct JsonTests {
    /// The part of the description that has a verb's fields, with what other parts say of what is in them.
    private static func fields(_ headings: [String]) throws -> Set<Substring> {
        let package = Path(#filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined())
        let text = String(decoding: try (package / "Docs/Json.md").contents(), as: UTF8.self)
        let parts = text.split(separator: "\n## ").filter { part in headings.contains { part.hasPrefix("`\($0)") }
        }
        #expect(parts.count == headings.count, "\(headings)")
        var names: Set<Substring> = []
        for line in parts.joined(separator: "\n").split(separator: "\n") where line.hasPrefix("| `") {
            // The first column, between back quotes.
            let column = line.split(separator: "|")[0]
            names.formUnion(column.split(separator: "`").filter { !$0.contains(" ") })
        }
        return names
    }

    /// The names of a document's fields.
    private static func keys(_ json: String) -> Set<Substring> {
        Set(
            json.split(separator: "\n").compactMap { line in
                let words = line.split(separator: "\"", omittingEmptySubsequences: false)
                return words.count > 2 && words[2].hasPrefix(" :") ? words[1] : nil
            })
    }

    private func check(_ json: String, _ headings: [String], has names: Set<Substring> = []) throws {
        let keys = Self.keys(json)
        #expect(json.contains("\"schema\" : 1"), "\(json)")
        let known = try Self.fields(headings)
        #expect(keys.subtracting(known).subtracting(["schema"]) == [], "not described: \(headings)")
        #expect(names.subtracting(keys) == [], "\(json)")
    }

    @Test("every field of every document is described, and each document has its schema")
    func documents() throws {
        try MountedSource.with(options: ["--max-delta", "1G"]) { mount in
            let ctl = [Machine.binary, "ctl"]
            let hook = mount.top / "hook"
            try hook.create(Array("#!/bin/sh\n".utf8), mode: 0o755)
            try (mount.mountpoint / "file").create(bytes(10_000))
            let holder = try Child(["sleep", "1000"])
            defer { holder.signal(9) }
            let start = ["start", "--json", "--hook", hook.string, "--lease", "\(holder.pid)", "--ttl", "1h"]
            let point = mount.mountpoint.string
            try check(
                try succeed(ctl + start + [point]), ["ctl start", "ctl stop"],
                has: ["started", "snapshot", "snapshot_directory", "stall_microseconds", "hooks", "outcome"])
            try (mount.mountpoint / "file").write(bytes(100, seed: 4), at: 0)
            try check(
                try succeed(ctl + ["status", "--json", point]), ["ctl status"],
                has: ["state", "started", "lease", "process", "command", "expires", "delta_bytes_max"])
            try check(
                try succeed(ctl + ["list", "--json"]), ["ctl list", "ctl status"], has: ["mounts", "visible"])
            try check(
                try succeed(ctl + ["stop", "--json", point]), ["ctl stop"],
                has: ["exact", "level", "hooks", "cut", "changed_files", "gate_microseconds"])
            let report = (mount.top / "report").string
            #expect(try mount.runCommand(["--report", report], ["true"]).code == 0)
            try check(
                String(decoding: try Path(report).contents(), as: UTF8.self), ["ctl stop"],
                has: ["command", "command_exit_code", "in_place", "exit_code"])
            let found = try run([Machine.binary, "doctor", "--json", mount.top.string])
            try check(found.output, ["doctor"], has: ["healthy", "findings", "check", "verdict"])
        }
    }
}
