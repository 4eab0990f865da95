internal import CArchive

/// A POSIX ACL as Linux keeps it in an extended attribute: `system.posix_acl_access` and `system.posix_acl_default`.
struct AccessControlList {
    struct Entry: Equatable {
        let tag: Int32
        let permissions: Int32
        /// Of a user or group that is named; -1 of the others.
        let identifier: Int32
    }

    let entries: [Entry]

    private static let version: UInt32 = 2
    private static let headerBytes = 4
    private static let entryBytes = 8

    /// libarchive's word for each of the kernel's tags.
    private static let tags: [UInt16: Int32] = [
        0x01: ARCHIVE_ENTRY_ACL_USER_OBJ, 0x02: ARCHIVE_ENTRY_ACL_USER, 0x04: ARCHIVE_ENTRY_ACL_GROUP_OBJ,
        0x08: ARCHIVE_ENTRY_ACL_GROUP, 0x10: ARCHIVE_ENTRY_ACL_MASK, 0x20: ARCHIVE_ENTRY_ACL_OTHER,
    ]

    /// nil where the bytes are none, or name a user or group whose number libarchive cannot hold. Little-endian: a version, then tag, permissions and identifier of each entry.
    init?(_ bytes: [UInt8]) {
        guard bytes.count >= Self.headerBytes, (bytes.count - Self.headerBytes) % Self.entryBytes == 0 else {
            return nil
        }
        var entries: [Entry] = []
        let isWhole = bytes.withUnsafeBytes { raw -> Bool in
            func number<Number: FixedWidthInteger>(_ offset: Int) -> Number {
                Number(littleEndian: raw.loadUnaligned(fromByteOffset: offset, as: Number.self))
            }
            if number(0) != Self.version { return false }
            for at in stride(from: Self.headerBytes, to: bytes.count, by: Self.entryBytes) {
                guard let tag = Self.tags[number(at)] else { return false }
                let permissions: UInt16 = number(at + 2)
                let identifier: UInt32 = number(at + 4)
                let isNamed = tag == ARCHIVE_ENTRY_ACL_USER || tag == ARCHIVE_ENTRY_ACL_GROUP
                if isNamed && identifier > UInt32(Int32.max) { return false }
                // The permissions' bits are libarchive's too: 4, 2 and 1.
                entries.append(
                    Entry(
                        tag: tag, permissions: Int32(permissions & 7),
                        identifier: isNamed ? Int32(truncatingIfNeeded: identifier) : -1))
            }
            return true
        }
        if !isWhole { return nil }
        self.entries = entries
    }

    /// Adds it to an archive's member; `type` is ARCHIVE_ENTRY_ACL_TYPE_ACCESS or _DEFAULT.
    func add(to entry: OpaquePointer, type: Int32) {
        for item in entries {
            ca_entry_acl_add_entry(entry, type, item.permissions, item.tag, item.identifier, nil)
        }
    }
}
