package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// What a cut has where the backup makes a single pass: what that has read. In redirect `Redirect+Release.swift`
/// has the rest.
package struct SinglePass: Sendable {
    package let released = ReleasedAreas()
    /// The daemon's own user gives the space back.
    fileprivate let credentials: Credentials

    package init(_ credentials: Credentials) {
        self.credentials = credentials
    }
}

// A single pass (the patent's "record of the extent to which the backup copying process has progressed"): what the backup
// has read of a file needs no original any more.
//
// A block that was read is *released*. When it changes it is *gone*: that is noted before the change, in the place of an
// original, so that the order by which readers and writers get along stays the same (`OverlayView`); from then on its
// reads fail. A block with an original that is read is gone at once, and its space is given back. Nothing comes back from
// being gone, and what is gone never becomes recorded in any other way (`InodeRecord.Contents.insert`). A journal has none of
// this: a snapshot for a single pass keeps none, and does not outlive its daemon.
extension SnapshotCut {
    /// After the backup has read whole blocks of a file, whose bytes are on their way to it.
    package func didRead(_ blocks: Range<UInt64>, of key: InodeKey) {
        guard let singlePass, let store, end.isRecording, !blocks.isEmpty else { return }
        singlePass.released.note(blocks, of: key)
        // A writer that has not seen that yet has made its record before.
        guard let record = map.record(of: key) else { return }
        record.firstChange.withLock { _ in
            let stored = record.contents.withLock { $0.release(blocks) }
            for run in stored { giveBack(run, of: key, in: store, singlePass) }
            if isReleased(record) { giveGraveBack(record, in: store, singlePass) }
        }
    }

    private func giveBack(
        _ blocks: Range<UInt64>, of key: InodeKey, in store: DeltaStore, _ singlePass: SinglePass
    ) {
        do throws(Errno) {
            try singlePass.credentials.assumeDaemon()
            try store.giveBack(
                of: key,
                RecordLimits.offset(ofBlock: blocks.lowerBound)..<RecordLimits.offset(ofBlock: blocks.upperBound))
        } catch {
            // Its space comes back with the end of the snapshot. Nothing reads it any more.
        }
    }

    /// Whether all of a file that has changed has been read. Where it was not, its size at the cut is not known here.
    func isReleased(_ record: InodeRecord) -> Bool {
        guard let released = singlePass?.released,
            let status = record.contents.withLock({ $0.attributes?.status }), status.isRegular
        else { return false }
        let blocks = RecordLimits.blockCount(status.size)
        return blocks > 0 && released.run(of: record.key, from: 0, limit: blocks) == (true, blocks)
    }

    /// Gives up a file that was only kept for its data. Under the record's `firstChange`.
    private func giveGraveBack(_ record: InodeRecord, in store: DeltaStore, _ singlePass: SinglePass) {
        guard record.contents.withLock({ $0.place }) == .graveyard else { return }
        do throws(Errno) {
            try singlePass.credentials.assumeDaemon()
            try store.removeGrave(record.key)
            record.contents.withLock { $0.place = .detached }
        } catch {
            // It stays until the end of the snapshot.
        }
    }

    /// Whether any of these bytes have been read before: what cannot be read of them is gone for that.
    func wasRead(_ range: Range<Int64>, of key: InodeKey) -> Bool {
        guard let released = singlePass?.released, !range.isEmpty else { return false }
        let blocks = RecordLimits.blockNumbers(range)
        let (isReleased, end) = released.run(of: key, from: blocks.lowerBound, limit: blocks.upperBound)
        return isReleased || end < blocks.upperBound
    }
}
