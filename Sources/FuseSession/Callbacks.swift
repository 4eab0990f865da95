internal import CFuse3
internal import CFuseShim
internal import CLinux
internal import Glibc
internal import LinuxSystem
internal import Synchronization
internal import SystemPackage

// From libfuse's callbacks to `FileSystemOperations` and back: each request is answered here, exactly once.

typealias Operations = any FileSystemOperations

/// What the session handed to libfuse as user data.
final class CallbackState: Sendable {
    let operations: Operations
    let options: SessionOptions
    let handshake: Handshake
    let intake: Intake
    /// Makes the kernel write and drop what it has cached of a node. Not to be called by a worker.
    private let drop = MutexBox<(@Sendable (UInt64) -> Void)?>(nil)

    func dropData(_ node: UInt64) {
        drop.mutex.withLock { $0 }?(node)
    }

    func dropsData(with drop: @escaping @Sendable (UInt64) -> Void) {
        self.drop.mutex.withLock { $0 = drop }
    }

    init(_ operations: Operations, _ options: SessionOptions) {
        self.operations = operations
        self.options = options
        handshake = Handshake(stackDepth: options.passthroughDepth)
        intake = Intake(operations, handshake, counts: options.countsRequests ? RequestCounts() : nil)
    }
}

func state(_ userData: UnsafeMutableRawPointer?) -> CallbackState {
    guard let userData else { preconditionFailure("the session gives its state to libfuse") }
    return Unmanaged<CallbackState>.fromOpaque(userData).takeUnretainedValue()
}

private func operations(_ request: fuse_req_t?) -> Operations {
    state(fuse_req_userdata(request)).operations
}

private func context(_ request: fuse_req_t?) -> RequestContext {
    guard let context = fuse_req_ctx(request) else {
        preconditionFailure("every request has a context")
    }
    return RequestContext(
        user: context.pointee.uid, group: context.pointee.gid, process: context.pointee.pid,
        mask: context.pointee.umask,
        killsPrivileges: killsPrivileges(user: context.pointee.uid))
}

/// What the kernel says of the request in hand; where it says nothing, whether its user is an ordinary one.
private func killsPrivileges(user: UInt32) -> Bool {
    switch cl_this_worker()?.pointee.kills_privileges {
    case 1: true
    case 0: false
    default: user != 0
    }
}

private func fail(_ request: fuse_req_t?, _ error: Errno) {
    fuse_reply_err(request, error.rawValue)
}

/// Answers a request that has no result but success.
private func answer(
    _ request: fuse_req_t?, _ body: (Operations, RequestContext) throws(Errno) -> Void
) {
    do throws(Errno) {
        try body(operations(request), context(request))
        fuse_reply_err(request, 0)
    } catch {
        fail(request, error)
    }
}

private func answerEntry(
    _ request: fuse_req_t?, _ body: (Operations, RequestContext) throws(Errno) -> EntryReply
) {
    let operations = operations(request)
    do throws(Errno) {
        let entry = try body(operations, context(request))
        var parameters = fuse_entry_param(entry)
        // A request that was interrupted gets no answer; then the kernel has no reference either.
        if fuse_reply_entry(request, &parameters) == -ENOENT && entry.node != 0 {
            operations.forget(node: entry.node, count: 1)
        }
    } catch {
        fail(request, error)
    }
}

private func answerAttributes(
    _ request: fuse_req_t?, _ body: (Operations, RequestContext) throws(Errno) -> AttributeReply
) {
    do throws(Errno) {
        let reply = try body(operations(request), context(request))
        var attributes = stat(reply.status)
        fuse_reply_attr(request, &attributes, reply.timeout)
    } catch {
        fail(request, error)
    }
}

