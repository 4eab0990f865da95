import Glibc
import LinuxSystem
import SnapshotCore
import SnapshotRecord
import Synchronization
import SystemPackage
import TestSupport
import Testing

@Suite struct PreserveTests {
    private static let original = bytes(40_000, seed: 7)

    private func with(
        bytesMax: UInt64? = nil, _ body: (SnapshotUnderTest) throws -> Void
    ) throws {
        try SnapshotUnderTest.with(bytesMax: bytesMax) { top in
            try (top / "f").create(Self.original)
            try (top / "d").mkdir()
            try (top / "l").symlink(to: "f")
        } _: { snapshot in
            try body(snapshot)
        }
    }

    @Test("a write at any place leaves the snapshot's data, and a second one stores nothing more")
    func overwrite() throws {
        try with { snapshot in
            let file = try #require(try snapshot.entry("f"))
            let target = try snapshot.target("f", O_RDWR)
            for offset in [0, 1, 4095, 4096, 12_288, 39_999] {
                #expect(snapshot.preserve.willChangeData(of: target, Int64(offset)..<Int64(offset + 1)))
                try (snapshot.top / "f").open(O_WRONLY).writeAll([0], at: offset)
                #expect(try snapshot.data(file) == Self.original)
            }
            let stored = snapshot.preserve.store.storedBytes
            #expect(stored == 3 * 4096 + 40_000 % 4096)
            #expect(snapshot.preserve.willChangeData(of: target, 0..<8192))
            #expect(snapshot.preserve.store.storedBytes == stored)
        }
    }

    @Test("bytes behind the size at the cut need nothing")
    func append() throws {
        try with { snapshot in
            let file = try #require(try snapshot.entry("f"))
            let target = try snapshot.target("f", O_RDWR)
            #expect(snapshot.preserve.willChangeData(of: target, 40_000..<1 << 30))
            try (snapshot.top / "f").open(O_WRONLY).writeAll(bytes(100_000), at: 40_000)
            #expect(snapshot.preserve.store.storedBytes == 0)
            #expect(try snapshot.data(file) == Self.original)
            #expect(try snapshot.status(file).size == 40_000)
        }
    }

    @Test("attributes that were seen with a name are the cut's, unless others are recorded")
    func seenAttributes() throws {
        try with { snapshot in
            let root = snapshot.root
            func entry() throws -> SnapshotEntry {
                try "f".withCString { try snapshot.tree.entry(in: root.reference, root.descriptor, $0) }
            }
            let found = try entry()
            let atCut = try #require(found.seen)
            func mode(_ seen: FileStatus?) throws -> UInt32 {
                try snapshot.tree.status(of: found.reference, seen: seen) { () throws(Errno) in throw .ioError }
                    .mode
            }
            #expect(try mode(atCut) == atCut.mode)
            #expect(throws: Errno.ioError) { try mode(nil) }
            let target = try snapshot.target("f")
            snapshot.preserve.willChangeAttributes(of: target)
            try changeMode(target.descriptor, 0o600)
            // Seen before the change, and after it.
            for seen in [atCut, try FileStatus(of: target.descriptor)] { #expect(try mode(seen) == atCut.mode) }
            "f".withCString { snapshot.preserve.willChangeEntry(in: root, $0, now: .present(found.reference)) }
            #expect(try entry().seen == nil)
        }
    }

    @Test("a large change is preserved in slices")
    func slices() throws {
        try SnapshotUnderTest.with { top in
            try (top / "big").create(bytes(40 << 20))
        } _: { snapshot in
            let target = try snapshot.target("big", O_RDWR)
            var passages = 1
            while !snapshot.preserve.willChangeData(of: target, 0..<Int64.max) { passages += 1 }
            #expect(passages == 3)
            try (snapshot.top / "big").truncate(0)
            let file = try #require(try snapshot.entry("big"))
            #expect(try snapshot.data(file) == bytes(40 << 20))
        }
    }

    @Test("holes cost nothing, and stay holes", arguments: [SEEK_DATA, SEEK_HOLE])
    func holes(whence: Int32) throws {
        try SnapshotUnderTest.with { top in
            let file = try (top / "sparse").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(4096), at: 1 << 20)
            try file.truncate(2 << 20)
        } _: { snapshot in
            let file = try #require(try snapshot.entry("sparse"))
            let target = try snapshot.target("sparse", O_RDWR)
            let size = try snapshot.status(file).size
            func places() throws -> [Int64?] {
                try stride(from: Int64(0), to: size, by: 4096).map {
                    try snapshot.place(file, whence, from: $0)
                }
            }
            let before = try places()
            #expect(snapshot.preserve.willChangeData(of: target, 0..<size))
            #expect(snapshot.preserve.store.storedBytes == 4096)
            try (snapshot.top / "sparse").write(bytes(2 << 20), at: 0)
            #expect(try places() == before)
        }
    }

