import Glibc
import SystemPackage
import TestSupport
import Testing

@Suite(.serialized) struct DirectoryTests {
    @Test("mkdir makes an empty directory once", arguments: Setting.available)
    func making(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "d").mkdir(mode: 0o750)
            #expect(try (place / "d").lstat().kind == .directory)
            #expect(try (place / "d").entries() == [])
            #expect(throws: Errno.fileExists) { try (place / "d").mkdir() }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "none/d").mkdir() }
            try (place / "file").create()
            #expect(throws: Errno.notDirectory) { try (place / "file/d").mkdir() }
        }
    }

    @Test("rmdir removes empty directories only", arguments: Setting.available)
    func removing(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "full").mkdir()
            try (place / "full/file").create()
            try (place / "empty").mkdir()
            try (place / "link").symlink(to: "empty")
            try place.cut()
            #expect(throws: Errno.directoryNotEmpty) { try (place / "full").rmdir() }
            #expect(throws: Errno.notDirectory) { try (place / "full/file").rmdir() }
            #expect(throws: Errno.notDirectory) { try (place / "link").rmdir() }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "none").rmdir() }
            #expect(throws: Errno.invalidArgument) { try (place / "empty/.").rmdir() }
            #expect(throws: Errno.directoryNotEmpty) { try (place / "empty/..").rmdir() }
            #expect(throws: Errno.isDirectory) { try (place / "empty").unlink() }
            try (place / "full/file").unlink()
            try (place / "full").rmdir()
            try (place / "empty").rmdir()
            #expect(try place.root.entries() == ["link"])
        }
    }

    @Test(
        "changes in a directory stamp it; a directory's link count follows its subdirectories",
        arguments: Setting.available)
    func stamps(_ setting: Setting) throws {
        try setting.run { place in
            let directory = place / "d"
            try directory.mkdir()
            try (directory / "victim").create()
            try place.cut()
            func stamps(_ what: String, _ change: () throws -> Void) throws {
                let before = try directory.lstat()
                try waitForClockTick()
                try change()
                let after = try directory.lstat()
                #expect(after.modified > before.modified, "\(what): mtime")
                #expect(after.changed > before.changed, "\(what): ctime")
            }
            try stamps("create") { try (directory / "file").create() }
            try stamps("link") { try (directory / "file").link(to: directory / "second") }
            try stamps("unlink") { try (directory / "second").unlink() }
            try stamps("unlink of what the snapshot holds") { try (directory / "victim").unlink() }
            try stamps("rename") { try (directory / "file").rename(to: directory / "renamed") }
            try stamps("mkdir") { try (directory / "sub").mkdir() }
            #expect(try directory.lstat().links == 3)
            try stamps("rmdir") { try (directory / "sub").rmdir() }
            #expect(try directory.lstat().links == 2)
            try stamps("symlink") { try (directory / "link").symlink(to: "x") }
            try stamps("mkfifo") { try (directory / "fifo").mkfifo() }
        }
    }

    @Test("a directory that is removed while open lists nothing and takes nothing", arguments: Setting.available)
    func removedWhileOpen(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "d").mkdir()
            try place.cut()
            let open = try (place / "d").open(O_RDONLY | O_DIRECTORY)
            try (place / "d").rmdir()
            let magic = Path("/proc/self/fd/\(open.raw)")
            #expect(throws: Errno.noSuchFileOrDirectory) { try (magic / "file").create() }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (magic / "file").lstat() }
            #expect(throws: Errno.noSuchFileOrDirectory) { try open.entries() }
            #expect(try open.stat().links == 0)
            try (place / "d").mkdir()
            try (place / "d/new").create()
            #expect(throws: Errno.noSuchFileOrDirectory) { try (magic / "new").lstat() }
        }
    }
}
