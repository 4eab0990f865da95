import Glibc
import SystemPackage
import TestSupport
import Testing

/// All users of a mount are served by one process, which may not have as many files open as they.
@Suite(.serialized, .enabled(if: Machine.canMount && Machine.isRoot, "needs /dev/fuse and root"))
struct ManyFilesTests {
    private static let descriptorsMax = 4096
    private static let count = 5000

    private static func raiseLimit() -> Bool {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        limit.rlim_cur = limit.rlim_max
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        return limit.rlim_cur > count + 500
    }

    @Test(
        "more files can be open than the daemon may have descriptors",
        .enabled(if: !Machine.preservesWholeFiles, "what is passed through is always kept open"))
    func beyondTheLimit() throws {
        try #require(Self.raiseLimit(), "the test itself needs \(Self.count) descriptors")
        try MountedSource.with(descriptorsMax: Self.descriptorsMax) { (mount) throws in
            let names = (0..<Self.count).map { Path("file\($0)") }
            var files: [File] = []
            for name in names { files.append(try (mount.mountpoint / name).open(O_RDWR | O_CREAT | O_EXCL)) }
            for (number, file) in files.enumerated() { try file.write(bytes(100, seed: UInt64(number)), at: 0) }
            let last = Self.count - 1
            let file = files[last]
            try (mount.mountpoint / names[last]).rename(to: mount.mountpoint / "moved")
            try file.write(bytes(10, seed: 1), at: 8000)
            #expect(try file.stat().size == 8010)
            try file.truncate(5000)
            try file.allocate(0x3, at: 0, count: 50)
            try file.sync()
            #expect(try file.dataRanges().isEmpty == false)
            try (mount.mountpoint / "moved").unlink()
            #expect(try file.stat().links == 0)
            #expect(try file.read(60, at: 45).prefix(5) == [0, 0, 0, 0, 0])
            #expect(try file.read(10, at: 50) == Array(bytes(100, seed: UInt64(last))[50..<60]))
            for (number, file) in files.dropLast().enumerated() {
                #expect(try file.read(200, at: 0) == bytes(100, seed: UInt64(number)))
            }
            for file in files[3000..<4000] { _ = try file.copyRange(from: files[0], at: 0, to: 100, count: 100) }
            files.removeLast(Self.count - 20)
            try mount.start()
            try files[0].write([9], at: 0)
            try mount.stop()
            #expect(try (mount.source / "file3500").contents().count == 200)
        }
    }

    @Test("open files that are removed take no more descriptors than others", arguments: [false, true])
    func removed(_ isActive: Bool) throws {
        try #require(Self.raiseLimit(), "the test itself needs \(Self.count) descriptors")
        // What is kept of each once, but not twice.
        try MountedSource.with(descriptorsMax: 2 * Self.count - 500) { mount in
            let names = (0..<Self.count).map { Path("file\($0)") }
            var files: [File] = []
            for name in names { files.append(try (mount.mountpoint / name).open(O_RDWR | O_CREAT | O_EXCL)) }
            if isActive { try mount.start() }
            for name in names { try (mount.mountpoint / name).unlink() }
            for (number, file) in files.enumerated() {
                try file.write(bytes(10, seed: UInt64(number)), at: 0)
                // Calls that the kernel makes without the handle.
                try file.chmod(0o600)
                let status = try file.stat()
                #expect(status.permissions == 0o600 && status.links == 0)
            }
            for (number, file) in files.enumerated() {
                #expect(try file.read(20, at: 0) == bytes(10, seed: UInt64(number)))
            }
            if isActive { #expect(try mount.snapshot.entries().count == Self.count) }
        }
    }

    @Test(
        "files that get a name, and names that others share, leave no descriptor behind",
        arguments: [true, false])
    func named(_ hasHandles: Bool) throws {
        let count = 3500
        let options = hasHandles ? [] : ["-o", "no_file_handles"]
        try MountedSource.with(options: options, descriptorsMax: 3000) { mount in
            let before = try mount.figures().descriptors
            for number in 0..<count {
                let file = try mount.mountpoint.open(O_TMPFILE | O_RDWR)
                try file.writeAll([1])
                try file.link(to: mount.mountpoint / Path("file\(number)"))
            }
            for number in 0..<count {
                try (mount.mountpoint / Path("file\(number)")).link(to: mount.mountpoint / Path("other\(number)"))
            }
            for number in 0..<count { try (mount.mountpoint / Path("file\(number)")).unlink() }
            try wait("what was open to be closed") { try mount.figures().descriptors < before + Self.keptMax }
            for number in 0..<count {
                let name = mount.mountpoint / Path("other\(number)")
                try name.chmod(0o600)
                #expect(try name.stat().links == 1)
                #expect(try name.contents() == [1])
            }
        }
    }

    /// What the daemon keeps for speed, and of nodes whose other name it does not know.
    private static let keptMax = 512 + 1024 + 100

    @Test("more directories can be open than the daemon may have descriptors")
    func directories() throws {
        try #require(Self.raiseLimit(), "the test itself needs \(Self.count) descriptors")
        try MountedSource.with(descriptorsMax: Self.descriptorsMax) { mount in
            let directory = mount.mountpoint / "d"
            try directory.mkdir()
            let names = Set((0..<2000).map { Path("entry\($0)") })
            for name in names { try (directory / name).create() }
            var open: [File] = []
            for _ in 0..<Self.count { open.append(try directory.open(O_RDONLY | O_DIRECTORY)) }
            let last = try #require(open.last)
            // In many calls, which each go on where the one before ended.
            var listed: [Path] = []
            while true {
                let more = try last.nextEntries(room: 1000)
                if more.isEmpty { break }
                listed += more.map(\.name)
            }
            #expect(Set(listed) == names.union([".", ".."]) && listed.count == names.count + 2)
            try last.sync()
            #expect(try Set(directory.entries()) == names)
            for name in names { try (directory / name).unlink() }
            try directory.rmdir()
            #expect(try last.stat().links == 0)
            _ = try last.seek(0, SEEK_SET)
            #expect(throws: Errno.noSuchFileOrDirectory) { try last.nextEntries() }
        }
    }
}
