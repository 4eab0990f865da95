/// What a mount is doing. Fields are only ever added; `schema` changes if one must go.
package struct Status: Codable, Sendable, Equatable {
    package static let currentSchema = 1

    package enum State: String, Codable, Sendable {
        case idle, active, merging, overflowed
    }

    /// What ends the snapshot where nobody stops it.
    package struct Lease: Codable, Sendable, Equatable {
        /// The process that holds it: that of `--lease`, or the `run` at the other end of the connection. nil: none
        /// does, or it is of another process namespace.
        package var process: Int32?
        /// The name of that process's program.
        package var command: String?
        /// Whether it ends with a connection, which that of the process does.
        package var connection: Bool?
        /// When its time is over, RFC 3339; nil: never.
        package var expires: String?

        package init(
            process: Int32? = nil, command: String? = nil, connection: Bool? = nil, expires: String? = nil
        ) {
            self.process = process
            self.command = command
            self.connection = connection
            self.expires = expires
        }
    }

    package var schema: Int
    package var pid: Int32
    package var version: String
    package var source: String
    package var mountpoint: String
    /// `preserve` or `redirect`.
    package var mode: String
    package var state: State
    /// The instant of the cut, RFC 3339; nil when idle.
    package var started: String?
    package var deltaBytes: UInt64
    package var changedAreas: UInt64
    package var snapshotBytesRead: UInt64
    package var store: String
    /// The I/O policy, as `-o io=` names it.
    package var io: String
    /// What `-o io=` asked for: `auto` where `io` is the daemon's choice.
    package var ioRequested: String?
    /// Why the snapshot is no longer exact; nil as long as it is.
    package var inexactReason: String?
    /// For how long the last start may have stalled applications; nil before the first.
    package var lastStallMicroseconds: Int?
    /// Whether changes of the source that do not come through the mount are seen; nil when idle.
    package var sourceWatched: Bool?
    /// Where the snapshot is read, which is there while one is active; an absolute path.
    package var snapshotDirectory: String?
    /// What --max-delta allows; nil: no bound.
    package var deltaBytesMax: UInt64?
    /// nil where only a stop ends the snapshot, or none is active.
    package var lease: Lease?
    /// How many requests of each kind the kernel sent so far; nil where they are not counted (`-o count_requests`).
    package var requests: [String: UInt64]?
    /// Whose files the active snapshot is of; both nil: everybody's.
    package var users: [UInt32]?
    package var groups: [UInt32]?
    /// What of the active snapshot has been read and is not kept any more (`--single-pass`); nil: all is kept.
    package var releasedBytes: UInt64?
    /// How far the merge is, while `state` is merging.
    package var merge: StopProgress?
    /// Why the last merge did not come to its end; the next stop tries again.
    package var mergeProblem: String?

    package init(
        pid: Int32, version: String, source: String, mountpoint: String, mode: String, state: State,
        started: String?, deltaBytes: UInt64, changedAreas: UInt64, snapshotBytesRead: UInt64,
        store: String, io: String, ioRequested: String? = nil, inexactReason: String? = nil,
        lastStallMicroseconds: Int? = nil,
        sourceWatched: Bool? = nil, snapshotDirectory: String? = nil, deltaBytesMax: UInt64? = nil
    ) {
        schema = Self.currentSchema
        self.pid = pid
        self.version = version
        self.source = source
        self.mountpoint = mountpoint
        self.mode = mode
        self.state = state
        self.started = started
        self.deltaBytes = deltaBytes
        self.changedAreas = changedAreas
        self.snapshotBytesRead = snapshotBytesRead
        self.store = store
        self.io = io
        self.ioRequested = ioRequested
        self.inexactReason = inexactReason
        self.lastStallMicroseconds = lastStallMicroseconds
        self.sourceWatched = sourceWatched
        self.snapshotDirectory = snapshotDirectory
        self.deltaBytesMax = deltaBytesMax
    }

    enum CodingKeys: String, CodingKey {
        case schema, pid, version, source, mountpoint, mode, state, started, lease, requests, users, groups, merge
        case mergeProblem = "merge_problem"
        case deltaBytes = "delta_bytes"
        case changedAreas = "changed_areas"
        case snapshotBytesRead = "snapshot_bytes_read"
        case store, io
        case ioRequested = "io_requested"
        case inexactReason = "inexact_reason"
        case lastStallMicroseconds = "last_stall_microseconds"
        case sourceWatched = "source_watched"
        case snapshotDirectory = "snapshot_directory"
        case deltaBytesMax = "delta_bytes_max"
        case releasedBytes = "released_bytes"
    }

    /// Written by hand for `started`, which is there as null when idle: scripts may ask for it
    /// without a test.
    package func encode(to encoder: any Encoder) throws {
        var fields = encoder.container(keyedBy: CodingKeys.self)
        try fields.encode(schema, forKey: .schema)
        try fields.encode(pid, forKey: .pid)
        try fields.encode(version, forKey: .version)
        try fields.encode(source, forKey: .source)
        try fields.encode(mountpoint, forKey: .mountpoint)
        try fields.encode(mode, forKey: .mode)
        try fields.encode(state, forKey: .state)
        try fields.encode(started, forKey: .started)
        try fields.encode(deltaBytes, forKey: .deltaBytes)
        try fields.encode(changedAreas, forKey: .changedAreas)
        try fields.encode(snapshotBytesRead, forKey: .snapshotBytesRead)
        try fields.encode(store, forKey: .store)
        try fields.encode(io, forKey: .io)
        try fields.encodeIfPresent(ioRequested, forKey: .ioRequested)
        try fields.encodeIfPresent(inexactReason, forKey: .inexactReason)
        try fields.encodeIfPresent(lastStallMicroseconds, forKey: .lastStallMicroseconds)
        try fields.encodeIfPresent(sourceWatched, forKey: .sourceWatched)
        try fields.encodeIfPresent(snapshotDirectory, forKey: .snapshotDirectory)
        try fields.encodeIfPresent(deltaBytesMax, forKey: .deltaBytesMax)
        try fields.encodeIfPresent(lease, forKey: .lease)
        try fields.encodeIfPresent(requests, forKey: .requests)
        try fields.encodeIfPresent(users, forKey: .users)
        try fields.encodeIfPresent(groups, forKey: .groups)
        try fields.encodeIfPresent(releasedBytes, forKey: .releasedBytes)
        try fields.encodeIfPresent(merge, forKey: .merge)
        try fields.encodeIfPresent(mergeProblem, forKey: .mergeProblem)
    }
}
