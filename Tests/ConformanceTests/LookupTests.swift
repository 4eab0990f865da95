import Glibc
import SystemPackage
import TestSupport
import Testing

@Suite(.serialized) struct LookupTests {
    @Test("a missing name is ENOENT, a name below a file ENOTDIR", arguments: Setting.available)
    func missing(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            try place.cut()
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "none").lstat() }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "none/file").lstat() }
            #expect(throws: Errno.notDirectory) { try (place / "file/below").lstat() }
            #expect(throws: Errno.notDirectory) { try (place / "file/").lstat() }
        }
    }

    @Test("a name of 255 bytes works, one of 256 is ENAMETOOLONG", arguments: Setting.available)
    func longNames(_ setting: Setting) throws {
        try setting.run { place in
            let longest = Path(repeatElement(UInt8(ascii: "n"), count: 255))
            let tooLong = Path(repeatElement(UInt8(ascii: "n"), count: 256))
            try (place / longest).create(bytes(10))
            #expect(try place.root.entries() == [longest])
            #expect(throws: Errno.fileNameTooLong) { try (place / tooLong).lstat() }
            #expect(throws: Errno.fileNameTooLong) { try (place / tooLong).create() }
            #expect(throws: Errno.fileNameTooLong) { try (place / tooLong).mkdir() }
            #expect(throws: Errno.fileNameTooLong) { try (place / longest).link(to: place / tooLong) }
            #expect(throws: Errno.fileNameTooLong) { try (place / longest).rename(to: place / tooLong) }
            #expect(throws: Errno.fileNameTooLong) { try (place / tooLong).symlink(to: "x") }
        }
    }

    @Test("names are bytes: 255 of them, not UTF-8", arguments: Setting.available)
    func bytesAsNames(_ setting: Setting) throws {
        try setting.run { place in
            let name = Path((0..<255).map { UInt8(0x80 + $0 % 0x80) })
            let newline: Path = "a\nb\\c\t\u{7f}"
            try (place / name).create(bytes(100))
            try place.cut()
            try (place / newline).create()
            try (place / name).link(to: place / name.reversed)
            #expect(Set(try place.root.entries()) == [name, newline, name.reversed])
            #expect(try (place / name.reversed).contents() == bytes(100))
            try (place / name).unlink()
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / name).lstat() }
        }
    }

    @Test("names that differ in case or a trailing blank are different", arguments: Setting.available)
    func noFolding(_ setting: Setting) throws {
        try setting.run { place in
            let names: [Path] = ["a", "A", "a ", " a", "a.", "...", "é", "e\u{301}"]
            for (number, name) in names.enumerated() { try (place / name).create(bytes(number + 1)) }
            for (number, name) in names.enumerated() { #expect(try (place / name).lstat().size == number + 1) }
        }
    }

    @Test("`.` and `..` lead where they should, also out of the mount's root", arguments: Setting.available)
    func dots(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "d").mkdir()
            #expect(try (place / "d/.").lstat().inode == (place / "d").lstat().inode)
            #expect(try (place / "d/..").lstat().inode == place.root.lstat().inode)
            let above = Path(place.root.bytes.prefix(upTo: place.root.bytes.lastIndex(of: UInt8(ascii: "/")) ?? 0))
            #expect(try (place / "..").lstat().inode == above.lstat().inode)
        }
    }

    @Test("a path of links ends in ELOOP when it goes round", arguments: Setting.available)
    func linkLoops(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").symlink(to: "b")
            try (place / "b").symlink(to: "a")
            #expect(throws: Errno.tooManySymbolicLinkLevels) { try (place / "a").stat() }
            #expect(throws: Errno.tooManySymbolicLinkLevels) { try (place / "a").open(O_RDONLY) }
        }
    }

    @Test("directories nest deeper than PATH_MAX by calls relative to a directory", arguments: Setting.available)
    func deepPaths(_ setting: Setting) throws {
        try setting.run { place in
            let name = Path(repeatElement(UInt8(ascii: "d"), count: 200))
            var open = [try place.root.open(O_RDONLY | O_DIRECTORY)]
            for _ in 0..<30 {
                let parent = try #require(open.last)
                open.append(try name.makeDirectory(in: parent))
            }
            let deepest = try #require(open.last)
            try (Path("/proc/self/fd/\(deepest.raw)") / "leaf").create(bytes(5000))
            try place.cut()
            #expect(try (Path("/proc/self/fd/\(deepest.raw)") / "leaf").contents() == bytes(5000))
            let tooLong = (0..<30).reduce(place.root) { path, _ in path / name }
            #expect(throws: Errno.fileNameTooLong) { try tooLong.lstat() }
            try (Path("/proc/self/fd/\(deepest.raw)") / "leaf").unlink()
            for parent in open.dropLast().reversed() { try name.removeDirectory(in: parent) }
            #expect(try place.root.entries() == [])
        }
    }

    @Test("a path of just under PATH_MAX bytes works", arguments: Setting.available)
    func longPath(_ setting: Setting) throws {
        try setting.run { place in
            var path = place.root
            while path.bytes.count + 200 < 4095 {
                path = path / Path(repeatElement(UInt8(ascii: "d"), count: 190))
                try path.mkdir()
            }
            path = path / Path(repeatElement(UInt8(ascii: "f"), count: 4095 - path.bytes.count - 1))
            try path.create(bytes(1))
            try place.cut()
            #expect(try path.contents() == bytes(1))
            #expect(throws: Errno.fileNameTooLong) { try Path(path.bytes + [UInt8(ascii: "x")]).lstat() }
            try path.unlink()
        }
    }
}

extension Path {
    fileprivate var reversed: Path { Path(bytes.reversed()) }

    fileprivate func makeDirectory(in parent: File) throws(Errno) -> File {
        try Path("/proc/self/fd/\(parent.raw)").at(self) { (path) throws(Errno) in
            try path.mkdir()
            return try path.open(O_RDONLY | O_DIRECTORY)
        }
    }

    fileprivate func removeDirectory(in parent: File) throws(Errno) {
        try Path("/proc/self/fd/\(parent.raw)").at(self) { (path) throws(Errno) in try path.rmdir() }
    }

    private func at<Result>(_ name: Path, _ body: (Path) throws(Errno) -> Result) throws(Errno) -> Result {
        try body(self / name)
    }
}
