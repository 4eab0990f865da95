import Glibc
import SystemPackage
import TestSupport
import Testing

/// Each wrong use of the program: the exit code, a message that names the trouble, and nothing changed.
@Suite(.serialized) struct BadInputTests {
    /// Runs the program in a directory with `source` (a file in it), `mnt`, `empty` and `file`, and checks that it
    /// failed as it should and left all as it was.
    private func refuse(
        _ words: [String], code: Int32 = 1, saying parts: [String], prepare: (Path) throws -> Void = { _ in },
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mnt", "empty"] { try (top / name).mkdir() }
            try (top / "source/file").create(bytes(100))
            try (top / "file").create(bytes(10))
            try prepare(top)
            let before = try Self.capture(top)
            let finished = try run([Machine.binary] + words, in: top, seconds: 30)
            #expect(finished.code == code, "\(finished)", sourceLocation: sourceLocation)
            for part in parts {
                #expect(finished.errors.contains(part), "\(finished)", sourceLocation: sourceLocation)
            }
            #expect(try Self.capture(top) == before, sourceLocation: sourceLocation)
            #expect(try !mounts().contains { $0.point.isWithin(top) }, sourceLocation: sourceLocation)
        }
    }

    /// All facts but the root's, with the store's place, which a capture leaves out.
    private static func capture(_ top: Path) throws -> [Path: [Fact: String]] {
        var files = try TreeCapture(top).files
        for (path, facts) in try TreeCapture(top / "source").files { files["in source" / path] = facts }
        if (top / "source/.fusesnap").exists { files["store"] = [:] }
        return files
    }

    @Test(
        "wrong usage exits with 64 and says what is wrong",
        arguments: [
            (["mount"], "SOURCE"), (["mount", "--nonsense", "source", "mnt"], "--nonsense"),
            (["mount", "-o", "nonsense", "source", "mnt"], "nonsense"),
            (["mount", "-o", "io=nonsense", "source", "mnt"], "nonsense"),
            (["mount", "-o", "attr_timeout=soon", "source", "mnt"], "attr_timeout"),
            (["mount", "--mode", "nonsense", "source", "mnt"], "nonsense"),
            (["mount", "--max-delta", "much", "source", "mnt"], "much"),
            (["mount", "--max-delta", "-1", "source", "mnt"], "max-delta"),
            (["mount", "source", "mnt", "more"], "more"), (["mount", "", "mnt"], "SOURCE"),
            (["unmount"], "MOUNTPOINT"),
            (["ctl", "start"], "mountpoint"), (["ctl", "nonsense", "mnt"], "nonsense"), (["nonsense"], "nonsense"),
            (["unmount", "--nonsense", "mnt"], "--nonsense"),
        ])
    func usage(_ words: [String], _ part: String) throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mnt"] { try (top / name).mkdir() }
            let finished = try run([Machine.binary] + words, in: top, seconds: 30)
            #expect(finished.code == 64, "\(finished)")
            #expect(finished.errors.lowercased().contains(part.lowercased()), "\(finished)")
            #expect(try !mounts().contains { $0.point.isWithin(top) })
            #expect(try (top / "source").entries() == [])
        }
    }

    @Test("a source that does not exist") func noSource() throws {
        try refuse(["mount", "none", "mnt"], saying: ["none", "exist"])
    }

    @Test("a source that is a file") func fileAsSource() throws {
        try refuse(["mount", "file", "mnt"], saying: ["file", "not a directory"])
    }

    @Test("a mount point that does not exist") func noMountPoint() throws {
        try refuse(["mount", "source", "none"], saying: ["none", "exist"])
    }

    @Test("a mount point that is a file") func fileAsMountPoint() throws {
        try refuse(["mount", "source", "file"], saying: ["file", "not a directory"])
    }

    @Test("a mount point inside the source, and the other way round") func nested() throws {
        try refuse(["mount", "source", "source/inner"], saying: ["inner", "source"]) {
            try ($0 / "source/inner").mkdir()
        }
        try refuse(["mount", "source/inner", "source"], saying: ["inner"]) { try ($0 / "source/inner").mkdir() }
    }

    @Test("a source with an entry named .snapshot: the message names the option") func snapshotInSource() throws {
        for kind in ["file", "directory"] {
            try refuse(["mount", "source", "mnt"], saying: [".snapshot", "-o snapshot_dir"]) { top in
                if kind == "file" {
                    try (top / "source/.snapshot").create()
                } else {
                    try (top / "source/.snapshot").mkdir()
                }
            }
        }
    }

    @Test("a store that is a file, or the source's own name for one") func fileAsStore() throws {
        try refuse(["mount", "--store", "file", "source", "mnt"], saying: ["file"])
        try refuse(["mount", "source", "mnt"], saying: [".fusesnap"]) { try ($0 / "source/.fusesnap").create() }
    }

    @Test("a store below a directory that does not exist") func storeNowhere() throws {
        try refuse(["mount", "--store", "none/store", "source", "mnt"], saying: ["none/store"])
    }

    @Test("paths that are not a fusesnap mount", arguments: ["empty", "none", "file", "/", "/proc"])
    func notAMount(_ path: String) throws {
        for words in [["unmount"], ["ctl", "start"], ["ctl", "stop"], ["ctl", "status"]] {
            try refuse(words + [path], saying: [path])
        }
    }

    @Test(
        "without /dev/fuse the message says so",
        .enabled(if: Machine.isRoot && Machine.has("unshare"), "needs root and unshare"))
    func noDevice() throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mnt", "dev"] { try (top / name).mkdir() }
            let script = "mount --bind \(top / "dev") /dev && exec \"$0\" mount source mnt"
            let finished = try run(["unshare", "--mount", "sh", "-c", script, Machine.binary], in: top)
            #expect(finished.code == 1 && finished.errors.contains("/dev/fuse"), "\(finished)")
            #expect(try (top / "source").entries() == [])
        }
    }

    @Test("the version and help go to standard output, with 0", arguments: ["--version", "--help"])
    func information(_ option: String) throws {
        let finished = try run([Machine.binary, option])
        #expect(finished.code == 0 && !finished.output.isEmpty && finished.errors.isEmpty, "\(finished)")
    }
}
