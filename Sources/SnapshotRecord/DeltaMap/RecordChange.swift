package import LinuxSystem

/// One change of a delta map: what the journal holds, and the only way in which a map that has a journal changes. What
/// it says is absolute, so that applying it twice does no harm; several for one area are applied in their order.
package enum RecordChange: Sendable, Equatable {
    /// How to find an inode again; comes before anything else that speaks of it.
    case reference(InodeReference)
    /// A name in a directory: preserve, what it stood for at the cut; redirect, what it stands for.
    case name(in: InodeKey, FileName, RecordedEntry)
    case attributes(InodeKey, RecordedAttributes)
    /// Redirect: data were written to an inode whose attributes are recorded; what else of them changes.
    case written(InodeKey, size: Int64, modified: Timestamp, changed: Timestamp)
    /// Redirect: `InodeRecord.Contents.links`.
    case links(InodeKey, LinkCount)
    /// Blocks that are in the delta file, the first of them with data.
    case data(InodeKey, Range<UInt64>)
    /// Blocks that are holes; in preserve: that were.
    case holes(InodeKey, Range<UInt64>)
    /// Redirect: blocks that are durable in the primary, by a merge that needed their space or for a single pass: this layer says
    /// nothing of them any more.
    case merged(InodeKey, Range<UInt64>)
    /// Made after the cut: preserve, not in the snapshot; redirect, a real file in the store.
    case born(InodeReference)
    case place(InodeKey, InodePlace)
    /// The target of a symbolic link that is about to go; preserve.
    case target(InodeKey, [UInt8])
    /// Of `InodeRecord.Contents`, those that are set; preserve.
    case flags(InodeKey, RecordFlags)
}

/// What `InodeRecord.Contents` says of an inode in preserve; once set they stay.
package struct RecordFlags: OptionSet, Sendable {
    package let rawValue: UInt8
    package init(rawValue: UInt8) { self.rawValue = rawValue }

    package static let knowsEnd = RecordFlags(rawValue: 1)
    package static let isUnreadable = RecordFlags(rawValue: 2)
    package static let isLost = RecordFlags(rawValue: 4)
}
