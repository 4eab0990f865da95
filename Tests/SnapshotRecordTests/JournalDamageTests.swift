import Glibc
import LinuxSystem
import SnapshotRecord
import SystemPackage
import TestSupport
import Testing

@Suite struct JournalDamageTests {
    private static let headBytes = 112

    /// The bytes of a journal, its events, and where each of its records ends.
    private struct Sample {
        var bytes: [UInt8]
        var events: [JournalEvent] = []
        var ends: [Int] = [headBytes]

        /// How many records lie within the first `count` bytes.
        func whole(_ count: Int) -> Int { ends.lastIndex { $0 <= count } ?? 0 }
    }

    private func sample(_ place: JournalPlace, seed: UInt64, records: Int, layer: UInt64 = 7) throws -> Sample {
        let journal = try place.make(.test(layer: layer))
        var generator = ChangeGenerator(seed: seed)
        var sample = Sample(bytes: [])
        for number in 0..<records {
            let event =
                number % 4 == 3
                ? generator.event(journal.nextSequence)
                : .changes([generator.change(number), generator.change(number + 5)])
            try journal.append(event)
            sample.events.append(event)
            sample.ends.append(Int(journal.bytes))
        }
        sample.bytes = try place.file.contents()
        #expect(sample.bytes.count == sample.ends.last)
        return sample
    }

    private func compact(_ place: JournalPlace) throws -> [UInt8] {
        let journal = try Journal(resuming: try place.scan(), in: place.directory)
        let map = try place.map()
        try journal.compact(dump: { (emit) throws(Errno) in try map.forEachChange(emit) }, makeDurable: {})
        try journal.append(.changes([.data(InodeKey(inode: 1, birth: 1), 0..<1)]))
        try journal.append(.sealed)
        return try place.file.contents()
    }

