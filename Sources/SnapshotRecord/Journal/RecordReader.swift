internal import Glibc
internal import LinuxSystem

/// Why bytes whose checksum is right cannot be decoded.
enum DecodeProblem: Error {
    case damaged(String)
    /// What this version does not know.
    case unknown

    func error(file: String, offset: UInt64) -> RecordError {
        switch self {
        case .damaged(let problem): .damaged(file: file, offset: offset, problem: problem)
        case .unknown: .newer(file: file, version: JournalFormat.version)
        }
    }
}

/// Decodes what `RecordBuffer` encodes. Nothing that it is given makes it trap, and no length is believed before the
/// bytes are there.
struct RecordReader {
    private let bytes: UnsafeRawBufferPointer
    private var at = 0
    /// The number that the source's device has now: a device may have another one after a start of the machine. nil takes
    /// what was recorded.
    private let device: UInt64?

    init(_ bytes: UnsafeRawBufferPointer, device: UInt64? = nil) {
        self.bytes = bytes
        self.device = device
    }

    var isAtEnd: Bool { at == bytes.count }
    private var left: Int { bytes.count - at }

    private static let tooShort = DecodeProblem.damaged("a record ends within a value")

    func expectEnd() throws(DecodeProblem) {
        guard isAtEnd else { throw .damaged("a record is longer than what is in it") }
    }

    // MARK: Values

    @inline(__always)
    mutating func number<Number: FixedWidthInteger>(
        _: Number.Type = Number.self
    ) throws(DecodeProblem) -> Number {
        guard left >= MemoryLayout<Number>.size else { throw Self.tooShort }
        defer { at += MemoryLayout<Number>.size }
        return Number(littleEndian: bytes.loadUnaligned(fromByteOffset: at, as: Number.self))
    }

    private mutating func take(_ count: Int) throws(DecodeProblem) -> UnsafeRawBufferPointer {
        guard count <= left else { throw Self.tooShort }
        defer { at += count }
        return UnsafeRawBufferPointer(rebasing: bytes[at..<at + count])
    }

    mutating func key() throws(DecodeProblem) -> InodeKey {
        InodeKey(inode: try number(), birth: try number())
    }

    mutating func time() throws(DecodeProblem) -> Timestamp {
        Timestamp(seconds: try number(), nanoseconds: try number())
    }

    private mutating func terminatedName() throws(DecodeProblem) -> FileName {
        let length = Int(try number(UInt16.self))
        guard length > 0, length <= JournalFormat.nameBytesMax else {
            throw .damaged("a name of \(length) bytes")
        }
        let name = try take(length + 1).assumingMemoryBound(to: CChar.self)
        guard let start = name.baseAddress, strnlen(start, length + 1) == length else {
            throw .damaged("a name that does not end where it says")
        }
        return FileName(start)
    }

    /// A name that can stand in a directory: one that leads elsewhere never gets near a system call.
    private mutating func entryName() throws(DecodeProblem) -> FileName {
        let name = try terminatedName()
        let leadsElsewhere = name.withCString { string in
            strchr(string, Int32(UInt8(ascii: "/"))) != nil || strcmp(string, ".") == 0
                || strcmp(string, "..") == 0
        }
        guard !leadsElsewhere else { throw .damaged("a name that no directory can have") }
        return name
    }

    private mutating func counted() throws(DecodeProblem) -> [UInt8] {
        Array(try take(Int(try number(UInt32.self))))
    }

    private mutating func reference() throws(DecodeProblem) -> InodeReference {
        var status = FileStatus()
        (status.inode, status.birth) = (try number(), try number())
        status.device = try deviceNumber()
        let kind = try number(UInt32.self)
        guard kind & ~UInt32(S_IFMT) == 0 else { throw .damaged("a kind of file that there is not") }
        status.mode = kind
        let type = try number(Int32.self)
        let handle = FileHandle(kind: type, bytes: try take(Int(try number(UInt8.self))))
        guard let handle else { throw .damaged("a file handle that is too long") }
        return InodeReference(status, handle: handle)
    }

    private mutating func deviceNumber() throws(DecodeProblem) -> UInt64 {
        let recorded = try number(UInt64.self)
        return device ?? recorded
    }

    private mutating func status() throws(DecodeProblem) -> FileStatus {
        var status = FileStatus()
        status.device = try deviceNumber()
        status.inode = try number()
        status.birth = try number()
        status.specialDevice = try number()
        status.size = try number()
        status.blocks = try number()
        status.blockSize = try number()
        status.mode = try number()
        status.links = try number()
        status.user = try number()
        status.group = try number()
        status.accessed = try time()
        status.modified = try time()
        status.changed = try time()
        guard status.size >= 0 else { throw Self.negativeSize }
        return status
    }

    private static let negativeSize = DecodeProblem.damaged("a size below nothing")

    private mutating func size() throws(DecodeProblem) -> Int64 {
        let size = try number(Int64.self)
        guard size >= 0 else { throw Self.negativeSize }
        return size
    }

