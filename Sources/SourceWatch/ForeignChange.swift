package import LinuxSystem

/// A change in the source that the watching process did not make.
package struct ForeignChange: Sendable {
    package struct Kinds: OptionSet, Hashable, Sendable {
        package let rawValue: UInt32
        package init(rawValue: UInt32) { self.rawValue = rawValue }

        /// Bytes were written, or the size changed.
        package static let data = Kinds(rawValue: 1)
        /// Mode, owner, times, extended attributes, ACLs or the link count.
        package static let attributes = Kinds(rawValue: 2)
        /// A name was made or removed, or came or went by a rename.
        package static let entry = Kinds(rawValue: 4)
        /// Changes were lost: anything may have changed, and who did it is not known. Nothing else is told.
        package static let lost = Kinds(rawValue: 8)
    }

    /// All that the kernel merged: changes of one object, in one directory and by one name, by one process.
    package var kinds: Kinds
    /// 0 where the process cannot be seen from here: it is of another PID namespace.
    package var process: Int32
    /// The directory that holds the changed name, or by whose name the object was opened; of a change of a
    /// directory's own attributes, that directory, with the name «.».
    package var directory: FileHandle?
    package var name: FileName?
    /// What was changed, or what the name is for; nil before Linux 5.17 for names.
    package var object: FileHandle?
    /// Whether it is known that this is in the source. It is not of a file that is changed by its handle while the
    /// kernel knows no name of it, nor of a lost change: such a file may be anywhere in the file system. NFS
    /// servers do so, and other daemons of this kind.
    package var isCertain = true
    /// For messages: what changed, from the source's own path on. Found afterwards: a rename may have come
    /// between.
    package var path: String
}
