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
}
