internal import SnapshotRecord

/// How far one reader has come in a file: which whole blocks it has read, in reads of any size that follow each other.
package struct ReadProgress: Sendable {
    private var bytes: Range<Int64> = 0..<0
    /// The blocks that have been told.
    private var told: UInt64 = 0

    package init() {}

    /// Notes a read of `range` of a file of that size; the whole blocks that are read by it, and have not been told before.
    package mutating func didRead(_ range: Range<Int64>, size: Int64) -> Range<UInt64> {
        if range.isEmpty { return told..<told }
        if range.lowerBound < bytes.lowerBound || range.lowerBound > bytes.upperBound {
            bytes = range
            told = RecordLimits.blockCount(range.lowerBound)
        } else {
            bytes = bytes.lowerBound..<max(bytes.upperBound, range.upperBound)
        }
        // The last block ends with the file.
        let end =
            bytes.upperBound >= size
            ? RecordLimits.blockCount(size) : UInt64(bytes.upperBound / RecordLimits.blockBytes)
        guard end > told else { return told..<told }
        defer { told = end }
        return told..<end
    }
}
