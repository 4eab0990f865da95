internal import CFuse3
internal import CFuseShim
internal import Glibc
package import LinuxSystem
package import SystemPackage
internal import Synchronization

/// How a session is mounted and what it asks of the kernel.
package struct SessionOptions: Sendable {
    /// Options of the mount, as `-o` gives them: allow_other, fsname=..., ro, ...
    package var mountOptions: [String]
    /// Workers at the most: each serves one request at a time.
    package var threadsMax: UInt32
    /// Whether nothing but this mount changes the source: then the kernel need not doubt what it has cached.
    package var ownsSource: Bool
    /// Whether the kernel gathers writes in its page cache: then it owns the size and time of modification of files.
    package var gathersWrites: Bool
    /// How many file systems may be stacked where the kernel passes reads and writes through to the source's files
    /// (this one's level: 1 plus the source's own); nil where it does not.
    package var passthroughDepth: UInt32?
    package var logsDebug: Bool
    /// Whether `Session.requestCounts` tells how many requests came.
    package var countsRequests: Bool

    package init(
        mountOptions: [String], threadsMax: UInt32, ownsSource: Bool, gathersWrites: Bool = false,
        passthroughDepth: UInt32? = nil, logsDebug: Bool = false, countsRequests: Bool = false
    ) {
        self.mountOptions = mountOptions
        self.threadsMax = threadsMax
        self.ownsSource = ownsSource
        self.gathersWrites = gathersWrites
        self.passthroughDepth = passthroughDepth
        self.logsDebug = logsDebug
        self.countsRequests = countsRequests
    }

    /// The largest payload of one WRITE.
    static let writeBytesMax: UInt32 = 1 << 20
    /// The largest answer to a READ: with its header it must fit into a pipe of 1 MiB, the most that is allowed without
    /// CAP_SYS_RESOURCE. What does not fit is copied by way of new memory, which takes three times as long.
    static let readBytesMax = 1 << 19

    func negotiate(_ connection: UnsafeMutablePointer<fuse_conn_info>) {
        func want(_ capability: Int32, _ isWanted: Bool = true) {
            let bit = UInt32(bitPattern: capability)
            if isWanted && connection.pointee.capable & bit != 0 {
                connection.pointee.want |= bit
            } else {
                connection.pointee.want &= ~bit
            }
        }
        want(FUSE_CAP_ASYNC_READ)
        // An open that truncates is then two requests, and the first, which a freeze keeps back, holds no lock.
        want(FUSE_CAP_ATOMIC_O_TRUNC, false)
        want(FUSE_CAP_DONT_MASK)  // a directory's default ACL takes the umask's place
        want(FUSE_CAP_POSIX_ACL)
        want(FUSE_CAP_SPLICE_WRITE)
        // The kernel would try to take the pages away from the source's own cache: one page at a time it asks ext4 to give up
        // the buffers of a whole folio, so that reading what was just written took four times as long.
        want(FUSE_CAP_SPLICE_MOVE, false)
        want(FUSE_CAP_SPLICE_READ, false)  // a write's payload is looked at before it goes on
        want(FUSE_CAP_ASYNC_DIO)
        want(FUSE_CAP_PARALLEL_DIROPS)
        want(FUSE_CAP_READDIRPLUS)
        want(FUSE_CAP_READDIRPLUS_AUTO, false)  // the file system chooses by itself when to tell attributes
        want(FUSE_CAP_CACHE_SYMLINKS)
        want(FUSE_CAP_EXPORT_SUPPORT)  // file handles outlast the kernel's memory of an inode
        want(FUSE_CAP_WRITEBACK_CACHE, gathersWrites)
        want(FUSE_CAP_AUTO_INVAL_DATA, !ownsSource && !gathersWrites)
        // Locks are the kernel's: no worker ever waits in one.
        want(FUSE_CAP_POSIX_LOCKS, false)
        want(FUSE_CAP_FLOCK_LOCKS, false)
        connection.pointee.max_write = Self.writeBytesMax
        connection.pointee.max_read = UInt32(Self.readBytesMax)
        connection.pointee.max_readahead = Self.writeBytesMax
        // The kernel must not hold requests back: an FSYNC must come after all that a file's writers sent before.
        connection.pointee.max_background = UInt32(UInt16.max)
        connection.pointee.congestion_threshold = UInt32(UInt16.max) / 4 * 3
    }
}

