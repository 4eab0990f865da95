internal import CFuseShim
internal import Glibc
internal import LinuxSystem
internal import SystemPackage

/// A request that libfuse 3.14 does not know, or that is answered without it. On a libfuse that knows it this does no
/// harm.
struct UnknownRequest {
    private let channel: Int32
    private let header: fs_in_header
    private let request: RawRequest?
    private let operations: Operations

    init(_ request: RawRequest, _ operations: Operations) {
        channel = request.channel
        header = request.header
        self.request = request
        self.operations = operations
    }

    /// Of which the header alone was kept.
    init(_ header: fs_in_header, channel: Int32, _ operations: Operations) {
        self.channel = channel
        self.header = header
        request = nil
        self.operations = operations
    }

    /// Serves TMPFILE and STATX.
    func serve() {
        if Int(header.opcode) == FS_OPCODE_TMPFILE {
            serveTemporaryFile()
        } else {
            serveExtendedStatus()
        }
    }

    /// Answers a request that has no result but success.
    func answer(error: Errno?) {
        if let error { return fail(error) }
        send(outHeader(MemoryLayout<fs_out_header>.size, error: 0))
    }

    private func argument<Argument>(_ type: Argument.Type) -> Argument? {
        request?.argument(type)
    }

    private func outHeader(_ length: Int, error: Int32) -> fs_out_header {
        fs_out_header(len: UInt32(length), error: error, unique: header.unique)
    }

    /// Sends an answer; whether the kernel still wanted it (ENOENT: the request was interrupted).
    @discardableResult
    private func send<Answer>(_ answer: Answer) -> Bool {
        withUnsafeBytes(of: answer) { write(channel, $0.baseAddress, $0.count) } >= 0
    }

    private func fail(_ error: Errno) {
        send(outHeader(MemoryLayout<fs_out_header>.size, error: -error.rawValue))
    }

    /// FUSE_TMPFILE: open(2) with O_TMPFILE.
    private func serveTemporaryFile() {
        guard let input = argument(fs_create_in.self) else { return fail(.invalidArgument) }
        let context = RequestContext(
            user: header.uid, group: header.gid, process: Int32(bitPattern: header.pid),
            mask: input.umask, killsPrivileges: false)
        do throws(Errno) {
            let (entry, opened) = try operations.createTemporary(
                context, parent: header.nodeid, mode: input.mode,
                flags: Int32(bitPattern: input.flags))
            let answer = fs_create_out(entry, opened)
            let header = outHeader(
                MemoryLayout<fs_out_header>.size + MemoryLayout<fs_create_out>.size, error: 0)
            if !send((header, answer)) {
                operations.release(node: entry.node, handle: opened.handle)
                operations.forget(node: entry.node, count: 1)
            }
        } catch {
            fail(error)
        }
    }

    /// FUSE_STATX: what GETATTR tells, and the time of birth.
    private func serveExtendedStatus() {
        guard let input = argument(fs_statx_in.self) else { return fail(.invalidArgument) }
        do throws(Errno) {
            let hasHandle = input.getattr_flags & getattrHandle != 0
            let reply = try operations.attributes(
                node: header.nodeid, handle: hasHandle ? input.fh : nil)
            send(fs_statx_out(reply, outHeader(MemoryLayout<fs_statx_out>.size, error: 0)))
        } catch {
            fail(error)
        }
    }
}

/// FUSE_GETATTR_FH of the protocol.
private let getattrHandle: UInt32 = 1 << 0

/// Seconds and nanoseconds of a timeout.
private func split(_ seconds: Double) -> (UInt64, UInt32) {
    let whole = UInt64(seconds)
    return (whole, UInt32((seconds - Double(whole)) * 1e9))
}

extension fs_open_out {
    init(_ reply: OpenReply) {
        self.init()
        fh = reply.handle
        if let backing = reply.backing {
            // The kernel allows no flag of its cache beside it: there is nothing in it.
            open_flags = UInt32(FS_OPEN_PASSTHROUGH)
            backing_id = backing
        } else if reply.keepsCache {
            open_flags = UInt32(FS_OPEN_KEEP_CACHE)
        }
    }
}

extension fs_create_out {
    init(_ entry: EntryReply, _ opened: OpenReply) {
        self.init()
        nodeid = entry.node
        generation = EntryReply.generation
        (entry_valid, entry_valid_nsec) = split(entry.timeout)
        if let attributes = entry.attributes {
            (attr_valid, attr_valid_nsec) = split(attributes.timeout)
            attr = fs_attr(attributes.status)
        }
        open = fs_open_out(opened)
    }
}

extension fs_attr {
    fileprivate init(_ status: FileStatus) {
        self.init()
        ino = status.inode
        size = UInt64(status.size)
        blocks = UInt64(status.blocks)
        atime = UInt64(bitPattern: status.accessed.seconds)
        mtime = UInt64(bitPattern: status.modified.seconds)
        ctime = UInt64(bitPattern: status.changed.seconds)
        atimensec = status.accessed.nanoseconds
        mtimensec = status.modified.nanoseconds
        ctimensec = status.changed.nanoseconds
        mode = status.mode
        nlink = status.links
        uid = status.user
        gid = status.group
        rdev = UInt32(truncatingIfNeeded: status.specialDevice)
        blksize = UInt32(bitPattern: status.blockSize)
    }
}

extension fs_statx_out {
    fileprivate init(_ reply: AttributeReply, _ header: fs_out_header) {
        self.init()
        let status = reply.status
        self.header = header
        (attr_valid, attr_valid_nsec) = split(reply.timeout)
        mask = UInt32(STATX_BASIC_STATS) | (status.birth == 0 ? 0 : UInt32(STATX_BTIME))
        blksize = UInt32(bitPattern: status.blockSize)
        nlink = status.links
        uid = status.user
        gid = status.group
        mode = UInt16(truncatingIfNeeded: status.mode)
        ino = status.inode
        size = UInt64(status.size)
        blocks = UInt64(status.blocks)
        atime = fs_sx_time(status.accessed)
        mtime = fs_sx_time(status.modified)
        ctime = fs_sx_time(status.changed)
        let (seconds, rest) = status.birth.quotientAndRemainder(dividingBy: 1_000_000_000)
        btime = fs_sx_time(
            tv_sec: rest < 0 ? seconds - 1 : seconds,
            tv_nsec: UInt32(rest < 0 ? rest + 1_000_000_000 : rest), reserved: 0)
        rdev_major = majorNumber(status.specialDevice)
        rdev_minor = minorNumber(status.specialDevice)
    }
}

extension fs_sx_time {
    fileprivate init(_ time: Timestamp) {
        self.init(tv_sec: time.seconds, tv_nsec: time.nanoseconds, reserved: 0)
    }
}

/// The parts of a dev_t, as glibc packs it.
private func majorNumber(_ device: UInt64) -> UInt32 {
    UInt32((device >> 8) & 0xfff) | UInt32((device >> 32) & 0xffff_f000)
}

private func minorNumber(_ device: UInt64) -> UInt32 {
    UInt32(device & 0xff) | UInt32((device >> 12) & 0xffff_ff00)
}