    @Test("a journal cut at every byte is the records before the cut")
    func cutAnywhere() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let sample = try sample(place, seed: 1, records: 24)
            for count in stride(from: sample.bytes.count, through: 0, by: -1) {
                try place.file.truncate(count)
                if count < Self.headBytes {
                    #expect(throws: RecordError.noHead(file: place.file.string)) { _ = try place.scan() }
                    continue
                }
                let scan = try place.scan()
                let whole = sample.whole(count)
                #expect(scan.nextSequence == UInt64(whole) && scan.goodBytes == UInt64(sample.ends[whole]))
                let isTorn = count != sample.ends[whole]
                #expect(scan.isCutShort == isTorn && scan.isUnfinished == isTorn)
                #expect(scan.end == (isTorn ? .torn(offset: UInt64(sample.ends[whole])) : .whole))
                #expect(try place.events() == Array(sample.events[..<whole]), "cut at \(count)")
            }
        }
    }

    @Test("a journal with anything behind it, zeros or an old tail, is the records before that")
    func garbageBehind() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let sample = try sample(place, seed: 2, records: 12)
            for garbage in [
                [0], [UInt8](repeating: 0, count: 5000), [UInt8](repeating: 0xff, count: 100),
                Array(sample.bytes[sample.ends[3]...]), sample.bytes,
            ] {
                try place.replace(sample.bytes + garbage)
                let scan = try place.scan()
                #expect(scan.end == .torn(offset: UInt64(sample.bytes.count)))
                #expect(try place.events() == sample.events)
            }
        }
    }

    @Test("each bit turned over: the records before it, or an error that names the file; never something else")
    func flips() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let sample = try sample(place, seed: 3, records: 12)
            var bytes = sample.bytes
            for at in bytes.indices {
                for bit in 0..<8 {
                    bytes[at] ^= 1 << UInt8(bit)
                    try place.file.write([bytes[at]], at: at)
                    if at < Self.headBytes {
                        #expect(throws: RecordError.noHead(file: place.file.string)) { _ = try place.scan() }
                    } else {
                        let whole = sample.whole(at)
                        let scan = try place.scan()
                        #expect(scan.end == .torn(offset: UInt64(sample.ends[whole])), "byte \(at), bit \(bit)")
                        // A length that says more than there is must not pass for a write that was cut short.
                        #expect(!scan.isUnfinished, "byte \(at), bit \(bit)")
                        #expect(try place.events() == Array(sample.events[..<whole]), "byte \(at), bit \(bit)")
                    }
                    bytes[at] ^= 1 << UInt8(bit)
                }
                try place.file.write([bytes[at]], at: at)
            }
            #expect(try place.events() == sample.events)
        }
    }

    @Test("a compacted journal that is cut or has a bit turned over in what it began with is an error, never less")
    func compactedDamage() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            _ = try sample(place, seed: 4, records: 12)
            let bytes = try compact(place)
            let events = try place.events()
            #expect(events.count > 3)
            func look(_ damaged: [UInt8], _ what: String) throws {
                try place.replace(damaged)
                do {
                    let found = try place.events()
                    // The mark, and what comes behind it, is in the file's end.
                    #expect(found.count >= events.count - 2 && found == Array(events[..<found.count]), "\(what)")
                } catch let error as RecordError {
                    switch error {
                    case .noHead(let file): #expect(file == place.file.string)
                    case .damaged(let file, let offset, _):
                        #expect(file == place.file.string && offset < UInt64(bytes.count), "\(what)")
                    default: Issue.record("\(what): \(error)")
                    }
                }
            }
            for count in bytes.indices { try look(Array(bytes[..<count]), "cut at \(count)") }
            for at in bytes.indices {
                var damaged = bytes
                damaged[at] ^= 1 << UInt8(at % 8)
                try look(damaged, "byte \(at)")
            }
        }
    }

    @Test("records that are doubled, left out, or in another order end the journal there", arguments: seeds(3))
    func reordered(_ seed: UInt64) throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let sample = try sample(place, seed: seed, records: 8)
            let head = Array(sample.bytes[..<Self.headBytes])
            let records = (0..<8).map { Array(sample.bytes[sample.ends[$0]..<sample.ends[$0 + 1]]) }
            func look(_ order: [Int], good: Int) throws {
                try place.replace(head + order.flatMap { records[$0] })
                let scan = try place.scan()
                #expect(scan.nextSequence == UInt64(good) && scan.isCutShort == (good < order.count), "\(order)")
                #expect(try place.events() == Array(sample.events[..<good]), "\(order)")
            }
            let all = Array(0..<8)
            for one in all {
                try look(Array(all[...one]) + Array(all[one...]), good: one + 1)
                try look(all.filter { $0 != one }, good: one)
                for other in one + 1..<8 {
                    var order = all
                    order.swapAt(one, other)
                    try look(order, good: one)
                }
            }
        }
    }

    @Test("a record of another layer's journal is none of this one's")
    func otherLayer() throws {
        try TemporaryDirectory.with { top in
            for name in ["a", "b"] { try (top / Path(name)).mkdir() }
            let (place, other) = (try JournalPlace(top / "a"), try JournalPlace(top / "b"))
            let one = try sample(place, seed: 1, records: 6)
            let two = try sample(other, seed: 1, records: 6, layer: 8)
            #expect(one.ends == two.ends)
            try place.replace(Array(one.bytes[..<one.ends[2]] + two.bytes[two.ends[2]...]))
            #expect(try place.scan().end == .torn(offset: UInt64(one.ends[2])))
            try place.replace(Array(two.bytes[..<Self.headBytes] + one.bytes[Self.headBytes...]))
            #expect(try place.scan().end == .torn(offset: UInt64(Self.headBytes)))
        }
    }

    @Test("what is no file at all is no journal")
    func noFile() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            try place.file.mkdir()
            #expect(throws: RecordError.noHead(file: place.file.string)) { _ = try place.scan() }
            try place.file.rmdir()
            try place.file.mkfifo()
            #expect(throws: RecordError.noHead(file: place.file.string)) { _ = try place.scan() }
            try place.file.unlink()
            try place.file.symlink(to: "elsewhere")
            #expect(throws: RecordError.self) { _ = try place.scan() }
        }
    }

    // MARK: Records that are whole and make no sense

    /// A record as Docs/Format.md describes it, of layer 7.
    private func record(_ kind: UInt8, _ sequence: UInt64, _ payload: [UInt8]) -> [UInt8] {
        let (layer, length) = (number(UInt64(7)), number(UInt32(20 + payload.count)))
        let check = (layer + length + number(sequence) + [kind]).withUnsafeBytes { portableChecksum($0) }
        let rest = number(sequence) + [kind] + number(check)[..<3] + payload
        let sum = (layer + length + rest).withUnsafeBytes { portableChecksum($0) }
        return length + number(sum) + rest
    }

    private func number<Number: FixedWidthInteger>(_ number: Number) -> [UInt8] {
        withUnsafeBytes(of: number.littleEndian) { Array($0) }
    }

    private var key: [UInt8] { number(UInt64(5)) + number(UInt64(6)) }

    @Test("a record that is whole and makes no sense is an error that names file and offset")
    func senseless() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            _ = try place.make()
            let head = try place.file.contents()
            let good = record(1, 0, [6] + key + number(UInt64(3)) + number(UInt64(9)))
            try place.replace(head + good)
            #expect(try place.events() == [.changes([.data(InodeKey(inode: 5, birth: 6), 3..<9)])])

            func name(_ name: [UInt8], length: Int? = nil) -> [UInt8] {
                [2] + key + number(UInt16(length ?? name.count)) + name + [0, 0]
            }
            let status = [UInt8](repeating: 0, count: 104)
            let huge = number(UInt32.max)
            let senseless: [(String, [UInt8])] = [
                ("half a key", [6] + key.dropLast(3)),
                ("blocks in the wrong order", [6] + key + number(UInt64(9)) + number(UInt64(3))),
                ("blocks beyond all files", [7] + key + number(UInt64(0)) + number(UInt64.max)),
                ("a name without bytes", name([])), ("a name that ends early", name([65, 0, 66])),
                ("a name without an end", name([65], length: 0xffff)),
                ("a name that leads elsewhere", name(Array("../x".utf8))),
                ("the directory above", name([46, 46])),
                ("the directory itself", name([46])),
                (
                    "a handle that is too long",
                    [1] + key + status[..<8] + huge[..<0] + number(UInt32(S_IFREG)) + status[..<4] + [25] + status
                ),
                ("a kind that is none", [1] + key + status[..<8] + number(UInt32(1)) + status[..<5]),
                ("a target of four gigabytes", [10] + key + huge),
                ("attributes without end", [3] + key + status + huge + status),
                ("a name too many", [3] + key + status + number(UInt32(0)) + huge + number(UInt16(1)) + [65, 0]),
                ("a size below nothing", [4] + key + number(Int64(-1)) + status[..<24]),
            ]
            for (what, payload) in senseless {
                try place.replace(head + good + record(1, 1, payload))
                do {
                    _ = try place.map()
                    Issue.record("\(what) was taken")
                } catch let error as RecordError {
                    guard case .damaged(let file, let offset, let problem) = error else {
                        Issue.record("\(what): \(error)")
                        continue
                    }
                    #expect(file == place.file.string && offset == UInt64(head.count + good.count), "\(what)")
                    #expect(!problem.isEmpty && error.description.contains("\(file) is damaged at byte \(offset)"))
                }
            }
            // Of these a scan takes notice.
            for payload in [
                number(UInt64(3)) + number(UInt32(0)) + huge, number(UInt64(3)), number(UInt64(99)) + status[..<8],
            ] {
                try place.replace(head + good + record(2, 1, payload))
                #expect(throws: RecordError.self) { _ = try place.scan() }
            }
            try place.replace(head + good + record(3, 1, [1]))
            #expect(throws: RecordError.self) { _ = try place.scan() }
        }
    }

    @Test("what a later version has is told from damage")
    func newer() throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            _ = try place.make()
            let head = try place.file.contents()
            let newer = RecordError.newer(file: place.file.string, version: 1)
            for (what, bytes) in [
                ("a kind of record", record(6, 0, [])), ("a kind of change", record(1, 0, [13] + key)),
                ("a place", record(1, 0, [9] + key + [4])),
                ("a flag of an inode", record(1, 0, [11] + key + [8])),
                ("an entry", record(1, 0, [2] + key + number(UInt16(1)) + [65, 0, 2])),
                ("a scope", record(2, 0, number(UInt64(0)) + number(UInt32(2)) + number(UInt32(0)))),
            ] {
                try place.replace(head + bytes)
                #expect(throws: newer, "\(what)") { _ = try place.map() }
            }
            // A head of version 2 that is longer, and one of this version with a flag that it does not have.
            for (version, longer, flags, embodiment) in [(2, 8, 0, 2), (1, 0, 4, 2), (1, 0, 0, 3)] {
                var later = head + [UInt8](repeating: 1, count: longer)
                later.replaceSubrange(8..<12, with: number(UInt32(version)))
                later.replaceSubrange(12..<16, with: number(UInt32(later.count)))
                (later[20], later[21]) = (UInt8(embodiment), UInt8(flags))
                let sum = (later[..<16] + later[20...]).withUnsafeBytes { portableChecksum($0) }
                later.replaceSubrange(16..<20, with: number(sum))
                try place.replace(later)
                #expect(throws: RecordError.newer(file: place.file.string, version: UInt32(version))) {
                    _ = try place.scan()
                }
            }
        }
    }

    @Test(
        "bytes at random behind a head, with right checksums: an error or events, never a trap",
        arguments: seeds(4))
    func randomPayloads(_ seed: UInt64) throws {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let sample = try sample(place, seed: seed, records: 8)
            let head = Array(sample.bytes[..<Self.headBytes])
            var random = SeededGenerator(seed: seed)
            var (taken, refused) = (0, 0)
            for _ in 0..<600 {
                // The payload of a good record with some bytes changed.
                let number = random.number(0...7)
                var payload = Array(sample.bytes[sample.ends[number] + 20..<sample.ends[number + 1]])
                for _ in 0..<random.number(0...3) where !payload.isEmpty {
                    payload[random.number(0...payload.count - 1)] = UInt8(truncatingIfNeeded: random.next())
                }
                if random.isTrue(oneIn: 3) { payload.removeLast(random.number(0...payload.count)) }
                try place.replace(head + record(sample.bytes[sample.ends[number] + 16], 0, payload))
                do {
                    _ = try place.map()
                    taken += 1
                } catch is RecordError {
                    refused += 1
                }
            }
            #expect(taken > 0 && refused > 0, "seed \(seed)")
        }
    }
}
