internal import LinuxSystem
internal import Synchronization

/// The nodes of the live view that are open for writing, and how often. Safe for use by all threads.
final class Writers: Sendable {
    private struct Entry {
        var count: Int
        let times: WrittenTimes
    }

    private let entries = Mutex<[UInt64: Entry]>([:])

    /// Nodes with at least one handle for writing.
    var nodes: Set<UInt64> { entries.withLock { Set($0.keys) } }

    /// Counts a handle for writing.
    func add(_ node: UInt64) -> WrittenTimes {
        entries.withLock { entries in
            let times = entries[node]?.times ?? WrittenTimes()
            entries[node] = Entry(count: (entries[node]?.count ?? 0) + 1, times: times)
            return times
        }
    }

    func remove(_ node: UInt64) {
        entries.withLock { entries in
            guard let entry = entries[node] else { return }
            entries[node] = entry.count > 1 ? Entry(count: entry.count - 1, times: entry.times) : nil
        }
    }

    /// Those of a node that is open for writing.
    func times(of node: UInt64) -> WrittenTimes? {
        entries.withLock { $0[node]?.times }
    }
}

/// The time of modification of a file whose writes the kernel gathers (`io=writeback`): the kernel's own, which it
/// sends in its good time, while each piece of data that it writes back changes the source's. So when data came last,
/// the kernel's time is set again before anybody can miss it: at fsync, at the end of a handle, at a cut.
final class WrittenTimes: Sendable {
    private struct State {
        /// What the kernel sent last. Before it has sent one it still will.
        var kernels: Timestamp?
        var isStale = false
    }

    private let state = Mutex(State())

    /// The kernel has sent its time, and the source has it.
    func didSet(_ time: Timestamp) {
        state.withLock { $0 = State(kernels: time) }
    }

    /// Data were written back: the source's time is now the present one.
    func didWriteBack() {
        state.withLock { $0.isStale = true }
    }

    /// The time that the source ought to have, if it has another.
    func takeStale() -> Timestamp? {
        state.withLock { state in
            guard state.isStale, let kernels = state.kernels else { return nil }
            state.isStale = false
            return kernels
        }
    }
}
