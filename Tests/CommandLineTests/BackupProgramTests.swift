import SystemPackage
import TestSupport
import Testing

/// Backup programs that know files again by their path.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct BackupProgramTests {
    private static let fileCount = 20

    private func fill(_ directory: Path) throws {
        try (directory / "d").mkdir()
        for number in 0..<Self.fileCount {
            try (directory / "d" / Path("file\(number)")).create(bytes(30_000, seed: UInt64(number + 1)))
        }
    }

    /// A number of a line of JSON.
    private func number(_ name: String, _ line: Substring) -> Int {
        MountStatus(json: String(line)).number(name)
    }

    @Test(
        "restic's second backup of an unchanged tree reads no file again, and knows its parent",
        .enabled(if: Machine.has("restic"), "restic is not installed"))
    func restic() throws {
        try MountedSource.with { mount in
            try fill(mount.mountpoint)
            let environment = [
                "RESTIC_REPOSITORY": (mount.top / "repository").string, "RESTIC_PASSWORD": "x",
                "RESTIC_CACHE_DIR": (mount.top / "cache").string,
            ]
            try succeed(["restic", "init"], environment: environment)
            let command = ["restic", "backup", "--json", "--host", "test", mount.mountpoint.string]
            func backUp() throws -> (summary: Substring, read: Int) {
                let report = (mount.top / "report").string
                let words = mount.runWords(["--report", report], command)
                let finished = try TestSupport.run(words, environment: environment)
                if finished.code != 0 { throw TestFailure(finished.description) }
                let summary = finished.output.split(separator: "\n").last { $0.contains("\"summary\"") }
                let json = String(decoding: try Path(report).contents(), as: UTF8.self)
                return (summary ?? "", MountStatus(json: json).number("snapshot_bytes_read"))
            }
            let first = try backUp()
            #expect(number("files_new", first.summary) == Self.fileCount, "\(first)")
            #expect(first.read >= Self.fileCount * 30_000)
            let second = try backUp()
            #expect(number("files_unmodified", second.summary) == Self.fileCount, "\(second)")
            #expect(number("files_new", second.summary) == 0 && number("files_changed", second.summary) == 0)
            #expect(number("data_blobs", second.summary) == 0)
            #expect(second.read == 0, "\(second)")
            try (mount.mountpoint / "d/file3").write(bytes(10, seed: 99), at: 0)
            let third = try backUp()
            #expect(number("files_changed", third.summary) == 1, "\(third)")
            #expect(third.read == 30_000)
            let listed = try succeed(["restic", "ls", "latest"], environment: environment)
            #expect(listed.contains("\(mount.mountpoint)/d/file3\n") && !listed.contains(".snapshot"), "\(listed)")
        }
    }

    @Test(
        "borg finds the same paths, and its second backup reads no file again",
        .enabled(if: Machine.has("borg"), "borg is not installed"))
    func borg() throws {
        try MountedSource.with { mount in
            try fill(mount.mountpoint)
            let environment = [
                "BORG_REPO": (mount.top / "repository").string, "BORG_BASE_DIR": mount.top.string,
                "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            ]
            try succeed(["borg", "init", "--encryption=none"], environment: environment)
            // borg does not take a file for unchanged whose time of change is the newest of all.
            let newest = mount.mountpoint / "newest"
            try waitForClockTick()
            try newest.create()
            func backUp(_ name: String) throws -> (lines: [Substring], read: Int) {
                let command = ["borg", "create", "--list", "::\(name)", mount.mountpoint.string]
                let report = (mount.top / "report").string
                let words = mount.runWords(["--report", report], command)
                let finished = try TestSupport.run(words, environment: environment)
                if finished.code != 0 { throw TestFailure(finished.description) }
                let json = String(decoding: try Path(report).contents(), as: UTF8.self)
                return (
                    finished.errors.split(separator: "\n"), MountStatus(json: json).number("snapshot_bytes_read")
                )
            }
            let prefix = mount.mountpoint.string
            let first = try backUp("first")
            #expect(first.read >= Self.fileCount * 30_000, "\(first)")
            #expect(first.lines.count { $0.hasPrefix("A \(prefix)/d/file") } == Self.fileCount, "\(first)")
            let second = try backUp("second")
            #expect(second.read == 0, "\(second)")
            #expect(second.lines.count { $0.hasPrefix("U \(prefix)/d/file") } == Self.fileCount, "\(second)")
        }
    }

    @Test(
        "the README's picture is drawn from a run: torn backups without fusesnap, none with it",
        .enabled(if: Machine.has("restic") && Machine.has("python3"), "restic or python3 is not installed"))
    func picture() throws {
        try TemporaryDirectory.with { top in
            let parts = #filePath.split(separator: "/").dropLast(2)
            let script = "/" + parts.joined(separator: "/") + "/Scripts/picture"
            let picture = (top / "torn.svg").string
            let words = ["--base", top.string, "--rounds", "3", "--accounts", "60000"]
            try succeed(["python3", script, Machine.binary, picture] + words, seconds: 300)
            try succeed(["python3", "-c", "import sys, xml.dom.minidom as x; x.parse(sys.argv[1])", picture])
            let text = String(decoding: try Path(picture).contents(), as: UTF8.self)
            #expect(text.contains(" of 3 backups torn") && text.contains(">0 of 3 backups torn"))
            #expect(text.contains("fusesnap run /srv/data -- restic backup /srv/data"))
        }
    }
}