    @Test("a file that loses its last name goes on serving the snapshot")
    func unlink() throws {
        try with { snapshot in
            try snapshot.unlink("f")
            #expect(try (snapshot.top).entries().contains("f") == false)
            let file = try #require(try snapshot.entry("f"))
            #expect(try snapshot.data(file) == Self.original)
            #expect(try snapshot.status(file).links == 1)
            #expect(try snapshot.names() == ["f", "d", "l"])
        }
    }

    @Test("a directory and a symbolic link are recorded, not kept")
    func detached() throws {
        try with { snapshot in
            let directory = try #require(try snapshot.entry("d"))
            let link = try #require(try snapshot.entry("l"))
            try snapshot.unlink("d", AT_REMOVEDIR)
            try snapshot.unlink("l")
            #expect(try snapshot.descriptor(directory) == nil)
            #expect(try snapshot.status(directory).isDirectory)
            #expect(try snapshot.linkTarget(link) == "f")
            #expect(try snapshot.names() == ["f", "d", "l"])
        }
    }

    @Test("what is made after the cut is not in it, and its changes are not stored")
    func born() throws {
        try with { snapshot in
            "new".withCString {
                snapshot.preserve.willChangeEntry(in: snapshot.root, $0, now: .absent)
            }
            try (snapshot.top / "new").create(bytes(10_000))
            let target = try snapshot.target("new", O_RDWR)
            snapshot.preserve.didMake(try FileStatus(of: target.descriptor))
            #expect(try snapshot.entry("new") == nil)
            #expect(try snapshot.names() == ["f", "d", "l"])
            #expect(snapshot.preserve.willChangeData(of: target, 0..<10_000))
            #expect(snapshot.preserve.store.storedBytes == 0)
        }
    }

    @Test("a store that is full ends the snapshot, not the change; its reads fail, and never give other data")
    func overflow() throws {
        try with(bytesMax: 8192) { snapshot in
            let file = try #require(try snapshot.entry("f"))
            let target = try snapshot.target("f", O_RDWR)
            #expect(snapshot.preserve.willChangeData(of: target, 0..<8192))
            #expect(try snapshot.data(file) == Self.original)
            #expect(snapshot.preserve.willChangeData(of: target, 8192..<16_384))
            #expect(throws: Errno.ioError) { try snapshot.data(file) }
            #expect(snapshot.preserve.end.inexactReason != nil)
        }
    }

    @Test("after its end a snapshot's reads are stale")
    func ended() throws {
        try with { snapshot in
            let file = try #require(try snapshot.entry("f"))
            snapshot.preserve.end.end()
            #expect(throws: Errno.staleNFSFileHandle) { try snapshot.data(file) }
            #expect(throws: Errno.staleNFSFileHandle) { try snapshot.names() }
        }
    }

    @Test("readers beside writers always see the cut", arguments: [true, false])
    func readersBesideWriters(usesHandles: Bool) throws {
        let size = 256 * 4096
        try SnapshotUnderTest.with { top in
            try (top / "f").create(bytes(size))
        } _: { snapshot in
            let file = try #require(try snapshot.entry("f"))
            let writers = try (0..<2).map { number in
                let target = try snapshot.target("f", O_RDWR)
                let preserve = snapshot.preserve
                let path = snapshot.top / "f"
                return try Worker {
                    var random = SeededGenerator(seed: UInt64(number))
                    let live = try path.open(O_RDWR)
                    for _ in 0..<3000 {
                        let offset = random.number(0...size - 5000)
                        let length = random.number(1...5000)
                        _ = preserve.willChangeData(of: target, Int64(offset)..<Int64(offset + length))
                        try live.writeAll([UInt8](repeating: 0xff, count: length), at: offset)
                    }
                }
            }
            var rounds = 0
            while rounds < 3 || !writers.allSatisfy(\.hasEnded) {
                #expect(try snapshot.data(file) == bytes(size))
                rounds += 1
            }
            for writer in writers { try writer.join() }
        }
    }

