package import SnapshotRecord

/// What became of one inode of the cut, or of one name, since then.
package struct Change: Sendable, Equatable {
    package enum Kind: String, Sendable {
        /// Bytes of a file: `ranges`.
        case data
        /// `attributes` differ.
        case attributes
        /// A name that was not there, for something that was made since.
        case created
        /// A name that is not there any more.
        case removed
        /// The same under another name.
        case renamed
        /// A further name of something that was there.
        case linked
        /// Names in a directory: `entries`.
        case entries
        /// Changed beside the mount: what, is not known.
        case pastMount = "past_mount"
    }

    package var kinds: [Kind] = []
    package let key: InodeKey
    /// S_IFREG, S_IFDIR, ...
    package var fileKind: UInt32 = 0
    /// From the source's root, without a slash in front; empty for the root. nil: it had no name then, or has none now,
    /// or it was not found.
    package var pathAtCut: [UInt8]?
    package var path: [UInt8]?
    /// What may differ, ascending, merged, in areas of `RecordLimits.blockBytes`; of an append the exact bytes.
    package var ranges: [Range<Int64>] = []
    /// The size of what changed: of `ranges`, or of a file that was created or removed.
    package var bytes: Int64 = 0
    package var attributes: [String] = []
    /// How many names in the directory stand for something else.
    package var entries = 0
}

/// Why a list of changes ended early.
package enum ChangesFailure: Error, Equatable {
    /// The snapshot has ended.
    case ended
    /// The snapshot was given up, and nothing more is recorded.
    case overflowed
    /// Whom it is for has gone.
    case abandoned
}
