import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// A source whose file system has no space left: applications get what the snapshot holds.
@Suite(
    .serialized,
    .enabled(
        if: Machine.isRoot && Machine.canMount && Machine.has("mkfs.ext4"), "needs root, /dev/fuse and mkfs.ext4"),
    .disabled(if: Machine.preservesWholeFiles, "a clone takes no space by itself"))
struct FullFileSystemTests {
    private static let mebibyte = 1 << 20

    /// Calls `body` with a mount of a source that is an ext4 of 80 MiB.
    private func with(_ body: (MountedSource) throws -> Void) throws {
        try MountedSource.with(
            prepare: { source in
                let image = source.string + ".image"
                try Path(image).create()
                try Path(image).truncate(80 * Self.mebibyte)
                try succeed(["mkfs.ext4", "-q", "-m", "0", image])
                try succeed(["mount", "-o", "loop", image, source.string])
            }, body)
    }

    private func free(_ mount: MountedSource) throws -> Int {
        let status = try mount.mountpoint.fileSystem()
        return Int(status.f_bavail * status.f_frsize)
    }

    private static let changes: [(String, @Sendable (Path, Int) throws -> Void)] = [
        (
            "write",
            { path, count in
                try path.create(bytes(count))
                try path.open(O_RDWR).sync()
            }
        ),
        ("fallocate", { path, count in try path.open(O_RDWR | O_CREAT).allocate(at: 0, count: count) }),
    ]

    @Test("a change that finds the file system full is given the delta's space", arguments: 0..<2)
    func delta(_ change: Int) throws {
        try with { mount in
            let file = mount.mountpoint / "file"
            try file.create(bytes(24 * Self.mebibyte))
            try mount.start()
            try file.write(bytes(24 * Self.mebibyte, seed: 2), at: 0)
            try file.open(O_RDWR).sync()
            #expect(try (mount.snapshot / "file").open(O_RDONLY).read(100, at: 0) == Array(bytes(100)))
            #expect(try mount.status().state == "active")
            try expectGivenBack(mount, change, more: 12 * Self.mebibyte)
            #expect(try hash(of: file) == hash(ofBytes: bytes(24 * Self.mebibyte, seed: 2)))
        }
    }

    @Test("a change that finds the file system full is given the space of removed files", arguments: 0..<2)
    func graves(_ change: Int) throws {
        try with { mount in
            try (mount.mountpoint / "file").create(bytes(24 * Self.mebibyte))
            try mount.start()
            try (mount.mountpoint / "file").unlink()
            #expect(try mount.status().state == "active")
            try expectGivenBack(mount, change, more: 12 * Self.mebibyte)
        }
    }

    /// Makes a file larger than what is free by `more`, which there is room for without the snapshot.
    private func expectGivenBack(_ mount: MountedSource, _ change: Int, more: Int) throws {
        let count = try free(mount) + more
        try Self.changes[change].1(mount.mountpoint / "new", count)
        #expect(try (mount.mountpoint / "new").lstat().size == count)
        if change == 0 { #expect(try hash(of: mount.mountpoint / "new") == hash(ofBytes: bytes(count))) }
        #expect(try mount.status().state == "overflowed")
        #expect(throws: Errno.ioError) { try (mount.snapshot / "file").open(O_RDONLY) }
        // What there is no room for at all fails as it does without a snapshot.
        #expect(throws: Errno.noSpace) {
            try (mount.mountpoint / "more").open(O_RDWR | O_CREAT).allocate(at: 0, count: 60 * Self.mebibyte)
        }
        #expect(try mount.control("stop").code == 3)
    }

    private func hash(ofBytes data: [UInt8]) throws -> UInt64 {
        let file = try Path("/tmp").open(O_RDWR | O_TMPFILE, mode: 0o600)
        try file.writeAll(data)
        return try hash(of: file)
    }

    private func hash(of path: Path) throws -> UInt64 { try TestSupport.hash(of: path) }
    private func hash(of file: File) throws -> UInt64 { try TestSupport.hash(of: file) }
}
