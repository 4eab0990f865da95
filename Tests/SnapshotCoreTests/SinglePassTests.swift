import Glibc
import LinuxSystem
import SnapshotCore
import SnapshotRecord
import SystemPackage
import TestSupport
import Testing

/// A single pass: what the backup has read is released.
@Suite struct SinglePassTests {
    private static let original = bytes(40_000, seed: 7)
    private static let blocks: UInt64 = 10

    private func with(_ body: (SnapshotUnderTest) throws -> Void) throws {
        try SnapshotUnderTest.with(isSinglePass: true) { top in
            try (top / "f").create(Self.original)
        } _: { snapshot throws in
            try body(snapshot)
        }
    }

    private func overwrite(_ snapshot: SnapshotUnderTest, _ range: Range<Int>) throws {
        let target = try snapshot.target("f", O_RDWR)
        while !snapshot.preserve.willChangeData(of: target, Int64(range.lowerBound)..<Int64(range.upperBound)) {}
        try (snapshot.top / "f").write(bytes(range.count, seed: 9), at: range.lowerBound)
    }

    /// Bytes of a file of the snapshot.
    private func read(_ snapshot: SnapshotUnderTest, _ file: InodeReference, _ range: Range<Int>) throws -> [UInt8]
    {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: range.count, alignment: 1)
        defer { buffer.deallocate() }
        let count = try snapshot.tree.read(
            file.key, primary: try snapshot.descriptor(file), size: 40_000, into: buffer,
            at: Int64(range.lowerBound))
        return Array(buffer[..<count])
    }

    @Test(
        "what was read and then changes is not stored; reading it again fails and marks the snapshot, the rest goes on"
    )
    func readThenChanged() throws {
        try with { snapshot throws in
            let file = try #require(try snapshot.entry("f"))
            snapshot.preserve.cut.didRead(0..<5, of: file.key)
            // It has not changed: it can be read again.
            #expect(try read(snapshot, file, 0..<20_480) == Array(Self.original[..<20_480]))
            try overwrite(snapshot, 0..<40_000)
            #expect(snapshot.preserve.store.storedBytes == 40_000 - 20_480)
            #expect(try read(snapshot, file, 20_480..<40_000) == Array(Self.original[20_480...]))
            #expect(snapshot.preserve.end.inexactReason == nil)
            for range in [0..<1, 20_000..<20_500, 4_096..<8_192] {
                #expect(throws: Errno.ioError) { try read(snapshot, file, range) }
            }
            #expect(snapshot.preserve.end.inexactReason?.contains("again") == true)
            #expect(snapshot.preserve.end.isRecording)
            #expect(try read(snapshot, file, 20_480..<40_000) == Array(Self.original[20_480...]))
            #expect(try snapshot.status(file).size == 40_000)
            #expect(snapshot.preserve.changes.bytes == 40_000)
        }
    }

    @Test("what has changed and is then read gives its space back, on the disk too") func changedThenRead() throws
    {
        try with { snapshot throws in
            let file = try #require(try snapshot.entry("f"))
            try overwrite(snapshot, 0..<40_000)
            #expect(snapshot.preserve.store.storedBytes == 40_000)
            let delta = snapshot.top / ".fusesnap/snapshot" / Path(file.key.fileName.bytes)
            try delta.open(O_RDWR).sync()
            let before = try delta.lstat().blocks
            #expect(try read(snapshot, file, 0..<16_384) == Array(Self.original[..<16_384]))
            snapshot.preserve.cut.didRead(0..<4, of: file.key)
            #expect(snapshot.preserve.store.storedBytes == 40_000 - 16_384)
            #expect(try before - delta.lstat().blocks == 16_384 / 512)
            snapshot.preserve.cut.didRead(4..<Self.blocks, of: file.key)
            #expect(snapshot.preserve.store.storedBytes == 0 && snapshot.preserve.store.peakBytes == 40_000)
            #expect(throws: Errno.ioError) { try read(snapshot, file, 0..<100) }
            // Nothing is stored for further changes, and the holes that they make are not taken for those of the cut.
            try overwrite(snapshot, 0..<30_000)
            let target = try snapshot.target("f", O_RDWR)
            #expect(snapshot.preserve.willChangeData(of: target, 0..<20_480))
            try (snapshot.top / "f").open(O_RDWR).allocate(0x3, at: 0, count: 20_480)
            snapshot.preserve.willAllocate(of: target, 0..<40_000)
            #expect(snapshot.preserve.store.storedBytes == 0)
            #expect(throws: Errno.ioError) { try read(snapshot, file, 0..<100) }
        }
    }

    @Test("a hole that was read stays a hole, and one that has been overwritten since fails") func holes() throws {
        try SnapshotUnderTest.with(isSinglePass: true) { top in
            try (top / "f").create(bytes(8_192))
            try (top / "f").truncate(40_000)
        } _: { snapshot throws in
            let file = try #require(try snapshot.entry("f"))
            snapshot.preserve.cut.didRead(0..<Self.blocks, of: file.key)
            #expect(try snapshot.place(file, SEEK_DATA, from: 8_192) == nil)
            try overwrite(snapshot, 12_288..<16_384)
            #expect(try snapshot.place(file, SEEK_DATA, from: 8_192) == 12_288)
            #expect(throws: Errno.ioError) { try read(snapshot, file, 12_288..<16_384) }
            #expect(try read(snapshot, file, 16_384..<20_480) == [UInt8](repeating: 0, count: 4_096))
        }
    }

    @Test(
        "a file that was read in whole is not kept when it is removed, and one in the graveyard goes when it is read"
    )
    func removed() throws {
        for isReadFirst in [true, false] {
            try with { snapshot throws in
                let file = try #require(try snapshot.entry("f"))
                let opened = try #require(try snapshot.descriptor(file))
                let graves = snapshot.top / ".fusesnap/graveyard"
                if isReadFirst { snapshot.preserve.cut.didRead(0..<Self.blocks, of: file.key) }
                try snapshot.unlink("f")
                #expect(try graves.entries().count == (isReadFirst ? 0 : 1))
                if !isReadFirst {
                    #expect(snapshot.preserve.store.buriedBytes > 0)
                    snapshot.preserve.cut.didRead(0..<3, of: file.key)
                    #expect(try graves.entries().count == 1)
                    snapshot.preserve.cut.didRead(3..<Self.blocks, of: file.key)
                    #expect(try graves.entries().isEmpty)
                }
                #expect(snapshot.preserve.store.storedBytes == 0 && snapshot.preserve.store.buriedBytes == 0)
                #expect(try FileStatus(of: opened).links == 0)
                // Name and attributes stay.
                #expect(try snapshot.names() == ["f"] && snapshot.status(file).size == 40_000)
                #expect(throws: Errno.ioError) { try read(snapshot, file, 0..<100) }
                #expect(snapshot.preserve.end.inexactReason?.contains("again") == true)
            }
        }
    }

    @Test("without a single pass nothing is released by being read") func otherwise() throws {
        try SnapshotUnderTest.with { top in
            try (top / "f").create(Self.original)
        } _: { snapshot throws in
            let file = try #require(try snapshot.entry("f"))
            snapshot.preserve.cut.didRead(0..<Self.blocks, of: file.key)
            try overwrite(snapshot, 0..<40_000)
            #expect(try snapshot.data(file) == Self.original)
        }
    }

    @Test("whole blocks are told once, in reads of any size that follow each other") func progress() {
        var progress = ReadProgress()
        #expect(progress.didRead(0..<1_000, size: 10_000).isEmpty)
        #expect(progress.didRead(1_000..<5_000, size: 10_000) == 0..<1)
        #expect(progress.didRead(3_000..<8_192, size: 10_000) == 1..<2)
        #expect(progress.didRead(8_192..<10_000, size: 10_000) == 2..<3)
        #expect(progress.didRead(10_000..<10_000, size: 10_000).isEmpty)
        // Elsewhere: only what is read from there on, and no block of which the begin was not.
        #expect(progress.didRead(100..<9_000, size: 10_000).isEmpty)
        var other = ReadProgress()
        #expect(other.didRead(5_000..<9_000, size: 20_000).isEmpty)
        #expect(other.didRead(9_000..<12_288, size: 20_000) == 2..<3)
        #expect(other.didRead(16_384..<20_000, size: 20_000) == 4..<5)
        #expect(other.didRead(0..<4_096, size: 20_000) == 0..<1)
    }
}