/// Answers a request for an extended attribute or their names: with the length where `size` is 0.
private func answerExtended(
    _ request: fuse_req_t?, _ size: Int,
    _ body: (Operations, RequestContext, UnsafeMutableRawBufferPointer) throws(Errno) -> Int
) {
    do throws(Errno) {
        if size == 0 {
            let nothing = UnsafeMutableRawBufferPointer(start: nil, count: 0)
            fuse_reply_xattr(request, try body(operations(request), context(request), nothing))
            return
        }
        let buffer = WorkerThread.buffer(size)
        let count = try body(operations(request), context(request), buffer)
        fuse_reply_buf(request, buffer.baseAddress?.assumingMemoryBound(to: CChar.self), count)
    } catch {
        fail(request, error)
    }
}

private func apply(_ reply: OpenReply, to information: UnsafeMutablePointer<fuse_file_info>) {
    information.pointee.fh = reply.handle
    information.pointee.keep_cache = reply.keepsCache ? 1 : 0
    information.pointee.cache_readdir = reply.cachesListing ? 1 : 0
    information.pointee.direct_io = reply.isDirect ? 1 : 0
}

private func required<Pointee>(_ pointer: UnsafeMutablePointer<Pointee>?) -> UnsafeMutablePointer<Pointee> {
    guard let pointer else { preconditionFailure("libfuse gives this argument with every request") }
    return pointer
}

private func required<Pointee>(_ pointer: UnsafePointer<Pointee>?) -> UnsafePointer<Pointee> {
    guard let pointer else { preconditionFailure("libfuse gives this argument with every request") }
    return pointer
}

/// The table that libfuse gets.
func lowLevelOperations() -> fuse_lowlevel_ops {
    var table = fuse_lowlevel_ops()
    table.`init` = { userData, connection in
        let state = state(userData)
        state.options.negotiate(required(connection))
        state.operations.didStart()
    }
    addNodeOperations(&table)
    addNameOperations(&table)
    addDataOperations(&table)
    addDirectoryOperations(&table)
    addExtendedAttributeOperations(&table)
    return table
}

private func addNodeOperations(_ table: inout fuse_lowlevel_ops) {
    table.lookup = { request, parent, name in
        answerEntry(request) { (operations, context) throws(Errno) in
            try operations.lookup(context, parent: parent, required(name))
        }
    }
    table.forget = { request, node, count in
        operations(request).forget(node: node, count: count)
        fuse_reply_none(request)
    }
    table.forget_multi = { request, count, forgets in
        let operations = operations(request)
        for index in 0..<count {
            let forget = required(forgets)[index]
            operations.forget(node: forget.ino, count: forget.nlookup)
        }
        fuse_reply_none(request)
    }
    table.getattr = { request, node, information in
        answerAttributes(request) { (operations, _) throws(Errno) in
            try operations.attributes(node: node, handle: information?.pointee.fh)
        }
    }
    table.setattr = { request, node, attributes, valid, information in
        answerAttributes(request) { (operations, context) throws(Errno) in
            try operations.setAttributes(
                context, node: node, handle: information?.pointee.fh,
                AttributeChange(required(attributes).pointee, valid: valid))
        }
    }
    table.readlink = { request, node in
        do throws(Errno) {
            let target = try operations(request).readLink(node: node)
            let terminated = target.map { CChar(bitPattern: $0) } + [0]
            fuse_reply_readlink(request, terminated)
        } catch {
            fail(request, error)
        }
    }
    table.statfs = { request, node in
        do throws(Errno) {
            let status = try operations(request).fileSystemStatus(node: node)
            var buffer = statvfs()
            buffer.f_bsize = status.blockSize
            buffer.f_frsize = status.fragmentSize
            buffer.f_blocks = status.blocks
            buffer.f_bfree = status.freeBlocks
            buffer.f_bavail = status.availableBlocks
            buffer.f_files = status.files
            buffer.f_ffree = status.freeFiles
            buffer.f_namemax = status.nameMax
            fuse_reply_statfs(request, &buffer)
        } catch {
            fail(request, error)
        }
    }
}

