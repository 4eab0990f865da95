import ControlSocket
import Glibc
import SnapshotMount

// What ordinary users may ask of root's mount (`-o user_snapshots`).
extension Controller {
    /// Whose files the snapshot of a start is of: an ordinary user's of their own.
    func scope(of options: StartOptions, _ limits: Freezer.Limits) throws(ControlFailure) -> Scope {
        let isSinglePass = options.singlePass ?? false
        let wanted = Scope(users: options.users, groups: options.groups, isSinglePass: isSinglePass)
        guard case .user(let user) = options.requester else { return wanted }
        let isOwn = (wanted.users ?? [user]).allSatisfy { $0 == user }
        if !isOwn || wanted.groups != nil {
            throw ControlFailure(
                .refused,
                "user \(user) may take a snapshot of their own files only (--user \(user)), not of others'")
        }
        let standard = Freezer.Limits()
        if limits.stallMax > standard.stallMax || limits.attemptsMax > standard.attemptsMax {
            throw ControlFailure(
                .refused,
                "only root, and who mounted, may raise --stall-max and --attempts: others would wait for it")
        }
        if let process = options.leaseProcess, !Self.process(process, isOf: user) {
            throw ControlFailure(
                .refused, "process \(process), which is to hold the snapshot, is not user \(user)'s")
        }
        return Scope(users: [user], groups: nil, isSinglePass: isSinglePass)
    }

    private static func process(_ number: Int32, isOf user: UInt32) -> Bool {
        var status = stat()
        return stat("/proc/\(number)", &status) == 0 && status.st_uid == user
    }
}
