internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
internal import SystemPackage

// A snapshot of one user's files: what concerns others' passes straight through.
//
// Who owned a file at the cut is told by its recorded attributes, else by those that it has: for that every change of
// ownership is recorded before it is made, whoever the file belongs to. Directories are always recorded, since any of
// them may lead to something that is shown.
extension Preserve {
    /// Whether the snapshot shows an inode, which exists: whether what changes in it must be preserved.
    package func concerns(_ target: ChangeTarget) -> Bool {
        guard let scope, target.reference.kind != UInt32(S_IFDIR) else { return true }
        do throws(Errno) {
            return scope.owns(
                try overlay.status(of: target.reference) { () throws(Errno) in target.descriptor })
        } catch {
            // Not known: then it is preserved, or the failure to do so makes the snapshot inexact.
            return true
        }
    }

    /// Whether an inode other than a directory that this user makes in a directory could belong to the snapshot's
    /// users. The kernel gives it the user's group or the directory's.
    package func concernsMaker(user: UInt32, group: UInt32, in directory: ChangeTarget) -> Bool {
        guard let scope, credentials.makesFilesAsCaller else { return true }
        if scope.users.contains(user) || scope.groups.contains(group) { return true }
        if scope.groups.isEmpty { return false }
        do throws(Errno) {
            return scope.groups.contains(try FileStatus(of: directory.descriptor).group)
        } catch {
            return true
        }
    }

    /// What a name stands for, as far as the snapshot shows it.
    package func shown(_ target: ChangeTarget) -> RecordedEntry {
        concerns(target) ? .present(target.reference) : .absent
    }

    /// Before the owner or the group of an inode changes: it keeps in the snapshot those that it has now.
    package func willChangeOwner(of target: ChangeTarget) {
        guard scope != nil, !concerns(target) else { return willChangeAttributes(of: target) }
        guard end.isRecording, target.reference.device == source.device,
            let record = map.recordForChange(of: target.key, target.reference),
            !record.contents.withLock({ $0.isLost })
        else { return }
        _ = preserveAttributes(of: target, record)
    }

    /// How much has changed of what the snapshot shows. Costs as much as has changed.
    package var changes: DeltaMap.Changes { map.changes(where: cut.isOfScope) }
}

extension SnapshotCut {
    /// Whether an inode whose owner has not just been changed is of no concern to the snapshot.
    package func isPlainlyOthers(_ status: FileStatus) -> Bool {
        guard let scope, !status.isDirectory, !scope.owns(status) else { return false }
        return map.record(of: InodeKey(status)) == nil
    }

    /// Whether a record is of the snapshot's, and not only there to know whose the inode was.
    func isOfScope(_ record: InodeRecord) -> Bool {
        guard let scope, let status = record.contents.withLock({ $0.attributes?.status }), !status.isDirectory
        else { return true }
        return scope.owns(status)
    }
}
