/// Sizes and bounds of the record, unit last.
package enum RecordLimits {
    /// The unit of change of a file's data.
    package static let blockBytes: Int64 = 4096
    /// How many blocks hold `bytes` bytes, up to the largest file that there can be.
    package static func blockCount(_ bytes: Int64) -> UInt64 {
        bytes <= 0 ? 0 : UInt64((bytes - 1) / blockBytes) + 1
    }

    /// The blocks that bytes lie in.
    package static func blockNumbers(_ bytes: Range<Int64>) -> Range<UInt64> {
        UInt64(bytes.lowerBound / blockBytes)..<blockCount(bytes.upperBound)
    }

    /// Where a block begins; of the one behind the largest file, that file's end.
    package static func offset(ofBlock block: UInt64) -> Int64 {
        Int64(clamping: block.multipliedReportingOverflow(by: UInt64(blockBytes)).partialValue)
    }

    /// Ranges from this size on are cloned where the file system can: smaller ones are copied, since each clone
    /// splits the live file's extents.
    package static let cloneBytesMin: Int64 = 4 << 20
    /// What is copied through one buffer at a time.
    package static let copyBytesMax = 1 << 20
    /// What one operation preserves before it lets a cut through: bounds how long the gate takes to close.
    package static let sliceBytesMax: Int64 = 16 << 20
    /// Descriptors of delta files kept open.
    package static let openDeltaFilesMax = 128
}
