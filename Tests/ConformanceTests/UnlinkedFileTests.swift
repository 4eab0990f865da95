import Glibc
import SystemPackage
import TestSupport
import Testing

@Suite(.serialized) struct UnlinkedFileTests {
    @Test("a file unlinked while open has no links, and serves its descriptors", arguments: Setting.available)
    func unlinked(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(10_000))
            try place.cut()
            let file = try (place / "file").open(O_RDWR)
            let reader = try (place / "file").open(O_RDONLY)
            try (place / "file").unlink()
            #expect(try file.stat().links == 0)
            try file.write(bytes(100, seed: 2), at: 5000)
            #expect(try reader.read(100, at: 5000) == bytes(100, seed: 2))
            try file.truncate(20_000)
            #expect(try reader.stat().size == 20_000)
            try file.chmod(0o600)
            #expect(try reader.stat().permissions == 0o600)
            try file.allocate(0x3, at: 0, count: 4096)
            #expect(try reader.read(10, at: 0) == [UInt8](repeating: 0, count: 10))
            #expect(throws: Errno.noSuchFileOrDirectory) { try file.link(to: place / "back") }
            #expect(try place.root.entries() == [])
        }
    }

    @Test("a file replaced by rename while open serves its descriptors", arguments: Setting.available)
    func replaced(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(5000))
            try (place / "new").create(bytes(10, seed: 2))
            try place.cut()
            let old = try (place / "file").open(O_RDWR)
            try (place / "new").rename(to: place / "file")
            #expect(try old.stat().links == 0)
            #expect(try old.read(6000, at: 0) == bytes(5000))
            try old.write(bytes(10, seed: 3), at: 0)
            #expect(try (place / "file").contents() == bytes(10, seed: 2))
        }
    }

    @Test("unlinking one of two names counts down for open descriptors", arguments: Setting.available)
    func oneOfTwo(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").create(bytes(100))
            try (place / "a").link(to: place / "b")
            try place.cut()
            let file = try (place / "a").open(O_RDONLY)
            try (place / "a").unlink()
            #expect(try file.stat().links == 1)
            try (place / "b").unlink()
            #expect(try file.stat().links == 0)
            #expect(try file.read(200, at: 0) == bytes(100))
        }
    }

    @Test("O_TMPFILE makes a file without a name, which linkat can give one", arguments: Setting.available)
    func temporaryFiles(_ setting: Setting) throws {
        try setting.run { place in
            let file = try place.root.open(O_RDWR | O_TMPFILE, mode: 0o640)
            #expect(try file.stat().links == 0)
            #expect(try file.stat().permissions == 0o640)
            try file.writeAll(bytes(10_000))
            #expect(try file.read(20_000, at: 0) == bytes(10_000))
            #expect(try place.root.entries() == [])
            try place.cut()
            try file.link(to: place / "named")
            #expect(try file.stat().links == 1)
            #expect(try (place / "named").lstat().inode == file.stat().inode)
            #expect(try (place / "named").contents() == bytes(10_000))
            #expect(throws: Errno.fileExists) { try file.link(to: place / "named") }
        }
    }

    @Test("O_TMPFILE with O_EXCL can never be named; without writing it is EINVAL", arguments: Setting.available)
    func exclusiveTemporaryFiles(_ setting: Setting) throws {
        try setting.run { place in
            let file = try place.root.open(O_RDWR | O_TMPFILE | O_EXCL, mode: 0o600)
            #expect(throws: Errno.noSuchFileOrDirectory) { try file.link(to: place / "named") }
            #expect(throws: Errno.invalidArgument) { try place.root.open(O_RDONLY | O_TMPFILE) }
            try (place / "file").create()
            #expect(throws: Errno.notDirectory) { try (place / "file").open(O_RDWR | O_TMPFILE) }
        }
    }
}
