// What goes over the control socket: one JSON object a line. Docs/Control.md describes it; fields are only ever
// added within a protocol version.

/// The version of the protocol that this code speaks.
package let protocolVersion = 1

/// A line from the client.
package struct Request: Codable, Sendable {
    package enum Command: String, Codable, Sendable {
        case start, stop, status, unmount
    }

    /// Named so on the wire.
    package var `protocol`: Int
    package var command: Command
    /// stop: throw the changes away instead of keeping them.
    package var discard: Bool?

    package init(_ command: Command, discard: Bool? = nil) {
        self.protocol = protocolVersion
        self.command = command
        self.discard = discard
    }
}

/// A line from the server: exactly one of the fields is there. `progress` is followed by more lines.
package struct Reply: Codable, Sendable {
    package var progress: StopProgress?
    package var error: ControlFailure?
    package var started: StartReport?
    package var stopped: StopReport?
    package var status: Status?
    package var unmounted: UnmountReport?

    package init() {}
}

/// Why a request was not carried out.
package struct ControlFailure: Error, Codable, Sendable {
    package enum Code: String, Codable, Sendable {
        /// A snapshot is active already.
        case alreadyActive = "already_active"
        /// No snapshot is active.
        case notActive = "not_active"
        /// The mount is in use.
        case busy
        /// The peer may not control this mount.
        case refused
        /// The request was not understood.
        case badRequest = "bad_request"
        case failed
    }

    package var code: Code
    package var message: String

    package init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }
}

package struct StartReport: Codable, Sendable {
    /// The instant of the cut, RFC 3339, UTC.
    package var started: String
    /// The directory that shows the snapshot.
    package var snapshot: String
    /// For how long changes waited at the gate.
    package var gateClosedMicroseconds: Int

    package init(started: String, snapshot: String, gateClosedMicroseconds: Int) {
        self.started = started
        self.snapshot = snapshot
        self.gateClosedMicroseconds = gateClosedMicroseconds
    }

    enum CodingKeys: String, CodingKey {
        case started, snapshot
        case gateClosedMicroseconds = "gate_closed_microseconds"
    }
}

/// How far a merge is.
package struct StopProgress: Codable, Sendable {
    package var bytesDone: UInt64
    package var bytesTotal: UInt64

    enum CodingKeys: String, CodingKey {
        case bytesDone = "bytes_done"
        case bytesTotal = "bytes_total"
    }
}

package struct StopReport: Codable, Sendable {
    package var started: String
    /// Whether the snapshot was exact to its end, and why not.
    package var exact: Bool
    package var inexactReason: String?
    package var deltaBytes: UInt64
    package var changedAreas: UInt64
    package var snapshotBytesRead: UInt64

    package init(
        started: String, inexactReason: String?, deltaBytes: UInt64, changedAreas: UInt64,
        snapshotBytesRead: UInt64
    ) {
        self.started = started
        exact = inexactReason == nil
        self.inexactReason = inexactReason
        self.deltaBytes = deltaBytes
        self.changedAreas = changedAreas
        self.snapshotBytesRead = snapshotBytesRead
    }

    enum CodingKeys: String, CodingKey {
        case started, exact
        case inexactReason = "inexact_reason"
        case deltaBytes = "delta_bytes"
        case changedAreas = "changed_areas"
        case snapshotBytesRead = "snapshot_bytes_read"
    }
}

package struct UnmountReport: Codable, Sendable {
    /// Whether a snapshot was active, and has ended with the mount.
    package var endedSnapshot: Bool

    package init(endedSnapshot: Bool) {
        self.endedSnapshot = endedSnapshot
    }

    enum CodingKeys: String, CodingKey {
        case endedSnapshot = "ended_snapshot"
    }
}

/// What `ctl status` shows.
package struct Status: Codable, Sendable {
    package enum State: String, Codable, Sendable {
        case idle, active, merging, overflowed
    }

    package var schema = 1
    package var pid: Int32
    package var version: String
    package var source: String
    package var mountpoint: String
    package var store: String
    package var mode: String
    package var io: String
    package var state: State
    /// RFC 3339, UTC; nil while idle.
    package var started: String?
    package var deltaBytes: UInt64
    package var changedAreas: UInt64
    package var snapshotBytesRead: UInt64
    package var inexactReason: String?

    package init(
        pid: Int32, version: String, source: String, mountpoint: String, store: String,
        mode: String, io: String, state: State, started: String?, deltaBytes: UInt64,
        changedAreas: UInt64, snapshotBytesRead: UInt64, inexactReason: String?
    ) {
        self.pid = pid
        self.version = version
        self.source = source
        self.mountpoint = mountpoint
        self.store = store
        self.mode = mode
        self.io = io
        self.state = state
        self.started = started
        self.deltaBytes = deltaBytes
        self.changedAreas = changedAreas
        self.snapshotBytesRead = snapshotBytesRead
        self.inexactReason = inexactReason
    }

    enum CodingKeys: String, CodingKey {
        case schema, pid, version, source, mountpoint, store, mode, io, state, started
        case deltaBytes = "delta_bytes"
        case changedAreas = "changed_areas"
        case snapshotBytesRead = "snapshot_bytes_read"
        case inexactReason = "inexact_reason"
    }

    /// `started` is written while idle too, as null.
    package func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(schema, forKey: .schema)
        try container.encode(pid, forKey: .pid)
        try container.encode(version, forKey: .version)
        try container.encode(source, forKey: .source)
        try container.encode(mountpoint, forKey: .mountpoint)
        try container.encode(store, forKey: .store)
        try container.encode(mode, forKey: .mode)
        try container.encode(io, forKey: .io)
        try container.encode(state, forKey: .state)
        try container.encode(started, forKey: .started)
        try container.encode(deltaBytes, forKey: .deltaBytes)
        try container.encode(changedAreas, forKey: .changedAreas)
        try container.encode(snapshotBytesRead, forKey: .snapshotBytesRead)
        try container.encodeIfPresent(inexactReason, forKey: .inexactReason)
    }
}

/// What the server asks of the daemon. Methods are called on the server's threads, several at once.
package protocol SnapshotController: AnyObject, Sendable {
    func start() throws(ControlFailure) -> StartReport
    func stop(
        discard: Bool, progress: @escaping @Sendable (StopProgress) -> Void
    ) throws(ControlFailure) -> StopReport
    func status() -> Status
    /// Unmounts, ending a snapshot that is active. The process ends soon after it has returned.
    func unmount() throws(ControlFailure) -> UnmountReport
}