extension AttributeChange {
    init(_ attributes: stat, valid: Int32) {
        func has(_ bit: Int32) -> Bool { valid & bit != 0 }
        func time(_ value: timespec) -> Timestamp {
            Timestamp(seconds: Int64(value.tv_sec), nanoseconds: UInt32(value.tv_nsec))
        }
        mode = has(FUSE_SET_ATTR_MODE) ? attributes.st_mode & 0o7777 : nil
        user = has(FUSE_SET_ATTR_UID) ? attributes.st_uid : nil
        group = has(FUSE_SET_ATTR_GID) ? attributes.st_gid : nil
        size = has(FUSE_SET_ATTR_SIZE) ? Int64(attributes.st_size) : nil
        accessed = has(FUSE_SET_ATTR_ATIME) ? time(attributes.st_atim) : nil
        if has(FUSE_SET_ATTR_ATIME_NOW) { accessed = .now }
        modified = has(FUSE_SET_ATTR_MTIME) ? time(attributes.st_mtim) : nil
        if has(FUSE_SET_ATTR_MTIME_NOW) { modified = .now }
    }
}

private func addNameOperations(_ table: inout fuse_lowlevel_ops) {
    table.mknod = { request, parent, name, mode, device in
        answerEntry(request) { (operations, context) throws(Errno) in
            try operations.makeNode(
                context, parent: parent, required(name), mode: mode, device: UInt64(device))
        }
    }
    table.mkdir = { request, parent, name, mode in
        answerEntry(request) { (operations, context) throws(Errno) in
            try operations.makeDirectory(context, parent: parent, required(name), mode: mode)
        }
    }
    table.symlink = { request, target, parent, name in
        answerEntry(request) { (operations, context) throws(Errno) in
            try operations.makeSymbolicLink(
                context, parent: parent, required(name), target: required(target))
        }
    }
    table.link = { request, node, newParent, newName in
        answerEntry(request) { (operations, context) throws(Errno) in
            try operations.link(context, node: node, newParent: newParent, required(newName))
        }
    }
    table.unlink = { request, parent, name in
        answer(request) { (operations, context) throws(Errno) in
            try operations.unlink(context, parent: parent, required(name))
        }
    }
    table.rmdir = { request, parent, name in
        answer(request) { (operations, context) throws(Errno) in
            try operations.removeDirectory(context, parent: parent, required(name))
        }
    }
    table.rename = { request, parent, name, newParent, newName, flags in
        answer(request) { (operations, context) throws(Errno) in
            try operations.rename(
                context, parent: parent, required(name), newParent: newParent,
                required(newName), flags: flags)
        }
    }
}

