/// What a journal holds. A record is there whole or not at all: a torn one fails its checksum.
package enum JournalRecord: Equatable, Sendable {
    /// The first one: which boot of the machine wrote it. Of another boot, only what is marked counts.
    case head(boot: Int)
    /// What one operation changed: all its areas in one record, so that it is in whole or not at all.
    case change([Change])
    /// What was recorded before number `through` counts: names and attributes all of them, data those of `inodes`.
    case mark(through: Int, inodes: Set<Inode>)
    /// The layer gets no more changes: the next one has begun. It counts once a mark behind it does.
    case sealed
    /// The layer is to be thrown away.
    case discarded
}

/// A change of one area, or of some areas of one kind.
package enum Change: Equatable, Sendable {
    /// What a name stands for from now on; nil for nothing.
    case name(in: Inode, Name, Inode?)
    /// All attributes of an inode that was there before the layer, or of a directory.
    case status(Inode, Status, size: Int)
    /// Link count and time of change of an inode whose other attributes its real file has.
    case links(Inode, Int, changed: Int)
    /// The delta file has these blocks.
    case data(Inode, Set<Int>)
    /// These blocks are holes, whatever the delta file or what lies below has there.
    case holes(Inode, Set<Int>)
    /// A new inode: a real file in the store.
    case born(Inode, isDirectory: Bool)
}

/// The bytes of one journal: append-only, and durable as far as it was synced.
package struct JournalFile: Equatable, Sendable {
    package var records: [JournalRecord]
    var durableCount = 0
    /// Whether the file's name is durable.
    var exists = false
}
