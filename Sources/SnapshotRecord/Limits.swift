/// Sizes and bounds of the record, unit last.
package enum RecordLimits {
    /// The unit of change of a file's data.
    package static let blockBytes: Int64 = 4096
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
