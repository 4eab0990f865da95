import Glibc
import LinuxSystem
import SnapshotRecord
import SystemPackage
import TestSupport
import Testing

/// The bytes of a journal are those that Docs/Format.md tabulates.
@Suite struct JournalFormatTests {
    private struct Row: Equatable {
        let offset: Int
        let size: Int?
        let field: String
    }

    /// The rows of the table under a heading: offset, size, field.
    private func rows(_ heading: String) throws -> [Row] {
        let package = Path(String(#filePath.dropLast("/Tests/SnapshotRecordTests/JournalFormatTests.swift".count)))
        let text = String(decoding: try (package / "Docs/Format.md").contents(), as: UTF8.self)
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        guard let start = lines.firstIndex(where: { $0.hasPrefix("#") && $0.hasSuffix(" " + heading) }) else {
            throw TestFailure("Docs/Format.md has no «\(heading)»")
        }
        return lines[(start + 1)...].prefix { !$0.hasPrefix("#") }.compactMap { line in
            let cells = line.split(separator: "|").map { String($0.filter { $0 != "`" }).trimmed }
            guard cells.count >= 3, let offset = Int(cells[0]) else { return nil }
            return Row(offset: offset, size: Int(cells[1]), field: cells[2])
        }
    }

    private func number(_ bytes: [UInt8], _ offset: Int, _ size: Int) -> UInt64 {
        bytes[offset..<offset + size].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// What the named fields are in `bytes`; checks that each row begins where the one before it ends.
    private func fields(_ heading: String, _ bytes: [UInt8], at base: Int = 0) throws -> [String: UInt64] {
        var (fields, end): ([String: UInt64], Int?) = ([:], nil)
        for row in try rows(heading) {
            if let end { #expect(row.offset == end, "\(heading): \(row.field)") }
            end = row.size.map { row.offset + $0 }
            if let size = row.size, size <= 8 { fields[row.field] = number(bytes, base + row.offset, size) }
        }
        return fields
    }

    private func journal(_ head: JournalHead, _ events: [JournalEvent]) throws -> [UInt8] {
        try TemporaryDirectory.with { top in
            let place = try JournalPlace(top)
            let journal = try place.make(head)
            for event in events { try journal.append(event) }
            return try place.file.contents()
        }
    }

    @Test("the head has its fields where the table says")
    func head() throws {
        let head = JournalHead(
            embodiment: .redirect, layer: 0x1111, isContinued: true,
            source: InodeKey(inode: 0x2222, birth: 0x3333),
            cut: LinuxSystem.Timestamp(seconds: 0x4444, nanoseconds: 0x5555), serial: 0x6666,
            boot: BootIdentity(high: 0x0102_0304_0506_0708, low: 0x090a_0b0c_0d0e_0f10, mount: 0x7777))
        let bytes = try journal(head, [])
        #expect(bytes.count == 112)
        #expect(Array(bytes[..<8]) == Array("FSNAPJNL".utf8))
        #expect(Array(bytes[72..<88]) == Array(1...16))
        let fields = try fields("Head", bytes)
        #expect(
            fields.filter { $0.key != "magic" } == [
                "version": 1, "length": 112, "checksum": fields["checksum"], "embodiment": 2, "flags": 1,
                "zero (22)": 0, "layer": 0x1111, "serial": 0x6666, "source inode": 0x2222, "source birth": 0x3333,
                "cut, seconds": 0x4444, "cut, nanoseconds": 0x5555, "zero (68)": 0, "mount": 0x7777,
                "first sequence": 0, "zero (104)": 0,
            ])
        let sum = (bytes[..<16] + bytes[20...]).withUnsafeBytes { portableChecksum($0) }
        #expect(fields["checksum"] == UInt64(sum))
    }

    @Test("a record has its fields where the table says")
    func record() throws {
        let bytes = try journal(.test(), [.sealed, .mark(through: 1, inodes: [InodeKey(inode: 8, birth: 9)])])
        #expect(bytes.count == 112 + 20 + 20 + 16 + 16)
        let sealed = try fields("Record", bytes, at: 112)
        #expect(
            sealed.filter { $0.key != "checksum" } == [
                "length": 20, "sequence": 0, "kind": 3, "header check": sealed["header check"],
            ])
        let mark = try fields("Record", bytes, at: 132)
        #expect(mark["length"] == 52 && mark["sequence"] == 1 && mark["kind"] == 2)
        var layer = UInt64(7).littleEndian
        let summed = withUnsafeBytes(of: &layer) { Array($0) } + bytes[132..<136] + bytes[140...]
        let header = withUnsafeBytes(of: &layer) { Array($0) } + bytes[132..<136] + bytes[140..<149]
        #expect(mark["header check"] == header.withUnsafeBytes { UInt64(portableChecksum($0) & 0xff_ffff) })
        #expect(mark["checksum"] == summed.withUnsafeBytes { UInt64(portableChecksum($0)) })
        #expect(
            (152..<184).map { bytes[$0] } == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8]
                + [UInt8](repeating: 0, count: 7) + [9] + [UInt8](repeating: 0, count: 7))
    }

