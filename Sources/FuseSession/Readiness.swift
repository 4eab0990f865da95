internal import CFuse3
internal import CLinux
internal import Glibc
internal import LinuxSystem
internal import Synchronization
internal import SystemPackage

/// Which worker reads the kernel's next request: as a rule the one that served the last.
///
/// Where all workers wait in read(2) they are woken by turns, so that each request meets a thread that has slept for long, and
/// wakes one although another is about to be free: with ten of them a request took half as much again as with one. So
/// here one worker reads and the others *stand by*, in epoll_wait(2). That is told of one request (`EPOLLONESHOT`) when it
/// is *armed*, and wakes the worker that came last. While the reader serves, further requests wait for it, but
/// - it arms where more requests wait already, before those that take long as a rule (fsync), for a time after some
///   took long, and during a freeze, when workers wait at the gate;
/// - but not for those that wait while one file is written in small pieces, as when the kernel writes back what it has gathered:
///   two workers that write to one file only wait for each other, in the source's file system and where originals are stored.
///   That ends with the first of them that the guard finds blocked;
/// - the guard arms in each tick at the end of which nobody reads, and in which no request was read.
///
/// A worker *disarms* before most answers (those that are not spliced), and when it reads: whoever gets the answer often has
/// the next request within microseconds, which would wake a second one.
///
/// Invariant: a request that waits in the kernel's queue finds a worker in read(2), or one that will get there without
/// waiting for anything, or one that is woken since it is armed (arming looks at the queue), or the guard arms soon: it
/// sleeps only while somebody reads, and whoever ends reading wakes it. So none waits for a worker that is blocked, in
/// a request or after it has disarmed, for longer than two ticks, as long as there are workers. Safe for use by all threads.
final class Readiness: Sendable {
    private let poller = Atomic<Int32>(-1)
    private let session = Atomic<Int32>(-1)
    /// How many workers are in read(2), or about to be.
    private let readers = Atomic<Int>(0)
    /// How many requests were read.
    private let turns = Atomic<UInt64>(0)
    /// More than 0 for a time after requests that took long.
    private let slowness = Atomic<Int>(0)
    /// The node that the last request that was read writes to; 0 where it was another request.
    private let written = Atomic<UInt64>(0)
    /// Whether the guard has found all workers blocked, and none has served its request since.
    private let isStuck = Atomic<Bool>(false)
    /// Whether a worker that stands by may be woken by the next request.
    private let isArmed = Atomic<Bool>(false)
    private let guarding = Atomic<UInt32>(Guard.absent)
    private let isHurried = Atomic<Bool>(false)
    private let isOver = Atomic<Bool>(false)
    /// Whether there is a guard.
    private let isGuarded = Atomic<Bool>(false)
    /// What the guard sleeps on, and who waits for its end; taken after no other lock.
    private let monitor = Monitor()

    private enum Guard {
        static let absent: UInt32 = 0
        static let asleep: UInt32 = 1
        static let awake: UInt32 = 2
    }

    private static let guardTick = timespec(tv_sec: 0, tv_nsec: 1_000_000)
    /// Ticks without a request, though somebody reads, after which the guard sleeps.
    private static let idleTicksMax = 20
    /// A request that takes longer has waited for something.
    static let quickNanoseconds: UInt64 = 100_000
    /// A read(2) that takes longer has waited for the request.
    static let immediateNanoseconds: UInt64 = 3_000
    private static let slownessMax = 64
    private static let slownessStep = 8

    deinit {
        let raw = poller.load(ordering: .relaxed)
        if raw >= 0 { close(raw) }
    }

    /// Watches the session's descriptor, whose queue all channels share. Before the first worker.
    func attach(_ descriptor: Int32) throws(Errno) {
        poller.store(try checked { cl_poller() }, ordering: .relaxed)
        session.store(descriptor, ordering: .relaxed)
    }

    /// Ends the guard: the session's descriptor is not used any more when it returns. After the last worker.
    func end() {
        isOver.store(true, ordering: .sequentiallyConsistent)
        wakeGuard()
        monitor.withLock {
            while isGuarded.load(ordering: .sequentiallyConsistent) { monitor.wait() }
        }
    }

    /// From now on every reader arms, as long as that is so.
    func hurry(_ isHurried: Bool) {
        self.isHurried.store(isHurried, ordering: .sequentiallyConsistent)
        if isHurried { arm() }
    }

    /// A new worker. The first one's thread starts the guard.
    func join() {
        guard
            guarding.compareExchange(
                expected: Guard.absent, desired: Guard.awake, ordering: .sequentiallyConsistent
            ).exchanged
        else { return }
        isGuarded.store(true, ordering: .sequentiallyConsistent)
        do throws(Errno) {
            try Thread.start { [self] in
                watch()
                monitor.withLock {
                    isGuarded.store(false, ordering: .sequentiallyConsistent)
                    monitor.wake()
                }
            }
        } catch {
            // Without it every worker reads.
            isGuarded.store(false, ordering: .sequentiallyConsistent)
            guarding.store(Guard.absent, ordering: .sequentiallyConsistent)
        }
    }

