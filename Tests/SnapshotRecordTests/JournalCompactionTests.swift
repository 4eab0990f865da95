import Glibc
import LinuxSystem
import SnapshotRecord
import Synchronization
import SystemPackage
import TestSupport
import Testing

@Suite struct JournalCompactionTests {
    private func fill(_ journal: Journal, _ map: DeltaMap, _ generator: inout ChangeGenerator, _ count: Int) throws
    {
        for _ in 0..<count {
            let changes = generator.changes()
            try journal.append(.changes(changes))
            for change in changes { map.apply(change) }
        }
    }

    @Test("a compacted journal says the same in less, and goes on with the next number", arguments: seeds(4))
    func says(_ seed: UInt64) throws {
        for embodiment in [JournalHead.Embodiment.preserve, .redirect] {
            try TemporaryDirectory.with { top in
                let place = try JournalPlace(top)
                let journal = try place.make(.test(embodiment))
                let map = DeltaMap(isRedirect: embodiment == .redirect)
                var generator = ChangeGenerator(seed: seed)
                for _ in 1...3 {
                    try fill(journal, map, &generator, 1000)
                    let (bytes, next) = (journal.bytes, journal.nextSequence)
                    var flushes = 0
                    try journal.compact(
                        dump: { (emit) throws(Errno) in try map.forEachChange(emit) },
                        makeDurable: { flushes += 1 })
                    #expect(flushes == 1 && journal.bytes < bytes && journal.nextSequence == next)
                    #expect(try place.file.stat().size == Int(journal.bytes))
                    #expect(try top.entries() == [journalName])
                    let scan = try place.scan()
                    #expect(scan.head == journal.head && scan.end == .whole && scan.goodBytes == journal.bytes)
                    #expect(scan.nextSequence == next && scan.through == next && scan.lastMarkSequence == nil)
                    for counting in [JournalScan.Counting.all, .marked] {
                        #expect(pictures(try place.map(counting)) == pictures(map), "seed \(seed), \(embodiment)")
                    }
                    // What comes behind it counts as ever.
                    let marked = pictures(map)
                    try fill(journal, map, &generator, 10)
                    #expect(pictures(try place.map(.all)) == pictures(map))
                    #expect(pictures(try place.map(.marked)) == marked)
                    let resumed = try Journal(resuming: try place.scan(), in: place.directory)
                    #expect(resumed.nextSequence == next + 10 && resumed.bytes == journal.bytes)
                }
            }
        }
    }

