internal import CFuse3
internal import Glibc
internal import LinuxSystem

/// The answer to a READDIR or READDIRPLUS, filled entry by entry until the kernel's room is used up.
package struct DirectoryBuffer: ~Copyable {
    private let request: fuse_req_t?
    private let memory: UnsafeMutableRawBufferPointer
    private var used = 0
    /// The nodes whose look-ups were counted.
    private(set) var nodes: [UInt64] = []
    /// Whether the kernel wants a look-up of each entry with it.
    package let wantsEntries: Bool

    init(_ request: fuse_req_t?, _ memory: UnsafeMutableRawBufferPointer, wantsEntries: Bool) {
        self.request = request
        self.memory = memory
        self.wantsEntries = wantsEntries
    }

    var filled: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: memory[..<used]) }

    private var start: UnsafeMutablePointer<CChar>? {
        memory.baseAddress.map { ($0 + used).assumingMemoryBound(to: CChar.self) }
    }

    /// Whether an entry of this name still has room: to be asked before a look-up is counted for it.
    package func hasRoom(for name: UnsafePointer<CChar>) -> Bool {
        let size =
            wantsEntries
            ? fuse_add_direntry_plus(request, nil, 0, name, nil, 0)
            : fuse_add_direntry(request, nil, 0, name, nil, 0)
        return used + size <= memory.count
    }

    /// Adds an entry without a look-up. `next` is the offset at which a later call goes on behind it. False where
    /// there is no room.
    package mutating func append(
        _ name: UnsafePointer<CChar>, inode: UInt64, kind: UInt8, next: Int64
    ) -> Bool {
        guard hasRoom(for: name) else { return false }
        if wantsEntries {
            var parameters = fuse_entry_param()
            parameters.attr.st_ino = UInt(inode)
            parameters.attr.st_mode = UInt32(kind) << 12
            used += fuse_add_direntry_plus(
                request, start, memory.count - used, name, &parameters, off_t(next))
        } else {
            var attributes = stat()
            attributes.st_ino = UInt(inode)
            attributes.st_mode = UInt32(kind) << 12
            used += fuse_add_direntry(
                request, start, memory.count - used, name, &attributes, off_t(next))
        }
        return true
    }

    /// Adds an entry with its look-up. There must be room.
    package mutating func append(
        _ name: UnsafePointer<CChar>, _ entry: EntryReply, next: Int64
    ) {
        var parameters = fuse_entry_param(entry)
        used += fuse_add_direntry_plus(
            request, start, memory.count - used, name, &parameters, off_t(next))
        precondition(used <= memory.count, "the caller has asked whether there is room")
        nodes.append(entry.node)
    }
}

extension fuse_entry_param {
    init(_ entry: EntryReply) {
        self.init()
        ino = entry.node
        generation = EntryReply.generation
        entry_timeout = entry.timeout
        if let attributes = entry.attributes {
            attr = stat(attributes.status)
            attr_timeout = attributes.timeout
        }
    }
}

extension stat {
    init(_ status: FileStatus) {
        self.init()
        st_ino = UInt(status.inode)
        st_mode = status.mode
        st_nlink = UInt(status.links)
        st_uid = status.user
        st_gid = status.group
        st_rdev = UInt(status.specialDevice)
        st_size = Int(status.size)
        st_blocks = Int(status.blocks)
        st_blksize = Int(status.blockSize)
        st_atim = timespec(status.accessed)
        st_mtim = timespec(status.modified)
        st_ctim = timespec(status.changed)
    }
}

extension timespec {
    init(_ time: Timestamp) {
        self.init(tv_sec: Int(time.seconds), tv_nsec: Int(time.nanoseconds))
    }
}
