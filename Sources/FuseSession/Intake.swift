internal import CFuse3
internal import CFuseShim
internal import CLinux
internal import Glibc
internal import LinuxSystem
internal import Synchronization
internal import SystemPackage

/// What lies between the kernel and libfuse: every request is read here, and most are passed on as they are.
///
/// Requests that libfuse does not know are served (`UnknownRequest`); what it would drop of others is noted
/// (`cl_worker.kills_privileges`). For a freeze of the mount's writers (`SnapshotMount.Freezer`) it does three things:
///
/// - **Parking**: requests that open a file for writing or make one are kept back, by the worker that read them, since
///   only its channel takes the answer. Nothing else waits for them: such a request holds at most the lock of the
///   directory in which it makes a file.
/// - **Withholding**: the FSYNCs of the freeze are not answered. The kernel keeps the inode's lock meanwhile, so no
///   write(2) to the file begins.
/// - **Settling**: waits until requests that were read before have been served. A worker says in `WorkerState`
///   what it is doing; one that is reading may have a request in hand already without having said so, and is
///   interrupted by a signal: either it has nothing, and begins anew, or it says what it has.
///
/// Invariant, for parking: a worker says that it serves an opening before it looks whether openings are parked, and
/// the freeze says that they are before it looks at the workers (both sequentially consistent). So an opening is
/// parked, or `settle` waits for it.
package final class Intake: Sendable {
    /// What `settle` waits for.
    package enum Kind: UInt64, Sendable {
        case other, opening, data
        /// Waiting for a request, or about to say which it has.
        fileprivate static let reading: UInt64 = 3
    }

    /// The handle that the freeze's opens answer with: odd, as no object's address is.
    package static let freezeHandle: UInt64 = 1

    let operations: Operations
    private let handshake: Handshake
    private let anticipation = Anticipation()
    let readiness = Readiness()
    private let workers = Mutex<[Worker]>([])
    private let isParking = Atomic<Bool>(false)
    /// The process whose openings are never parked; 0 for none.
    private let exempt = Atomic<Int32>(0)
    private let withheld = Withheld()
    let counts: RequestCounts?

    init(_ operations: Operations, _ handshake: Handshake, counts: RequestCounts?) {
        self.operations = operations
        self.handshake = handshake
        self.counts = counts
    }

    // MARK: Reading

    /// Reads the next request for libfuse, as read(2) does.
    func read(_ channel: Int32, _ buffer: UnsafeMutableRawPointer?, _ size: Int) -> Int {
        guard let buffer else { return Glibc.read(channel, buffer, size) }
        let worker = ownWorker()
        while true {
            worker.say(Kind.reading)
            var count = isParking.load(ordering: .sequentiallyConsistent) ? 0 : worker.unpark(into: buffer)
            if count == 0 {
                count = next(channel, buffer, size, worker)
                if count < 0 && errno == EINTR && worker.hasParked { continue }
            }
            guard count >= MemoryLayout<fs_in_header>.size else { return count }
            let request = RawRequest(UnsafeRawBufferPointer(start: buffer, count: count), channel)
            counts?.count(request.opcode)
            let kind = request.kind
            worker.say(kind.rawValue)
            if kind == .opening, isParking.load(ordering: .sequentiallyConsistent),
                request.process != exempt.load(ordering: .relaxed)
            {
                worker.park(request.bytes)
                continue
            }
            if isServedHere(request) { continue }
            return request.opcode == FS_OPCODE_SETXATTR && handshake.extendsAttributes
                ? Self.shortenSetAttribute(buffer, count) : count
        }
    }

    /// read(2) of the next request, for which it waits.
    private func next(
        _ channel: Int32, _ buffer: UnsafeMutableRawPointer, _ size: Int, _ worker: Worker
    ) -> Int {
        guard readiness.enter(tookLong: worker.tookLong) else { return -1 }
        let start = Worker.now
        let isLooking = anticipation.isHopeful
        if isLooking { anticipation.look(channel) }
        let count = Glibc.read(channel, buffer, size)
        let hasRequest = count >= MemoryLayout<fs_in_header>.size
        readiness.leave(withRequest: hasRequest)
        guard hasRequest else { return count }
        let header = buffer.loadUnaligned(as: fs_in_header.self)
        worker.began()
        anticipation.learn(waited: Int(worker.beginning - start), looking: isLooking)
        readiness.didRead(
            isLong: Self.longOpcodes.contains(header.opcode),
            wasImmediate: worker.beginning - start < Readiness.immediateNanoseconds,
            writing: header.opcode == FS_OPCODE_WRITE && header.len <= Self.pieceBytesMax ? header.nodeid : 0)
        return count
    }

    /// `vectors` are about to be sent to the kernel, by any thread.
    func willSend(_ vectors: UnsafeMutablePointer<iovec>?) {
        guard let start = vectors?.pointee, start.iov_len >= MemoryLayout<fs_out_header>.size,
            let header = start.iov_base, header.loadUnaligned(as: fs_out_header.self).unique != 0,
            cl_this_worker()?.pointee.intake != nil
        else { return }
        // An answer, and no notification, after which the worker goes on with its request.
        readiness.disarm()
    }

    /// A larger request, with its header, is copied for long enough that another may be written meanwhile.
    private static let pieceBytesMax = UInt32(64 << 10)

    /// Requests that wait for the disk as a rule.
    private static let longOpcodes: [UInt32] = [
        FS_OPCODE_FSYNC, FS_OPCODE_FSYNCDIR, FS_OPCODE_FALLOCATE, FS_OPCODE_COPY_FILE_RANGE, FS_OPCODE_LSEEK,
    ].map { UInt32($0) }

    /// Serves what libfuse cannot; notes what it would not pass on.
    private func isServedHere(_ request: RawRequest) -> Bool {
        cl_this_worker()?.pointee.kills_privileges = -1
        switch request.opcode {
        case FS_OPCODE_INIT:
            handshake.didReceive(request)
            return false
        case FS_OPCODE_WRITE, FS_OPCODE_SETATTR:
            if handshake.killsPrivileges {
                cl_this_worker()?.pointee.kills_privileges = request.killsPrivileges ? 1 : 0
            }
            return false
        case FS_OPCODE_FSYNC:
            guard request.argument(fs_fsync_in.self)?.fh == Self.freezeHandle else { return false }
            if !withheld.take(request) { UnknownRequest(request, operations).answer(error: nil) }
            return true
        case FS_OPCODE_TMPFILE, FS_OPCODE_STATX:
            // libfuse ends idle workers by cancelling them; not in the middle of a request.
            var old: Int32 = 0
            pthread_setcancelstate(Int32(PTHREAD_CANCEL_DISABLE), &old)
            UnknownRequest(request, operations).serve()
            pthread_setcancelstate(old, nil)
            return true
        default:
            return false
        }
    }

    /// Makes a SETXATTR one that libfuse knows, in its buffer, and notes what that leaves out. Its length.
    private static func shortenSetAttribute(_ buffer: UnsafeMutableRawPointer, _ count: Int) -> Int {
        let start = MemoryLayout<fs_in_header>.size
        let size = MemoryLayout<fs_setxattr_in>.size
        guard count >= start + size else { return count }
        let input = (buffer + start).loadUnaligned(as: fs_setxattr_in.self)
        cl_this_worker()?.pointee.kills_privileges =
            input.setxattr_flags & UInt32(FS_SETXATTR_KILL_SGID) != 0 ? 1 : 0
        let known = size / 2
        (buffer + start + known).copyMemory(from: buffer + start + size, byteCount: count - start - size)
        buffer.storeBytes(of: UInt32(count - known), as: UInt32.self)
        return count - known
    }

    private func ownWorker() -> Worker {
        guard let local = cl_this_worker() else {
            preconditionFailure("every thread has thread-local storage")
        }
        if let known = local.pointee.intake {
            return Unmanaged<Worker>.fromOpaque(known).takeUnretainedValue()
        }
        let worker = Worker()
        worker.startCalm()
        readiness.join()
        // The list keeps it; threads of a session live as long as the session.
        workers.withLock { $0.append(worker) }
        local.pointee.intake = Unmanaged.passUnretained(worker).toOpaque()
        return worker
    }

    // MARK: Freezing

    /// Keeps openings back from now on, and lets workers run before applications where that may be, but for those of `process`. Returns once those that came before have been
    /// served: false where that is not so at `deadline`.
    package func park(exceptOf process: Int32, until deadline: ContinuousClock.Instant) -> Bool {
        readiness.hurry(true)
        for worker in workers.withLock({ $0 }) { worker.hurry() }
        exempt.store(process, ordering: .relaxed)
        isParking.store(true, ordering: .sequentiallyConsistent)
        return settle(.opening, until: deadline)
    }

    /// Lets the openings go that were kept back.
    package func unpark() {
        isParking.store(false, ordering: .sequentiallyConsistent)
        readiness.hurry(false)
        for worker in workers.withLock({ $0 }) {
            while worker.hasParked && worker.isReading { worker.interrupt() }
            worker.calm()
        }
    }

    /// Withholds the answers to the freeze's FSYNCs from now on.
    package func withhold() {
        withheld.begin()
    }

    /// Waits until the FSYNCs of all `nodes` are withheld. Returns the nodes whose FSYNC had not come at `deadline`,
    /// or when `isPossible` turned false, which `stopWaiting` makes it look at.
    package func waitUntilWithheld(
        _ nodes: Set<UInt64>, until deadline: ContinuousClock.Instant, while isPossible: () -> Bool
    ) -> Set<UInt64> {
        withheld.wait(for: nodes, until: deadline, while: isPossible)
    }

    /// Makes `waitUntilWithheld` look anew whether it can still succeed.
    package func stopWaiting() {
        withheld.wake()
    }

    /// Answers what was withheld; later FSYNCs are answered at once.
    package func answerWithheld() {
        withheld.end { UnknownRequest($0, channel: $1, operations).answer(error: nil) }
    }

    /// Waits until every request of that kind that the kernel handed out before has been served: false where that is
    /// not so at `deadline`.
    package func settle(_ kind: Kind, until deadline: ContinuousClock.Instant) -> Bool {
        for worker in workers.withLock({ $0 }) {
            let before = worker.state
            // An opening that a worker has not spoken of yet will be parked.
            guard worker.isDoing(kind) || kind == .data && worker.isReading else { continue }
            while worker.state == before {
                if ContinuousClock.now >= deadline { return false }
                worker.interrupt()
            }
        }
        return true
    }
}

