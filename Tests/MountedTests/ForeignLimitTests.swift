import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// What whoever mounts is bound by, and how the source is mounted.
@Suite(.serialized, .enabled(if: Machine.isRoot && Machine.canMount, "\(Machine.needsMount), as root"))
struct ForeignLimitTests {
    @Test("how long a file may be for whoever mounts is not how long it may be for everybody")
    func fileSize() throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mnt"] { try (top / name).mkdir() }
            func mount(_ limit: String) throws {
                let words = [Machine.binary, "mount", (top / "source").string, (top / "mnt").string]
                try succeed(["sh", "-c", "\(limit) && exec \"$0\" \"$@\""] + words)
            }
            try mount("ulimit -S -f 1")
            try (top / "mnt" / "file").create(bytes(100_000))
            #expect(try (top / "source" / "file").contents() == bytes(100_000))
            try succeed([Machine.binary, "unmount", (top / "mnt").string])
            // One that may not be raised: the write fails, and nothing else.
            try mount("ulimit -f 200")
            let blocks = 200 << 10
            let file = try (top / "mnt" / "long").open(O_RDWR | O_CREAT)
            #expect(throws: Errno.fileTooLarge) { try file.writeAll(bytes(2 * blocks)) }
            #expect(try file.stat().size <= blocks)
            #expect(try (top / "mnt" / "file").contents() == bytes(100_000))
        }
    }

    @Test("a source that is read-only is so through the mount", arguments: [false, true])
    func readOnly(_ isActive: Bool) throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "store", "mnt"] { try (top / name).mkdir() }
            let (source, mountpoint) = (top / "source", top / "mnt")
            try (source / "file").create(bytes(100))
            try (source / "d").mkdir()
            try succeed(["mount", "--bind", source.string, source.string])
            try succeed(["mount", "-o", "remount,bind,ro", source.string])
            try succeed(
                [Machine.binary, "mount", "--store", (top / "store").string, source.string, mountpoint.string])
            if isActive { try succeed([Machine.binary, "ctl", "start", mountpoint.string]) }
            let (expected, actual) = (Self.answers(source), Self.answers(mountpoint))
            #expect(actual == expected)
            #expect(expected.count { $0.contains("\(Errno.readOnlyFileSystem)") } > 10)
            #expect(try mountpoint.fileSystem().f_flag & UInt(ST_RDONLY) != 0)
            #expect(try (mountpoint / "file").contents() == bytes(100))
            if isActive { #expect(try (mountpoint / ".snapshot" / "file").contents() == bytes(100)) }
        }
    }

    /// What calls that change something answer, in a directory that holds `file` and `d`.
    private static func answers(_ root: Path) -> [String] {
        let transcript: [(String, () throws -> Void)] = [
            ("access to write", { try (root / "file").access(W_OK) }),
            ("access to write to the root", { try root.access(W_OK) }),
            ("mkdir of what is there", { try (root / "d").mkdir() }),
            ("mkdir", { try (root / "new").mkdir() }),
            ("open to write", { _ = try (root / "file").open(O_RDWR) }),
            ("open that may make", { _ = try (root / "file").open(O_RDONLY | O_CREAT) }),
            ("open that must make", { _ = try (root / "file").open(O_RDWR | O_CREAT | O_EXCL) }),
            ("a file without a name", { _ = try root.open(O_RDWR | O_TMPFILE) }),
            ("unlink", { try (root / "file").unlink() }),
            ("unlink of nothing", { try (root / "none").unlink() }),
            ("rmdir", { try (root / "d").rmdir() }),
            ("chmod", { try (root / "file").chmod(0o600) }),
            ("truncate", { try (root / "file").truncate(5) }),
            ("rename to itself", { try (root / "file").rename(to: root / "file") }),
            ("rename", { try (root / "file").rename(to: root / "new") }),
            ("link", { try (root / "file").link(to: root / "new") }),
            ("symlink", { try (root / "new").symlink(to: "file") }),
            ("setxattr", { try (root / "file").setAttribute("user.a", [1]) }),
            ("utimensat", { try (root / "file").setTimes(accessed: .now, modified: .now) }),
        ]
        return transcript.map { what, call in
            do {
                try call()
                return "\(what): done"
            } catch {
                return "\(what): \(error)"
            }
        }
    }
}
