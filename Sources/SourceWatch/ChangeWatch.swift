internal import CLinux
internal import Glibc
internal import LinuxSystem
package import SystemPackage

/// Tells what other processes change in the source past the mount: fanotify(7) on the source's whole file system, by a
/// thread of its own. Needs root.
///
/// A change is told after it was made, soon, but not at once: who asks «has nobody changed anything until now» calls
/// `catchUp` first.
///
/// What is seen (tried on Linux 6.18 with tmpfs, ext4 and XFS): write(2) and its kin, O_DIRECT too, splice, sendfile,
/// copy_file_range; truncate, O_TRUNC, fallocate; chmod, chown, utimensat, setxattr; names made, removed, linked and
/// renamed; what a process in another namespace does; what an overlayfs writes to its upper directory here; a write to
/// the backing file of a FUSE passthrough, with the pid of the application, whose context the kernel writes in (see
/// `PrivateMount.directory`).
///
/// What is not:
/// - stores to a shared mapping, msync(2) of it too;
/// - asynchronous writes by io_submit(2), buffered and O_DIRECT, and what a loop device writes to its file (io_uring's
///   are seen, by the kernel's source);
/// - ioctl(2)s: the flags of chattr;
/// - a file in the source that is changed by the name of a hard link outside, or gets another name there;
/// - what the kernel or root does below the file system (the block device, defragmentation), and on another file system
///   that is mounted inside the source;
/// - an entry in a directory that is removed before the watch gets to know where it was: the removal is told.
/// Who holds the source in such a way is what `holders(of:except:)` finds out. What cannot be decided is told as if it
/// were in the source: a file that is changed by its handle, with no name known (an NFS server does so).
///
/// The kernel merges events that wait for the same object, name and process, and so their order is lost, and how many
/// they were, but no process.
///
/// Its cost to the daemon's own changes, which the kernel queues like all others, as a measurement: 4 KiB pwrites in tmpfs
/// 1.1 µs without, 3.0 µs with the watch, 1.2 to 1.4 µs by way of `PrivateMount.directory`; ext4 1.2 and 2.6, XFS 1.5 and 4.0 µs; to
/// make and remove a file 10 and 20 µs (tmpfs), 19 and 32 µs (ext4), which `PrivateMount.directory` does not make cheaper. A mark on
/// the mount in place of the file system (FAN_MARK_MOUNT) does not see names and attributes, nor other mounts.
package final class ChangeWatch: Sendable {
    package let source: PrivateMount
    private let group: Descriptor
    private let loop: ChangeLoop

    /// Whether events wait in the kernel without limit (which needs memory as they come), or at most as many as
    /// /proc/sys/fs/fanotify/max_queued_events says: with more, changes are lost.
    package enum Queue: Sendable { case unlimited, limited }

    /// Makes a watch of `source`, which `begin` begins: but for what the process `ownProcess` does, all its threads, and
    /// what is written by way of descriptors that were opened from `source.directory` (openat, open_by_handle_at),
    /// whoever writes: neither the daemon's writes are events, which stay as fast as without a watch, nor an application's
    /// by FUSE passthrough, which would be taken for a foreign change. Truncations, attributes and names are events all
    /// the same. `report` is called by the watch's thread, and may not call `stop`.
    ///
    /// Throws EPERM without the privilege; ENODEV, EOPNOTSUPP or EOVERFLOW where the file system has no id or no file
    /// handles of a kind to be opened (FUSE, many overlays, network file systems), EXDEV where its id is not the same
    /// everywhere (a subvolume of btrfs), EINVAL or ENOSYS before Linux 5.9: then there is no watching this source.
    package init(
        source: PrivateMount, ownProcess: Int32, queue: Queue = .unlimited,
        report: @escaping @Sendable (ForeignChange) -> Void
    ) throws(Errno) {
        self.source = source
        let group = Descriptor(
            owning: try SpareDescriptors.checked { cl_change_group(queue == .unlimited ? 1 : 0) })
        _ = try FileHandle(of: source.directory)
        try checked { cl_ignore_writes_through(group.raw, source.directory.raw) }
        self.group = group
        loop = try ChangeLoop(
            group: group, filter: ChangeFilter(mount: source, name: source.name, ownProcess: ownProcess),
            report: report)
        try loop.start()
    }

    /// What is changed from now on is told. One system call: it may be made while others wait.
    package func begin() throws(Errno) {
        try checked { cl_watch_file_system(group.raw, source.directory.raw) }
    }

    deinit {
        stop()
    }

    /// Ends the watch: after that, `report` is not called any more. What is not told by then is forgotten.
    package func stop() {
        loop.stop()
    }

    /// Returns when all that was changed before the call has been told.
    package func catchUp() {
        loop.catchUp()
    }
}

