import Glibc
import SystemPackage
import TestSupport
import Testing

/// What the delta takes, and what happens where there is no room for it.
@Suite(
    .serialized,
    .enabled(if: Machine.canMount && Machine.Mode.available.contains(.redirect), "needs /dev/fuse and root"))
struct RedirectSpaceTests {
    private static let mebibyte = 1 << 20

    @Test("a second write to the same area overwrites it in the delta")
    func overwriting() throws {
        try MountedSource.with(mode: .redirect) { mount in
            let file = mount.mountpoint / "file"
            try file.create(bytes(Self.mebibyte))
            try mount.start()
            try file.write(bytes(100, seed: 2), at: 5_000)
            let first = try mount.status()
            for seed: UInt64 in 3...30 { try file.write(bytes(100, seed: seed), at: 4_200) }
            #expect(try mount.status().deltaBytes == first.deltaBytes)
            #expect(try mount.status().changedAreas == first.changedAreas)
            try file.write([1], at: 8_192)
            #expect(try mount.status().deltaBytes == first.deltaBytes + 4_096)
        }
    }

    @Test("space that fallocate set aside, and that is punched or cut off, is given back without being counted")
    func setAside() throws {
        try MountedSource.with(mode: .redirect) { mount in
            let path = mount.mountpoint / "file"
            try path.create(bytes(Self.mebibyte))
            try mount.start()
            let file = try path.open(O_RDWR)
            try file.write(bytes(4_096, seed: 2), at: 0)
            try file.allocate(at: 0, count: 4 * Self.mebibyte)
            try file.allocate(0x3, at: 4_096, count: 2 * Self.mebibyte)
            try file.sync()
            #expect(try mount.status().deltaBytes == 4_096)
            try file.truncate(10)
            try file.truncate(0)
            try file.sync()
            #expect(try mount.status().deltaBytes <= 4_096)
            try file.write(bytes(9_000, seed: 3), at: 0)
            try mount.stop()
            #expect(try (mount.source / "file").contents() == bytes(9_000, seed: 3))
        }
    }

    @Test("over --max-delta who needs space gets ENOSPC, nothing written is lost, and it is all merged")
    func bound() throws {
        try MountedSource.with(mode: .redirect, options: ["--max-delta", "1M"]) { mount in
            let root = mount.mountpoint
            var model = bytes(4 * Self.mebibyte)
            try (root / "file").create(model)
            try (root / "other").create(bytes(100))
            try mount.start()
            let file = try (root / "file").open(O_RDWR)
            var written = 0
            #expect(throws: Errno.noSpace) {
                while true {
                    let data = bytes(4_096, seed: UInt64(written))
                    try file.write(data, at: written * 4_096)
                    model.replaceSubrange(written * 4_096..<(written + 1) * 4_096, with: data)
                    written += 1
                }
            }
            #expect(written == 256)
            #expect(try (root / "file").contents() == model)
            try file.write([9], at: 0)
            model[0] = 9
            try (root / "other").rename(to: root / "moved")
            try (root / "file").chmod(0o600)
            try file.sync()
            try mount.stop()
            for top in [root, mount.source] {
                #expect(try (top / "file").contents() == model)
                #expect(try (top / "file").lstat().permissions == 0o600)
                #expect(try (top / "moved").contents() == bytes(100))
            }
            try file.write(bytes(4 * Self.mebibyte, seed: 7), at: 0)
        }
    }

    /// Calls `body` with a mount of a source on a file system of its own.
    private func with(
        _ make: [String], _ size: Int, mountOptions: String = "loop", prepare: (Path) throws -> Void = { _ in },
        _ body: (MountedSource) throws -> Void
    ) throws {
        try MountedSource.with(
            mode: .redirect,
            prepare: { source in
                let image = source.string + ".image"
                try Path(image).create()
                try Path(image).truncate(size)
                try succeed(make + [image])
                try succeed(["mount", "-o", mountOptions, image, source.string])
                try prepare(source)
            }, body)
    }

    @Test(
        "on a full file system nothing is lost, and the stop merges all the same",
        .enabled(if: Machine.has("mkfs.ext4"), "needs mkfs.ext4"))
    func full() throws {
        try with(["mkfs.ext4", "-q", "-m", "0"], 80 * Self.mebibyte) { mount in
            let root = mount.mountpoint
            try (root / "file").create(bytes(8 * Self.mebibyte))
            for number in 0..<50 { try (root / Path("\(number)")).create(bytes(1_000, seed: UInt64(number))) }
            try mount.start()
            let new = try (root / "new").open(O_WRONLY | O_CREAT)
            #expect(throws: Errno.noSpace) { while true { try new.write(bytes(65_536)) } }
            let file = try (root / "file").open(O_RDWR)
            #expect(throws: Errno.noSpace) {
                for number in 0..<2_048 { try file.write(bytes(4_096, seed: 2), at: number * 4_096) }
            }
            // What takes no space of the delta's goes on.
            try (root / "1").rename(to: root / "moved")
            try (root / "2").unlink()
            try (root / "3").chmod(0o600)
            try (root / "4").truncate(10)
            try file.sync()
            try new.sync()
            let live = try TreeCapture(root)
            try mount.stop()
            for top in [root, mount.source] {
                let merged = try TreeCapture(top)
                // That of the file system itself, which is in no backup of the mount.
                expect(merged, equals: live, ignoring: [.ctime, .ranges], "\(top)")
            }
        }
    }

    @Test(
        "a mount that gives every directory's group to what is made in it does so while redirected",
        .enabled(if: Machine.has("mkfs.ext4"), "needs mkfs.ext4"))
    func groups() throws {
        try with(["mkfs.ext4", "-q"], 32 * Self.mebibyte, mountOptions: "loop,grpid") { mount in
            let directory = mount.mountpoint / "d"
            try directory.mkdir()
            try directory.chown(group: 77)
            try mount.start()
            try (directory / "file").create()
            try (directory / "sub").mkdir()
            try (directory / "sub/file").create()
            for name: Path in ["file", "sub", "sub/file"] {
                #expect(try (directory / name).lstat().group == 77, "\(name)")
            }
        }
    }

    @Test(
        "files have as many names as the file system gives them",
        .enabled(if: Machine.has("mkfs.btrfs"), "needs mkfs.btrfs"))
    func links() throws {
        try with(["mkfs.btrfs", "-q"], 256 * Self.mebibyte) { mount in
            let root = mount.mountpoint
            try (root / "old").create()
            try mount.start()
            try (root / "new").create()
            for name: Path in ["old", "new"] {
                for number in 0..<300 { try (root / name).link(to: root / Path("\(name.string)-\(number)")) }
            }
            try mount.stop()
            for name: Path in ["old", "new"] { #expect(try (mount.source / name).lstat().links == 301) }
        }
    }
}