private func addDataOperations(_ table: inout fuse_lowlevel_ops) {
    table.open = { request, node, information in
        let information = required(information)
        let operations = operations(request)
        do throws(Errno) {
            let reply = try operations.open(
                context(request), node: node, flags: information.pointee.flags)
            if sendOpened(request, reply, information) == -ENOENT {
                operations.release(node: node, handle: reply.handle)
            }
        } catch {
            fail(request, error)
        }
    }
    table.create = { request, parent, name, mode, information in
        let information = required(information)
        let operations = operations(request)
        do throws(Errno) {
            let (entry, reply) = try operations.create(
                context(request), parent: parent, required(name), mode: mode,
                flags: information.pointee.flags)
            if sendCreated(request, entry, reply, information) == -ENOENT {
                operations.release(node: entry.node, handle: reply.handle)
                operations.forget(node: entry.node, count: 1)
            }
        } catch {
            fail(request, error)
        }
    }
    table.read = { request, node, size, offset, information in
        do throws(Errno) {
            // The kernel names the owner of a read past its cache (FUSE_READ_LOCKOWNER), and none of those for it.
            let file = required(information).pointee
            let reply = try operations(request).read(
                node: node, handle: file.fh, size: size, offset: Int64(offset), isOwn: file.lock_owner != 0)
            sendRead(request, reply, size: size)
        } catch {
            fail(request, error)
        }
    }
    table.write = { request, node, data, size, offset, information in
        var context = context(request)
        context.isWriteBack = required(information).pointee.writepage != 0
        do throws(Errno) {
            let count = try operations(request).write(
                context, node: node, handle: required(information).pointee.fh,
                UnsafeRawBufferPointer(start: data, count: size), offset: Int64(offset))
            fuse_reply_write(request, count)
        } catch {
            fail(request, error)
        }
    }
    table.release = { request, node, information in
        operations(request).release(node: node, handle: required(information).pointee.fh)
        fuse_reply_err(request, 0)
    }
    table.fsync = { request, node, dataOnly, information in
        answer(request) { (operations, _) throws(Errno) in
            try operations.synchronize(
                node: node, handle: required(information).pointee.fh, dataOnly: dataOnly != 0)
        }
    }
    table.fallocate = { request, node, mode, offset, length, information in
        answer(request) { (operations, context) throws(Errno) in
            try operations.allocate(
                context, node: node, handle: required(information).pointee.fh, mode: mode,
                offset: Int64(offset), length: Int64(length))
        }
    }
    table.copy_file_range = {
        request, node, offset, information, newNode, newOffset, newInformation, length, _ in
        do throws(Errno) {
            let count = try operations(request).copyRange(
                context(request), from: node, handle: required(information).pointee.fh,
                offset: Int64(offset), to: newNode, newHandle: required(newInformation).pointee.fh,
                newOffset: Int64(newOffset), length: length)
            fuse_reply_write(request, count)
        } catch {
            fail(request, error)
        }
    }
    table.lseek = { request, node, offset, whence, information in
        let handle = required(information).pointee.fh
        let offset = Int64(offset)
        guard operations(request).hidesWrites(node: node) else {
            return seek(request, node, handle, offset, whence)
        }
        // The kernel does not write its gathered data before it asks where data are; it does before it drops them. That
        // waits for workers, so no worker may wait for it. The kernel holds the file's lock: nothing is added.
        nonisolated(unsafe) let request = request
        do throws(Errno) {
            try Thread.start {
                state(fuse_req_userdata(request)).dropData(node)
                seek(request, node, handle, offset, whence)
            }
        } catch {
            fail(request, error)
        }
    }
}

private func seek(
    _ request: fuse_req_t?, _ node: UInt64, _ handle: UInt64, _ offset: Int64, _ whence: Int32
) {
    do throws(Errno) {
        let place = try operations(request).seek(
            node: node, handle: handle, offset: offset, whence: whence)
        fuse_reply_lseek(request, off_t(place))
    } catch {
        fail(request, error)
    }
}

private func sendOpened(
    _ request: fuse_req_t?, _ reply: OpenReply, _ information: UnsafeMutablePointer<fuse_file_info>
) -> Int32 {
    if reply.backing == nil {
        apply(reply, to: information)
        return fuse_reply_open(request, information)
    }
    return sendRaw(request, fs_open_out(reply))
}

private func sendCreated(
    _ request: fuse_req_t?, _ entry: EntryReply, _ reply: OpenReply,
    _ information: UnsafeMutablePointer<fuse_file_info>
) -> Int32 {
    if reply.backing == nil {
        apply(reply, to: information)
        var parameters = fuse_entry_param(entry)
        return fuse_reply_create(request, &parameters, information)
    }
    return sendRaw(request, fs_create_out(entry, reply))
}

/// Sends an answer with what libfuse 3.14 does not know of.
private func sendRaw(_ request: fuse_req_t?, _ answer: some Any) -> Int32 {
    withUnsafeBytes(of: answer) {
        fuse_reply_buf(request, $0.baseAddress?.assumingMemoryBound(to: CChar.self), $0.count)
    }
}

