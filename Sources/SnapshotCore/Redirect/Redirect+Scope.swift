internal import Glibc
internal import LinuxSystem
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

// A snapshot of some users' files: what is others' is changed where it is, in the primary, which the snapshot does not show.
//
// Not so directories, nor names: these are redirected whoever they belong to, and so is a change of an owner, so that an old
// inode has in the primary the owner that it had at the cut. Once a layer has attributes of an inode (one of its names has changed, or its
// owner), data and attributes are redirected too: they are in one place or the other (`UntouchedInodes`). What others change is no
// part of any journal: after a power cut it is what the file system makes of it, as without a snapshot.
extension Redirect {
    /// Changes an inode where it is, by `body`: one that the snapshot does not show and no layer says anything of. nil
    /// where it is another: then its change is to be redirected.
    package func changingOthers<Result>(
        _ target: ChangeTarget, _ body: () throws(Errno) -> Result
    ) throws(Errno) -> Result? {
        guard let scope = terms.scope, target.reference.kind != UInt32(S_IFDIR) else { return nil }
        return try untouched.withLock(of: target.key) { () throws(Errno) -> Result? in
            let stack = stack
            if stack.hasAttributes(target.key) { return nil }
            if scope.owns(try FileStatus(of: target.descriptor)) { return nil }
            return try body()
        }
    }

    /// Whether a file is all in the primary: one of others. It may be redirected the moment after.
    package func isOthers(_ target: ChangeTarget) throws(Errno) -> Bool {
        let stack = stack
        // Nor may one of its names have changed.
        guard let scope = terms.scope, !stack.hasAttributes(target.key), stack.links(of: target.key) == nil else {
            return false
        }
        return !scope.owns(try FileStatus(of: target.descriptor)) && !stack.isNew(target.key)
    }

    /// How much a layer holds of what the snapshot shows, or would if it were taken now. Costs as much.
    package func changes(of layer: Layer) -> DeltaMap.Changes {
        var sum = layer.map.changes(where: isOfScope)
        // What is in the primary already.
        for record in cut.map.records where isOfScope(record) {
            sum.bytes += record.contents.withLock { $0.gone.count } * UInt64(RecordLimits.blockBytes)
        }
        return sum
    }

    /// Whether a record is of something that the snapshot shows, or, made since the cut, would show.
    func isOfScope(_ record: InodeRecord) -> Bool {
        guard let scope = terms.scope, let reference = record.reference, reference.kind != UInt32(S_IFDIR) else {
            return true
        }
        do throws(Errno) {
            return scope.owns(try FileStatus(of: try source.open(reference, O_PATH)))
        } catch {
            // Gone since: only what was made since can be.
            return error != .staleNFSFileHandle
        }
    }
}

/// Guards inodes that are changed in the primary as long as no layer says anything of them: who changes one there, and who
/// makes the first record of it, exclude each other. A lock for many inodes, held across I/O.
final class UntouchedInodes: Sendable {
    private static let lockCount = 64
    private let locks = (0..<lockCount).map { _ in MutexBox<Void>(()) }

    private func lock(_ key: InodeKey) -> MutexBox<Void> {
        locks[Int((key.inode &* 0x9e37_79b9_7f4a_7c15) >> 58)]
    }

    func withLock<Result>(
        of key: InodeKey, _ body: () throws(Errno) -> Result
    ) throws(Errno) -> Result {
        try lock(key).mutex.withLock { (_) throws(Errno) in try body() }
    }
}
