import Glibc
import SystemPackage
import TestSupport
import Testing

private let noReplace: Int32 = 1
private let exchange: Int32 = 2
private let whiteout: Int32 = 4

@Suite(.serialized) struct RenameTests {
    @Test("rename moves a file and keeps its inode; over another it replaces it", arguments: Setting.available)
    func replacing(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").create(bytes(100))
            try (place / "b").create(bytes(200))
            try (place / "b").link(to: place / "c")
            try place.cut()
            let inode = try (place / "a").lstat().inode
            try (place / "a").rename(to: place / "b")
            #expect(try (place / "b").lstat().inode == inode)
            #expect(try (place / "b").contents() == bytes(100))
            #expect(try (place / "c").contents() == bytes(200))
            #expect(try (place / "c").lstat().links == 1)
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "a").lstat() }
        }
    }

    @Test("rename between two links to one file does nothing", arguments: Setting.available)
    func sameInode(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").create(bytes(100))
            try (place / "a").link(to: place / "b")
            try place.cut()
            try (place / "a").rename(to: place / "b")
            #expect(Set(try place.root.entries()) == ["a", "b"])
            #expect(try (place / "a").lstat().links == 2)
            try (place / "a").rename(to: place / "a")
            #expect(try (place / "a").lstat().links == 2)
        }
    }

    @Test("rename refuses what it must, errno for errno", arguments: Setting.available)
    func errors(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            for name: Path in ["empty", "full", "full/sub", "full/sub/deep"] { try (place / name).mkdir() }
            try place.cut()
            #expect(throws: Errno.isDirectory) { try (place / "file").rename(to: place / "empty") }
            #expect(throws: Errno.notDirectory) { try (place / "empty").rename(to: place / "file") }
            #expect(throws: Errno.directoryNotEmpty) { try (place / "empty").rename(to: place / "full") }
            #expect(throws: Errno.invalidArgument) { try (place / "full").rename(to: place / "full/new") }
            #expect(throws: Errno.invalidArgument) { try (place / "full").rename(to: place / "full/sub/deep/new") }
            #expect(throws: Errno.directoryNotEmpty) { try (place / "full/sub/deep").rename(to: place / "full") }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "none").rename(to: place / "x") }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "file").rename(to: place / "none/x") }
            #expect(throws: Errno.notDirectory) { try (place / "file").rename(to: place / "file/x") }
            try (place / "full").rename(to: place / "empty")
            #expect(try (place / "empty/sub/deep").lstat().kind == .directory)
        }
    }

    @Test("RENAME_NOREPLACE refuses an existing name", arguments: Setting.available)
    func withoutReplacing(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").create(bytes(1))
            try (place / "b").create(bytes(2))
            try place.cut()
            #expect(throws: Errno.fileExists) { try (place / "a").rename(to: place / "b", flags: noReplace) }
            #expect(throws: Errno.fileExists) { try (place / "a").rename(to: place / "a", flags: noReplace) }
            try (place / "a").rename(to: place / "c", flags: noReplace)
            #expect(try (place / "c").contents() == bytes(1))
        }
    }

    @Test("RENAME_EXCHANGE swaps files, directories, and one with the other", arguments: Setting.available)
    func exchanging(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").create(bytes(1))
            try (place / "s").symlink(to: "a")
            for name: Path in ["d", "e"] { try (place / name).mkdir() }
            try (place / "d/in-d").create()
            try (place / "e/in-e").create()
            try place.cut()
            try (place / "a").rename(to: place / "s", flags: exchange)
            #expect(try (place / "a").readlink() == "a")
            #expect(try (place / "s").contents() == bytes(1))
            try (place / "d").rename(to: place / "e", flags: exchange)
            #expect(try (place / "d").entries() == ["in-e"])
            try (place / "d").rename(to: place / "s", flags: exchange)
            #expect(try (place / "d").contents() == bytes(1))
            #expect(try (place / "s").entries() == ["in-e"])
            try (place / "e/in-d").rename(to: place / "s", flags: exchange)
            #expect(try (place / "e/in-d/in-e").lstat().kind == .regular)
            #expect(throws: Errno.noSuchFileOrDirectory) {
                try (place / "d").rename(to: place / "none", flags: exchange)
            }
            #expect(throws: Errno.invalidArgument) {
                try (place / "e").rename(to: place / "e/in-d", flags: exchange)
            }
            #expect(throws: Errno.invalidArgument) {
                try (place / "e/in-d").rename(to: place / "e", flags: exchange)
            }
        }
    }

    @Test(
        "a whiteout is of the user who renames", .enabled(if: Machine.isRoot, "needs root"),
        arguments: Setting.available)
    func whiteoutsOfUsers(_ setting: Setting) throws {
        try setting.run { place in
            try place.root.chmod(0o777)
            for user in [1000, 1001, 1000, 1002, 1001] as [UInt32] {
                try (place / "replaced").create(bytes(10))
                try asUser(user) { try (place / "a").create() }
                try place.cut()
                try asUser(user) { try (place / "a").rename(to: place / "replaced", flags: whiteout) }
                let status = try (place / "a").lstat()
                #expect(status.kind == .characterDevice && status.specialDevice == 0)
                #expect(status.user == user && status.group == user)
                #expect(try (place / "replaced").lstat().user == user)
                for name: Path in ["a", "replaced"] { try (place / name).unlink() }
            }
        }
    }

    @Test(
        "RENAME_WHITEOUT leaves a whiteout behind", .enabled(if: Machine.isRoot, "needs root"),
        arguments: Setting.available)
    func whiteouts(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").create(bytes(1))
            try place.cut()
            try (place / "a").rename(to: place / "b", flags: whiteout)
            #expect(try (place / "b").contents() == bytes(1))
            let left = try (place / "a").lstat()
            #expect(left.kind == .characterDevice)
            #expect(left.specialDevice == 0)
        }
    }

    @Test("flags that exclude each other or do not exist are EINVAL", arguments: Setting.available)
    func badFlags(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").create()
            try (place / "b").create()
            for flags in [noReplace | exchange, whiteout | exchange, 8, 1 << 30] {
                #expect(throws: Errno.invalidArgument) { try (place / "a").rename(to: place / "b", flags: flags) }
            }
        }
    }

    @Test("rename stamps the file's ctime and both directories", arguments: Setting.available)
    func stamps(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "from").mkdir()
            try (place / "to").mkdir()
            try (place / "from/file").create()
            try place.cut()
            let before = try (place / "from/file").lstat()
            let directories = try [(place / "from").lstat(), (place / "to").lstat()]
            try waitForClockTick()
            try (place / "from/file").rename(to: place / "to/file")
            let after = try (place / "to/file").lstat()
            #expect(after.changed > before.changed)
            #expect(after.modified == before.modified)
            #expect(try (place / "from").lstat().modified > directories[0].modified)
            #expect(try (place / "to").lstat().modified > directories[1].modified)
        }
    }

    @Test(
        "a directory moved elsewhere has its new parent as `..`, and descriptors below it live on",
        arguments: Setting.available)
    func movingDirectories(_ setting: Setting) throws {
        try setting.run { place in
            for name: Path in ["a", "a/b", "a/b/c", "z"] { try (place / name).mkdir() }
            try (place / "a/b/c/file").create(bytes(100))
            try place.cut()
            let open = try (place / "a/b/c/file").open(O_RDWR)
            let inside = try (place / "a/b/c").open(O_RDONLY | O_DIRECTORY)
            try (place / "a/b").rename(to: place / "z/b")
            #expect(try (place / "z/b/..").lstat().inode == (place / "z").lstat().inode)
            try open.write(bytes(10, seed: 2), at: 0)
            #expect(try (place / "z/b/c/file").contents() == bytes(10, seed: 2) + Array(bytes(100)[10...]))
            try (Path("/proc/self/fd/\(inside.raw)") / "new").create()
            #expect(try (place / "z/b/c/new").lstat().kind == .regular)
            #expect(try (place / "a").lstat().links == 2)
            #expect(try (place / "z").lstat().links == 3)
        }
    }
}
