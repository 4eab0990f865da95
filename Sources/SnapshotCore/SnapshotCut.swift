internal import LinuxSystem
package import SnapshotRecord
internal import Synchronization

/// One cut, as `.snapshot` shows it: the source with the versions of the cut of what has changed there since, and
/// whether that still holds. Preserve stores those versions; in redirect the source does not change, so there are none,
/// and the map knows only what was changed beside the mount.
package final class SnapshotCut: Sendable {
    package let source: SourceTree
    package let map = DeltaMap()
    /// Where the versions are that the map tells of; nil in redirect.
    package let store: DeltaStore?
    package let end = SnapshotEnd()
    let locations = LocationTable()
    /// Called once, when the snapshot becomes inexact, from a worker: must not wait for anything.
    private let didBecomeInexact: @Sendable (String) -> Void

    package init(
        source: SourceTree, store: DeltaStore?, didBecomeInexact: @escaping @Sendable (String) -> Void
    ) {
        self.source = source
        self.store = store
        self.didBecomeInexact = didBecomeInexact
    }

    package var overlay: OverlayView {
        OverlayView(source: source, map: map, store: store, locations: locations)
    }

    /// Gives the snapshot up: its reads fail from now on, and nothing more is stored for it.
    package func becomeInexact(_ why: String) {
        if end.becomeInexact(why) { didBecomeInexact(why) }
    }

    /// Marks the snapshot inexact, though its reads go on where they can.
    package func becomeIncomplete(_ why: String) {
        if end.becomeIncomplete(why) { didBecomeInexact(why) }
    }

    /// After an inode has been changed beside the mount, by `what`: what the record does not hold of it is lost, and
    /// reads of that fail from now on. Nothing, where the record holds it all. `marks` false: the snapshot is not marked
    /// before such a read, since the inode may not belong to it.
    package func didChangeBeside(_ key: InodeKey, marks: Bool = true, _ what: @autoclosure () -> String) {
        guard end.isRecording, let record = map.recordForChange(of: key) else { return }
        let isNew = record.contents.withLock { contents in
            if contents.isLost || contents.isWhole { return false }
            contents.isLost = true
            return true
        }
        if isNew && marks { becomeIncomplete(what()) }
    }
}
