import ControlSocket
import Synchronization

/// A controller that remembers whether a snapshot is active, and can be held within a stop.
final class FakeController: SnapshotController {
    private struct State: Sendable {
        var isActive = false
        var holdsStop = false
        var stopsWaiting = 0
        var isUnmounted = false
        var connectionsEnded: [UInt64] = []
        var hooks: [HookResult] = []
    }

    private let state = Mutex(State())

    var isUnmounted: Bool { state.withLock { $0.isUnmounted } }
    var stopsWaiting: Int { state.withLock { $0.stopsWaiting } }

    func holdStop(_ holds: Bool) {
        state.withLock { $0.holdsStop = holds }
    }

    func start(_ options: StartOptions) throws(ControlFailure) -> StartReport {
        let wasActive = state.withLock { state in
            defer { state.isActive = true }
            return state.isActive
        }
        if wasActive { throw ControlFailure(.alreadyActive, "a snapshot is active already") }
        var report = StartReport(
            started: "2026-11-23T03:00:00Z", stallMicroseconds: 17, attempts: 2, filesFrozen: 3,
            snapshotDirectory: "/mnt/.snapshot")
        report.snapshot = 12
        return report
    }

    var connectionsEnded: [UInt64] { state.withLock { $0.connectionsEnded } }
    var hooks: [HookResult] { state.withLock { $0.hooks } }

    func connectionEnded(holding snapshot: UInt64) {
        state.withLock { $0.connectionsEnded.append(snapshot) }
    }

    func noteHooks(_ options: HooksOptions) throws(ControlFailure) {
        if options.snapshot != 12 { throw ControlFailure(.notActive, "another snapshot") }
        state.withLock { $0.hooks = options.hooks }
    }

    func stop(
        _ options: StopOptions, progress: @escaping @Sendable (StopProgress) -> Void
    ) throws(ControlFailure) -> StopReport {
        guard state.withLock({ $0.isActive }) else {
            throw ControlFailure(.notActive, "no snapshot is active")
        }
        progress(StopProgress(bytesDone: 1, bytesTotal: 2))
        progress(StopProgress(bytesDone: 2, bytesTotal: 2))
        state.withLock { $0.stopsWaiting += 1 }
        while state.withLock({ $0.holdsStop }) { pauseBriefly() }
        state.withLock { state in
            state.isActive = false
            state.stopsWaiting -= 1
        }
        return StopReport(
            exact: false, reason: "the delta is full", deltaBytes: 4096, changedAreas: 3)
    }

    func status() -> Status {
        Status(
            pid: 42, version: "0.1.0", source: "/data", mountpoint: "/mnt", mode: "preserve",
            state: state.withLock { $0.isActive } ? .active : .idle, started: nil, deltaBytes: 1,
            changedAreas: 2, snapshotBytesRead: 3, store: "/data/.fusesnap", io: "write-through")
    }

    /// More than fits on a line, some of them alone.
    func changed(
        _ emit: (ChangeItem) throws(ControlFailure) -> Bool
    ) throws(ControlFailure) -> ChangesReport {
        let items = changes
        for item in items where try !emit(item) {
            throw ControlFailure(.failed, "the client has gone")
        }
        return ChangesReport(started: "2026-11-23T03:00:00Z", count: items.count, exact: true, reason: nil)
    }

    var changes: [ChangeItem] {
        (0..<2000).map { number in
            let path = Array("d/\(number)\u{1}é".utf8) + [0xff]
            let ranges = (0..<number % 1500).map { ChangeItem.Range(offset: Int64($0) << 40, length: 4096) }
            return ChangeItem(
                kinds: ["data"], type: "file", inode: UInt64(number), pathAtCut: number % 2 == 0 ? path : nil,
                path: path, ranges: number % 3 == 0 ? ranges : [], bytes: 1, attributes: ["mode"], entries: number)
        }
    }

    func unmount(_ options: UnmountOptions) throws(ControlFailure) -> UnmountReport {
        if !options.force { throw ControlFailure(.busy, "files are open") }
        state.withLock { $0.isUnmounted = true }
        return UnmountReport(endedSnapshot: state.withLock { $0.isActive })
    }
}
