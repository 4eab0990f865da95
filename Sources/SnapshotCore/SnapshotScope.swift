package import LinuxSystem
internal import Synchronization

/// Whose files a snapshot is of (`ctl start --user`, `--group`): those that one of these users, or one of these groups,
/// owned at the cut. Directories are in every snapshot.
package struct SnapshotScope: Sendable, Equatable {
    package let users: Set<UInt32>
    package let groups: Set<UInt32>

    package init(users: Set<UInt32>, groups: Set<UInt32> = []) {
        self.users = users
        self.groups = groups
    }

    /// Whether the owner or the group is one of these.
    package func owns(_ status: FileStatus) -> Bool {
        users.contains(status.user) || groups.contains(status.group)
    }
}