/// A FUSE session: from the mount to its end. The only place where the kernel is spoken to.
package final class Session: @unchecked Sendable {
    private let session: OpaquePointer
    private let callbacks: Unmanaged<CallbackState>
    private let threadsMax: UInt32

    /// Makes a session that serves `operations`; EINVAL where libfuse refuses an option.
    package init(_ options: SessionOptions, _ operations: any FileSystemOperations) throws(Errno) {
        threadsMax = options.threadsMax
        callbacks = .passRetained(CallbackState(operations, options))
        var words = ["fusesnap"]
        for option in options.mountOptions { words += ["-o", option] }
        words += ["-o", "max_read=\(SessionOptions.readBytesMax)"]
        if options.logsDebug { words.append("-d") }
        var arguments = fuse_args()
        defer { fuse_opt_free_args(&arguments) }
        for word in words where fuse_opt_add_arg(&arguments, word) != 0 { throw .noMemory }
        var table = lowLevelOperations()
        let made = fuse_session_new(
            &arguments, &table, MemoryLayout<fuse_lowlevel_ops>.size, callbacks.toOpaque())
        guard let made else {
            callbacks.release()
            throw .invalidArgument
        }
        session = made
        callbacks.takeUnretainedValue().dropsData { [unowned self] node in
            invalidateData(node: node)
        }
    }

    deinit {
        fuse_session_destroy(session)
        callbacks.release()
    }

    /// Mounts. Throws EIO where that failed: libfuse, or fusermount3, has said why on standard error.
    package func mount(at mountpoint: String) throws(Errno) {
        if fuse_session_mount(session, mountpoint) != 0 { throw .ioError }
        let result = fs_session_intercept(
            session,
            { channel, buffer, size, userData in state(userData).intake.read(channel, buffer, size) },
            { channel, vectors, count, userData in
                let state = state(userData)
                state.intake.willSend(vectors)
                return state.handshake.send(channel, vectors, count)
            })
        if result != 0 { throw Errno(rawValue: -result) }
        try intake.readiness.attach(fuse_session_fd(session))
    }

    /// Serves requests until the mount is gone or `exit` is called. 0, or a negated errno.
    package func run() -> Int32 {
        defer { intake.readiness.end() }
        return fs_session_loop_mt(session, 1, threadsMax)
    }

    /// Whether the kernel agreed to pass reads and writes through.
    package var passesThrough: Bool { callbacks.takeUnretainedValue().handshake.passesThrough }

    /// Calls `body` once the kernel and the session have agreed on how they work, from the worker that told the kernel.
    package func whenAgreed(_ body: @escaping @Sendable () -> Void) {
        callbacks.takeUnretainedValue().handshake.whenAgreed(body)
    }

    /// Registers a file for opens that are passed through. Throws what the ioctl does: EPERM, ELOOP, ...
    package func openBacking(_ file: Descriptor) throws(Errno) -> Int32 {
        try checked { fs_backing_open(fuse_session_fd(session), file.raw) }
    }

    /// Ends the registration; what is open keeps it.
    package func closeBacking(_ backing: Int32) {
        _ = fs_backing_close(fuse_session_fd(session), backing)
    }

    /// Where requests come in.
    package var intake: Intake { callbacks.takeUnretainedValue().intake }

    /// How many requests of each kind came; nil where they are not counted.
    package var requestCounts: [String: UInt64]? { intake.counts?.byName }

    /// Makes `run` return, soon.
    package func exit() {
        fuse_session_exit(session)
    }

    /// Unmounts where that has not happened yet; lazily, where files are open.
    package func unmount() {
        fuse_session_unmount(session)
    }

    /// Makes the kernel forget a name, and all that is cached below it. Not to be called by a worker: the kernel
    /// takes the directory's lock, which the request that the worker serves may hold.
    package func invalidateEntry(parent: UInt64, _ name: FileName) {
        name.withCString { string in
            _ = fuse_lowlevel_notify_inval_entry(session, parent, string, name.length)
        }
    }

    /// Makes the kernel forget the attributes of a node. A worker may call it: no lock of an inode or page is taken.
    package func invalidateAttributes(node: UInt64) {
        _ = fuse_lowlevel_notify_inval_inode(session, node, -1, 0)
    }

    /// Makes the kernel forget the cached data of a node. Not to be called by a worker.
    package func invalidateData(node: UInt64) {
        _ = fuse_lowlevel_notify_inval_inode(session, node, 0, 0)
    }
}
