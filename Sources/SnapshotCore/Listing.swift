internal import Glibc

/// The names of a directory, kept together in one block of memory.
package struct Listing: Sendable {
    private struct Entry {
        let inode: UInt64
        let name: UInt32
        let kind: UInt8
    }

    private var names: [CChar] = []
    private var entries: [Entry] = []

    package init() {}

    package var count: Int { entries.count }

    package mutating func append(_ name: UnsafePointer<CChar>, inode: UInt64, kind: UInt8) {
        entries.append(Entry(inode: inode, name: UInt32(names.count), kind: kind))
        var at = 0
        repeat {
            names.append(name[at])
            at += 1
        } while name[at - 1] != 0
    }

    /// Puts the entries in an order that follows from them alone: by inode number, then by name.
    package mutating func sort() {
        let names = names
        names.withUnsafeBufferPointer { names in
            guard let start = names.baseAddress else { return }
            entries.sort { left, right in
                if left.inode != right.inode { return left.inode < right.inode }
                return strcmp(start + Int(left.name), start + Int(right.name)) < 0
            }
        }
    }

    /// Hands out entry number `index`: its name, its inode number, its kind (DT_REG, ...).
    package func withEntry<Result, Failure: Error>(
        _ index: Int, _ body: (UnsafePointer<CChar>, UInt64, UInt8) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let entry = entries[index]
        return try names.withUnsafeBufferPointer { (buffer) throws(Failure) -> Result in
            guard let start = buffer.baseAddress else {
                preconditionFailure("a listing with an entry has the bytes of its name")
            }
            return try body(start + Int(entry.name), entry.inode, entry.kind)
        }
    }

    package func forEach(_ body: (UnsafePointer<CChar>, UInt64, UInt8) -> Void) {
        for index in entries.indices { withEntry(index, body) }
    }
}
