internal import CArchive
internal import Glibc
package import LinuxSystem
internal import SystemPackage

/// Why an archive could not be written.
package struct ArchiveError: Error, CustomStringConvertible {
    /// In libarchive's words.
    package let description: String
    /// What failed below, 0 where nothing did.
    package let errno: Int32
}

/// One member of an archive.
package struct ArchiveMember: Sendable {
    package enum Content: Sendable {
        /// A file with data in these ranges, ascending and apart; between them there are holes.
        case data([Range<Int64>])
        /// A further name of the member of that path.
        case hardLink([UInt8])
        case symbolicLink([UInt8])
        /// A directory, a device or a fifo.
        case none
    }

    package var path: [UInt8]
    package var status: FileStatus
    package var extended: ExtendedAttributes
    package var content: Content

    package init(path: [UInt8], status: FileStatus, extended: ExtendedAttributes, content: Content) {
        self.path = path
        self.status = status
        self.extended = extended
        self.content = content
    }
}

/// Writes a pax archive to a descriptor, a pipe too: names and links as bytes, times to the nanosecond, extended
/// attributes, ACLs, hard links, holes. What GNU tar (`--xattrs --xattrs-include='*' --acls`) and bsdtar restore of it is
/// tested; sockets have no place in such an archive. What libarchive cannot hold: in ACLs, numbers beyond 2147483647 (an
/// error); fractions of seconds before 1970 (a second's worth off). GNU tar says that it ignores `hdrcharset`, by which names
/// are bytes, which is true (`--warning=no-unknown-keyword`).
///
/// Or restores the members below the working directory instead, as such a program would.
///
/// A member is begun, its data are written in order, and the next is begun; `finish` ends the archive. Of one thread.
package struct ArchiveWriter: ~Copyable {
    private let memory: Memory
    /// Whether what is left out between data is skipped; else it is told as zeros, which libarchive leaves out.
    private let skipsHoles: Bool
    private var archive: OpaquePointer { memory.archive }
    private var entry: OpaquePointer { memory.entry }
    /// Of the directory that is restored to: libarchive sets times of those that it makes.
    private var top: FileStatus?
    /// Of the member that was begun: where its next data go, and its size.
    private var at: Int64 = 0
    private var size: Int64 = 0

    private static let blockBytes: Int32 = 1 << 20

    /// What libarchive holds, freed with it.
    private final class Memory {
        let archive: OpaquePointer
        let entry: OpaquePointer
        /// Holes are handed over as zeros, which libarchive leaves out without looking at them.
        let zeros: UnsafeMutableRawBufferPointer

        init(
            _ make: () -> OpaquePointer?, setUp: (OpaquePointer) throws(ArchiveError) -> Void
        ) throws(ArchiveError) {
            if let problem = ca_load() {
                throw ArchiveError(
                    description:
                        "libarchive, which does that, cannot be loaded: \(String(cString: problem)); on Debian:"
                        + " apt install libarchive13", errno: ENOENT)
            }
            guard let archive = make(), let entry = ca_entry_new() else {
                preconditionFailure("no memory for an archive")
            }
            (self.archive, self.entry) = (archive, entry)
            zeros = .allocate(byteCount: 1 << 20, alignment: 16)
            zeros.initializeMemory(as: UInt8.self, repeating: 0)
            try setUp(archive)
        }

        deinit {
            // What was not finished is no archive: nothing more is written to it.
            ca_write_fail(archive)
            ca_write_free(archive)
            ca_entry_free(entry)
            zeros.deallocate()
        }
    }

    /// Throws also where libarchive is not installed.
    package init(to descriptor: Descriptor) throws(ArchiveError) {
        memory = try Memory { () in
            ca_write_new()
        } setUp: { (archive) throws(ArchiveError) in
            try Self.check(ca_write_set_format_pax(archive), archive)
            // Names are bytes, in whatever encoding; attributes as GNU tar reads them, once.
            try Self.check(ca_write_set_options(archive, "hdrcharset=BINARY,xattrheader=SCHILY"), archive)
            try Self.check(ca_write_set_bytes_per_block(archive, Self.blockBytes), archive)
            try Self.check(ca_write_set_bytes_in_last_block(archive, 1), archive)
            try Self.check(ca_write_open_fd(archive, descriptor.raw), archive)
        }
        skipsHoles = false
    }

    /// Restores to the working directory, which must not change meanwhile: a path that is longer than PATH_MAX is taken in
    /// steps. With owners where `setsOwners`, which needs root. The members' directories come before what is in them.
    package init(restoringWithOwners setsOwners: Bool) throws(ArchiveError) {
        memory = try Memory { () in
            ca_write_disk_new()
        } setUp: { (archive) throws(ArchiveError) in
            var flags =
                ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_ACL | ARCHIVE_EXTRACT_XATTR
                | ARCHIVE_EXTRACT_SECURE_SYMLINKS | ARCHIVE_EXTRACT_SECURE_NODOTDOT
            if setsOwners { flags |= ARCHIVE_EXTRACT_OWNER }
            try Self.check(ca_write_disk_set_options(archive, flags), archive)
        }
        skipsHoles = true
    }

    private func check(_ result: Int32) throws(ArchiveError) { try Self.check(result, archive) }

    private static func check(_ result: Int32, _ archive: OpaquePointer) throws(ArchiveError) {
        // A warning says that something was not stored as it is.
        if result == ARCHIVE_OK { return }
        let text = ca_error_string(archive).map { String(cString: $0) } ?? "libarchive gives no reason"
        throw ArchiveError(description: text, errno: ca_errno(archive))
    }

    /// Begins a member, once all data of the one before are written.
    package mutating func begin(_ member: ArchiveMember) throws(ArchiveError) {
        try endMember()
        ca_entry_clear(entry)
        withTerminated(member.path) { ca_entry_copy_pathname(entry, $0) }
        if skipsHoles, member.path == [UInt8(ascii: ".")] { top = member.status }
        setAttributes(member.status)
        try addExtended(member.extended)
        switch member.content {
        case .data(let ranges): setData(ranges, size: member.status.size)
        case .hardLink(let path): withTerminated(path) { ca_entry_copy_hardlink(entry, $0) }
        case .symbolicLink(let target): withTerminated(target) { ca_entry_copy_symlink(entry, $0) }
        case .none: break
        }
        size = ca_entry_size(entry)
        at = 0
        try check(ca_write_header(archive, entry))
    }

    private func setAttributes(_ status: FileStatus) {
        ca_entry_set_mode(entry, status.mode)
        ca_entry_set_uid(entry, Int64(status.user))
        ca_entry_set_gid(entry, Int64(status.group))
        ca_entry_set_mtime(entry, Int(status.modified.seconds), Int(status.modified.nanoseconds))
        // An archive is the same however often the files were read.
        if skipsHoles {
            ca_entry_set_atime(entry, Int(status.accessed.seconds), Int(status.accessed.nanoseconds))
        }
        ca_entry_set_nlink(entry, status.links)
        ca_entry_set_size(entry, 0)
        // Of a device; anything else has none.
        if status.specialDevice != 0 { ca_entry_set_rdev(entry, UInt(status.specialDevice)) }
    }

    private func addExtended(_ extended: ExtendedAttributes) throws(ArchiveError) {
        for name in extended.names {
            guard let value = extended.readableValue(name) else { continue }
            let list: Int32? =
                switch name.description {
                case "system.posix_acl_access": ARCHIVE_ENTRY_ACL_TYPE_ACCESS
                case "system.posix_acl_default": ARCHIVE_ENTRY_ACL_TYPE_DEFAULT
                default: nil
                }
            guard let list else {
                name.withCString { ca_entry_xattr_add_entry(entry, $0, value, value.count) }
                continue
            }
            // As a plain attribute neither of the two programs would restore it.
            guard let entries = AccessControlList(value) else {
                throw ArchiveError(
                    description: "an ACL names a user or group beyond 2147483647, or is none", errno: EOVERFLOW)
            }
            entries.add(to: entry, type: list)
        }
    }

    private func setData(_ ranges: [Range<Int64>], size: Int64) {
        ca_entry_set_size(entry, size)
        // All of it: not sparse.
        if ranges == [0..<size] || size == 0 { return }
        for range in ranges { ca_entry_sparse_add_entry(entry, range.lowerBound, Int64(range.count)) }
        // A hole at the end, or nothing but one, is told by an empty range there.
        if ranges.last?.upperBound != size { ca_entry_sparse_add_entry(entry, size, 0) }
    }

    private func withTerminated(_ bytes: [UInt8], _ body: (UnsafePointer<CChar>) -> Void) {
        let terminated = bytes.map { CChar(bitPattern: $0) } + [0]
        terminated.withUnsafeBufferPointer { buffer in
            if let start = buffer.baseAddress { body(start) }
        }
    }

    /// Writes data of the member that was begun, which go to `offset`; what lies before and was not written is a hole.
    package mutating func write(_ data: UnsafeRawBufferPointer, at offset: Int64) throws(ArchiveError) {
        precondition(offset >= at && offset + Int64(data.count) <= size, "data come in order, within the member")
        try skip(to: offset)
        try put(data)
    }

    private mutating func put(_ data: UnsafeRawBufferPointer) throws(ArchiveError) {
        if skipsHoles {
            let result = ca_write_data_block(archive, data.baseAddress, data.count, at)
            if result < 0 { try check(Int32(result)) }
            at += Int64(data.count)
            return
        }
        var done = 0
        while done < data.count {
            let count = ca_write_data(archive, data.baseAddress.map { $0 + done }, data.count - done)
            if count <= 0 { try check(count < 0 ? Int32(count) : ARCHIVE_FATAL) }
            done += count
        }
        at += Int64(data.count)
    }

    private mutating func skip(to offset: Int64) throws(ArchiveError) {
        if skipsHoles {
            at = max(at, offset)
            return
        }
        while at < offset {
            let count = Int(min(offset - at, Int64(memory.zeros.count)))
            try put(UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(memory.zeros)[..<count]))
        }
    }

    private mutating func endMember() throws(ArchiveError) {
        try skip(to: size)
        (at, size) = (0, 0)
        // Owners, modes, times and attributes are set now; the next member would hide what of that failed.
        if skipsHoles { try check(ca_write_finish_entry(archive)) }
    }

    /// Ends the archive. Without it, it is not whole, and whoever reads it can tell.
    package consuming func finish() throws(ArchiveError) {
        try endMember()
        try check(ca_write_close(archive))
        guard let top else { return }
        do throws(Errno) {
            let directory = try Descriptor.open(at: .workingDirectory, ".", O_RDONLY | O_DIRECTORY)
            try changeTimes(directory, accessed: top.accessed, modified: top.modified)
        } catch {
            throw ArchiveError(
                description: "the times of the directory cannot be set: \(error)", errno: error.rawValue)
        }
    }
}

extension ExtendedAttributes {
    /// nil where the value may not be read.
    fileprivate func readableValue(_ name: FileName) -> [UInt8]? {
        do throws(Errno) {
            return try value(name)
        } catch {
            return nil
        }
    }
}
