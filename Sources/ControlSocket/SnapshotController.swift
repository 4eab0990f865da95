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
    /// What the snapshot is, and what is needed to read it without the mount.
    func readerAccess(_ options: ReaderOptions) throws(ControlFailure) -> ReaderAccess
    /// Ends an active snapshot, unmounts; returns when the mount is gone from the name space (the
    /// process exits soon after the reply).
    func unmount(_ options: UnmountOptions) throws(ControlFailure) -> UnmountReport
    /// Takes down what became of the hooks that the client ran around the start of a snapshot.
    func noteHooks(_ options: HooksOptions) throws(ControlFailure)
    /// The number of the active snapshot where that user began it, as an ordinary one.
    func ownSnapshot(of user: UInt32) -> UInt64?
    /// The connection that held the snapshot of that number (`StartOptions.leaseConnection`) is closed.
    func connectionEnded(holding snapshot: UInt64)
}

extension SnapshotController {
    package func readerAccess(_ options: ReaderOptions) throws(ControlFailure) -> ReaderAccess {
        throw ControlFailure(.notActive, "no snapshot is active")
    }
    package func noteHooks(_ options: HooksOptions) throws(ControlFailure) {}
    package func connectionEnded(holding snapshot: UInt64) {}
    package func ownSnapshot(of user: UInt32) -> UInt64? { nil }
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
    case hookFailed = "hook_failed"

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
    /// The snapshot ends when this process does.
    package var leaseProcess: Int32?
    /// When that process began, in ticks since boot as /proc/PID/stat tells: another that got its number since has
    /// another time.
    package var leaseProcessStart: UInt64?
    /// The snapshot ends when the connection of this request does.
    package var leaseConnection: Bool?
    /// The snapshot ends after this time.
    package var ttlSeconds: Int?
    /// What became of the freeze hooks that the client ran.
    package var hooks: [HookResult]?
    /// Of the mount's own hooks: how long one may take, and whether a failure does not matter.
    package var hookTimeoutSeconds: Int?
    package var ignoresHookFailures: Bool?
    /// Whose files the snapshot is of: those that these users, or these groups, own at the cut. Both nil: everybody's.
    package var users: [UInt32]?
    package var groups: [UInt32]?
    /// Whether the backup reads every file once, so that what it has read need not be kept.
    package var singlePass: Bool?
    /// The process that asks, as the kernel tells the daemon: never sent. nil: it is of another process namespace.
    package var clientProcess: Int32?
    /// Who asks, as the kernel tells the daemon: never sent.
    package var requester = Requester.controller

    package init(stallMaxMilliseconds: Int? = nil, attemptsMax: Int? = nil) {
        self.stallMaxMilliseconds = stallMaxMilliseconds
        self.attemptsMax = attemptsMax
    }

    enum CodingKeys: String, CodingKey {
        case stallMaxMilliseconds = "stall_max_milliseconds"
        case attemptsMax = "attempts_max"
        case leaseProcess = "lease_process"
        case leaseProcessStart = "lease_process_start"
        case leaseConnection = "lease_connection"
        case ttlSeconds = "ttl_seconds"
        case singlePass = "single_pass"
        case hooks, users, groups
        case hookTimeoutSeconds = "hook_timeout_seconds"
        case ignoresHookFailures = "ignores_hook_failures"
    }
}

/// What a start tells. `Docs/Json.md` is its description. Fields are only ever added; `schema` changes if one must go.
package struct StartReport: Codable, Sendable, Equatable {
    package static let currentSchema = 1

    /// A daemon of an earlier version does not tell it.
    package var schema: Int?
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
    /// The number of the snapshot among those of this daemon.
    package var snapshot: UInt64?
    /// What became of the hooks: the mount's own, and those of the command, which adds them.
    package var hooks: [HookResult]?
    /// Whose files it is of; both missing: everybody's.
    package var users: [UInt32]?
    package var groups: [UInt32]?

    package init(
        started: String, stallMicroseconds: Int, attempts: Int, filesFrozen: Int,
        snapshotDirectory: String? = nil
    ) {
        schema = Self.currentSchema
        self.started = started
        self.stallMicroseconds = stallMicroseconds
        self.attempts = attempts
        self.filesFrozen = filesFrozen
        self.snapshotDirectory = snapshotDirectory
    }

    enum CodingKeys: String, CodingKey {
        case schema, started, attempts, snapshot, hooks, users, groups
        case stallMicroseconds = "stall_microseconds"
        case filesFrozen = "files_frozen"
        case snapshotDirectory = "snapshot_directory"
    }
}

package struct StopOptions: Codable, Sendable, Equatable {
    /// Redirect only: throws the changes since the cut away.
    package var discard: Bool
    /// Only the snapshot of this number; nil: whichever is active.
    package var snapshot: UInt64?

    package init(discard: Bool = false, snapshot: UInt64? = nil) {
        self.discard = discard
        self.snapshot = snapshot
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
