package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// One cut, as `.snapshot` shows it: the source with the versions of the cut of what has changed there since, and
/// whether that still holds. Preserve stores those versions; in redirect the source does not change, so there are none,
/// and the map knows only what was changed beside the mount, and of a single pass what has been given up.
package final class SnapshotCut: Sendable {
    package let source: SourceTree
    package let map: DeltaMap
    /// Where the versions are that the map tells of; nil in redirect.
    package let store: DeltaStore?
    /// The same in another process, which reads them only; else nil.
    private let files: DeltaFiles?
    private let follower: (any RecordFollower)?
    /// In redirect, where is kept that the snapshot is not exact, for a daemon that takes it up.
    private let notes: Descriptor?
    package let end = SnapshotEnd()
    /// Whose files it shows; nil: everybody's.
    package let scope: SnapshotScope?
    let leading = LeadingDirectories()
    /// Where the backup reads every file once, so that what it has read need not be kept; else nil.
    package let singlePass: SinglePass?
    let locations = LocationTable()
    /// Of a snapshot that was taken up after a kill: when nobody recorded what was changed.
    package let absence: Absence?
    /// Called once, when the snapshot becomes inexact, from a worker: must not wait for anything.
    private let didBecomeInexact: @Sendable (String) -> Void

    package init(
        source: SourceTree, store: DeltaStore?, notes: Descriptor? = nil, map: DeltaMap = DeltaMap(),
        absence: Absence? = nil, scope: SnapshotScope? = nil, singlePass: SinglePass? = nil,
        files: DeltaFiles? = nil, follower: (any RecordFollower)? = nil,
        didBecomeInexact: @escaping @Sendable (String) -> Void
    ) {
        (self.files, self.follower) = (files, follower)
        self.scope = scope
        self.singlePass = singlePass
        self.source = source
        self.store = store
        self.notes = notes
        self.map = map
        self.absence = absence
        self.didBecomeInexact = didBecomeInexact
    }

    package var overlay: OverlayView {
        OverlayView(
            source: source, map: map, store: store, files: files, locations: locations, absence: absence,
            follower: follower)
    }

    /// Gives the snapshot up: its reads fail from now on, and nothing more is stored for it.
    ///
    /// The journal says so first: what goes by unrecorded from then on must not be taken for the cut's after a kill.
    package func becomeInexact(_ why: String) {
        if end.isRecording { forsake(why) }
        if end.becomeInexact(why) { didBecomeInexact(why) }
    }

    private func forsake(_ why: String) {
        do throws(Errno) {
            try store?.forsake()
            // In redirect the journal goes on: it has what applications wrote.
            if let notes { try KeptFiles.noteInexact(why, in: notes) }
        } catch {
            // Neither can anything be written to the store, nor a name in it removed: nobody will read it either. In redirect
            // who takes the snapshot up goes by the times of change in the source (`Absence`).
        }
    }

    /// Marks the snapshot inexact, though its reads go on where they can. `tells` false: whom that concerns knows.
    package func becomeIncomplete(_ why: String, tells: Bool = true) {
        guard end.becomeIncomplete(why) else { return }
        do throws(Errno) {
            try store?.noteInexact(why)
            if let notes { try KeptFiles.noteInexact(why, in: notes) }
        } catch {
            // Taken up after a kill it would not say so.
            return becomeInexact(why)
        }
        if tells { didBecomeInexact(why) }
    }

    /// After an inode has been changed beside the mount, by `what`: what the record does not hold of it is lost, and
    /// reads of that fail from now on. Nothing, where the record holds it all. `marks` false: the snapshot is not marked
    /// before such a read, since the inode may not belong to it.
    package func didChangeBeside(_ key: InodeKey, marks: Bool = true, _ what: @autoclosure () -> String) {
        guard end.isRecording, let record = map.recordForChange(of: key) else { return }
        if record.contents.withLock({ !$0.isLost && !$0.isWhole }) {
            do throws(Errno) {
                try store?.record([.flags(key, .isLost)])
            } catch {
                return becomeInexact("the journal of the snapshot could not be written: \(error)")
            }
        }
        let isNew = record.contents.withLock { contents in
            if contents.isLost || contents.isWhole { return false }
            contents.isLost = true
            return true
        }
        if isNew && marks { becomeIncomplete(what()) }
    }
}

/// The time from a cut until a daemon took the snapshot of another up that had been killed, in the course of which nobody
/// recorded for a while what was changed in the source.
///
/// What the map says nothing of has not been changed through the mount since the cut; where its time of change is of this
/// time all the same, it was changed past the mount, or the clock was set back. Of what the map has a record already,
/// nothing tells.
package struct Absence: Sendable {
    package let cut: Timestamp
    package let end: Timestamp

    /// File systems stamp with the begin of a tick of the clock, which lasts this long at the most (CONFIG_HZ=100).
    private static let tickNanoseconds: Int64 = 10_000_000

    /// `isDoubted`: something is known to have been changed beside the mount, and not what; it may have been in the tick in
    /// which the cut was, and then has a time before it.
    package init(cut: Timestamp, end: Timestamp, isDoubted: Bool = false) {
        let nanoseconds = Int64(cut.nanoseconds) - (isDoubted ? Self.tickNanoseconds : 0)
        let isBefore = nanoseconds < 0
        self.cut = Timestamp(
            seconds: isBefore ? cut.seconds - 1 : cut.seconds,
            nanoseconds: UInt32(isBefore ? nanoseconds + 1_000_000_000 : nanoseconds))
        self.end = end
    }

    /// Whether an inode without a record was changed when nobody recorded it.
    func includes(changeOf status: FileStatus) -> Bool {
        cut < status.changed && !(end < status.changed)
    }

    /// Whether an inode of which nothing is known was made after the cut: one that was being made when the daemon was
    /// killed, or in the time without a daemon. False too where the file system does not tell times of birth.
    func includes(birthOf key: InodeKey) -> Bool {
        let (cutNanoseconds, isTooFar) = cut.seconds.multipliedReportingOverflow(by: 1_000_000_000)
        return !isTooFar && key.birth > cutNanoseconds + Int64(cut.nanoseconds)
    }
}
