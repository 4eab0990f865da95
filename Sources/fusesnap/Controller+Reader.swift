import ControlSocket
import SnapshotCore
import SnapshotMount
import SnapshotRecord

// Who reads the snapshot without requests of the mount.
extension Controller {
    func readerAccess(_ options: ReaderOptions) throws(ControlFailure) -> ReaderAccess {
        guard let (summary, access) = lifecycle.directAccess() else {
            throw ControlFailure(.notActive, "no snapshot is active")
        }
        var report = ReaderReport(
            snapshot: summary.serial, mode: configuration.mode.rawValue, cut: ReaderReport.Time(summary.cut),
            inexactReason: summary.inexactReason, snapshotDirectory: configuration.snapshotPath)
        switch access {
        case .failure(let obstacle):
            report.whyNotDirect = Self.text(obstacle)
            return ReaderAccess(report, [])
        case .success(let access):
            report.directory = access.path
            report.hidden = access.hidden.map { ReaderReport.Inode(inode: $0.inode, birth: $0.birth) }
            report.absence = access.absence.map {
                ReaderReport.Absence(cut: ReaderReport.Time($0.cut), end: ReaderReport.Time($0.end))
            }
            return ReaderAccess(report, options.looks == true ? [] : [access.root, access.directory])
        }
    }

    private static func text(_ obstacle: SnapshotLifecycle.ReadingObstacle) -> String {
        switch obstacle {
        case .unjournaled: "no journal is kept of it (of some users' files, or for a single pass)"
        case .noHandles: "without file handles (which need root) only the daemon finds files that were moved"
        }
    }
}
