import Glibc
import LinuxSystem
import SnapshotRecord
import Synchronization
import SystemPackage
import TestSupport
import Testing

@Suite struct JournalTests {
    @Test("where there is no journal there is none")
    func isAbsent() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            #expect(try JournalScan.read(in: place.directory, path: top.string) == nil)
        }
    }

    @Test("a second journal in the same place is refused")
    func isExclusive() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            _ = try place.make()
            #expect(throws: Errno.fileExists) { _ = try place.make() }
        }
    }

    @Test("the head says what it was given", arguments: [JournalHead.Embodiment.preserve, .redirect])
    func head(_ embodiment: JournalHead.Embodiment) throws {
        try TemporaryDirectory.with { top in
            for isContinued in [false, true] {
                let path = top / Path("\(isContinued)")
                try path.mkdir()
                let place = try JournalPlace(path)
                let head = JournalHead.test(embodiment, layer: .max, isContinued: isContinued)
                let journal = try place.make(head)
                #expect(journal.head == head)
                let scan = try place.scan()
                #expect(scan.head == head)
                #expect(scan.nextSequence == 0 && scan.end == .whole && scan.goodBytes == journal.bytes)
                #expect(!scan.isSealed && !scan.isDiscarded && scan.lastMarkSequence == nil && scan.through == 0)
            }
        }
    }

    @Test("the identity of a boot is that of this boot, and the mount's")
    func bootIdentity() throws {
        let text = String(decoding: try Path("/proc/sys/kernel/random/boot_id").contents(), as: UTF8.self)
        let root = try BootIdentity.current(source: try openDirectory("/"))
        let digits = [root.high, root.low].map { number in
            let short = String(number, radix: 16)
            return String(repeating: "0", count: 16 - short.count) + short
        }
        #expect(digits.joined() == text.filter { $0.isHexDigit })
        #expect(root == (try BootIdentity.current(source: try openDirectory("/"))))
        let other = try BootIdentity.current(source: try openDirectory("/proc"))
        #expect(root.mount != 0 && other.mount != root.mount)
    }

    @Test("what is replayed is of the device with the number that it has now")
    func deviceNumber() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            var changes = ChangeGenerator(seed: 1)
            let (directory, file) = (InodeKey(inode: 1, birth: 1), InodeKey(inode: 4, birth: 4_000_000_028))
            let (parent, child) = (changes.reference(directory), changes.reference(file))
            var status = FileStatus()
            (status.device, status.inode) = (parent.device, 1)
            let attributes = RecordedAttributes(status: status, extended: ExtendedAttributes())
            try place.make().append(
                .changes([
                    .reference(parent), .attributes(directory, attributes), .born(child),
                    .name(in: directory, FileName("name"), .present(child)),
                ]))
            let map = DeltaMap(isRedirect: true)
            try place.scan().replay(.all, device: parent.device + 1, into: map)
            let found = pictures(map)
            #expect(found.count == 2)
            #expect(found.values.allSatisfy { $0.reference?.device == parent.device + 1 })
            #expect(found[directory]?.attributes?.status.device == parent.device + 1)
            guard case .present(let entry)? = found[directory]?.entries[FileName("name")] else {
                Issue.record("the name is not there")
                return
            }
            #expect(entry.device == parent.device + 1 && entry.key == file)
        }
    }

    @Test("each change and each event reads as it was written", arguments: seeds(8))
    func roundTrip(_ seed: UInt64) throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            var generator = ChangeGenerator(seed: seed)
            var written = (0..<24).map { JournalEvent.changes([generator.change($0)]) }
            for event in written { try journal.append(event) }
            for _ in 0..<300 {
                let event = generator.event(journal.nextSequence)
                let sequence = try journal.append(event)
                #expect(sequence == UInt64(written.count))
                written.append(event)
            }
            let read = try place.events()
            #expect(read.count == written.count && journal.nextSequence == UInt64(written.count))
            for (sequence, (one, other)) in zip(read, written).enumerated() {
                #expect(one == other, "seed \(seed), record \(sequence)")
            }
            let scan = try place.scan()
            #expect(scan.nextSequence == UInt64(written.count) && scan.goodBytes == journal.bytes)
            #expect(scan.sealedSequence == written.lastIndex(of: .sealed).map { UInt64($0) })
            #expect(scan.isDiscarded == written.contains(.discarded))
            let cuts = written.compactMap { if case .cut(let time) = $0 { time } else { nil } }
            #expect(scan.head.cut == cuts.last ?? JournalHead.test().cut && scan.head == journal.head)
        }
    }

    @Test("replay makes the map that the changes made; so does what a map emits", arguments: seeds(6))
    func replay(_ seed: UInt64) throws {
        for embodiment in [JournalHead.Embodiment.preserve, .redirect] {
            try TemporaryDirectory.with { top in
                let place = try JournalPlace(top)
                let journal = try place.make(.test(embodiment))
                let map = DeltaMap(isRedirect: embodiment == .redirect)
                var generator = ChangeGenerator(seed: seed)
                for _ in 0..<400 {
                    let changes = generator.changes()
                    try journal.append(.changes(changes))
                    for change in changes { map.apply(change) }
                }
                let replayed = try place.map()
                #expect(pictures(replayed) == pictures(map), "seed \(seed), \(embodiment)")
                #expect(replayed.changedAreas == map.changedAreas)

                let copy = DeltaMap(isRedirect: embodiment == .redirect)
                var isReferencesOver = false
                try map.forEachChange { (change) throws(Errno) in
                    switch change {
                    case .reference, .born: #expect(!isReferencesOver)
                    default: isReferencesOver = true
                    }
                    copy.apply(change)
                }
                #expect(isReferencesOver && pictures(copy) == pictures(map), "seed \(seed), \(embodiment)")
                for inode in 0..<generator.inodes {
                    for birth in [-5, Int64(inode) * 1_000_000_007] {
                        let key = InodeKey(inode: inode, birth: birth)
                        #expect(copy.isBorn(key) == map.isBorn(key))
                    }
                }
            }
        }
    }

    @Test("changes are absolute: to apply them all again changes nothing", arguments: seeds(6))
    func appliesTwice(_ seed: UInt64) throws {
        let map = DeltaMap(isRedirect: true)
        var generator = ChangeGenerator(seed: seed)
        let changes = (0..<600).map { _ in generator.change(generator.random.number(0...11)) }
        for change in changes { map.apply(change) }
        let once = pictures(map)
        for change in changes { map.apply(change) }
        // Of an inode whose attributes came later than its links, the links were void before too.
        #expect(pictures(map) == once, "seed \(seed)")
    }

    @Test(
        "what redirect keeps of an inode: links are void beside attributes, writes change them, a hole is no data")
    func redirectAreas() throws {
        let map = DeltaMap(isRedirect: true)
        var generator = ChangeGenerator(seed: 1)
        let key = generator.key()
        let (first, second) = (generator.time(), generator.time())
        let links = LinkCount(count: 3, changed: first)
        map.apply(.born(generator.reference(key)))
        map.apply(.links(key, links))
        #expect(pictures(map)[key]?.place == .store && pictures(map)[key]?.links == links && map.isBorn(key))
        // Nothing to change yet.
        map.apply(.written(key, size: 1, modified: first, changed: first))
        #expect(pictures(map)[key]?.attributes == nil)
        let attributes = generator.attributes(key)
        map.apply(.attributes(key, attributes))
        map.apply(.links(key, links))
        #expect(pictures(map)[key]?.links == nil)
        map.apply(.written(key, size: 12345, modified: first, changed: second))
        var status = attributes.status
        (status.size, status.modified, status.changed) = (12345, first, second)
        #expect(
            pictures(map)[key]?.attributes == RecordedAttributes(status: status, extended: attributes.extended))
        map.apply(.data(key, 0..<10))
        map.apply(.holes(key, 5..<20))
        map.apply(.data(key, 7..<8))
        #expect(pictures(map)[key]?.blocks == [0..<5, 7..<8] && pictures(map)[key]?.holes == [5..<7, 8..<20])
        #expect(map.changedAreas == 21)
    }

    @Test("in preserve what was born has no record, whatever is said of it")
    func preserveBorn() throws {
        let map = DeltaMap()
        var generator = ChangeGenerator(seed: 1)
        let key = generator.key()
        map.apply(.born(generator.reference(key)))
        map.apply(.data(key, 0..<10))
        map.apply(.name(in: key, FileName("a"), .absent))
        #expect(map.records.isEmpty && map.isBorn(key) && map.changedAreas == 0)
    }

    // MARK: What counts

    @Test("after a power cut a mark counts for names before it, and for the data of whom it names")
    func marks() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            let (a, b, directory) = (
                InodeKey(inode: 1, birth: 1), InodeKey(inode: 2, birth: 1), InodeKey(inode: 3, birth: 1)
            )
            func write(_ block: UInt64, _ name: String) throws {
                try journal.append(
                    .changes([
                        .data(a, block..<block + 1), .data(b, block..<block + 1),
                        .holes(a, block + 50..<block + 51),
                        .name(in: directory, FileName(name), .absent),
                    ]))
            }
            try write(0, "0")  // 0
            try write(1, "1")  // 1
            try journal.append(.mark(through: 1, inodes: [b]))  // 2
            try write(2, "2")  // 3
            try journal.append(.mark(through: 3, inodes: [a]))  // 4
            try write(3, "3")  // 5
            try journal.append(.mark(through: 2, inodes: [b]))  // 6

            let scan = try place.scan()
            #expect(scan.through == 3 && scan.lastMarkSequence == 6 && scan.nextSequence == 7)
            let marked = pictures(try place.map(.marked))
            #expect(marked[directory]?.entries.keys.map(\.description).sorted() == ["0", "1"])
            #expect(marked[a]?.blocks == [0..<2] && marked[a]?.holes == [50..<52])
            #expect(marked[b]?.blocks == [0..<2])  // The later mark names b again, and covers 1.
            let all = pictures(try place.map(.all))
            #expect(all[directory]?.entries.count == 4 && all[a]?.blocks == [0..<4] && all[b]?.blocks == [0..<4])
        }
    }

    @Test("data of an inode that no mark names do not count, its attributes and writes do")
    func unnamedData() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            var generator = ChangeGenerator(seed: 3)
            let key = generator.key()
            let attributes = generator.attributes(key)
            try journal.append(.changes([.attributes(key, attributes), .data(key, 0..<4)]))
            try journal.append(
                .changes([
                    .written(key, size: 77, modified: generator.time(), changed: generator.time()),
                    .data(key, 4..<5),
                ]))
            #expect(pictures(try place.map(.marked)).isEmpty)
            try journal.append(.mark(through: 2, inodes: [InodeKey(inode: 1 << 40, birth: 0)]))
            let marked = pictures(try place.map(.marked))
            #expect(marked[key]?.attributes?.status.size == 77 && marked[key]?.blocks == [])
            try journal.append(.mark(through: 1, inodes: [key]))
            #expect(pictures(try place.map(.marked))[key]?.blocks == [0..<4])
        }
    }

    @Test("what counts is what the rule says, for any order of changes and marks", arguments: seeds(6))
    func marksByRule(_ seed: UInt64) throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            var generator = ChangeGenerator(seed: seed)
            for _ in 0..<300 { try journal.append(generator.event(journal.nextSequence)) }
            let events = try place.events()
            var marks: [(through: UInt64, inodes: [InodeKey])] = []
            for case .mark(let through, let inodes) in events { marks.append((through, inodes)) }
            let expected = DeltaMap(isRedirect: true)
            for (sequence, event) in events.enumerated() {
                guard case .changes(let changes) = event else { continue }
                for change in changes {
                    let counts = marks.contains { mark in
                        guard mark.through > UInt64(sequence) else { return false }
                        if case .data(let inode, _) = change { return mark.inodes.contains(inode) }
                        return true
                    }
                    if counts { expected.apply(change) }
                }
            }
            #expect(pictures(try place.map(.marked)) == pictures(expected), "seed \(seed)")
        }
    }

    // MARK: Going on

    @Test("a journal that is taken up goes on with the next number, behind the last good record")
    func resumes() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            var generator = ChangeGenerator(seed: 9)
            for _ in 0..<20 { try journal.append(.changes(generator.changes())) }
            let before = try place.events()
            try place.file.append(Array("the rest of a record".utf8))
            try (top / "journal.new").create([1, 2, 3])
            let scan = try place.scan()
            #expect(scan.isCutShort && scan.end == .torn(offset: journal.bytes))

            let resumed = try Journal(resuming: scan, in: place.directory)
            #expect(resumed.nextSequence == 20 && resumed.bytes == journal.bytes && resumed.head == journal.head)
            #expect(try place.file.stat().size == Int(journal.bytes))
            #expect(try top.entries() == [journalName])
            #expect(try resumed.append(.sealed) == 20)
            try resumed.synchronize()
            #expect(try place.events() == before + [.sealed])
            #expect(try place.scan().end == .whole)
        }
    }

    @Test("another file than the one that was read is not taken up")
    func resumesTheSame() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            _ = try place.make()
            let scan = try place.scan()
            let bytes = try place.file.contents()
            try place.file.rename(to: top / "old")
            try place.file.create(bytes)
            #expect(throws: Errno.staleNFSFileHandle) { _ = try Journal(resuming: scan, in: place.directory) }
        }
    }

    @Test("a name that no file system has is refused, and the journal goes on")
    func refusesNames() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            let key = InodeKey(inode: 1, birth: 1)
            let long = FileName(bytes: bytes(1025))
            for name in [long, FileName("")] {
                #expect(throws: Errno.fileNameTooLong) {
                    try journal.append(.changes([.name(in: key, name, .absent)]))
                }
            }
            #expect(try journal.append(.sealed) == 0)
            #expect(try place.events() == [.sealed])
        }
    }

    @Test("a record larger than a reader takes is refused, one of 40 MiB is not")
    func refusesLargeRecords() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            let key = InodeKey(inode: 1, birth: 1)
            let part = RecordChange.target(key, bytes(8 << 20))
            #expect(throws: Errno.messageTooLong) {
                try journal.append(.changes(Array(repeating: part, count: 8)))
            }
            let large = JournalEvent.changes(Array(repeating: part, count: 5))
            #expect(try journal.append(large) == 0)
            #expect(try journal.append(.sealed) == 1)
            #expect(try place.events() == [large, .sealed])
        }
    }

    @Test("many threads append at once: each gets its own number, and each record is whole")
    func appendsAtOnce() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make()
            let workers = try (0..<4).map { thread in
                try Worker {
                    for number in 0..<500 {
                        let key = InodeKey(inode: UInt64(thread), birth: Int64(number))
                        let sequence = try journal.append(
                            .changes([.links(key, .init(count: 1, changed: .current))]))
                        if number % 100 == 0 { try journal.synchronize() }
                        if sequence >= 2000 { throw TestFailure("sequence \(sequence)") }
                    }
                }
            }
            for worker in workers { try worker.join() }
            #expect(journal.nextSequence == 2000)
            #expect(try place.map().records.count == 2000)
            #expect(try place.scan().goodBytes == UInt64(place.file.stat().size))
        }
    }
}
