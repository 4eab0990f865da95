/// What the control channel asks of the daemon. Called on the server's threads, several at once:
/// `status` while a `stop` runs, for example.
package protocol SnapshotController: AnyObject, Sendable {
    func start(_ options: StartOptions) throws(ControlFailure) -> StartReport
    func stop(
        _ options: StopOptions, progress: @escaping @Sendable (StopProgress) -> Void
    ) throws(ControlFailure) -> StopReport
    func status() -> Status
    /// Tells what changed since the cut. `emit` answers false where no more is wanted.
    func changed(
        _ emit: (ChangeItem) throws(ControlFailure) -> Bool
    ) throws(ControlFailure) -> ChangesReport
    /// Ends an active snapshot, unmounts; returns when the mount is gone from the name space (the
    /// process exits soon after the reply).
    func unmount(_ options: UnmountOptions) throws(ControlFailure) -> UnmountReport
}

/// Why a request was not carried out.
package enum ControlFailureCode: String, Codable, Sendable {
    case alreadyActive = "already_active"
    case notActive = "not_active"
    case inexact
    case busy
    case notFrozen = "not_frozen"
    case failed
    case refused
    case badRequest = "bad_request"
    case unsupportedProtocol = "unsupported_protocol"
    case timedOut = "timed_out"

    /// A code that a newer daemon made up reads as `failed`: its message says the rest.
    package init(from decoder: any Decoder) throws {
        let name = try decoder.singleValueContainer().decode(String.self)
        self = ControlFailureCode(rawValue: name) ?? .failed
    }
}

package struct ControlFailure: Error, Codable, Sendable, Equatable {
    package var code: ControlFailureCode
    /// What was attempted, on what, what went wrong, what to do: shown to people as it is.
    package var message: String

    package init(_ code: ControlFailureCode, _ message: String) {
        self.code = code
        self.message = message
    }
}

package struct StartOptions: Codable, Sendable, Equatable {
    /// For how long an attempt to freeze the writers may stall applications; nil: the daemon's choice.
    package var stallMaxMilliseconds: Int?
    /// How often that is tried; nil: the daemon's choice.
    package var attemptsMax: Int?

    package init(stallMaxMilliseconds: Int? = nil, attemptsMax: Int? = nil) {
        self.stallMaxMilliseconds = stallMaxMilliseconds
        self.attemptsMax = attemptsMax
    }

    enum CodingKeys: String, CodingKey {
        case stallMaxMilliseconds = "stall_max_milliseconds"
        case attemptsMax = "attempts_max"
    }
}

package struct StartReport: Codable, Sendable, Equatable {
    /// The instant of the cut, RFC 3339.
    package var started: String
    /// For how long applications that change anything may have waited.
    package var stallMicroseconds: Int
    /// How often freezing the writers was tried, the last time with success.
    package var attempts: Int
    /// The files that were open for writing.
    package var filesFrozen: Int
    /// Where the snapshot is read: the absolute path of the hidden directory in the mount.
    package var snapshotDirectory: String?

    package init(
        started: String, stallMicroseconds: Int, attempts: Int, filesFrozen: Int,
        snapshotDirectory: String? = nil
    ) {
        self.started = started
        self.stallMicroseconds = stallMicroseconds
        self.attempts = attempts
        self.filesFrozen = filesFrozen
        self.snapshotDirectory = snapshotDirectory
    }

    enum CodingKeys: String, CodingKey {
        case started, attempts
        case stallMicroseconds = "stall_microseconds"
        case filesFrozen = "files_frozen"
        case snapshotDirectory = "snapshot_directory"
    }
}

package struct StopOptions: Codable, Sendable, Equatable {
    /// Redirect only: throws the changes since the cut away.
    package var discard: Bool

    package init(discard: Bool = false) {
        self.discard = discard
    }
}

package struct StopProgress: Codable, Sendable, Equatable {
    package var bytesDone: UInt64
    package var bytesTotal: UInt64

    package init(bytesDone: UInt64, bytesTotal: UInt64) {
        self.bytesDone = bytesDone
        self.bytesTotal = bytesTotal
    }

    enum CodingKeys: String, CodingKey {
        case bytesDone = "bytes_done"
        case bytesTotal = "bytes_total"
    }
}

package struct StopReport: Codable, Sendable, Equatable {
    /// Whether the snapshot was exact to its end.
    package var exact: Bool
    /// Why it was not.
    package var reason: String?
    package var deltaBytes: UInt64
    package var changedAreas: UInt64

    package init(exact: Bool, reason: String?, deltaBytes: UInt64, changedAreas: UInt64) {
        self.exact = exact
        self.reason = reason
        self.deltaBytes = deltaBytes
        self.changedAreas = changedAreas
    }

    enum CodingKeys: String, CodingKey {
        case exact, reason
        case deltaBytes = "delta_bytes"
        case changedAreas = "changed_areas"
    }
}

package struct UnmountOptions: Codable, Sendable, Equatable {
    /// The caller knows that an active snapshot ends.
    package var force: Bool

    package init(force: Bool = false) {
        self.force = force
    }
}

package struct UnmountReport: Codable, Sendable, Equatable {
    /// Whether a snapshot was active and has been ended.
    package var endedSnapshot: Bool

    package init(endedSnapshot: Bool) {
        self.endedSnapshot = endedSnapshot
    }

    enum CodingKeys: String, CodingKey {
        case endedSnapshot = "ended_snapshot"
    }
}
