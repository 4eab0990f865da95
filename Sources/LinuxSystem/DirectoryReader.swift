internal import CLinux
internal import Glibc
package import SystemPackage

/// An entry as getdents64(2) gives it. `name` is valid during the call that hands it out.
package struct DirectoryEntry {
    package let inode: UInt64
    /// The position behind this entry, for lseek(2).
    package let next: Int64
    /// DT_REG, DT_DIR, ...; DT_UNKNOWN on file systems that do not tell.
    package let kind: UInt8
    package let name: UnsafePointer<CChar>

    package init(inode: UInt64, next: Int64, kind: UInt8, name: UnsafePointer<CChar>) {
        self.inode = inode
        self.next = next
        self.kind = kind
        self.name = name
    }

    /// Whether it is «.» or «..».
    package var isDot: Bool {
        name[0] == 46 && (name[1] == 0 || (name[1] == 46 && name[2] == 0))
    }
}

/// Reads a directory in blocks of `blockBytes`. Not safe for use by two threads at once.
package struct DirectoryReader: ~Copyable {
    package static let blockBytes = 64 << 10

    package let descriptor: Descriptor
    private let block: UnsafeMutableRawPointer
    private var filled = 0
    private var at = 0
    /// The position of the entry that comes next.
    private var position: Int64 = 0

    /// Reads `directory`, a descriptor opened for reading, from its beginning.
    package init(_ directory: Descriptor) {
        descriptor = directory
        block = .allocate(byteCount: Self.blockBytes, alignment: 16)
    }

    deinit {
        block.deallocate()
    }

    /// Goes on at `position`, one that an entry's `next` gave, or 0.
    package mutating func seek(to position: Int64) throws(Errno) {
        if position == self.position && position != 0 { return }
        try checked { lseek(descriptor.raw, Int(position), SEEK_SET) }
        filled = 0
        at = 0
        self.position = position
    }

    /// Hands the next entry to `body`; false where the directory has ended or `body` answers false. An entry for
    /// which `body` answers false, or throws, comes again with the next call.
    package mutating func next(
        _ body: (DirectoryEntry) throws(Errno) -> Bool
    ) throws(Errno) -> Bool {
        if at == filled {
            filled = try checked { cl_getdents64(descriptor.raw, block, Self.blockBytes) }
            at = 0
            if filled == 0 { return false }
        }
        // struct linux_dirent64: d_ino 8, d_off 8, d_reclen 2, d_type 1, d_name.
        let record = block + at
        let entry = DirectoryEntry(
            inode: record.load(as: UInt64.self),
            next: record.load(fromByteOffset: 8, as: Int64.self),
            kind: record.load(fromByteOffset: 18, as: UInt8.self),
            name: (record + 19).assumingMemoryBound(to: CChar.self))
        guard try body(entry) else { return false }
        at += Int(record.load(fromByteOffset: 16, as: UInt16.self))
        position = entry.next
        return true
    }

    /// Hands every entry that is left to `body`, in order.
    package mutating func forEach(
        _ body: (DirectoryEntry) throws(Errno) -> Void
    ) throws(Errno) {
        while try next({ (entry) throws(Errno) -> Bool in
            try body(entry)
            return true
        }) {}
    }
}
