import Glibc
import LinuxSystem
import SnapshotRecord
import SystemPackage
import TestSupport
import Testing

@testable import SnapshotMount

@Suite struct NodeTableTests {
    @Test("the index agrees with a dictionary under random changes", arguments: seeds(10))
    func index(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        var index = IdentityIndex()
        var hashes: [UInt32: UInt64] = [:]
        for step in 0..<4000 {
            let slot = UInt32(random.number(0...800))
            if let hash = hashes[slot] {
                index.remove(slot, hash) { hashes[$0] ?? 0 }
                hashes[slot] = nil
            } else {
                // Few different hashes, so that places collide.
                let hash = UInt64(random.number(0...100))
                hashes[slot] = hash
                index.insert(slot, hash) { hashes[$0] ?? 0 }
            }
            #expect(index.count == hashes.count)
            if step % 50 == 0 {
                for (slot, hash) in hashes {
                    #expect(index.find(hash) { $0 == slot } == slot, "seed \(seed), step \(step)")
                }
                #expect(index.find(5) { $0 == 9999 } == nil)
            }
        }
    }

    private func reference(_ path: Path) throws(Errno) -> InodeReference {
        let status = try FileName(path.string).withCString { (name) throws(Errno) in
            try FileStatus(at: .workingDirectory, name)
        }
        return InodeReference(status, handle: FileHandle())
    }

    @Test("an id is never used again, and a forgotten one is stale")
    func idsAreNotReused() throws {
        try TemporaryDirectory.with { top in
            let table = NodeTable(isSnapshot: false, keepsNames: false)
            let reference = try reference(top)
            var seen: Set<UInt64> = []
            for _ in 0..<1000 {
                let node = try table.remember(reference, parent: 1, "x")
                #expect(seen.insert(node).inserted)
                #expect(node & NodeTable.snapshotBit == 0)
                #expect(try table.remember(reference, parent: 1, "x") == node)
                table.forget(node, 1)
                #expect(try table.reference(of: node) == reference)
                table.forget(node, 1)
                #expect(throws: Errno.staleNFSFileHandle) { try table.reference(of: node) }
            }
            #expect(table.count == 0)
        }
    }

    @Test("without handles, a directory stays known as long as something in it is")
    func parentsStay() throws {
        try TemporaryDirectory.with { top in
            try (top / "d").mkdir()
            try (top / "d" / "f").create([])
            let table = NodeTable(isSnapshot: false, keepsNames: true)
            let directory = try table.remember(try reference(top / "d"), parent: 1, "d")
            let file = try table.remember(try reference(top / "d" / "f"), parent: directory, "f")
            table.forget(directory, 1)
            #expect(table.count == 2)
            table.forget(file, 1)
            #expect(table.count == 0)
        }
    }

    @Test("after a reset every id is stale, and new ones differ")
    func reset() throws {
        try TemporaryDirectory.with { top in
            let table = NodeTable(isSnapshot: true, keepsNames: false)
            let reference = try reference(top)
            let old = try table.remember(reference, parent: 0, "")
            #expect(old & NodeTable.snapshotBit != 0)
            table.reset()
            #expect(throws: Errno.staleNFSFileHandle) { try table.reference(of: old) }
            let new = try table.remember(reference, parent: 0, "")
            #expect(new != old)
            table.forget(old, 5)
            #expect(try table.reference(of: new) == reference)
        }
    }
}
