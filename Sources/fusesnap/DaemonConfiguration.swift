/// What a daemon is asked to do. The checks of `MountChecks` have passed.
struct DaemonConfiguration: Equatable, Sendable {
    /// The source as the user wrote it.
    var sourceAsGiven: String
    /// Canonical paths.
    var source: String
    var mountpoint: String
    var mode: Mode
    /// The store's absolute path; nil: the default in the source.
    var store: String?
    var maxDelta: ByteSize?
    var options: MountOptions
    var isForeground: Bool
    /// The user knows that the source is in use past the mount.
    var isForced = false
    /// The mount's own hooks, which the daemon runs.
    var hooks: [Hook] = []

    /// What `options.policy` amounts to here: never `automatic` once the daemon serves.
    var policy = MountOptions.InputOutputPolicy.writeThrough

    /// Whether the mount lies over the source itself.
    var isOverSource: Bool { source == mountpoint }
    /// Where the snapshot is read.
    var snapshotPath: String {
        (mountpoint == "/" ? "" : mountpoint) + "/" + options.snapshotDirectory
    }
}