    @Test("each change is as long as its table says, and begins with its kind")
    func changes() throws {
        var generator = ChangeGenerator(seed: 1)
        let key = InodeKey(inode: 1, birth: 2)
        var status = FileStatus()
        (status.inode, status.mode) = (1, UInt32(S_IFREG))
        let handle = [UInt8](1...8).withUnsafeBytes { FileHandle(kind: 1, bytes: $0) } ?? FileHandle()
        let reference = InodeReference(status, handle: handle)
        var extended = ExtendedAttributes()
        extended.values = [FileName("user.a"): [1, 2, 3]]
        extended.unreadable = [FileName("user.bc")]
        let (name, time) = (FileName("abc"), generator.time())
        let (nameBytes, referenceBytes, statusBytes) = (2 + 3 + 1, 16 + 8 + 4 + 4 + 1 + 8, 104)
        let expected: [(kind: UInt8, RecordChange, bytes: Int)] = [
            (1, .reference(reference), referenceBytes),
            (2, .name(in: key, name, .absent), 16 + nameBytes + 1),
            (2, .name(in: key, name, .present(reference)), 16 + nameBytes + 1 + referenceBytes),
            (
                3, .attributes(key, RecordedAttributes(status: status, extended: extended)),
                16 + statusBytes + 4 + (2 + 6 + 1 + 4 + 3) + 4 + (2 + 7 + 1)
            ),
            (4, .written(key, size: 1, modified: time, changed: time), 16 + 8 + 12 + 12),
            (5, .links(key, LinkCount(count: 1, changed: time)), 16 + 4 + 12),
            (6, .data(key, 1..<2), 16 + 16), (7, .holes(key, 1..<2), 16 + 16),
            (8, .born(reference), referenceBytes),
            (9, .place(key, .store), 17), (10, .target(key, [1, 2]), 16 + 4 + 2), (11, .flags(key, .isLost), 17),
            (12, .merged(key, 1..<2), 16 + 16),
        ]
        for (kind, change, count) in expected {
            let bytes = try journal(.test(), [.changes([change])])
            #expect(bytes.count == 112 + 20 + 1 + count, "\(change)")
            #expect(bytes[132] == kind)
        }
        #expect(try rows("Status").map(\.offset) == [0, 8, 16, 24, 32, 40, 48, 52, 56, 60, 64, 68, 80, 92])
        #expect(try rows("Status").last?.size == 12)
    }

    @Test("the checksum is CRC-32C, with the processor's instruction and without")
    func checksums() {
        // RFC 3720, B.4, and the check value of the CRC catalogue.
        let known: [([UInt8], UInt32)] = [
            (Array("123456789".utf8), 0xe306_9283), ([], 0), ([UInt8](repeating: 0, count: 32), 0x8a91_36aa),
            ([UInt8](repeating: 0xff, count: 32), 0x62a8_ab43), ((0..<32).map { $0 }, 0x46dd_794e),
            ((0..<32).map { 31 - $0 }, 0x113f_db5c),
        ]
        for (bytes, sum) in known {
            #expect(bytes.withUnsafeBytes { checksum($0) } == sum)
            #expect(bytes.withUnsafeBytes { portableChecksum($0) } == sum)
        }
        var random = SeededGenerator(seed: 1)
        for _ in 0..<200 {
            let data = random.data(random.number(0...300))
            let cut = random.number(0...data.count)
            let whole = data.withUnsafeBytes { checksum($0) }
            #expect(whole == data.withUnsafeBytes { portableChecksum($0) })
            let first = data[..<cut].withUnsafeBytes { checksum($0) }
            #expect(whole == data[cut...].withUnsafeBytes { checksum($0, after: first) })
            #expect(whole == data[cut...].withUnsafeBytes { portableChecksum($0, after: first) })
        }
    }
}

extension String {
    fileprivate var trimmed: String {
        String(drop { $0 == " " }.reversed().drop { $0 == " " }.reversed())
    }
}