private func sendRead(_ request: fuse_req_t?, _ reply: ReadReply, size: Int) {
    switch reply {
    case .bytes(let bytes):
        fuse_reply_buf(
            request, bytes.baseAddress?.assumingMemoryBound(to: CChar.self), bytes.count)
    case .file(let descriptor, let offset):
        var vector = fuse_bufvec()
        vector.count = 1
        vector.buf.size = size
        vector.buf.flags = fuse_buf_flags(
            FUSE_BUF_IS_FD.rawValue | FUSE_BUF_FD_SEEK.rawValue)
        vector.buf.fd = descriptor.raw
        vector.buf.pos = off_t(offset)
        // The vector has the number alone.
        _ = withExtendedLifetime(descriptor) {
            fuse_reply_data(request, &vector, FUSE_BUF_SPLICE_MOVE)
        }
    }
}

private func addDirectoryOperations(_ table: inout fuse_lowlevel_ops) {
    table.opendir = { request, node, information in
        let information = required(information)
        let operations = operations(request)
        do throws(Errno) {
            let reply = try operations.openDirectory(context(request), node: node)
            apply(reply, to: information)
            if fuse_reply_open(request, information) == -ENOENT {
                operations.releaseDirectory(node: node, handle: reply.handle)
            }
        } catch {
            fail(request, error)
        }
    }
    table.readdir = { request, node, size, offset, information in
        sendListing(
            request, node, size, offset, required(information).pointee.fh, wantsEntries: false)
    }
    table.readdirplus = { request, node, size, offset, information in
        sendListing(
            request, node, size, offset, required(information).pointee.fh, wantsEntries: true)
    }
    table.releasedir = { request, node, information in
        operations(request).releaseDirectory(
            node: node, handle: required(information).pointee.fh)
        fuse_reply_err(request, 0)
    }
    table.fsyncdir = { request, node, dataOnly, information in
        answer(request) { (operations, _) throws(Errno) in
            try operations.synchronizeDirectory(
                node: node, handle: required(information).pointee.fh, dataOnly: dataOnly != 0)
        }
    }
}

private func forget(_ nodes: [UInt64], _ request: fuse_req_t?) {
    for node in nodes { operations(request).forget(node: node, count: 1) }
}

private func sendListing(
    _ request: fuse_req_t?, _ node: UInt64, _ size: Int, _ offset: off_t, _ handle: UInt64,
    wantsEntries: Bool
) {
    var buffer = DirectoryBuffer(request, WorkerThread.buffer(size), wantsEntries: wantsEntries)
    do throws(Errno) {
        try operations(request).readDirectory(
            node: node, handle: handle, offset: Int64(offset), into: &buffer)
        let filled = buffer.filled
        let result = fuse_reply_buf(
            request, filled.baseAddress?.assumingMemoryBound(to: CChar.self), filled.count)
        // As for a look-up: the kernel has no reference where it did not get the answer.
        if result == -ENOENT { forget(buffer.nodes, request) }
    } catch {
        // Entries that an error follows are not told.
        forget(buffer.nodes, request)
        fail(request, error)
    }
}

private func addExtendedAttributeOperations(_ table: inout fuse_lowlevel_ops) {
    table.setxattr = { request, node, name, value, size, flags in
        answer(request) { (operations, context) throws(Errno) in
            try operations.setExtendedAttribute(
                context, node: node, required(name),
                UnsafeRawBufferPointer(start: value, count: size), flags: flags)
        }
    }
    table.getxattr = { request, node, name, size in
        answerExtended(request, size) { (operations, _, buffer) throws(Errno) in
            try operations.extendedAttribute(node: node, required(name), into: buffer)
        }
    }
    table.listxattr = { request, node, size in
        answerExtended(request, size) { (operations, context, buffer) throws(Errno) in
            try operations.extendedAttributeNames(context, node: node, into: buffer)
        }
    }
    table.removexattr = { request, node, name in
        answer(request) { (operations, context) throws(Errno) in
            try operations.removeExtendedAttribute(context, node: node, required(name))
        }
    }
}
