import Glibc
import SystemPackage
import TestSupport
import Testing

private let keepSize: Int32 = 0x1
private let punchHole: Int32 = 0x3
private let zeroRange: Int32 = 0x10

private func zeros(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }

@Suite(.serialized) struct DataTests {
    @Test("what is written at any place is read back, holes between are zeros", arguments: Setting.available)
    func sparseWrites(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(100), at: 1_000_000)
            try place.cut()
            try file.writeAll(bytes(300_001, seed: 2), at: 123_457)
            let contents = try (place / "file").contents()
            #expect(contents == zeros(123_457) + bytes(300_001, seed: 2) + zeros(1_000_000 - 423_458) + bytes(100))
            #expect(try file.read(10, at: 2_000_000) == [])
            #expect(throws: Errno.invalidArgument) { try file.read(1, at: -1) }
        }
    }

    @Test("a file grows beyond 4 GiB", arguments: Setting.available)
    func farOffsets(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            let far = 5 << 30
            try file.writeAll(bytes(100), at: far)
            try place.cut()
            try file.writeAll(bytes(10, seed: 2), at: far + 50)
            #expect(try file.stat().size == far + 100)
            #expect(try file.read(60, at: far) == Array(bytes(100)[..<50]) + bytes(10, seed: 2))
            // A kernel that gathers writes learns of the source's bound at fsync.
            if !Machine.kernelOwnsTimes {
                #expect(throws: Errno.fileTooLarge) { try file.write([1], at: Int.max - 1) }
            }
        }
    }

    @Test("truncate shrinks, grows with zeros, and stamps", arguments: Setting.available)
    func truncating(_ setting: Setting) throws {
        try setting.run { place in
            let path = place / "file"
            try path.create(bytes(10_000))
            try place.cut()
            for size in [9_999, 8_192, 8_191, 4_097, 4_096, 1, 0] {
                try path.truncate(size)
                #expect(try path.contents() == Array(bytes(10_000)[..<size]), "cut to \(size)")
            }
            try path.append(bytes(10))
            let before = try path.lstat()
            try waitForClockTick()
            try path.truncate(5_000)
            #expect(try path.contents() == bytes(10) + zeros(4_990))
            #expect(try path.lstat().modified > before.modified)
            #expect(throws: Errno.invalidArgument) { try path.truncate(-1) }
            #expect(throws: Errno.isDirectory) { try place.root.truncate(0) }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "none").truncate(0) }
        }
    }

    @Test("bytes cut off by truncate do not come back", arguments: Setting.available)
    func noStaleBytes(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(10_000))
            try place.cut()
            try file.truncate(5_000)
            try file.truncate(10_000)
            #expect(try file.read(10_000, at: 0) == Array(bytes(10_000)[..<5_000]) + zeros(5_000))
        }
    }

    @Test("fallocate grows a file, or keeps its size", arguments: Setting.available)
    func allocating(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(100))
            try place.cut()
            try file.allocate(keepSize, at: 0, count: 1 << 20)
            #expect(try file.stat().size == 100)
            if setting.tellsBlocks { #expect(try file.stat().blocks >= 2048) }
            try file.allocate(at: 0, count: 8_192)
            #expect(try file.stat().size == 8_192)
            #expect(try file.read(10_000, at: 0) == bytes(100) + zeros(8_092))
            #expect(throws: Errno.invalidArgument) { try file.allocate(at: 0, count: 0) }
            #expect(throws: Errno.invalidArgument) { try file.allocate(at: -1, count: 1) }
            #expect(throws: Errno.notSupported) { try file.allocate(0x2, at: 0, count: 4096) }
            let reader = try (place / "file").open(O_RDONLY)
            #expect(throws: Errno.badFileDescriptor) { try reader.allocate(at: 0, count: 4096) }
        }
    }

    @Test("punching a hole zeroes it, frees it and keeps the size", arguments: Setting.available)
    func punching(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(65_536))
            try file.sync()
            try place.cut()
            let blocks = try file.stat().blocks
            try file.allocate(punchHole, at: 4_000, count: 20_000)
            let expected = Array(bytes(65_536)[..<4_000]) + zeros(20_000) + Array(bytes(65_536)[24_000...])
            #expect(try file.read(65_536, at: 0) == expected)
            if setting.tellsBlocks { #expect(try file.stat().blocks < blocks) }
            #expect(try file.dataRanges() == [0..<4_096, 20_480..<65_536])
            try file.allocate(punchHole, at: 60_000, count: 100_000)
            #expect(try file.stat().size == 65_536)
        }
    }

    @Test("zeroing a range keeps or grows the size as asked", arguments: Setting.available)
    func zeroing(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(10_000))
            try place.cut()
            try file.allocate(zeroRange | keepSize, at: 9_000, count: 10_000)
            #expect(try file.read(20_000, at: 0) == Array(bytes(10_000)[..<9_000]) + zeros(1_000))
            try file.allocate(zeroRange, at: 100, count: 12_000)
            #expect(try file.read(20_000, at: 0) == Array(bytes(10_000)[..<100]) + zeros(12_000))
        }
    }

    @Test("SEEK_DATA and SEEK_HOLE find the holes", arguments: Setting.available)
    func seeking(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.truncate(1 << 20)
            try file.writeAll(bytes(4_096), at: 65_536)
            try file.writeAll(bytes(8_192), at: 262_144)
            try file.sync()
            try place.cut()
            #expect(try file.dataRanges() == [65_536..<69_632, 262_144..<270_336])
            #expect(try file.seek(0, SEEK_HOLE) == 0)
            #expect(try file.seek(65_600, SEEK_DATA) == 65_600)
            #expect(try file.seek(65_600, SEEK_HOLE) == 69_632)
            #expect(throws: Errno.noSuchAddressOrDevice) { try file.seek(300_000, SEEK_DATA) }
            #expect(throws: Errno.noSuchAddressOrDevice) { try file.seek(1 << 20, SEEK_HOLE) }
            #expect(throws: Errno.invalidArgument) { try file.seek(0, 99) }
            #expect(try file.seek(-1, SEEK_END) == (1 << 20) - 1)
        }
    }

    @Test("copy_file_range copies between files and within one", arguments: Setting.available)
    func copying(_ setting: Setting) throws {
        try setting.run { place in
            let source = try (place / "source").open(O_RDWR | O_CREAT)
            let target = try (place / "target").open(O_RDWR | O_CREAT)
            try source.writeAll(bytes(100_000))
            try target.writeAll(bytes(50_000, seed: 2))
            try place.cut()
            #expect(try target.copyRange(from: source, at: 1_000, to: 10_000, count: 30_000) == 30_000)
            let patch = Array(bytes(100_000)[1_000..<31_000])
            let old = bytes(50_000, seed: 2)
            #expect(try target.read(60_000, at: 0) == Array(old[..<10_000]) + patch + Array(old[40_000...]))
            #expect(try source.copyRange(from: source, at: 0, to: 200_000, count: 4_096) == 4_096)
            #expect(try source.read(4_096, at: 200_000) == Array(bytes(4_096)))
            #expect(try target.copyRange(from: source, at: 1 << 30, to: 0, count: 10) == 0)
            #expect(throws: Errno.invalidArgument) {
                try source.copyRange(from: source, at: 0, to: 100, count: 4_096)
            }
            let reader = try (place / "target").open(O_RDONLY)
            #expect(throws: Errno.badFileDescriptor) { try reader.copyRange(from: source, at: 0, to: 0, count: 1) }
        }
    }

    @Test("O_DIRECT writes are seen by cached reads and the other way round", arguments: Setting.available)
    func direct(_ setting: Setting) throws {
        try setting.run { place in
            let cached = try (place / "file").open(O_RDWR | O_CREAT)
            try cached.writeAll(bytes(65_536))
            try place.cut()
            let direct = try (place / "file").open(O_RDWR | O_DIRECT)
            let buffer = AlignedBuffer(8_192)
            buffer.set(bytes(8_192, seed: 2))
            #expect(pwrite(direct.raw, buffer.start, 8_192, 4_096) == 8_192)
            #expect(try cached.read(8_192, at: 4_096) == bytes(8_192, seed: 2))
            try cached.write(bytes(8_192, seed: 3), at: 16_384)
            #expect(pread(direct.raw, buffer.start, 8_192, 16_384) == 8_192)
            #expect(buffer.contents == bytes(8_192, seed: 3))
            #expect(pread(direct.raw, buffer.start, 8_192, 65_536) == 0)
        }
    }

    @Test("a shared mapping and read and write see each other", arguments: Setting.available)
    func mappingCoherence(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(20_000))
            try place.cut()
            let mapping = try file.map(20_000)
            #expect(try mapping.read(20_000, at: 0) == bytes(20_000))
            try mapping.write(bytes(5_000, seed: 2), at: 4_000)
            #expect(try file.read(5_000, at: 4_000) == bytes(5_000, seed: 2))
            try file.write(bytes(3_000, seed: 3), at: 8_100)
            #expect(try mapping.read(3_000, at: 8_100) == bytes(3_000, seed: 3))
            try mapping.sync()
            let expected = try mapping.read(20_000, at: 0)
            #expect(try (place / "file").contents() == expected)
        }
    }

    @Test(
        "stores into a mapping reach the file by msync, and after the descriptor is closed",
        arguments: Setting.available)
    func mappingOutlivesDescriptor(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(10_000))
            try place.cut()
            let before = try (place / "file").lstat()
            try waitForClockTick()
            let mapping = try (place / "file").open(O_RDWR).map(10_000)
            try mapping.write(bytes(100, seed: 2), at: 5_000)
            try mapping.sync()
            #expect(try (place / "file").contents()[5_000..<5_100] == bytes(100, seed: 2)[...])
            #expect(try (place / "file").lstat().modified > before.modified)
        }
    }

    @Test("a mapping faults beyond the end of its file, after truncation too", arguments: Setting.available)
    func mappingFaults(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(16_384))
            let mapping = try file.map(16_384)
            #expect(try mapping.read(1, at: 12_288) == Array(bytes(16_384)[12_288...12_288]))
            try place.cut()
            try file.truncate(5_000)
            #expect(throws: Errno.badAddress) { try mapping.read(1, at: 12_288) }
            #expect(try mapping.read(3_192, at: 5_000) == zeros(3_192))
            try file.truncate(16_384)
            #expect(try mapping.read(1, at: 12_288) == [0])
        }
    }

    @Test("a private mapping keeps its changes to itself", arguments: Setting.available)
    func privateMapping(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(8_192))
            try place.cut()
            let mapping = try (place / "file").open(O_RDONLY).map(8_192, flags: MAP_PRIVATE)
            try mapping.write([0, 0, 0], at: 100)
            #expect(try mapping.read(3, at: 100) == [0, 0, 0])
            #expect(try (place / "file").contents() == bytes(8_192))
            #expect(throws: Errno.permissionDenied) { try (place / "file").open(O_RDONLY).map(4_096) }
        }
    }

    @Test(
        "what is stored through a mapping of a file open for appending goes where it was stored",
        arguments: Setting.available)
    func mappingOfAppender(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(4_096))
            let file = try (place / "file").open(O_RDWR | O_APPEND)
            try place.cut()
            let mapping = try file.map(4_096, protection: PROT_READ | PROT_WRITE, flags: MAP_SHARED)
            try mapping.write([7, 8, 9], at: 10)
            try file.sync()
            #expect(try file.stat().size == 4_096)
            var expected = bytes(4_096)
            expected.replaceSubrange(10..<13, with: [7, 8, 9])
            #expect(try (place / "file").contents() == expected)
        }
    }

    @Test("a descriptor that stops appending writes where it is told", arguments: Setting.available)
    func appendingNoMore(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(100))
            let file = try (place / "file").open(O_RDWR | O_APPEND)
            try place.cut()
            try file.writeAll([1])
            #expect(fcntl(file.raw, F_SETFL, 0) == 0)
            try file.writeAll([2], at: 0)
            #expect(try (place / "file").contents() == [2] + Array(bytes(100)[1...]) + [1])
        }
    }
}
