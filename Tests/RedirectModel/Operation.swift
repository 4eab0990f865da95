package enum RenameKind: Equatable, Sendable {
    case plain
    case noReplace
    case exchange
    /// Leaves a whiteout, which gets this number.
    case whiteout(Inode)
}

package enum Setting: Equatable, Sendable {
    case mode(Int)
    case owner(Int)
    case modified(Int)
    case extended(Int)
}

/// What an application asks for. New inodes come with their number, so that a sequence means the same to all.
package enum Operation: Equatable, Sendable {
    case make(Inode, Kind, in: Inode, Name)
    /// O_TMPFILE: open, without a name.
    case makeUnnamed(Inode)
    case link(Inode, in: Inode, Name)
    case unlink(in: Inode, Name)
    case removeDirectory(in: Inode, Name)
    case rename(from: Inode, Name, to: Inode, Name, RenameKind)
    case change(Inode, DataChange)
    case set(Inode, Setting)
    case open(Inode)
    case close(Inode)
    /// fsync(2), of a directory too.
    case synchronize(Inode)
}
