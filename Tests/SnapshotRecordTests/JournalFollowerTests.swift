import Glibc
import LinuxSystem
import Synchronization
import SystemPackage
import TestSupport
import Testing

@testable import SnapshotRecord

@Suite struct JournalFollowerTests {
    private static let key = InodeKey(inode: 77, birth: 88)

    private func follower(_ place: JournalPlace, _ map: DeltaMap?) throws -> JournalFollower {
        try JournalFollower(in: place.directory, path: place.path.string, device: 7, into: map)
    }

    private func blocks(_ map: DeltaMap) -> [Range<UInt64>] {
        map.record(of: Self.key)?.contents.withLock { Array($0.blocks.runs) } ?? []
    }

    @Test("what is appended is in the map after the next look, and not before; the end is noticed")
    func follows() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            try journal.append(.changes([.data(Self.key, 0..<4)]))
            let map = DeltaMap()
            let follower = try follower(place, map)
            #expect(blocks(map) == [0..<4])
            for block in 4..<UInt64(2000) {
                try journal.append(.changes([.data(Self.key, block..<block + 1)]))
                #expect(blocks(map) == [0..<block])
                #expect(try follower.catchUp())
            }
            #expect(blocks(map) == [0..<2000])
            try journal.append(.discarded)
            #expect(try !follower.catchUp())
            #expect(try !follower.catchUp())
        }
    }

    @Test("a record larger than the buffer is followed")
    func large() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            let map = DeltaMap()
            let follower = try follower(place, map)
            let changes = (0..<UInt64(60_000)).map { RecordChange.data(Self.key, 2 * $0..<2 * $0 + 1) }
            try journal.append(.changes(changes))
            #expect(try follower.catchUp())
            #expect(blocks(map).count == changes.count)
        }
    }

    @Test("a part of a record is not there yet; one that was cut off and written anew is")
    func parts() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            let begin = try place.file.stat().size
            try journal.append(.changes([.data(Self.key, 0..<4)]))
            let record = Array(try place.file.contents()[Int(begin)...])
            try place.file.truncate(Int(begin))
            let map = DeltaMap()
            let follower = try follower(place, map)
            for length in 1..<record.count {
                try place.file.write(Array(record[..<length]), at: Int(begin))
                #expect(try follower.catchUp())
                #expect(blocks(map) == [])
            }
            // The writer cuts it off, and writes another one there.
            try place.file.truncate(Int(begin))
            let other = try JournalPlace(top)
            #expect(try follower.catchUp())
            #expect(blocks(map) == [])
            try other.file.write(record, at: Int(begin))
            #expect(try follower.catchUp())
            #expect(blocks(map) == [0..<4])
        }
    }

    @Test("damage is told, and never taken for a record")
    func damage() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            _ = try place.make()
            let follower = try follower(place, DeltaMap())
            try place.file.append([UInt8](repeating: 0x5a, count: 64))
            #expect(throws: RecordError.self) { try follower.catchUp() }
        }
    }

    @Test("a journal that is gone is the end; in redirect one that has taken its place is not")
    func replaced() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make(.test(.redirect))
            try journal.append(.changes([.data(Self.key, 0..<4)]))
            let follower = try follower(place, nil)
            let another = try JournalFollower(
                in: place.directory, path: top.string, device: 7, into: DeltaMap())
            #expect(try follower.catchUp())
            let copy = top / "journal.new"
            try copy.create(try place.file.contents())
            try copy.rename(to: place.file)
            #expect(try follower.catchUp())
            #expect(try !another.catchUp(), "in preserve none takes its place")
            try place.file.unlink()
            #expect(try !follower.catchUp())
        }
    }
}
