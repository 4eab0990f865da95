/// What a snapshot was, from its cut to its end: what a backup made from it may claim. `Docs/Json.md` is its
/// description. Fields are only ever added; `schema` changes if one must go.
package struct StopReport: Codable, Sendable, Equatable {
    package static let currentSchema = 1

    package enum Level: String, Codable, Sendable {
        /// Hooks were run, and all succeeded: applications had put their data in order for the cut.
        case application
        /// As after a power cut at that instant.
        case crash
    }

    package var schema: Int
    /// Whether the snapshot was exact to its end.
    package var exact: Bool
    /// Why it was not.
    package var reason: String?
    package var deltaBytes: UInt64
    package var changedAreas: UInt64

    // A daemon of an earlier version does not tell these.
    package var version: String?
    package var source: String?
    package var mountpoint: String?
    package var mode: String?
    package var io: String?
    /// The instant of the cut, and that of the end: RFC 3339, UTC, with nanoseconds.
    package var cut: String?
    package var ended: String?
    /// For how long applications that change anything may have waited at the cut.
    package var stallMicroseconds: Int?
    package var attempts: Int?
    package var filesFrozen: Int?
    /// For how long all changes were kept back, at the end of that.
    package var gateMicroseconds: Int?
    package var level: Level?
    /// In the order in which they were run.
    package var hooks: [HookResult]?
    package var deltaPeakBytes: UInt64?
    /// The files of the cut, other than directories, that changed or went, and the bytes of their data that did.
    package var changedFiles: UInt64?
    package var changedBytes: UInt64?
    /// What was made after the cut, and is there or has been.
    package var createdFiles: UInt64?
    package var snapshotBytesRead: UInt64?
    /// Whether changes past the mount were looked for.
    package var sourceWatched: Bool?
    /// Whose files it was of; both nil: everybody's.
    package var users: [UInt32]?
    package var groups: [UInt32]?
    /// What had been read and was not kept any more; nil: all was kept.
    package var releasedBytes: UInt64?

    package init(exact: Bool, reason: String?, deltaBytes: UInt64, changedAreas: UInt64) {
        schema = Self.currentSchema
        self.exact = exact
        self.reason = reason
        self.deltaBytes = deltaBytes
        self.changedAreas = changedAreas
    }

    enum CodingKeys: String, CodingKey {
        case schema, exact, reason, version, source, mountpoint, mode, io, cut, ended, attempts, level, hooks
        case users, groups
        case deltaBytes = "delta_bytes"
        case changedAreas = "changed_areas"
        case stallMicroseconds = "stall_microseconds"
        case filesFrozen = "files_frozen"
        case gateMicroseconds = "gate_microseconds"
        case deltaPeakBytes = "delta_peak_bytes"
        case changedFiles = "changed_files"
        case changedBytes = "changed_bytes"
        case createdFiles = "created_files"
        case snapshotBytesRead = "snapshot_bytes_read"
        case sourceWatched = "source_watched"
        case releasedBytes = "released_bytes"
    }
}

extension StopReport {
    /// By hand for `schema`, which a daemon of an earlier version does not tell.
    package init(from decoder: any Decoder) throws {
        let fields = try decoder.container(keyedBy: CodingKeys.self)
        self.init(
            exact: try fields.decode(Bool.self, forKey: .exact),
            reason: try fields.decodeIfPresent(String.self, forKey: .reason),
            deltaBytes: try fields.decode(UInt64.self, forKey: .deltaBytes),
            changedAreas: try fields.decode(UInt64.self, forKey: .changedAreas))
        schema = try fields.decodeIfPresent(Int.self, forKey: .schema) ?? Self.currentSchema
        version = try fields.decodeIfPresent(String.self, forKey: .version)
        source = try fields.decodeIfPresent(String.self, forKey: .source)
        mountpoint = try fields.decodeIfPresent(String.self, forKey: .mountpoint)
        mode = try fields.decodeIfPresent(String.self, forKey: .mode)
        io = try fields.decodeIfPresent(String.self, forKey: .io)
        cut = try fields.decodeIfPresent(String.self, forKey: .cut)
        ended = try fields.decodeIfPresent(String.self, forKey: .ended)
        stallMicroseconds = try fields.decodeIfPresent(Int.self, forKey: .stallMicroseconds)
        attempts = try fields.decodeIfPresent(Int.self, forKey: .attempts)
        filesFrozen = try fields.decodeIfPresent(Int.self, forKey: .filesFrozen)
        gateMicroseconds = try fields.decodeIfPresent(Int.self, forKey: .gateMicroseconds)
        level = try fields.decodeIfPresent(Level.self, forKey: .level)
        hooks = try fields.decodeIfPresent([HookResult].self, forKey: .hooks)
        deltaPeakBytes = try fields.decodeIfPresent(UInt64.self, forKey: .deltaPeakBytes)
        changedFiles = try fields.decodeIfPresent(UInt64.self, forKey: .changedFiles)
        changedBytes = try fields.decodeIfPresent(UInt64.self, forKey: .changedBytes)
        createdFiles = try fields.decodeIfPresent(UInt64.self, forKey: .createdFiles)
        snapshotBytesRead = try fields.decodeIfPresent(UInt64.self, forKey: .snapshotBytesRead)
        sourceWatched = try fields.decodeIfPresent(Bool.self, forKey: .sourceWatched)
        users = try fields.decodeIfPresent([UInt32].self, forKey: .users)
        groups = try fields.decodeIfPresent([UInt32].self, forKey: .groups)
        releasedBytes = try fields.decodeIfPresent(UInt64.self, forKey: .releasedBytes)
    }
}