    private mutating func extended() throws(DecodeProblem) -> ExtendedAttributes {
        var extended = ExtendedAttributes()
        // Counts are not used to reserve memory: they may say anything.
        for _ in 0..<(try number(UInt32.self)) {
            let name = try terminatedName()
            extended.values[name] = try counted()
        }
        for _ in 0..<(try number(UInt32.self)) { extended.unreadable.insert(try terminatedName()) }
        return extended
    }

    private mutating func blocks() throws(DecodeProblem) -> Range<UInt64> {
        let (lower, upper) = (try number(UInt64.self), try number(UInt64.self))
        guard lower <= upper, upper <= JournalFormat.blocksEnd else {
            throw .damaged("blocks that no file can have")
        }
        return lower..<upper
    }

    private mutating func entry() throws(DecodeProblem) -> RecordedEntry {
        switch try number(UInt8.self) {
        case 0: return .absent
        case 1: return .present(try reference())
        default: throw .unknown
        }
    }

    // MARK: Changes

    mutating func change() throws(DecodeProblem) -> RecordChange {
        guard let kind = ChangeKind(rawValue: try number()) else { throw .unknown }
        switch kind {
        case .reference: return .reference(try reference())
        case .born: return .born(try reference())
        case .name: return .name(in: try key(), try entryName(), try entry())
        case .attributes:
            let inode = try key()
            return .attributes(inode, RecordedAttributes(status: try status(), extended: try extended()))
        case .written:
            return .written(try key(), size: try size(), modified: try time(), changed: try time())
        case .links: return .links(try key(), LinkCount(count: try number(), changed: try time()))
        case .data: return .data(try key(), try blocks())
        case .holes: return .holes(try key(), try blocks())
        case .merged: return .merged(try key(), try blocks())
        case .target: return .target(try key(), try counted())
        case .place:
            let inode = try key()
            guard let place = InodePlace(rawValue: try number()) else { throw .unknown }
            return .place(inode, place)
        case .flags:
            let (inode, flags) = (try key(), try number(UInt8.self))
            let known: RecordFlags = [.knowsEnd, .isUnreadable, .isLost]
            guard flags & ~known.rawValue == 0 else { throw .unknown }
            return .flags(inode, RecordFlags(rawValue: flags))
        }
    }

    /// Calls `body` with each inode that a mark lists, before it is known whether the list is whole.
    mutating func mark(
        _ body: (InodeKey, _ through: UInt64) -> Void
    ) throws(DecodeProblem) -> (through: UInt64, scope: MarkScope) {
        let through = try number(UInt64.self)
        guard let scope = MarkScope(rawValue: try number()) else { throw .unknown }
        for _ in 0..<(try number(UInt32.self)) { body(try key(), through) }
        try expectEnd()
        return (through, scope)
    }
}

/// A head as it is in a file.
struct StoredHead {
    let head: JournalHead
    let isCompacted: Bool
    let firstSequence: UInt64

    /// nil where `bytes`, all that the file has there, are no whole head. Throws RecordError.newer.
    init?(_ bytes: UnsafeRawBufferPointer, file: String) throws(RecordError) {
        guard bytes.count >= JournalFormat.headBytes, bytes.starts(with: JournalFormat.magic) else { return nil }
        func number<Number: FixedWidthInteger>(_ offset: Int) -> Number {
            Number(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: Number.self))
        }
        // Where these four are stays the same in later versions.
        let (version, length): (UInt32, UInt32) =
            (number(JournalFormat.versionOffset), number(JournalFormat.lengthOffset))
        guard length >= JournalFormat.headBytes, length <= bytes.count else { return nil }
        let all = UnsafeRawBufferPointer(rebasing: bytes[..<Int(length)])
        guard number(JournalFormat.checksumOffset) == JournalFormat.checksum(ofHead: all) else { return nil }
        let flags: UInt8 = number(JournalFormat.flagsOffset)
        let known = JournalFormat.isContinuedFlag | JournalFormat.isCompactedFlag
        guard version == JournalFormat.version, length == JournalFormat.headBytes, flags & ~known == 0,
            let embodiment = JournalHead.Embodiment(rawValue: number(JournalFormat.embodimentOffset))
        else { throw .newer(file: file, version: version) }
        let boot: UInt64 = number(JournalFormat.bootOffset)
        let bootEnd: UInt64 = number(JournalFormat.bootOffset + 8)
        head = JournalHead(
            embodiment: embodiment, layer: number(JournalFormat.layerOffset),
            isContinued: flags & JournalFormat.isContinuedFlag != 0,
            source: InodeKey(
                inode: number(JournalFormat.sourceOffset), birth: number(JournalFormat.sourceOffset + 8)),
            cut: Timestamp(
                seconds: number(JournalFormat.cutOffset), nanoseconds: number(JournalFormat.cutOffset + 8)),
            serial: number(JournalFormat.serialOffset),
            boot: BootIdentity(
                high: boot.byteSwapped, low: bootEnd.byteSwapped, mount: number(JournalFormat.mountOffset)))
        isCompacted = flags & JournalFormat.isCompactedFlag != 0
        firstSequence = number(JournalFormat.firstSequenceOffset)
    }
}
