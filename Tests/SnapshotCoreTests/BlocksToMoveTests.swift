import LinuxSystem
import SnapshotRecord
import Testing

@testable import SnapshotCore

@Suite struct BlocksToMoveTests {
    private static let key = InodeKey(inode: 7, birth: 1)
    private static let other = InodeKey(inode: 8, birth: 1)

    private func reference(_ key: InodeKey) -> InodeReference {
        var status = FileStatus()
        (status.inode, status.birth) = (key.inode, key.birth)
        return InodeReference(status, handle: FileHandle())
    }

    @Test("what is stored while it is moved stays in the layer, and of that file alone")
    func storedMeanwhile() {
        let blocks = BlocksToMove()
        blocks.begin([0..<8, 20..<24], of: Self.key)
        blocks.willStore(0..<100, of: Self.other)
        blocks.willStore(3..<5, of: Self.key)
        blocks.willStore(23..<30, of: Self.key)
        #expect(blocks.end().runs == [0..<3, 5..<8, 20..<23])
        #expect(blocks.end().runs.isEmpty)
        // Nothing is being moved: nothing to note.
        blocks.willStore(0..<8, of: Self.key)
        blocks.begin([0..<8], of: Self.key)
        #expect(blocks.end().runs == [0..<8])
    }

    @Test("blocks of a file are gathered until they are worth a sync")
    func gathered() throws {
        let blocks = BlocksToMove()
        #expect(blocks.add([], of: reference(Self.key)) == nil)
        #expect(blocks.add([0..<100, 200..<256], of: reference(Self.key)) == nil)
        #expect(blocks.add([0..<200], of: reference(Self.other)) == nil)
        // Read again: these are gathered already.
        #expect(blocks.add([50..<100], of: reference(Self.key)) == nil)
        #expect(blocks.add([100..<201], of: reference(Self.key))?.blocks.runs == [0..<256])
        let rest = try #require(blocks.takeOne())
        #expect(rest.reference.key == Self.other)
        #expect(rest.blocks.runs == [0..<200])
        #expect(blocks.takeOne() == nil)
        // One that could not be moved now, and more of its file.
        #expect(blocks.add([300..<310], of: reference(Self.other)) == nil)
        blocks.giveBack(rest)
        #expect(blocks.takeOne()?.blocks.runs == [0..<200, 300..<310])
    }
}