/// A thread of libfuse, as others see it.
private final class Worker: Sendable {
    private static let kindMask: UInt64 = 3
    private let thread = cl_thread_number()
    /// What it is doing, in the lowest two bits, and above them a number that grows whenever that changes.
    private let saying = Atomic<UInt64>(0)
    /// Requests kept back; touched by the worker alone.
    private nonisolated(unsafe) var parked: [[UInt8]] = []
    private let parkedCount = Atomic<Int>(0)
    /// When it read the request in hand, by CLOCK_MONOTONIC in nanoseconds; touched by the worker alone.
    private(set) nonisolated(unsafe) var beginning = Worker.now
    /// Before the freeze; `unchanged` otherwise.
    private let niceness = Atomic<Int32>(Worker.unchanged)
    private static let unchanged = Int32.max

    var state: UInt64 { saying.load(ordering: .sequentiallyConsistent) }
    var isReading: Bool { state & Self.kindMask == Intake.Kind.reading }
    var hasParked: Bool { parkedCount.load(ordering: .sequentiallyConsistent) > 0 }

    /// Called by the freeze alone, in pairs.
    func hurry() {
        let before = ThreadInterruption.hurry(thread)
        niceness.store(before, ordering: .relaxed)
    }

    /// A thread that another worker makes during a freeze has that one's niceness.
    func startCalm() {
        ThreadInterruption.calm(thread, ThreadInterruption.niceness(of: getpid()))
    }

