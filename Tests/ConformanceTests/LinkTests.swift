import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

@Suite(.serialized) struct LinkTests {
    @Test("hard links share an inode; counts and ctime follow link and unlink", arguments: Setting.available)
    func counts(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").create(bytes(100))
            try place.cut()
            let first = try (place / "a").lstat()
            try waitForClockTick()
            try (place / "a").link(to: place / "b")
            let second = try (place / "a").lstat()
            #expect(second.links == 2)
            #expect(second.changed > first.changed)
            #expect(second.modified == first.modified)
            #expect(try (place / "b").lstat() == second)
            try waitForClockTick()
            try (place / "a").unlink()
            let third = try (place / "b").lstat()
            #expect(third.links == 1)
            #expect(third.changed > second.changed)
            #expect(third.inode == first.inode)
            #expect(try (place / "b").contents() == bytes(100))
        }
    }

    @Test("what is written through one hard link is read through the other at once", arguments: Setting.available)
    func sharedData(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").create(bytes(10_000))
            try (place / "a").link(to: place / "b")
            try place.cut()
            let reader = try (place / "b").open(O_RDONLY)
            try (place / "a").write(bytes(100, seed: 2), at: 4090)
            #expect(try reader.read(100, at: 4090) == bytes(100, seed: 2))
            try (place / "a").truncate(50)
            #expect(try reader.stat().size == 50)
            try (place / "a").chmod(0o600)
            #expect(try (place / "b").lstat().permissions == 0o600)
        }
    }

    @Test("link refuses what it must", arguments: Setting.available)
    func linkErrors(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").create()
            try (place / "d").mkdir()
            #expect(throws: Errno.fileExists) { try (place / "a").link(to: place / "d") }
            #expect(throws: Errno.fileExists) { try (place / "a").link(to: place / "a") }
            #expect(throws: Errno.notPermitted) { try (place / "d").link(to: place / "e") }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "none").link(to: place / "e") }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "a").link(to: place / "none/e") }
            #expect(throws: Errno.notDirectory) { try (place / "a").link(to: place / "a/e") }
        }
    }

    @Test("symbolic links keep their bytes, and can be linked, renamed and owned", arguments: Setting.available)
    func symbolicLinks(_ setting: Setting) throws {
        try setting.run { place in
            let target = Path([0xff, 0xfe, UInt8(ascii: "/"), UInt8(ascii: " ")] + bytes(1000).map { $0 | 0x40 })
            try (place / "s").symlink(to: target)
            try place.cut()
            #expect(try (place / "s").readlink() == target)
            #expect(try (place / "s").lstat().size == target.bytes.count)
            try (place / "s").link(to: place / "t")
            try (place / "s").rename(to: place / "u")
            #expect(try (place / "t").readlink() == target)
            #expect(try (place / "u").lstat().links == 2)
            try (place / "u").setTimes(accessed: Timestamp(1), modified: Timestamp(2, 3))
            #expect(try (place / "t").lstat().modified == Timestamp(2, 3))
            #expect(throws: Errno.invalidArgument) { try place.root.readlink() }
            #expect(throws: Errno.fileExists) { try (place / "t").symlink(to: "x") }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "e").symlink(to: "") }
        }
    }

    @Test("fifos and sockets are made, seen and removed", arguments: Setting.available)
    func fifos(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "fifo").mkfifo(mode: 0o620)
            try (place / "socket").makeSocket()
            try (place / "node").mknod(mode: S_IFREG | 0o604)
            try place.cut()
            #expect(try (place / "fifo").lstat().kind == .fifo)
            #expect(try (place / "fifo").lstat().permissions == 0o600)
            #expect(try (place / "socket").lstat().kind == .socket)
            #expect(try (place / "node").lstat().kind == .regular)
            #expect(throws: Errno.fileExists) { try (place / "fifo").mkfifo() }
            #expect(throws: Errno.addressInUse) { try (place / "socket").makeSocket() }
            let both = try (place / "fifo").open(O_RDWR | O_NONBLOCK)
            try both.write(bytes(100))
            #expect(try both.read(100) == bytes(100))
            try (place / "fifo").unlink()
            try (place / "socket").unlink()
            #expect(try place.root.entries() == ["node"])
        }
    }

    @Test(
        "devices keep their numbers", .enabled(if: Machine.isRoot, "needs root"), arguments: Setting.available)
    func devices(_ setting: Setting) throws {
        try setting.run { place in
            let (null, odd) = (ts_makedev(1, 3), ts_makedev(300, 70_000))
            try (place / "null").mknod(mode: S_IFCHR | 0o666, device: null)
            try (place / "block").mknod(mode: S_IFBLK | 0o600, device: odd)
            try place.cut()
            #expect(try (place / "null").lstat().specialDevice == null)
            #expect(try (place / "block").lstat().specialDevice == odd)
            #expect(try (place / "block").lstat().kind == .blockDevice)
            #expect(try (place / "null").open(O_RDWR).write([1, 2, 3]) == 3)
        }
    }
}