/// The thread that reads the events, and how others talk to it.
private final class ChangeLoop: Sendable {
    private static let blockBytes = 64 << 10
    /// For so long events are left to gather after some were taken: a busy writer's become few, since the kernel merges
    /// them, and need not wake the thread each.
    private static let gatherMilliseconds: Int32 = 10

    private let group: Descriptor
    /// A byte in it asks the thread to look at what is wanted.
    private let wake: (reading: Descriptor, writing: Descriptor)
    private let filter: ChangeFilter
    private let report: @Sendable (ForeignChange) -> Void
    private let requests = Requests()

    init(
        group: Descriptor, filter: ChangeFilter, report: @escaping @Sendable (ForeignChange) -> Void
    ) throws(Errno) {
        var ends: (Int32, Int32) = (-1, -1)
        try SpareDescriptors.checked {
            withUnsafeMutableBytes(of: &ends) {
                pipe2($0.baseAddress?.assumingMemoryBound(to: Int32.self), O_CLOEXEC | O_NONBLOCK)
            }
        }
        wake = (Descriptor(owning: ends.0), Descriptor(owning: ends.1))
        self.group = group
        self.filter = filter
        self.report = report
    }

    func start() throws(Errno) {
        try Thread.start { [self] in
            run()
            requests.end()
        }
    }

    func stop() {
        requests.askToStop()
        signal()
        requests.waitForEnd()
    }

    func catchUp() {
        let turn = requests.askToCatchUp()
        signal()
        requests.waitForTurn(turn)
    }

    private func signal() {
        // It fails only when the pipe is full of signals, which are as good as one.
        var byte: UInt8 = 1
        _ = write(wake.writing.raw, &byte, 1)
    }

    // MARK: On the thread

    private func run() {
        while !requests.mustStop {
            waitForWork([group, wake.reading], milliseconds: -1)
            takeSignals()
            let turn = requests.turnAsked
            do throws(Errno) {
                while !requests.mustStop, try readEvents() {}
            } catch {
                // The group is of no use any more (ENOMEM, EIO): nothing is known from here on.
                report(ForeignChange(kinds: .lost, process: 0, isCertain: false, path: filter.sourceName))
                return
            }
            requests.finish(turn)
            waitForWork([wake.reading], milliseconds: Self.gatherMilliseconds)
        }
    }

    private func waitForWork(_ descriptors: [Descriptor], milliseconds: Int32) {
        var entries = descriptors.map { pollfd(fd: $0.raw, events: Int16(POLLIN), revents: 0) }
        withExtendedLifetime(descriptors) { _ = poll(&entries, nfds_t(entries.count), milliseconds) }
    }

    private func takeSignals() {
        var bytes: (UInt64, UInt64) = (0, 0)
        withUnsafeMutableBytes(of: &bytes) { _ = read(wake.reading.raw, $0.baseAddress, $0.count) }
    }

    /// Takes what is in the queue, a block at most; false where it is empty.
    private func readEvents() throws(Errno) -> Bool {
        let block = WorkerThread.buffer(Self.blockBytes)
        var left: Int
        do throws(Errno) {
            left = try checked { read(group.raw, block.baseAddress, block.count) }
        } catch .wouldBlock {
            return false
        }
        var at = UnsafeRawPointer(block.baseAddress)
        var event = cl_change()
        while left > 0, let start = at, !requests.mustStop {
            let length = cl_next_change(start, left, &event)
            if length == 0 { break }
            if let change = filter.foreignChange(event) { report(change) }
            at = start + length
            left -= length
        }
        return true
    }
}

/// What is wanted of the thread. One lock, held for no call of the system's.
private final class Requests: @unchecked Sendable {
    private let monitor = Monitor()
    // Guarded by `monitor`.
    private var stopIsAsked = false
    private var hasEnded = false
    private var asked = 0
    private var finished = 0

    var mustStop: Bool { monitor.withLock { stopIsAsked } }
    var turnAsked: Int { monitor.withLock { asked } }

    func askToStop() {
        monitor.withLock { stopIsAsked = true }
    }

    func askToCatchUp() -> Int {
        monitor.withLock {
            asked += 1
            return asked
        }
    }

    func finish(_ turn: Int) {
        monitor.withLock {
            finished = turn
            monitor.wake()
        }
    }

    func end() {
        monitor.withLock {
            hasEnded = true
            monitor.wake()
        }
    }

    func waitForTurn(_ turn: Int) {
        monitor.withLock {
            while finished < turn && !hasEnded { monitor.wait() }
        }
    }

    func waitForEnd() {
        monitor.withLock {
            while !hasEnded { monitor.wait() }
        }
    }
}
