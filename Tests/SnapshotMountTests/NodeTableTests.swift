import Glibc
import LinuxSystem
import SnapshotCore
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

    private func reference(_ path: Path, hasHandle: Bool = false) throws(Errno) -> InodeReference {
        let status = try FileName(path.string).withCString { (name) throws(Errno) in
            try FileStatus(at: .workingDirectory, name)
        }
        let bytes: [UInt8] = [1, 2, 3, 4]
        let handle = hasHandle ? bytes.withUnsafeBytes { LinuxSystem.FileHandle(kind: 1, bytes: $0) } : nil
        return InodeReference(status, handle: handle ?? LinuxSystem.FileHandle())
    }

    @Test("the nodes forgotten last keep their ids; as many as it says, and none without a handle")
    func forgottenNodes() throws {
        try TemporaryDirectory.with { top in
            let table = NodeTable(isSnapshot: false, keepsNames: false, forgottenMax: 3)
            let names = (0..<5).map { Path("\($0)") }
            for name in names { try (top / name).create() }
            let references = try names.map { try reference(top / $0, hasHandle: $0 != "4") }
            let nodes = try references.map { try table.remember($0, parent: 1, "x", at: 0) }
            for _ in 0..<10 {
                table.forget(nodes[0], 1)
                #expect(try table.remember(references[0], parent: 1, "x", at: 0) == nodes[0])
            }
            for node in nodes { table.forget(node, 1) }
            #expect(table.count == 3)
            #expect(throws: Errno.staleNFSFileHandle) { try table.retain(nodes[0]) }
            #expect(throws: Errno.staleNFSFileHandle) { try table.retain(nodes[4]) }
            for index in 1...3 {
                try table.retain(nodes[index])
                #expect(try table.remember(references[index], parent: 1, "x", at: 0) == nodes[index])
            }
            // What the kernel remembers stays, whatever it forgets meanwhile.
            for _ in 0..<10 {
                table.forget(try table.remember(references[0], parent: 1, "x", at: 0), 1)
            }
            for index in 1...3 { #expect(try table.reference(of: nodes[index]) == references[index]) }
        }
    }

    @Test("a forgotten node is not taken for a later inode of the same number and time of birth")
    func numberUsedAgain() throws {
        try TemporaryDirectory.with { top in
            let table = NodeTable(isSnapshot: false, keepsNames: false, forgottenMax: 3)
            let status = try FileName(top.string).withCString { (name) throws(Errno) in
                try FileStatus(at: .workingDirectory, name)
            }
            let handles = try [1, 2].map { (byte: UInt8) in
                try #require([byte].withUnsafeBytes { LinuxSystem.FileHandle(kind: 1, bytes: $0) })
            }
            let old = try table.remember(InodeReference(status, handle: handles[0]), parent: 1, "x", at: 0)
            table.forget(old, 1)
            #expect(table.lookup(status, parent: 1, "x", at: 0) == nil)
            let new = try table.remember(InodeReference(status, handle: handles[1]), parent: 1, "x", at: 0)
            #expect(new != old)
            #expect(try table.reference(of: new).handle == handles[1])
            #expect(throws: Errno.staleNFSFileHandle) { try table.retain(old) }
            #expect(table.lookup(status, parent: 1, "x", at: 0) == new)
            #expect(table.count == 1)
        }
    }

    @Test("an id is never used again, and a forgotten one is stale")
    func idsAreNotReused() throws {
        try TemporaryDirectory.with { top in
            let table = NodeTable(isSnapshot: false, keepsNames: false)
            let reference = try reference(top)
            var seen: Set<UInt64> = []
            for _ in 0..<1000 {
                let node = try table.remember(reference, parent: 1, "x", at: 0)
                #expect(seen.insert(node).inserted)
                #expect(node & NodeTable.snapshotBit == 0)
                #expect(try table.remember(reference, parent: 1, "x", at: 0) == node)
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
            let directory = try table.remember(try reference(top / "d"), parent: 1, "d", at: 0)
            let file = try table.remember(try reference(top / "d" / "f"), parent: directory, "f", at: 0)
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
            let old = try table.remember(reference, parent: 0, "", at: 0)
            #expect(old & NodeTable.snapshotBit != 0)
            table.reset()
            #expect(throws: Errno.staleNFSFileHandle) { try table.reference(of: old) }
            let new = try table.remember(reference, parent: 0, "", at: 0)
            #expect(new != old)
            table.forget(old, 5)
            #expect(try table.reference(of: new) == reference)
        }
    }

    @Test("slots agree with a dictionary under random changes, and no id comes twice", arguments: seeds(5))
    func slots(seed: UInt64) throws {
        try TemporaryDirectory.with { top in
            var random = SeededGenerator(seed: seed)
            let reference = try reference(top)
            let store = NodeStore(keepsPlaces: true)
            var known: [Int: UInt64] = [:]
            var seen: Set<[UInt64]> = []
            for step in 0..<30_000 {
                // Grows to some 10,000 nodes, shrinks to none, and again.
                let grows = step % 20_000 < 10_000
                if known.isEmpty || random.number(0...9) < (grows ? 9 : 1) {
                    let slot = try store.insert(Node(reference))
                    store.setName(slot, "node \(slot)")
                    #expect(known.updateValue(store[slot].serial, forKey: slot) == nil)
                    #expect(
                        seen.insert([UInt64(slot), store[slot].serial]).inserted, "seed \(seed), step \(step)")
                } else if let slot = known.keys.randomElement(using: &random), let serial = known[slot] {
                    #expect(store.holds(slot, serial: serial))
                    #expect(store.place(slot).name == FileName("node \(slot)"))
                    store.remove(slot)
                    known[slot] = nil
                    #expect(!store.holds(slot, serial: serial))
                }
            }
            #expect(store.count == known.count)
            for (slot, serial) in known { #expect(store.holds(slot, serial: serial)) }
            for slot in known.keys { store.remove(slot) }
            // One chunk is kept.
            #expect(store.memoryBytes < 400 << 10)
            store.removeAll()
            #expect(store.memoryBytes == 0)
            let slot = try store.insert(Node(reference))
            #expect(seen.insert([UInt64(slot), store[slot].serial]).inserted)
        }
    }

    @Test("what is pinned goes with the next look-up, but not with one that the removal overtook")
    func unpinning() throws {
        try TemporaryDirectory.with { top in
            try (top / "file").create()
            let status = try FileName((top / "file").string).withCString { (name) throws(Errno) in
                try FileStatus(at: .workingDirectory, name)
            }
            // By its handle, by its name; by neither where it lies in a file system mounted below.
            let sources: [(keepsNames: Bool, hasHandle: Bool)] = [(false, true), (true, false), (false, false)]
            for (keepsNames, hasHandle) in sources {
                let table = NodeTable(isSnapshot: false, keepsNames: keepsNames)
                let reference = try reference(top / "file", hasHandle: hasHandle)
                _ = try table.remember(reference, parent: 1, "a", at: table.moment)
                let before = table.moment
                let kept = try pin(table, reference, top / "file")
                #expect(kept.isOpen)
                #expect(table.lookup(status, parent: 1, "a", at: before) != nil)
                #expect(kept.isOpen, "overtaken")
                #expect(table.lookup(status, parent: 1, "b", at: table.moment) != nil)
                #expect(kept.isOpen == !(keepsNames || hasHandle))
            }
        }
    }

    /// Tells whether a descriptor is still open.
    private struct Watch {
        weak var descriptor: Descriptor?
        var isOpen: Bool { descriptor != nil }
    }

    /// Pins a descriptor that nobody else has.
    private func pin(_ table: NodeTable, _ reference: InodeReference, _ path: Path) throws -> Watch {
        let descriptor = try opened(path)
        table.pin(reference, descriptor)
        return Watch(descriptor: descriptor)
    }

    private func opened(_ path: Path) throws(Errno) -> Descriptor {
        try FileName(path.string).withCString { (name) throws(Errno) in
            try Descriptor.open(at: .workingDirectory, name, O_PATH)
        }
    }

    @Test("without handles, a node that another name leads to keeps no descriptor, and few others do")
    func losingOneOfSeveralNames() throws {
        try TemporaryDirectory.with { top in
            let table = NodeTable(isSnapshot: false, keepsNames: true)
            let descriptor = try opened(top)
            var references: [InodeReference] = []
            var nodes: [UInt64] = []
            for number in 0..<1200 {
                let name = top / Path("\(number)")
                try name.create()
                references.append(try reference(name))
                nodes.append(try table.remember(references[number], parent: 1, "a", at: table.moment))
            }
            _ = try table.remember(references[0], parent: 1, "b", at: table.moment)
            loseName(FileName("a"), references[0], descriptor, table)
            #expect(!isPinned(nodes[0], table))
            for number in 1..<1200 { loseName(FileName("a"), references[number], descriptor, table) }
            let pinned = nodes.filter { isPinned($0, table) }
            #expect(pinned.count == 1024)
            // One that has lost its last name stays pinned, however many follow.
            table.pin(references[1100], descriptor)
            for number in 1..<1200 where number != 1100 {
                loseName(FileName("a"), references[number], descriptor, table)
            }
            #expect(isPinned(nodes[1100], table))
        }
    }

    private func loseName(
        _ name: FileName, _ reference: InodeReference, _ descriptor: Descriptor, _ table: NodeTable
    ) {
        name.withCString { table.pin(reference, descriptor, lost: (1, $0)) }
    }

    private func isPinned(_ node: UInt64, _ table: NodeTable) -> Bool {
        do throws(Errno) {
            _ = try table.descriptor(of: node, NoOpener())
            return true
        } catch {
            return false
        }
    }

    /// Opens nothing: a node has what is pinned, or none.
    private struct NoOpener: NodeOpener {
        var root: Descriptor { .workingDirectory }

        func open(
            _ reference: InodeReference, find: () throws(Errno) -> Descriptor
        ) throws(Errno) -> Descriptor {
            throw .staleNFSFileHandle
        }
    }

    @Test("a look-up that a move overtook does not bring the old place back")
    func overtakenLookups() throws {
        try TemporaryDirectory.with { top in
            for name in ["old", "new"] { try (top / Path(name)).mkdir() }
            let table = NodeTable(isSnapshot: false, keepsNames: true)
            let old = try table.remember(try reference(top / "old"), parent: 1, "old", at: table.moment)
            let new = try table.remember(try reference(top / "new"), parent: 1, "new", at: table.moment)
            try (top / "old" / "d").mkdir()
            let moved = try reference(top / "old" / "d")
            let node = try table.remember(moved, parent: old, "d", at: table.moment)
            let before = table.moment
            try table.whileMoving { () throws(Errno) in table.move(moved, to: new, "e") }
            #expect(try table.remember(moved, parent: old, "d", at: before) == node)
            #expect(table.ancestors(of: node).map(\.name) == [FileName("e"), FileName("new")])
            // What is looked up afterwards counts.
            _ = try table.remember(moved, parent: old, "f", at: table.moment)
            #expect(table.ancestors(of: node).map(\.name) == [FileName("f"), FileName("old")])
        }
    }
}