    @Test("what was changed beside the mount reads EIO where it was not recorded, and the rest goes on")
    func changedBeside() throws {
        try with { snapshot in
            let file = try #require(try snapshot.entry("f"))
            let directory = try #require(try snapshot.entry("d"))
            let target = try snapshot.target("f", O_RDWR)
            #expect(snapshot.preserve.willChangeData(of: target, 0..<4096))
            try (snapshot.top / "f").open(O_WRONLY).writeAll([0], at: 20_000)
            snapshot.preserve.cut.didChangeBeside(file.key, "a test wrote to f")
            #expect(snapshot.preserve.end.inexactReason == "a test wrote to f")
            #expect(snapshot.preserve.end.isRecording)
            #expect(throws: Errno.ioError) { try snapshot.data(file) }
            #expect(try snapshot.status(file).size == 40_000, "its attributes were recorded before")
            try (snapshot.top / "d").chmod(0o700)
            snapshot.preserve.cut.didChangeBeside(directory.key, "a test changed d")
            #expect(throws: Errno.ioError) { try snapshot.status(directory) }
            #expect(try snapshot.entry("l") != nil)
            // What is changed through the mount after that must not be recorded as if it were the original.
            #expect(snapshot.preserve.willChangeData(of: target, 16_384..<24_576))
            try (snapshot.top / "f").open(O_WRONLY).writeAll([0], at: 20_001)
            #expect(throws: Errno.ioError) { try snapshot.data(file) }
            try snapshot.unlink("f")
            #expect(throws: Errno.ioError) { try snapshot.data(file) }
        }
    }

    @Test("a change beside the mount to a file that is recorded in whole, or was made later, loses nothing")
    func changedBesideInVain() throws {
        try with { snapshot in
            let file = try #require(try snapshot.entry("f"))
            let target = try snapshot.target("f", O_RDWR)
            #expect(snapshot.preserve.willChangeData(of: target, 0..<Int64.max))
            try (snapshot.top / "f").open(O_WRONLY).writeAll([0], at: 20_000)
            snapshot.preserve.cut.didChangeBeside(file.key, "not to be told")
            try (snapshot.top / "new").create([1])
            let made = try snapshot.target("new")
            snapshot.preserve.didMake(try FileStatus(of: made.descriptor))
            snapshot.preserve.cut.didChangeBeside(made.key, "not to be told")
            #expect(snapshot.preserve.end.inexactReason == nil)
            #expect(try snapshot.data(file) == Self.original)
        }
    }

    @Test("a directory that is removed between its opening and its listing is listed as it was")
    func removedWhileListed() throws {
        try SnapshotUnderTest.with { top in
            try (top / "d").mkdir()
            try (top / "d/inner").mkdir()
        } _: { snapshot in
            let directory = try #require(try snapshot.entry("d"))
            let opened = try #require(try snapshot.descriptor(directory))
            let target = try snapshot.target("d")
            let isDone = try "inner".withCString {
                try snapshot.preserve.unlink(
                    in: target, $0, victim: try snapshot.target("d/inner"), AT_REMOVEDIR)
            }
            #expect(isDone)
            try snapshot.unlink("d", AT_REMOVEDIR)
            var names: [String] = []
            try snapshot.tree.listing(of: directory, opened).forEach { name, _, _ in
                names.append(String(cString: name))
            }
            #expect(names == ["inner"])
        }
    }

    @Test("data that could not be read before they changed read EIO, and mark the snapshot")
    func unreadable() throws {
        try with { snapshot in
            let file = try #require(try snapshot.entry("f"))
            let target = try snapshot.target("f", O_RDWR)
            #expect(snapshot.preserve.willChangeData(of: target, 0..<4096))
            let record = try #require(snapshot.preserve.map.record(of: file.key))
            record.contents.withLock { $0.isUnreadable = true }
            try (snapshot.top / "f").open(O_WRONLY).writeAll([0], at: 20_000)
            #expect(throws: Errno.ioError) { try snapshot.data(file) }
            #expect(snapshot.preserve.end.inexactReason != nil)
        }
    }

    @Test("a hole of terabytes is preserved at once")
    func enormousHole() throws {
        try SnapshotUnderTest.with { top in
            let file = try (top / "sparse").open(O_RDWR | O_CREAT)
            try file.truncate(8 << 40)
            try file.writeAll(bytes(5_000), at: 3 << 40)
        } _: { snapshot in
            let file = try #require(try snapshot.entry("sparse"))
            let target = try snapshot.target("sparse", O_RDWR)
            #expect(snapshot.preserve.willChangeData(of: target, 0..<Int64.max))
            try (snapshot.top / "sparse").truncate(0)
            #expect(try snapshot.status(file).size == 8 << 40)
            #expect(try snapshot.place(file, SEEK_DATA, from: 0) == 3 << 40)
            #expect(try snapshot.place(file, SEEK_DATA, from: 3 << 40 + 8_192) == nil)
            #expect(snapshot.preserve.store.storedBytes <= 8_192)
        }
    }
}
