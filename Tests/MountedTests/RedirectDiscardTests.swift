import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// `ctl stop --discard`: the tree is what it was, and whoever holds what has vanished is told so.
@Suite(
    .serialized,
    .enabled(if: Machine.canMount && Machine.Mode.available.contains(.redirect), "needs /dev/fuse and root"))
struct RedirectDiscardTests {
    @Test("what was removed, moved and changed is there again, and the kernel knows")
    func caches() throws {
        try MountedSource.with(mode: .redirect) { mount in
            let root = mount.mountpoint
            for name: Path in ["a", "b", "keep"] { try (root / name).create(bytes(5_000)) }
            for name: Path in ["dir", "dir/sub", "dst"] { try (root / name).mkdir() }
            try (root / "dir/sub/x").create(bytes(10))
            try waitForClockTick()
            let before = try TreeCapture(root)
            try mount.start()
            let open = try (root / "b").open(O_RDWR)
            try (root / "a").unlink()
            #expect(!(root / "a").exists)
            try open.write(bytes(9_000, seed: 2), at: 0)
            try (root / "keep").rename(to: root / "kept")
            try (root / "dir").rename(to: root / "dst/dir")
            try (root / "dst/dir/sub/x").write([1], at: 0)
            try (root / "dst/dir/sub/new").create()
            try (root / "b").setAttribute("user.a", [1])
            try (root / "b").chmod(0o600)
            try (root / "new").mkdir()
            try (root / "b").rename(to: root / "dst", flags: 2)
            let mapping = try open.map(5_000)
            #expect(try mapping.read(9, at: 0) == Array(bytes(9, seed: 2)))
            try mount.discard()
            for name: Path in ["kept", "dst/dir", "new", "dir/sub/new"] {
                #expect(!(root / name).exists, "\(name)")
            }
            expect(try TreeCapture(root), equals: before, "live view")
            expect(try TreeCapture(mount.source), equals: before, "the source")
            #expect(try open.read(9_000, at: 0) == bytes(5_000))
            #expect(try mapping.read(5_000, at: 0) == bytes(5_000))
            #expect(try open.stat().permissions == 0o644)
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("descriptors of what has vanished give errors")
    func vanished() throws {
        try MountedSource.with(mode: .redirect) { mount in
            let root = mount.mountpoint
            try mount.start()
            try (root / "d").mkdir()
            try (root / "d/file").create(bytes(5_000))
            let (file, directory) = (
                try (root / "d/file").open(O_RDWR), try (root / "d").open(O_RDONLY | O_DIRECTORY)
            )
            let temporary = try root.open(O_RDWR | O_TMPFILE)
            let magic = Path("/proc/self/fd/\(directory.raw)")
            #expect(try file.stat().size == 5_000)
            try mount.discard()
            let attempts: [(String, () throws -> Void)] = [
                ("fstat", { _ = try file.stat() }), ("read", { _ = try file.read(10, at: 0) }),
                ("write", { try file.write([1], at: 0) }), ("fsync", { try file.sync() }),
                ("truncate", { try file.truncate(0) }), ("chmod", { try file.chmod(0o600) }),
                ("listing", { _ = try directory.entries() }),
                ("fstat of a directory", { _ = try directory.stat() }),
                ("create", { try (magic / "x").create() }),
                ("write without a name", { try temporary.write([1], at: 0) }),
                ("link", { try temporary.link(to: root / "x") }),
            ]
            for (name, attempt) in attempts { #expect(throws: Errno.self, "\(name)", performing: attempt) }
            #expect(try root.entries() == [])
            #expect(try Set(mount.source.entries()).subtracting([".fusesnap"]).isEmpty)
        }
    }

    @Test("a directory that was removed and is there again takes files, also where somebody has it open")
    func removedDirectories() throws {
        try MountedSource.with(mode: .redirect) { mount in
            let root = mount.mountpoint
            for name: Path in ["d", "d/e"] { try (root / name).mkdir() }
            try (root / "d/e/file").create(bytes(100))
            for _ in 1...2 {
                try mount.start()
                let held = try (root / "d/e").open(O_RDONLY | O_DIRECTORY)
                let file = try (root / "d/e/file").open(O_RDWR)
                try (root / "d/e/file").unlink()
                try (root / "d/e").rmdir()
                try (root / "d").rmdir()
                try mount.discard()
                #expect(try (root / "d/e/file").contents() == bytes(100))
                #expect(try (root / "d/e/file").lstat().links == 1)
                #expect(try file.stat().links == 1)
                try (root / "d/e/new").create()
                try (root / "d/e/new").rename(to: root / "d/e/other")
                try (root / "d/e/file").link(to: root / "d/e/second")
                try (root / "d/e/sub").mkdir()
                #expect(try Set((root / "d/e").entries()) == ["file", "other", "second", "sub"])
                #expect(try held.stat().inode == (root / "d/e").lstat().inode)
                for name: Path in ["other", "second"] { try (root / "d/e" / name).unlink() }
                try (root / "d/e/sub").rmdir()
            }
        }
    }

    @Test("stores into a mapping that were not synced are thrown away with the rest")
    func mapping() throws {
        try MountedSource.with(mode: .redirect) { mount in
            let file = mount.mountpoint / "file"
            try file.create(bytes(8_192))
            try mount.start()
            let open = try file.open(O_RDWR)
            let mapping = try open.map(8_192)
            try mapping.write([1, 2, 3], at: 5_000)
            try mount.discard()
            #expect(try mapping.read(8_192, at: 0) == bytes(8_192))
            try open.sync()
            #expect(try (mount.source / "file").contents() == bytes(8_192))
            try mapping.write([9], at: 0)
            try mapping.sync()
            #expect(try (mount.source / "file").contents().first == 9)
        }
    }
}