    func calm() {
        let before = niceness.exchange(Self.unchanged, ordering: .relaxed)
        if before != Self.unchanged { ThreadInterruption.calm(thread, before) }
    }

    func isDoing(_ kind: Intake.Kind) -> Bool { state & Self.kindMask == kind.rawValue }

    /// By the worker alone.
    func say(_ kind: UInt64) {
        let now = saying.load(ordering: .relaxed)
        saying.store((now & ~Self.kindMask) + Self.kindMask + 1 + kind, ordering: .sequentiallyConsistent)
    }

    static var now: UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    /// By the worker alone: it has read a request.
    func began() { beginning = Self.now }

    /// Whether the request that the worker served last took longer than one that waits for nothing.
    var tookLong: Bool { Self.now - beginning > Readiness.quickNanoseconds }

    func park(_ request: UnsafeRawBufferPointer) {
        parked.append(Array(request))
        parkedCount.add(1, ordering: .sequentiallyConsistent)
    }

    /// Takes the oldest request that was kept back; its length, 0 where there is none.
    func unpark(into buffer: UnsafeMutableRawPointer) -> Int {
        guard !parked.isEmpty else { return 0 }
        let request = parked.removeFirst()
        parkedCount.subtract(1, ordering: .sequentiallyConsistent)
        request.withUnsafeBytes {
            buffer.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(buffer), byteCount: $0.count)
        }
        return request.count
    }

    /// Makes a read(2) that waits return, and pauses: the signal is lost where the worker is only about to read, so
    /// callers repeat this until they see an effect.
    func interrupt() {
        if isReading { ThreadInterruption.interrupt(thread) }
        var pause = timespec(tv_sec: 0, tv_nsec: 20_000)
        nanosleep(&pause, nil)
    }
}

/// The FSYNCs of a freeze. `monitor` guards all of it, and is held for no I/O but the answers at the end.
private final class Withheld: @unchecked Sendable {
    private let monitor = Monitor()
    private var isActive = false
    private var requests: [(header: fs_in_header, channel: Int32)] = []
    private var nodes: Set<UInt64> = []

    func begin() {
        monitor.withLock { isActive = true }
    }

    /// False where nothing is withheld now.
    func take(_ request: RawRequest) -> Bool {
        monitor.withLock {
            if isActive {
                requests.append((request.header, request.channel))
                nodes.insert(request.header.nodeid)
                monitor.wake()
            }
            return isActive
        }
    }

    func wait(
        for wanted: Set<UInt64>, until deadline: ContinuousClock.Instant, while isPossible: () -> Bool
    ) -> Set<UInt64> {
        monitor.withLock {
            // Others may come too: of files that were closed after the helper had opened them.
            while nodes.count < wanted.count || !wanted.isSubset(of: nodes), isPossible(),
                monitor.wait(until: deadline)
            {}
            return wanted.subtracting(nodes)
        }
    }

    func wake() {
        monitor.withLock { monitor.wake() }
    }

    func end(_ answer: (fs_in_header, Int32) -> Void) {
        let taken = monitor.withLock {
            isActive = false
            nodes = []
            defer { requests = [] }
            return requests
        }
        for (header, channel) in taken { answer(header, channel) }
    }
}
