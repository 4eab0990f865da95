import Glibc
import SystemPackage
import TestSupport
import Testing

/// name_to_handle_at(2) and open_by_handle_at(2), as NFS servers and backup programs use them.
@Suite(.serialized, .enabled(if: Machine.isRoot, "needs root")) struct FileHandleTests {
    /// Makes the kernel forget inodes that nobody uses.
    private static func dropCaches() throws(Errno) {
        try Path("/proc/sys/vm/drop_caches").open(O_WRONLY).writeAll([UInt8(ascii: "2")])
    }

    private static var available: [Setting] {
        // Without file handles of the source there are none of the mount either.
        let isPossible = (try? TemporaryDirectory.with { try $0.handle() }) != nil
        return isPossible ? Setting.available : []
    }

    @Test(
        "a file handle is good after the kernel has forgotten the file, wherever it was moved",
        arguments: available)
    func forgotten(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "d").mkdir()
            try (place / "d/sub").mkdir()
            try (place / "d/sub/file").create(bytes(100))
            try (place / "linked").create(bytes(200))
            try place.cut()
            let mount = try place.root.open(O_RDONLY | O_DIRECTORY)
            let file = try (place / "d/sub/file").handle()
            let directory = try (place / "d/sub").handle()
            let linked = try (place / "linked").handle()
            let inode = try (place / "d/sub").lstat().inode
            try (place / "linked").link(to: place / "d/other")
            try (place / "linked").unlink()
            try (place / "d").rename(to: place / "moved")
            for _ in 0..<3 {
                try Self.dropCaches()
                #expect(try file.open(mount, O_RDONLY).read(1000, at: 0) == bytes(100))
                #expect(try linked.open(mount, O_RDONLY).read(1000, at: 0) == bytes(200))
                let opened = try directory.open(mount, O_RDONLY | O_DIRECTORY)
                #expect(try opened.stat().inode == inode)
                #expect(try opened.entries() == ["file"])
            }
            try file.open(mount, O_WRONLY).write([1], at: 0)
            try Self.dropCaches()
            #expect(try (place / "moved/sub/file").contents().first == 1)
        }
    }

    @Test("the handle of a file without names is stale, but while it is open", arguments: available)
    func removed(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(100))
            try (place / "open").create(bytes(100))
            try (place / "d").mkdir()
            try place.cut()
            let mount = try place.root.open(O_RDONLY | O_DIRECTORY)
            let handles = [try (place / "file").handle(), try (place / "d").handle()]
            let kept = try (place / "open").handle()
            let open = try (place / "open").open(O_RDONLY)
            try (place / "file").unlink()
            try (place / "open").unlink()
            try (place / "d").rmdir()
            try Self.dropCaches()
            for handle in handles {
                #expect(throws: Errno.staleNFSFileHandle) { try handle.open(mount, O_RDONLY) }
            }
            #expect(try kept.open(mount, O_RDONLY).read(1000, at: 0) == open.read(1000, at: 0))
        }
    }
}
