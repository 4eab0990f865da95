internal import LinuxSystem
internal import SystemPackage

/// Reads the records of a journal one after the other, through one buffer: as large as the largest of them, no less
/// than 1 MiB. Ends where a record is not whole, its checksum wrong, or its number not the next. For one thread.
final class RecordStream {
    /// A record; `payload` is there until the next one is read.
    struct Record {
        let offset: UInt64
        let sequence: UInt64
        let kind: RecordKind
        let payload: UnsafeRawBufferPointer
    }

    enum Failure: Error {
        case system(Errno)
        /// A record whose checksum is right and that this version cannot read.
        case unknown

        func error(file: String) -> RecordError {
            switch self {
            case .system(let error): .system(error, action: "read", path: file)
            case .unknown: .newer(file: file, version: JournalFormat.version)
            }
        }
    }

    private let file: Descriptor
    private(set) var end: UInt64
    private let seed: UInt32
    /// Where the next record begins; in the end that of the first bytes that are not part of a good one.
    private(set) var offset: UInt64
    private(set) var nextSequence: UInt64
    private var nextBase: UInt64 = 0
    /// Set at the end: the file ends within the record that came next.
    private(set) var isUnfinished = false
    private var isInBase: Bool

    private var buffer: UnsafeMutableRawBufferPointer
    private var held = 0..<0

    /// Reads `file` up to `end`, behind its head.
    init(_ file: Descriptor, _ stored: StoredHead, end: UInt64) {
        self.file = file
        self.end = end
        seed = JournalFormat.seed(layer: stored.head.layer)
        offset = UInt64(JournalFormat.headBytes)
        nextSequence = stored.firstSequence
        isInBase = stored.isCompacted
        buffer = .allocate(byteCount: JournalFormat.bufferBytes, alignment: 16)
    }

    /// Reads what comes behind the last good record of a scan.
    init(behind scan: JournalScan) {
        file = scan.file
        end = scan.goodBytes
        seed = JournalFormat.seed(layer: scan.head.layer)
        offset = scan.goodBytes
        nextSequence = scan.nextSequence
        isInBase = false
        buffer = .allocate(byteCount: JournalFormat.bufferBytes, alignment: 16)
    }

    deinit { buffer.deallocate() }

    /// The file has grown to `end`. What has been read behind the last record is forgotten: the writer may have cut off what
    /// it could not write whole.
    func extend(to end: UInt64) {
        self.end = max(end, offset)
        held = 0..<0
        isUnfinished = false
    }

    /// Whether all of what compaction writes has been read, or the journal was never compacted.
    var isPastBase: Bool { !isInBase }

    /// Makes `count` bytes from `offset` on available, or tells that the file has not as many.
    private func fill(_ count: Int) throws(Failure) -> UnsafeRawBufferPointer? {
        if held.count < count {
            guard UInt64(count) <= end - offset else { return nil }
            if count > buffer.count { grow(to: count) }
            let rest = UnsafeRawBufferPointer(rebasing: buffer[held])
            if let start = buffer.baseAddress, let from = rest.baseAddress {
                start.copyMemory(from: from, byteCount: rest.count)
            }
            held = 0..<rest.count
            let room = UnsafeMutableRawBufferPointer(rebasing: buffer[held.upperBound...])
            do throws(Errno) {
                let more = try readFully(file, into: room, at: Int64(offset) + Int64(held.count))
                held = 0..<held.count + more
            } catch {
                throw .system(error)
            }
            guard held.count >= count else { return nil }
        }
        return UnsafeRawBufferPointer(rebasing: buffer[held.lowerBound..<held.lowerBound + count])
    }

    private func grow(to count: Int) {
        let grown = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 16)
        grown.copyMemory(from: UnsafeRawBufferPointer(rebasing: buffer[held]))
        buffer.deallocate()
        (buffer, held) = (grown, 0..<held.count)
    }

    /// nil at the end.
    func next() throws(Failure) -> Record? {
        let left = end - offset
        guard left >= JournalFormat.recordHeaderBytes, let header = try fill(JournalFormat.recordHeaderBytes)
        else {
            isUnfinished = left > 0
            return nil
        }
        func number<Number: FixedWidthInteger>(_ offset: Int) -> Number {
            Number(littleEndian: header.loadUnaligned(fromByteOffset: offset, as: Number.self))
        }
        let (length, sequence): (UInt32, UInt64) = (number(0), number(JournalFormat.recordSequenceOffset))
        let kind = RecordKind(rawValue: number(JournalFormat.recordKindOffset))
        guard number(JournalFormat.recordKindOffset) == JournalFormat.kindAndCheck(header, seed: seed),
            length >= JournalFormat.recordHeaderBytes, length <= JournalFormat.recordBytesMax,
            kind.map({ isNext($0, sequence) }) ?? true
        else { return nil }
        guard length <= left else {
            isUnfinished = true
            return nil
        }
        return try record(kind, sequence, Int(length))
    }

    /// The record whose header has been read.
    private func record(_ kind: RecordKind?, _ sequence: UInt64, _ length: Int) throws(Failure) -> Record? {
        guard let bytes = try fill(length) else { return nil }
        let sum = bytes.loadUnaligned(fromByteOffset: JournalFormat.recordChecksumOffset, as: UInt32.self)
        guard UInt32(littleEndian: sum) == JournalFormat.checksum(ofRecord: bytes, seed: seed) else { return nil }
        guard let kind else { throw .unknown }
        if kind.isBase {
            nextBase += 1
            isInBase = kind != .baseMark
        } else {
            nextSequence += 1
        }
        defer {
            offset += UInt64(length)
            held = held.lowerBound + length..<held.upperBound
        }
        let payload = UnsafeRawBufferPointer(rebasing: bytes[JournalFormat.recordHeaderBytes...])
        return Record(offset: offset, sequence: sequence, kind: kind, payload: payload)
    }

    /// Whether a record is the one that comes next.
    private func isNext(_ kind: RecordKind, _ sequence: UInt64) -> Bool {
        kind.isBase ? isInBase && sequence == nextBase : sequence == nextSequence && sequence != .max
    }
}