    /// A worker is about to read; it returns once it may. `tookLong`: the request that it has served. False, with errno,
    /// where a signal came first.
    func enter(tookLong: Bool) -> Bool {
        if isStuck.load(ordering: .relaxed) { isStuck.store(false, ordering: .relaxed) }
        if tookLong {
            slowness.store(
                min(slowness.load(ordering: .relaxed) + Self.slownessStep, Self.slownessMax), ordering: .relaxed)
        } else if slowness.load(ordering: .relaxed) > 0 {
            slowness.subtract(1, ordering: .relaxed)
        }
        if readers.add(1, ordering: .sequentiallyConsistent).oldValue == 0 {
            disarm()
            return true
        }
        if guarding.load(ordering: .relaxed) == Guard.absent { return true }
        readers.subtract(1, ordering: .sequentiallyConsistent)
        guard cl_poller_wait(poller.load(ordering: .relaxed)) > 0 else { return false }
        isArmed.store(false, ordering: .sequentiallyConsistent)
        readers.add(1, ordering: .sequentiallyConsistent)
        return true
    }

    /// The worker has read, or failed to: then another takes what comes, since this one may have something else to do. Leaves
    /// errno as it is.
    func leave(withRequest hasRequest: Bool) {
        readers.subtract(1, ordering: .sequentiallyConsistent)
        if !hasRequest { arm() }
        if guarding.load(ordering: .sequentiallyConsistent) == Guard.asleep { wakeGuard() }
    }

    /// The worker that has left has a request. `isLong`: it will take long, as a rule. `wasImmediate`: it was there
    /// already. `node`: what it writes a small piece to, 0 for other requests.
    func didRead(isLong: Bool, wasImmediate: Bool, writing node: UInt64) {
        turns.add(1, ordering: .sequentiallyConsistent)
        let isSame = written.exchange(node, ordering: .relaxed) == node
        let goesOn = isSame && node != 0 && !isStuck.load(ordering: .relaxed)
        if !nobodyReads { return }
        if isLong || isHurried.load(ordering: .sequentiallyConsistent)
            || !goesOn && (slowness.load(ordering: .relaxed) > 0 || wasImmediate && hasMore)
        {
            arm()
        }
    }

    private var nobodyReads: Bool { readers.load(ordering: .sequentiallyConsistent) == 0 }

    private var hasMore: Bool {
        var descriptor = pollfd(fd: session.load(ordering: .relaxed), events: Int16(POLLIN), revents: 0)
        return poll(&descriptor, 1, 0) > 0
    }

    /// Where that fails for want of memory, the guard tries again.
    private func arm() {
        isArmed.store(true, ordering: .sequentiallyConsistent)
        cl_poller_arm(poller.load(ordering: .relaxed), session.load(ordering: .relaxed))
    }

    /// By a worker that is about to read, or to answer and then to read: it needs no help with the next request.
    func disarm() {
        guard isArmed.load(ordering: .relaxed), isArmed.exchange(false, ordering: .sequentiallyConsistent) else {
            return
        }
        cl_poller_disarm(poller.load(ordering: .relaxed), session.load(ordering: .relaxed))
    }

    private func wakeGuard() {
        if guarding.compareExchange(
            expected: Guard.asleep, desired: Guard.awake, ordering: .sequentiallyConsistent
        ).exchanged {
            monitor.withLock { monitor.wake() }
        }
    }

    private func watch() {
        var seen: UInt64 = 0
        var idleTicks = 0
        while !isOver.load(ordering: .sequentiallyConsistent) {
            var tick = Self.guardTick
            nanosleep(&tick, nil)
            let now = turns.load(ordering: .sequentiallyConsistent)
            if now != seen {
                seen = now
                idleTicks = 0
                continue
            }
            if nobodyReads {
                isStuck.store(true, ordering: .relaxed)
                arm()
                idleTicks = 0
                continue
            }
            idleTicks += 1
            if idleTicks < Self.idleTicksMax { continue }
            guarding.store(Guard.asleep, ordering: .sequentiallyConsistent)
            // Whoever ended reading before it could see that.
            if nobodyReads || turns.load(ordering: .sequentiallyConsistent) != seen
                || isOver.load(ordering: .sequentiallyConsistent)
            {
                guarding.store(Guard.awake, ordering: .sequentiallyConsistent)
                continue
            }
            monitor.withLock {
                while guarding.load(ordering: .sequentiallyConsistent) == Guard.asleep { monitor.wait() }
            }
        }
    }
}
