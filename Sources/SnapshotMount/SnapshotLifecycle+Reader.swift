package import LinuxSystem
package import SnapshotCore
package import SnapshotRecord
internal import Synchronization

// For who reads the snapshot from source and store, without requests of the mount (`FusesnapReader`).
extension SnapshotLifecycle {
    /// What such a reader needs.
    package struct DirectAccess: Sendable {
        package let root: Descriptor
        /// That of the journal and of the delta files.
        package let directory: Descriptor
        package let path: String
        package let hidden: [InodeKey]
        /// When nobody recorded changes; nil where there was no such time.
        package let absence: Absence?
    }

    /// Why a snapshot can only be read through the mount.
    package enum ReadingObstacle: Error, Sendable {
        /// A snapshot of some users' files, or for a single pass: what it shows, and what of it is gone, is in no journal.
        case unjournaled
        /// Inodes that were moved are found by what this daemon alone knows.
        case noHandles
    }

    /// nil where no snapshot is active.
    package func directAccess() -> (Summary, Result<DirectAccess, ReadingObstacle>)? {
        guard generation.mutex.withLock({ $0 }) != nil else { return nil }
        // Once a start has come to its end: its journal says by then when the cut was.
        return transitions.withLock { _ in
            guard let active = generation.mutex.withLock({ $0 }) else { return nil }
            // What was changed past the mount has been told, so that the summary has it.
            foreignChanges?.finish()
            return (Self.summary(active), directAccess(active))
        }
    }

    private func directAccess(_ active: Generation) -> Result<DirectAccess, ReadingObstacle> {
        guard source.usesHandles else { return .failure(.noHandles) }
        let cut = active.embodiment.cut
        let directory: Descriptor
        let name: FileName
        switch active.embodiment {
        case .preserve(let preserve):
            guard preserve.store.isJournaled else { return .failure(.unjournaled) }
            (directory, name) = (preserve.store.files.directory, Store.snapshotName)
        case .redirect(let redirect):
            if redirect.terms.changesSource { return .failure(.unjournaled) }
            // While a snapshot is active there is no other layer.
            let layer = redirect.stack.top
            (directory, name) = (layer.files.directory, Store.layerName(layer.number))
        }
        return .success(
            DirectAccess(
                root: source.root, directory: directory, path: "\(store.path)/\(name)", hidden: source.hidden,
                absence: cut.absence))
    }
}
