package import CTestSupport
internal import Glibc
package import SystemPackage

/// An open file, closed when it is not used any more.
package final class File: Sendable {
    package let raw: Int32

    package init(raw: Int32) { self.raw = raw }

    deinit { Glibc.close(raw) }

    package func stat() throws(Errno) -> Status {
        var status = Glibc.stat()
        try check(fstat(raw, &status))
        return Status(status)
    }

    /// pread(2) once.
    package func read(_ count: Int, at offset: Int) throws(Errno) -> [UInt8] {
        var data = [UInt8](repeating: 0, count: count)
        let got = try check(pread(raw, &data, count, offset))
        if got < count { data.removeSubrange(got...) }
        return data
    }

    /// read(2) once.
    package func read(_ count: Int) throws(Errno) -> [UInt8] {
        var data = [UInt8](repeating: 0, count: count)
        let got = try check(Glibc.read(raw, &data, count))
        return Array(data[..<got])
    }

    /// pwrite(2) once, or write(2) without an offset.
    @discardableResult
    package func write(_ data: [UInt8], at offset: Int? = nil) throws(Errno) -> Int {
        if let offset { return try check(pwrite(raw, data, data.count, offset)) }
        return try check(Glibc.write(raw, data, data.count))
    }

    /// Writes until all is written.
    package func writeAll(_ data: [UInt8], at offset: Int? = nil) throws(Errno) {
        var done = 0
        while done < data.count {
            let rest = done == 0 ? data : Array(data[done...])
            done += try write(rest, at: offset.map { $0 + done })
        }
    }

    package func truncate(_ size: Int) throws(Errno) { try check(ftruncate(raw, size)) }
    package func sync() throws(Errno) { try check(fsync(raw)) }
    package func syncData() throws(Errno) { try check(fdatasync(raw)) }
    package func chmod(_ mode: mode_t) throws(Errno) { try check(fchmod(raw, mode)) }

    package func allocate(_ mode: Int32 = 0, at offset: Int, count: Int) throws(Errno) {
        try check(fallocate(raw, mode, offset, count))
    }

    package func seek(_ offset: Int, _ whence: Int32) throws(Errno) -> Int {
        try check(lseek(raw, offset, whence))
    }

    /// copy_file_range(2) until all is copied or the source ends.
    @discardableResult
    package func copyRange(from source: File, at start: Int, to target: Int, count: Int) throws(Errno) -> Int {
        var (from, to, done) = (start, target, 0)
        while done < count {
            let more = try check(copy_file_range(source.raw, &from, raw, &to, count - done, 0))
            if more == 0 { break }
            done += more
        }
        return done
    }

    /// The ranges that hold data, by SEEK_DATA and SEEK_HOLE.
    package func dataRanges() throws(Errno) -> [Range<Int>] {
        var ranges: [Range<Int>] = []
        var at = 0
        while true {
            do throws(Errno) {
                let start = try seek(at, SEEK_DATA)
                at = try seek(start, SEEK_HOLE)
                ranges.append(start..<at)
            } catch .noSuchAddressOrDevice {
                return ranges
            }
        }
    }

    /// Links a file without a name: linkat(2) by way of /proc.
    package func link(to new: Path) throws(Errno) {
        let magic = Path("/proc/self/fd/\(raw)")
        _ = try magic.withCString { (magic) throws(Errno) in
            try new.withCString { (new) throws(Errno) in
                try check(linkat(AT_FDCWD, magic, AT_FDCWD, new, AT_SYMLINK_FOLLOW))
            }
        }
    }

    package func lock(_ operation: Int32) throws(Errno) { try check(flock(raw, operation)) }

    /// An open file description lock, without waiting.
    package func lockRange(_ type: Int32, at start: Int, count: Int) throws(Errno) {
        try check(ts_ofd_lock(raw, type, Int64(start), Int64(count)))
    }

    package func map(
        _ count: Int, protection: Int32 = PROT_READ | PROT_WRITE, flags: Int32 = MAP_SHARED, at offset: Int = 0
    ) throws(Errno) -> Mapping {
        try Mapping(self, count, protection, flags, offset)
    }
}

extension File {
    /// One entry of getdents64(2).
    package struct Entry: Hashable, Sendable {
        package let name: Path
        package let inode: UInt64
        /// Where the entry after this one begins.
        package let next: Int64
        package let type: UInt8
    }

    /// The next entries of a directory, as many as fit into `room` bytes; none at its end.
    package func nextEntries(room: Int = 32768) throws(Errno) -> [Entry] {
        var buffer = [UInt8](repeating: 0, count: room)
        let count = try check(ts_getdents64(raw, &buffer, room))
        var entries: [Entry] = []
        buffer.withUnsafeBytes { bytes in
            var at = 0
            while at < count {
                let length = Int(bytes.loadUnaligned(fromByteOffset: at + 16, as: UInt16.self))
                let name = bytes[(at + 19)..<(at + length)].prefix { $0 != 0 }
                entries.append(
                    Entry(
                        name: Path(name), inode: bytes.loadUnaligned(fromByteOffset: at, as: UInt64.self),
                        next: bytes.loadUnaligned(fromByteOffset: at + 8, as: Int64.self), type: bytes[at + 18]))
                at += length
            }
        }
        return entries
    }

    /// All names from where the directory stands, but `.` and `..`.
    package func entries() throws(Errno) -> [Path] {
        var names: [Path] = []
        while true {
            let more = try nextEntries()
            if more.isEmpty { return names }
            names += more.map(\.name).filter { $0 != "." && $0 != ".." }
        }
    }
}

/// A mapping of a file, unmapped when it is not used any more.
package final class Mapping: @unchecked Sendable {
    private let start: UnsafeMutableRawPointer
    private let count: Int

    fileprivate init(
        _ file: File, _ count: Int, _ protection: Int32, _ flags: Int32, _ offset: Int
    ) throws(Errno) {
        guard let start = mmap(nil, count, protection, flags, file.raw, offset), start != MAP_FAILED else {
            throw currentErrno
        }
        self.start = start
        self.count = count
    }

    deinit { munmap(start, count) }

    /// Throws EFAULT where the kernel raises SIGBUS.
    package func read(_ count: Int, at offset: Int) throws(Errno) -> [UInt8] {
        var data = [UInt8](repeating: 0, count: count)
        guard ts_read_mapping(start + offset, &data, count) == 0 else { throw .badAddress }
        return data
    }

    package func write(_ data: [UInt8], at offset: Int) throws(Errno) {
        guard ts_write_mapping(start + offset, data, data.count) == 0 else { throw .badAddress }
    }

    package func sync() throws(Errno) { try check(msync(start, count, MS_SYNC)) }
}