    @Test("what is appended while it is compacted keeps its number, and counts as marks say")
    func tail() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            let map = DeltaMap(isRedirect: true)
            func write(_ inode: UInt64) throws(Errno) {
                let change = RecordChange.data(InodeKey(inode: inode, birth: 0), 0..<1)
                _ = try journal.append(.changes([change]))
                map.apply(change)
            }
            try write(1)  // 0
            try journal.compact(
                dump: { (emit) throws(Errno) in
                    try write(2)  // 1
                    try map.forEachChange(emit)
                    try write(3)  // 2
                },
                makeDurable: { () throws(Errno) in
                    try write(4)  // 3
                    _ = try journal.append(.mark(through: 1, inodes: []))  // 4
                })
            try write(5)  // 5
            let scan = try place.scan()
            #expect(scan.nextSequence == 6 && scan.through == 3 && scan.lastMarkSequence == 4)
            #expect(Set(pictures(try place.map(.all)).keys.map(\.inode)) == [1, 2, 3, 4, 5])
            #expect(Set(pictures(try place.map(.marked)).keys.map(\.inode)) == [1, 2, 3])
            var sequences: [UInt64?] = []
            try scan.forEachEvent { sequence, _ in sequences.append(sequence) }
            #expect(sequences == [nil, 1, 2, nil, 3, 4, 5])
            try journal.append(.mark(through: 6, inodes: [InodeKey(inode: 5, birth: 0)]))
            #expect(Set(pictures(try place.map(.marked)).keys.map(\.inode)) == [1, 2, 3, 5])
        }
    }

    @Test("a seal and a discard outlast a compaction")
    func keepsEnds() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            try journal.append(.changes([]))
            try journal.append(.sealed)
            try journal.append(.discarded)
            for _ in 0..<2 {
                try journal.compact(dump: { _ in }, makeDurable: {})
                let scan = try place.scan()
                #expect(scan.sealedSequence == 1 && scan.isDiscarded && scan.through == 3)
            }
            let resumed = try Journal(resuming: try place.scan(), in: place.directory)
            try resumed.compact(dump: { _ in }, makeDurable: {}, head: .test(boot: 2))
            #expect(try place.scan().sealedSequence == 1)
            #expect(try place.scan().head == .test(boot: 2))
        }
    }

    @Test("after a power cut: a new head, and what did not count is gone for good, an unmarked seal too")
    func recovery() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            let (a, b) = (InodeKey(inode: 1, birth: 1), InodeKey(inode: 2, birth: 2))
            try journal.append(.changes([.data(a, 0..<1), .data(b, 0..<1)]))  // 0
            try journal.append(.mark(through: 1, inodes: [a]))  // 1
            try journal.append(.changes([.name(in: a, FileName("late"), .absent)]))  // 2
            try journal.append(.sealed)  // 3

            let scan = try place.scan()
            let map = DeltaMap(isRedirect: true)
            try scan.replay(.marked, into: map)
            let resumed = try Journal(resuming: scan, in: place.directory)
            try resumed.compact(
                dump: { (emit) throws(Errno) in try map.forEachChange(emit) }, makeDurable: {},
                head: .test(boot: 2))
            #expect(try place.scan().head == .test(boot: 2) && resumed.head == .test(boot: 2))
            #expect(try !place.scan().isSealed)
            #expect(try resumed.append(.mark(through: 4, inodes: [a, b])) == 4)
            for counting in [JournalScan.Counting.all, .marked] {
                let found = pictures(try place.map(counting))
                #expect(found[b] == nil && found[a]?.entries == [:] && found[a]?.blocks == [0..<1])
            }
        }
    }

    @Test("a head of another layer is refused")
    func refusesOtherLayer() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            #expect(throws: Errno.invalidArgument) {
                try journal.compact(dump: { _ in }, makeDurable: {}, head: .test(layer: 8))
            }
            #expect(try place.scan().head == .test())
        }
    }

    private static let failures = ["dump", "makeDurable", "new file", "rename"]

    @Test("whatever fails, the old journal is in force, goes on, and the new one is gone", arguments: failures)
    func failure(_ step: String) throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            let map = DeltaMap(isRedirect: true)
            var generator = ChangeGenerator(seed: 5)
            try fill(journal, map, &generator, 50)
            let before = try place.events()
            let obstacle = top / "journal.new"
            if step == "new file" { try obstacle.mkdir() }
            #expect(throws: Errno.self) {
                try journal.compact(
                    dump: { (emit) throws(Errno) in
                        if step == "dump" { throw .noSpace }
                        try map.forEachChange(emit)
                    },
                    makeDurable: { () throws(Errno) in
                        if step == "makeDurable" { throw .ioError }
                        // No name to take the place of: a directory is in the way.
                        if step == "rename" {
                            try place.file.rename(to: top / "aside")
                            try place.file.mkdir()
                        }
                    })
            }
            if step == "new file" { try obstacle.rmdir() }
            if step == "rename" {
                try place.file.rmdir()
                try (top / "aside").rename(to: place.file)
            }
            #expect(try top.entries() == [journalName])
            #expect(try place.events() == before)
            #expect(try journal.append(.sealed) == 50)
            try journal.synchronize()
            try journal.compact(dump: { (emit) throws(Errno) in try map.forEachChange(emit) }, makeDurable: {})
            #expect(pictures(try place.map()) == pictures(map))
            #expect(try place.scan().sealedSequence == 50)
        }
    }

    @Test("four threads append while it is compacted again and again: replay is the map")
    func whileAppendsGoOn() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            let map = DeltaMap(isRedirect: true)
            // What holds the record and the change of the map together, as the locks of who appends do.
            let locks = (0..<4).map { _ in MutexBox(()) }
            let isOver = Flag()
            let workers = try (0..<4).map { thread in
                try Worker {
                    // Each has inodes of its own: their order is that of the journal.
                    var generator = ChangeGenerator(seed: UInt64(thread + 1))
                    func own(_ key: InodeKey) -> InodeKey {
                        InodeKey(inode: key.inode * 4 + UInt64(thread), birth: 0)
                    }
                    while !isOver.isSet {
                        let key = own(generator.key())
                        let time = generator.time()
                        let changes: [RecordChange] = [
                            .data(key, generator.blocks()), .holes(own(generator.key()), generator.blocks()),
                            .name(in: key, generator.name(), .absent),
                            .links(key, LinkCount(count: 1, changed: time)),
                        ]
                        try locks[thread].mutex.withLock { _ in
                            try journal.append(.changes(changes))
                            for change in changes { map.apply(change) }
                        }
                    }
                }
            }
            var compactions = 0
            for _ in 0..<10 {
                let goal = journal.nextSequence + 300
                try wait("appends") { journal.nextSequence >= goal || workers.contains { $0.hasEnded } }
                try journal.compact(
                    dump: { (emit) throws(Errno) in
                        for lock in locks { lock.mutex.withLock { _ in } }
                        try map.forEachChange(emit)
                    },
                    makeDurable: { () throws(Errno) in try journal.synchronize() })
                compactions += 1
            }
            isOver.set()
            for worker in workers { try worker.join() }
            let expected = pictures(map)
            #expect(compactions == 10 && !expected.isEmpty)
            #expect(pictures(try place.map(.all)) == expected)
            #expect(try place.scan().nextSequence == journal.nextSequence)
            let goal = journal.nextSequence
            try journal.append(.mark(through: goal, inodes: Array(expected.keys)))
            #expect(pictures(try place.map(.marked)) == expected)
        }
    }
}
