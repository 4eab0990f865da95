internal import Glibc
internal import LinuxSystem
internal import SystemPackage

/// A file that grows at its end by whole pieces, allocated ahead. Its owner has the lock.
struct JournalFile {
    let descriptor: Descriptor
    /// Behind the last whole piece.
    private(set) var end: UInt64
    /// Up to here the file system has set blocks aside.
    private var allocatedEnd: UInt64
    /// Where there was no room to allocate ahead: from this end on it is tried again.
    private var retryAllocation: UInt64 = 0
    private var canAllocate = true
    /// A piece was written in part and could not be cut off.
    private var hasRemains = false

    init(_ descriptor: Descriptor, end: UInt64) {
        (self.descriptor, self.end, allocatedEnd) = (descriptor, end, end)
    }

    /// Makes the file, for its owner alone. Throws EEXIST where there is one.
    init(creating name: FileName, in directory: Descriptor) throws(Errno) {
        let descriptor = try name.withCString { (string) throws(Errno) in
            try Descriptor.open(at: directory, string, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, mode: 0o600)
        }
        self.init(descriptor, end: 0)
    }

    /// Writes `bytes` at the end: all of them, or the file is as it was.
    mutating func append(_ bytes: UnsafeRawBufferPointer) throws(Errno) {
        if hasRemains { try cutRemains() }
        try reserve(UInt64(bytes.count))
        do throws(Errno) {
            try writeFully(descriptor, bytes, at: Int64(end))
        } catch {
            hasRemains = true
            do throws(Errno) {
                try cutRemains()
            } catch {
                // The next append does it before it writes anything; the end stays where it is.
            }
            throw error
        }
        end += UInt64(bytes.count)
    }

    private mutating func cutRemains() throws(Errno) {
        // Where nothing was written what is allocated ahead is kept: on a full disk there is no other.
        if try FileStatus(of: descriptor).size > Int64(end) {
            try truncate(descriptor, to: Int64(end))
            allocatedEnd = end
        }
        hasRemains = false
    }

    /// Makes sure of room for `count` bytes, and of room ahead. Throws ENOSPC or EDQUOT where there is none for them.
    mutating func reserve(_ count: UInt64) throws(Errno) {
        guard canAllocate else { return }
        let needed = end + count
        guard needed + JournalFormat.allocationLowBytes > allocatedEnd else { return }
        if needed <= allocatedEnd, end < retryAllocation { return }
        let step = JournalFormat.allocationStepBytes
        let ahead = (needed + JournalFormat.allocationLowBytes + step - 1) / step * step
        do throws(Errno) {
            try allocate(through: ahead)
        } catch .noSpace {
            try reserveScarcely(needed, .noSpace)
        } catch .diskQuotaExceeded {
            try reserveScarcely(needed, .diskQuotaExceeded)
        } catch .interrupted {
            // It is an advance only.
        } catch {
            // The file system cannot, or not here: then writes find out for themselves whether there is room.
            canAllocate = false
        }
    }

    /// Where there is no room ahead: of what is set aside small records live; beyond it they take just what they need.
    private mutating func reserveScarcely(_ needed: UInt64, _ error: Errno) throws(Errno) {
        retryAllocation = end + JournalFormat.allocationRetryBytes
        if needed > allocatedEnd { try allocate(through: needed) }
    }

    private mutating func allocate(through newEnd: UInt64) throws(Errno) {
        try LinuxSystem.allocate(
            descriptor, mode: FALLOC_FL_KEEP_SIZE, offset: Int64(allocatedEnd),
            length: Int64(newEnd - allocatedEnd))
        allocatedEnd = newEnd
    }
}
