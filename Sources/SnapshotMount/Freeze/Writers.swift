internal import LinuxSystem
internal import Synchronization

/// The nodes of the live view that are open for writing, and how often. Safe for use by all threads.
final class Writers: Sendable {
    private struct Entry {
        var count: Int
        let times: WrittenTimes
    }

    private let entries = Mutex<[UInt64: Entry]>([:])
    /// Nodes without a handle for writing whose file somebody may write to all the same.
    private let lingering = Mutex<Set<UInt64>>([])

    /// Nodes that have lost their last handle for writing, and are written to by way of a mapping; only where writes
    /// are passed through. Each counts as a look-up of its node.
    var lingeringNodes: Set<UInt64> { lingering.withLock { $0 } }

    /// Nodes with at least one handle for writing.
    var nodes: Set<UInt64> { entries.withLock { Set($0.keys) } }

    private let ownerChangesCount = Atomic<UInt64>(0)

    /// How many changes of owners or groups there have been: whose files are open may be other than it was.
    var ownerChanges: UInt64 { ownerChangesCount.load(ordering: .sequentiallyConsistent) }

    /// Before a change of an owner or group, inside the gate.
    func ownerWillChange() {
        ownerChangesCount.add(1, ordering: .sequentiallyConsistent)
    }

    /// Counts a handle for writing; `modified` is the file's time, which the kernel has been told.
    func add(_ node: UInt64, _ modified: Timestamp) -> WrittenTimes {
        entries.withLock { entries in
            let times = entries[node]?.times ?? WrittenTimes(modified)
            entries[node] = Entry(count: (entries[node]?.count ?? 0) + 1, times: times)
            return times
        }
    }

    /// Drops a handle. Where it was the last, `lingers` says whether the file can still be written to; it is asked
    /// while nobody opens it for writing. Returns whether the node lingers from now on.
    func remove(_ node: UInt64, lingers: () -> Bool) -> Bool {
        entries.withLock { entries in
            guard let entry = entries[node] else { return false }
            entries[node] = entry.count > 1 ? Entry(count: entry.count - 1, times: entry.times) : nil
            guard entry.count == 1, lingers() else { return false }
            return lingering.withLock { $0.insert(node).inserted }
        }
    }

    /// Looks again at a node that lingers, unless it has been opened since: then that handle's end will tell. Returns
    /// whether it lingers no longer.
    func removeLingering(_ node: UInt64, unless lingers: () -> Bool) -> Bool {
        entries.withLock { entries in
            if entries[node] == nil && lingers() { return false }
            return lingering.withLock { $0.remove(node) != nil }
        }
    }

    /// Those of a node that is open for writing.
    func times(of node: UInt64) -> WrittenTimes? {
        entries.withLock { $0[node]?.times }
    }
}

/// The time of modification of a file whose writes the kernel gathers (`io=writeback`): the kernel's own. It sends its
/// time after a change, but not where that is the time that it had (it counts in ticks), and data written back, which
/// change the source's time, may come later. So when data came last, the kernel's time is set again before anybody
/// can miss it: at fsync, at the end of a handle, at a cut.
final class WrittenTimes: Sendable {
    /// What the kernel was told of the space that the file takes, last, and since the file is open for writing; -1 before
    /// that: then it may know what was so long ago.
    private let told = Atomic<Int64>(-1)

    private struct State {
        /// What the kernel was told, or said, last.
        var kernels: Timestamp
        var isStale = false
    }

    private let state: Mutex<State>

    init(_ modified: Timestamp) {
        state = Mutex(State(kernels: modified))
    }

    /// The kernel has sent its time, and the source has it.
    func didSet(_ time: Timestamp) {
        state.withLock { $0 = State(kernels: time) }
    }

    /// The kernel is told that the file takes `blocks`.
    func willTell(blocks: Int64) { told.store(blocks, ordering: .relaxed) }

    /// Whether the kernel may tell so much other than `blocks` that it should not go on with that for a second: by more
    /// than a quarter, and than 32 KiB.
    func mayTell(farFrom blocks: Int64) -> Bool {
        let last = told.load(ordering: .relaxed)
        return last < 0 || abs(last - blocks) > max(blocks / 4, Self.nearBlocks)
    }

    /// In blocks of 512 bytes.
    private static let nearBlocks: Int64 = 64

    /// Data have changed: the source's time is now the present one.
    func didChangeData() {
        state.withLock { $0.isStale = true }
    }

    /// The time that the source ought to have, if it has another.
    func takeStale() -> Timestamp? {
        state.withLock { state in
            guard state.isStale else { return nil }
            state.isStale = false
            return state.kernels
        }
    }
}
