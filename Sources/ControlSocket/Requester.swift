/// Who is at the other end of a connection.
package enum Requester: Sendable, Equatable {
    /// Root, or the user who mounted: may do everything.
    case controller
    /// Another user, where the mount admits them (`-o user_snapshots`): may take a snapshot of their own files, and ask
    /// about and end that one.
    case user(UInt32)

    init(user: UInt32, owner: UInt32) {
        self = user == 0 || user == owner ? .controller : .user(user)
    }
}

/// What an ordinary user may ask for.
struct OrdinaryUser {
    let user: UInt32
    let controller: any SnapshotController

    /// The number of the active snapshot, which this user began.
    func ownSnapshot() throws(ControlFailure) -> UInt64 {
        if let snapshot = controller.ownSnapshot(of: user) { return snapshot }
        throw ControlFailure(
            .notActive,
            "no snapshot of user \(user) is active; root, and who mounted, can ask about and end others'")
    }

    var mayNotUnmount: ControlFailure {
        ControlFailure(.refused, "user \(user) may not unmount it: only root, and who mounted, may")
    }
}
