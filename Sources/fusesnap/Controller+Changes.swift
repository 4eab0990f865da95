import ControlSocket
import Glibc
import SnapshotCore
import SnapshotMount
import SnapshotRecord

extension Controller {
    func changed(
        _ emit: (ChangeItem) throws(ControlFailure) -> Bool
    ) throws(ControlFailure) -> ChangesReport {
        guard lifecycle.summary != nil else { throw ControlFailure(.notActive, "no snapshot is active") }
        var count = 0
        var failure: ControlFailure?
        do throws(ChangesFailure) {
            let summary = try lifecycle.changes { change in
                do throws(ControlFailure) {
                    count += 1
                    return try emit(ChangeItem(change))
                } catch {
                    failure = error
                    return false
                }
            }
            return ChangesReport(
                started: summary.cut.rfc3339, count: count, exact: summary.inexactReason == nil,
                reason: summary.inexactReason)
        } catch {
            if let failure { throw failure }
            throw Self.failure(error, lifecycle.summary?.inexactReason)
        }
    }

    private static func failure(_ failure: ChangesFailure, _ reason: String?) -> ControlFailure {
        switch failure {
        case .ended: ControlFailure(.notActive, "the snapshot has ended")
        case .overflowed:
            ControlFailure(
                .inexact,
                "the snapshot was given up, and since then no change is recorded: \(reason ?? "no reason is known")"
            )
        case .abandoned: ControlFailure(.failed, "the list was not taken to its end")
        }
    }
}

extension ChangeItem {
    init(_ change: Change) {
        self.init(
            kinds: change.kinds.map(\.rawValue), type: Self.type(change.fileKind), inode: change.key.inode,
            pathAtCut: change.pathAtCut, path: change.path,
            ranges: change.ranges.map { Range(offset: $0.lowerBound, length: Int64($0.count)) },
            bytes: change.bytes, attributes: change.attributes,
            entries: change.kinds.contains(.entries) ? change.entries : nil)
    }

    private static func type(_ kind: UInt32) -> String? {
        switch mode_t(kind) {
        case S_IFREG: "file"
        case S_IFDIR: "directory"
        case S_IFLNK: "symlink"
        case S_IFIFO: "fifo"
        case S_IFSOCK: "socket"
        case S_IFCHR: "char"
        case S_IFBLK: "block"
        default: nil
        }
    }
}
