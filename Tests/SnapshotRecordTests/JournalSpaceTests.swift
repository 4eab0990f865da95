import Glibc
import LinuxSystem
import SnapshotRecord
import SystemPackage
import TestSupport
import Testing

/// Each in a small file system of its own that is really full.
@Suite struct JournalSpaceTests {
    /// Those that this machine can make.
    private static let types = ["tmpfs", "ext4", "xfs"].filter { $0 == "tmpfs" || canMake($0) }

    private static func canMake(_ type: String) -> Bool {
        Machine.has("mkfs.\(type)") && Path("/dev/loop-control").exists
    }

    /// Calls `body` with a file system of at least `mebibytes` in which nothing is.
    private func withFileSystem(_ type: String, mebibytes: Int, _ body: (Path) throws -> Void) throws {
        try TemporaryDirectory.with { top in
            let (image, place) = (top / "image", top / "mount")
            try place.mkdir()
            if type == "tmpfs" {
                try succeed(["mount", "-t", "tmpfs", "-o", "size=\(mebibytes)m", "tmpfs", place.string])
            } else {
                try image.create()
                // XFS is not made smaller.
                try image.truncate(type == "xfs" ? 300 << 20 : (mebibytes + 8) << 20)
                try succeed(["mkfs.\(type)", "-q", image.string])
                try succeed(["mount", "-o", "loop", image.string, place.string])
            }
            try body(place)
        }
    }

    /// Whether there was no room for what `body` does.
    private func findsNoRoom(_ body: () throws -> Void) throws -> Bool {
        do {
            try body()
            return false
        } catch Errno.noSpace {
            return true
        }
    }

    /// Takes all the room that there is.
    private func fill(_ path: Path) throws {
        let filler = path / "filler"
        try filler.create()
        for size in [1 << 20, 4096] {
            let data = bytes(size)
            // Synced, so that no room is only promised.
            while try !findsNoRoom({ try appendSynced(data, to: filler) }) {}
        }
    }

    private func appendSynced(_ data: [UInt8], to path: Path) throws {
        let file = try path.open(O_WRONLY | O_APPEND)
        try file.writeAll(data)
        try file.syncData()
    }

    @Test(
        "on a full disk small records find room ahead; one that finds none leaves the journal good, and later ones work",
        .enabled(if: Machine.isRoot, Comment(rawValue: Machine.needsRoot)), arguments: types)
    func fullDisk(_ type: String) throws {
        try withFileSystem(type, mebibytes: 8) { try fullDisk(in: $0) }
    }

    private func fullDisk(in top: Path) throws {
        let place = try JournalPlace(top)
        let journal = try place.make()
        let key = InodeKey(inode: 1, birth: 1)
        let small = JournalEvent.changes([.data(key, 0..<1), .name(in: key, FileName("a"), .absent)])
        try journal.append(small)
        try fill(top)

        // An unlink is some hundred bytes: there is room for thousands of them.
        for number in 1..<4000 {
            let sequence = try journal.append(small)
            #expect(sequence == UInt64(number))
        }
        let large = JournalEvent.changes([.target(key, bytes(2 << 20))])
        let before = journal.bytes
        #expect(throws: Errno.noSpace) { try journal.append(large) }
        #expect(journal.bytes == before && journal.nextSequence == 4000)
        #expect(try journal.append(small) == 4000)
        #expect(try place.scan().end == .whole)

        // To the very end, and against it some times.
        while try !findsNoRoom({ try journal.append(small) }) {}
        let next = journal.nextSequence
        for _ in 0..<3 {
            #expect(throws: Errno.noSpace) { try journal.append(small) }
        }
        let full = try place.scan()
        #expect(full.end == .whole && full.nextSequence == next && next > 4001)
        #expect(throws: Errno.noSpace) {
            try journal.compact(
                dump: { (emit) throws(Errno) in try emit(.target(key, bytes(4 << 20))) }, makeDurable: {})
        }
        #expect(try Set(top.entries()).isDisjoint(with: ["journal.new"]))

        try (top / "filler").unlink()
        #expect(try journal.append(large) == next)
        try journal.synchronize()
        let scan = try place.scan()
        #expect(scan.end == .whole && scan.nextSequence == next + 1 && scan.goodBytes == journal.bytes)
        #expect(try place.map().record(of: key) != nil)
    }

    @Test(
        "what is allocated ahead is no part of the file's size",
        .enabled(if: Machine.isRoot, Comment(rawValue: Machine.needsRoot)), arguments: types)
    func allocatesAhead(_ type: String) throws {
        try withFileSystem(type, mebibytes: 8) { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            try journal.append(.sealed)
            #expect(try place.file.stat().size == Int(journal.bytes))
            let status = try FileStatus(at: place.directory, "journal")
            #expect(status.blocks * 512 >= 1 << 20)
            #expect(try place.scan().end == .whole)
        }
    }

    @Test(
        "a record that is written in part is cut off again, and the next one takes its place",
        .enabled(if: Machine.isRoot && canMake("ext2"), "needs root, mkfs.ext2 and loop devices"))
    func partWritten() throws {
        // ext2 cannot allocate ahead: there a write finds out by itself, half-way.
        try withFileSystem("ext2", mebibytes: 8) { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            let key = InodeKey(inode: 1, birth: 1)
            let small = JournalEvent.changes([.data(key, 0..<1)])
            try journal.append(small)
            let before = journal.bytes
            #expect(throws: Errno.noSpace) {
                try journal.append(.changes([.target(key, bytes(32 << 20))]))
            }
            #expect(journal.bytes == before)
            #expect(try place.file.stat().size == Int(before))
            #expect(try journal.append(small) == 1)
            #expect(try place.events() == [small, small])
            #expect(try place.scan().end == .whole)
        }
    }
}
