import CTestSupport
import Glibc
import Synchronization
import SystemPackage
import TestSupport

/// The calls that are timed.
enum Call: Int, CaseIterable {
    case open, openCreating, openTruncating, close, write, pwrite, pwritev, msync, rename, link, unlink, mkdir,
        rmdir
    case ftruncate, fallocate, chmod, utimensat, setxattr, symlink, aioWrite, uringWrite
}

/// A call of an application that failed: the file system's fault, whatever the snapshot holds.
struct CallFailure: Error, CustomStringConvertible {
    let description: String
}

/// One sequence of operations, numbered from 1, each of which begins after the one before it has finished. One thread
/// writes it; the controller reads it at the same time.
final class Lane: @unchecked Sendable {
    let name: String
    let isBestEffort: Bool
    private let shared: SharedState
    // See `Field`; the spans come after them.
    private let base: UnsafeMutableRawPointer

    private enum Field: Int {
        case begun, finished, longest, longestCall, longestAtStart, longestAtStartCall, callBegan, turn
    }

    init(_ name: String, isBestEffort: Bool, _ shared: SharedState, index: Int) {
        self.name = name
        self.isBestEffort = isBestEffort
        self.shared = shared
        base = shared.lane(index)
    }

    private func word(_ field: Field) -> UnsafeMutablePointer<Atomic<Int>> {
        (base + field.rawValue * MemoryLayout<Int>.stride).assumingMemoryBound(to: Atomic<Int>.self)
    }

    private func span(_ number: Int) -> UnsafeMutablePointer<Span> {
        (base + SharedState.laneHeaderBytes).assumingMemoryBound(to: Span.self)
            + number & (SharedState.spansMax - 1)
    }

    var begun: Int { word(.begun).pointee.load(ordering: .acquiring) }
    var finished: Int { word(.finished).pointee.load(ordering: .acquiring) }
    /// The number of the next operation.
    var next: Int { begun + 1 }

    // MARK: Operations

    /// Notes that the next operation begins.
    func begin() {
        let number = next
        span(number).pointee = Span(began: shared.tick())
        word(.begun).pointee.store(number, ordering: .releasing)
    }

    /// Notes that the operation that began last has finished.
    func finish() {
        let number = begun
        span(number).pointee.finished = shared.tick()
        word(.finished).pointee.store(number, ordering: .releasing)
    }

    /// An operation: one call, in the snapshot in whole or not at all.
    func operate(_ call: Call, _ body: () throws -> Void) throws {
        begin()
        try perform(call, body)
        finish()
    }

    /// A write of `count` bytes in one call.
    func write(_ call: Call, count: Int, _ body: () -> Int) throws {
        try operate(call) { try Self.expect(count, body()) }
    }

    static func expect(_ count: Int, _ result: Int) throws {
        let written = try check(result)
        if written != count { throw TestFailure("\(written) of \(count) bytes") }
    }

    /// A call that changes nothing, but is timed and must not fail.
    func perform<Result>(_ call: Call, _ body: () throws -> Result) throws -> Result {
        let began = callBegins()
        do {
            let result = try body()
            callEnds(call, began)
            return result
        } catch {
            throw CallFailure(description: "\(name) \(begun): \(call): \(error)")
        }
    }

    // MARK: Time

    struct Moment {
        fileprivate let time: Int
        fileprivate let starts: Int
    }

    private static func now() -> Int {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return time.tv_sec * 1_000_000_000 + time.tv_nsec
    }

    func callBegins() -> Moment {
        let time = Self.now()
        word(.callBegan).pointee.store(time, ordering: .relaxed)
        return Moment(time: time, starts: shared.starts)
    }

    func callEnds(_ call: Call, _ began: Moment) {
        let took = Self.now() - began.time
        word(.callBegan).pointee.store(0, ordering: .relaxed)
        let isAtStart = began.starts % 2 == 1 || shared.starts != began.starts
        let (longest, which): (Field, Field) =
            isAtStart ? (.longestAtStart, .longestAtStartCall) : (.longest, .longestCall)
        if took > word(longest).pointee.load(ordering: .relaxed) {
            word(longest).pointee.store(took, ordering: .relaxed)
            word(which).pointee.store(call.rawValue, ordering: .relaxed)
        }
    }

    /// The longest that a call took, in seconds: of those that overlapped a start, or of the others.
    func longest(atStart: Bool) -> (seconds: Double, call: Call) {
        let (longest, which): (Field, Field) =
            atStart ? (.longestAtStart, .longestAtStartCall) : (.longest, .longestCall)
        let call = word(which).pointee.load(ordering: .relaxed)
        return (Double(word(longest).pointee.load(ordering: .relaxed)) / 1e9, Call(rawValue: call) ?? .open)
    }

    /// For how long the call under way has lasted.
    var secondsInCall: Double {
        let began = word(.callBegan).pointee.load(ordering: .relaxed)
        return began == 0 ? 0 : Double(Self.now() - began) / 1e9
    }

    // MARK: Turns

    /// Waits until it is the turn of `actor` of `actors`; false when the load is over.
    func awaitTurn(of actor: Int, _ actors: Int) -> Bool {
        while shared.phase == .running {
            let turn = word(.turn).pointee.load(ordering: .acquiring)
            if turn % actors == actor { return true }
            ts_futex_wait(word(.turn), UInt32(truncatingIfNeeded: turn), 100)
        }
        return false
    }

    func passTurn() {
        word(.turn).pointee.add(1, ordering: .acquiringAndReleasing)
        ts_futex_wake(word(.turn))
    }

    // MARK: History

    /// What happened around a start that has returned. `finishedBefore` is `finished` as it was before the call.
    func history(finishedBefore: Int) -> LaneHistory {
        let begun = begun
        // Some room, since the lane goes on while it is copied.
        let first = max(finishedBefore, begun - SharedState.spansMax * 3 / 4, 0)
        var spans = [Span](unsafeUninitializedCapacity: begun - first + 1) { copy, count in
            count = begun - first + 1
            guard let start = copy.baseAddress else { return }
            // What comes after the ring's end is at its beginning.
            let whole = min(count, SharedState.spansMax - first & (SharedState.spansMax - 1))
            start.initialize(from: span(first), count: whole)
            (start + whole).initialize(from: span(first + whole), count: count - whole)
        }
        // Operation 0 is what was there before the load.
        if first == 0 { spans[0] = Span(began: 0, finished: 0) }
        // It must not have come round to where it is copied from.
        precondition(self.begun - first < SharedState.spansMax, "\(name) is faster than it can be looked at")
        return LaneHistory(
            name: name, finishedBefore: finishedBefore, begun: begun, first: first, spans: spans,
            isBestEffort: isBestEffort)
    }
}
