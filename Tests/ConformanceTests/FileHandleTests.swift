import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Handles of the mount itself (name_to_handle_at), which NFS servers, fanotify and some backup programs use.
@Suite(.serialized, .enabled(if: Machine.isRoot, "needs root")) struct FileHandleTests {
    private func opened(_ place: Place, _ handle: ts_handle, _ flags: Int32 = O_RDONLY) throws(Errno) -> File {
        let root = try place.root.open(O_RDONLY | O_DIRECTORY)
        var handle = handle
        return File(raw: try check(ts_open_by_handle_at(root.raw, &handle, flags)))
    }

    @Test("a handle opens its file wherever it moves, whichever way", arguments: Setting.available)
    func moves(_ setting: Setting) throws {
        try setting.run { place in
            for name: Path in ["a", "a/b", "z"] { try (place / name).mkdir() }
            try (place / "a/b/file").create(bytes(5_000))
            let handle = try (place / "a/b/file").handle()
            try place.cut()
            let inode = try (place / "a/b/file").lstat().inode
            #expect(try opened(place, handle).stat().inode == inode)
            try (place / "a/b").rename(to: place / "z/c")
            try (place / "z/c/file").rename(to: place / "z/file")
            #expect(try opened(place, handle).read(6_000, at: 0) == bytes(5_000))
            let again = try opened(place, handle, O_RDWR)
            #expect(try again.stat().inode == inode)
            try again.write([1], at: 0)
            #expect(try (place / "z/file").open(O_RDONLY).read(1, at: 0) == [1])
        }
    }

    @Test(
        "a file handle is good after the kernel has forgotten the file, wherever it was moved",
        arguments: Setting.available)
    func forgotten(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "d").mkdir()
            try (place / "d/sub").mkdir()
            try (place / "d/sub/file").create(bytes(100))
            try (place / "linked").create(bytes(200))
            try place.cut()
            let file = try (place / "d/sub/file").handle()
            let directory = try (place / "d/sub").handle()
            let linked = try (place / "linked").handle()
            let inode = try (place / "d/sub").lstat().inode
            try (place / "linked").link(to: place / "d/other")
            try (place / "linked").unlink()
            try (place / "d").rename(to: place / "moved")
            for _ in 0..<3 {
                try dropCaches()
                #expect(try opened(place, file, O_RDONLY).read(1000, at: 0) == bytes(100))
                #expect(try opened(place, linked, O_RDONLY).read(1000, at: 0) == bytes(200))
                let opened = try opened(place, directory, O_RDONLY | O_DIRECTORY)
                #expect(try opened.stat().inode == inode)
                #expect(try opened.entries() == ["file"])
            }
            try opened(place, file, O_WRONLY).write([1], at: 0)
            try dropCaches()
            #expect(try (place / "moved/sub/file").contents().first == 1)
        }
    }

    @Test(
        "a handle of a file that is gone is ESTALE, also where its number is used again",
        arguments: Setting.available)
    func removed(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "d").mkdir()
            try (place / "d/file").create(bytes(100))
            let (file, directory) = (try (place / "d/file").handle(), try (place / "d").handle())
            try place.cut()
            try (place / "d/file").unlink()
            #expect(throws: Errno.staleNFSFileHandle) { try opened(place, file) }
            try dropCaches()
            #expect(throws: Errno.staleNFSFileHandle) { try opened(place, file) }
            try (place / "d").rmdir()
            for number in 0..<50 { try (place / Path("new-\(number)")).create() }
            #expect(throws: Errno.staleNFSFileHandle) { try opened(place, file) }
            #expect(throws: Errno.staleNFSFileHandle) { try opened(place, directory) }
        }
    }

    @Test("a handle of an unlinked file that is open goes on opening it", arguments: Setting.available)
    func unlinked(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try (place / "file").create(bytes(100))
            let open = try (place / "file").open(O_RDWR)
            let handle = try (place / "file").handle()
            try place.cut()
            try (place / "file").unlink()
            transcript.note("read") { try opened(place, handle).read(100, at: 0) == bytes(100) }
            transcript.note("links") { try opened(place, handle).stat().links }
            transcript.state("links", try open.stat().links)
        }
    }

    @Test("the parent of a directory that was opened by handle is found", arguments: Setting.available)
    func parents(_ setting: Setting) throws {
        try setting.run { place in
            for name: Path in ["a", "a/b", "a/b/c"] { try (place / name).mkdir() }
            let handle = try (place / "a/b/c").handle()
            try place.cut()
            let directory = try opened(place, handle, O_RDONLY | O_DIRECTORY)
            let above = Path("/proc/self/fd/\(directory.raw)/..")
            #expect(try above.stat().inode == (place / "a/b").lstat().inode)
            #expect(try (above / "..").stat().inode == (place / "a").lstat().inode)
            #expect(try (above / "../..").stat().inode == place.root.stat().inode)
        }
    }

    @Test(
        "handles of directories that changed, moved or are new lead to them after the kernel has forgotten them",
        arguments: Setting.available)
    func directories(_ setting: Setting) throws {
        try setting.run { place in
            for name: Path in ["a", "a/b", "a/b/c", "z"] { try (place / name).mkdir() }
            try place.cut()
            try (place / "a/new-file").create()
            try (place / "new").mkdir()
            try (place / "new/sub").mkdir()
            try (place / "a/b").rename(to: place / "z/moved")
            let paths: [Path] = ["a", "new", "new/sub", "z", "z/moved", "z/moved/c"]
            let handles = try paths.map { ($0, try (place / $0).handle()) }
            for _ in 1...2 {
                try dropCaches()
                for (path, handle) in handles {
                    let directory = try opened(place, handle, O_RDONLY | O_DIRECTORY)
                    let now = try Path("/proc/self/fd/\(directory.raw)").readlink()
                    #expect(now == place / path)
                    #expect(try directory.entries().count == (place / path).entries().count)
                }
                try place.cut()
            }
        }
    }

    @Test("a handle that nobody made is refused", arguments: Setting.available)
    func nonsense(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            var handle = try (place / "file").handle()
            withUnsafeMutableBytes(of: &handle.bytes) { bytes in
                for index in bytes.indices { bytes[index] = ~bytes[index] }
            }
            #expect(throws: Errno.staleNFSFileHandle) { try opened(place, handle) }
            #expect(throws: Errno.notPermitted) {
                try asUser(1000) { _ = try opened(place, try (place / "file").handle()) }
            }
        }
    }
}

extension Path {
    func handle() throws(Errno) -> ts_handle {
        var handle = ts_handle()
        _ = try withCString { (path) throws(Errno) in
            try check(ts_name_to_handle_at(AT_FDCWD, path, &handle, 0))
        }
        return handle
    }
}

/// Makes the kernel forget dentries and inodes that nobody holds.
func dropCaches() throws {
    try Path("/proc/sys/vm/drop_caches").open(O_WRONLY).writeAll([UInt8(ascii: "2")])
}
