internal import LinuxSystem

/// The bytes of a journal, all numbers little-endian. Docs/Format.md has them in full; a test asserts the offsets.
///
///     head    magic 8 | version 4 | length 4 | checksum 4 | embodiment 1 | flags 1 | 0 2 | layer 8 | serial 8
///             | source inode 8, birth 8 | cut seconds 8, nanoseconds 4 | 0 4 | boot id 16 | mount 8 | first sequence 8
///     record  length 4 | checksum 4 | sequence 8 | kind 1 | header check 3 | payload
///
/// `length` counts the whole of a head or record. A checksum is the CRC-32C of all of it but of the checksum; a record's
/// begins with the layer's number (8 bytes), so that a record of another layer's journal is none of this one's. The
/// header check is 24 bits of such a sum of length, sequence and kind: by it a length can be believed before the rest is
/// there, so that a record whose write was cut short is told from damage.
enum JournalFormat {
    static let magic = Array("FSNAPJNL".utf8)
    static let version: UInt32 = 1

    static let headBytes = 112
    /// The largest head of any version.
    static let headBytesMax = 4096
    static let versionOffset = 8
    static let lengthOffset = 12
    static let checksumOffset = 16
    static let embodimentOffset = 20
    static let flagsOffset = 21
    static let layerOffset = 24
    static let serialOffset = 32
    static let sourceOffset = 40
    static let cutOffset = 56
    static let bootOffset = 72
    static let mountOffset = 88
    static let firstSequenceOffset = 96
    static let headReservedOffset = 104

    static let isContinuedFlag: UInt8 = 1
    /// Begins with base records: what a map was when the journal was compacted.
    static let isCompactedFlag: UInt8 = 2

    static let recordHeaderBytes = 20
    static let recordChecksumOffset = 4
    static let recordSequenceOffset = 8
    static let recordKindOffset = 16

    /// The largest record: room for a rename of three inodes with the most extended attributes that there may be, and
    /// for a mark that names four million inodes.
    static let recordBytesMax = 64 << 20
    /// The longest name: the kernel's own bound for FUSE.
    static let nameBytesMax = 1024
    /// The last block that a file can have, plus one.
    static let blocksEnd = RecordLimits.blockCount(.max)
    /// From this size on a record that compaction fills is closed.
    static let baseRecordBytes = 256 << 10
    /// The journal is allocated ahead in steps of this size.
    static let allocationStepBytes: UInt64 = 1 << 20
    /// From this much room on no more is allocated ahead.
    static let allocationLowBytes: UInt64 = 512 << 10
    /// On a full disk allocation ahead is tried again after so much of what is left has been used.
    static let allocationRetryBytes: UInt64 = 64 << 10
    /// Buffers for encoding and reading are kept up to this size.
    static let bufferBytes = 1 << 20

    /// What records of a layer's journal begin their checksum with.
    static func seed(layer: UInt64) -> UInt32 {
        withUnsafeBytes(of: layer.littleEndian) { checksum($0) }
    }

    /// The checksum of a record whose bytes these are.
    static func checksum(ofRecord bytes: UnsafeRawBufferPointer, seed: UInt32) -> UInt32 {
        let length = UnsafeRawBufferPointer(rebasing: bytes[..<recordChecksumOffset])
        let rest = UnsafeRawBufferPointer(rebasing: bytes[recordSequenceOffset...])
        return checksum(rest, after: checksum(length, after: seed))
    }

    /// Kind and header check, as they are in a record that begins with `header`.
    static func kindAndCheck(_ header: UnsafeRawBufferPointer, seed: UInt32) -> UInt32 {
        let length = UnsafeRawBufferPointer(rebasing: header[..<recordChecksumOffset])
        let rest = UnsafeRawBufferPointer(rebasing: header[recordSequenceOffset...recordKindOffset])
        return UInt32(header[recordKindOffset]) | checksum(rest, after: checksum(length, after: seed)) << 8
    }

    private static func checksum(_ bytes: UnsafeRawBufferPointer, after before: UInt32 = 0) -> UInt32 {
        LinuxSystem.checksum(bytes, after: before)
    }
}

/// What a record is. Those from `baseChanges` on are written by compaction alone, and numbered apart, from 0: they take
/// the place of the records before the head's first sequence. `baseMark` ends them; it lies behind the records that it
/// covers.
enum RecordKind: UInt8 {
    case changes = 1
    case mark = 2
    case sealed = 3
    case discarded = 4
    case cut = 5
    case baseChanges = 0x81
    case baseMark = 0x82
    case baseSealed = 0x83
    case baseDiscarded = 0x84

    var isBase: Bool { rawValue & 0x80 != 0 }
}

/// What a change in a record is.
enum ChangeKind: UInt8 {
    case reference = 1
    case name = 2
    case attributes = 3
    case written = 4
    case links = 5
    case data = 6
    case holes = 7
    case born = 8
    case place = 9
    case target = 10
    case flags = 11
    case merged = 12
}

/// A mark's inodes: those that it lists, or all that there are.
enum MarkScope: UInt32 {
    case listed = 0
    case all = 1
}
