internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// An inode that is about to change: what it is, and a descriptor of it (O_PATH will do).
package struct ChangeTarget {
    package let reference: InodeReference
    package let descriptor: Descriptor
    /// Whether the descriptor can be read from.
    package let isReadable: Bool

    package init(_ reference: InodeReference, _ descriptor: Descriptor, isReadable: Bool = false) {
        self.reference = reference
        self.descriptor = descriptor
        self.isReadable = isReadable
    }

    package var key: InodeKey { reference.key }
}

/// The second embodiment (Figure 4): the first change to an area stores its original, then changes the primary.
///
/// Invariants, for every area of the snapshot:
/// 1. An original is stored, then a record of it appended to the journal, then its entry made in the map, then the primary
///    changed. `OverlayView` relies on it, and `PreserveRecovery`, which has what a kill between any two of these leaves.
/// 2. An entry, once made, never changes: it is the version of the cut. In a single pass it may be given up
///    (`SnapshotCut+Release.swift`).
/// 3. An inode of the cut is not freed while its data are needed: it loses its last name only to the graveyard, or
///    after all that the snapshot needs of it is in the record (detached).
/// 4. Applications never fail for the snapshot's sake: what cannot be preserved makes the snapshot inexact.
///
/// Every method is called by an operation that has passed the gate, before that operation changes the primary.
/// Safe for use by all threads.
package final class Preserve: Sendable {
    /// What the snapshot shows, and whether it still holds.
    package let cut: SnapshotCut
    package let store: DeltaStore
    let credentials: Credentials
    /// Files whose originals are being read.
    private let readers = DescriptorCache<InodeKey>(capacity: 64)
    /// Whether the graveyard is there: a grave counts as a link.
    fileprivate let hasGraves = Atomic<Bool>(true)

    /// `map` and `absence` are of a snapshot that is taken up.
    package init(
        source: SourceTree, store: DeltaStore, credentials: Credentials, scope: SnapshotScope? = nil,
        isSinglePass: Bool = false, map: DeltaMap = DeltaMap(), absence: Absence? = nil,
        didBecomeInexact: @escaping @Sendable (String) -> Void
    ) {
        cut = SnapshotCut(
            source: source, store: store, map: map, absence: absence, scope: scope,
            singlePass: isSinglePass ? SinglePass(credentials) : nil, didBecomeInexact: didBecomeInexact)
        self.store = store
        self.credentials = credentials
    }

    package var source: SourceTree { cut.source }
    package var map: DeltaMap { cut.map }
    package var end: SnapshotEnd { cut.end }
    var locations: LocationTable { cut.locations }
    package var scope: SnapshotScope? { cut.scope }
    var released: ReleasedAreas? { cut.singlePass?.released }
    package var overlay: OverlayView { cut.overlay }

    static let overBound = "the store would grow over its bound (--max-delta)"

    /// `SnapshotCut.becomeInexact`.
    package func becomeInexact(_ why: String) { cut.becomeInexact(why) }

    /// The record of an inode that the snapshot sees; nil where there is nothing to preserve.
    func record(of target: ChangeTarget) -> InodeRecord? {
        let reference = target.reference
        guard end.isRecording, reference.device == source.device, concerns(target) else { return nil }
        if let absence = cut.absence, absence.includes(birthOf: reference.key),
            map.record(of: reference.key) == nil
        {
            didMake(reference)
        }
        guard let record = map.recordForChange(of: reference.key, reference),
            !record.contents.withLock({ $0.isLost })
        else { return nil }
        return record
    }

    /// Runs what stores an original, as the daemon's own user. Failing, it makes the snapshot inexact.
    private func storing(_ what: String, _ body: () throws(Errno) -> Void) {
        do throws(Errno) {
            try credentials.assumeDaemon()
            try body()
        } catch {
            let why = error == .noSpace && store.isOverBound ? Self.overBound : "\(error)"
            becomeInexact("\(what): \(why)")
        }
    }

    /// After all has been done for a start: from now on the snapshot outlives the daemon.
    package func didStart(_ cut: Timestamp) {
        storing("the journal of the snapshot could not be written") { () throws(Errno) in
            try store.begin(cut: cut)
        }
    }

    /// Appends to the journal what is to be done, or, of a place, has been. Its file is open: whoever the thread is does
    /// not matter.
    func note(_ changes: [RecordChange]) {
        do throws(Errno) {
            try store.record(changes)
        } catch {
            becomeInexact("the journal of the snapshot could not be written: \(error)")
        }
    }

    // MARK: Attributes

    /// Before anything that changes the attributes of an inode: its data or names too, since they change its times.
    package func willChangeAttributes(of target: ChangeTarget) {
        guard let record = record(of: target) else { return }
        _ = preserveAttributes(of: target, record)
    }

    /// Preserves the attributes where that is not done yet, and returns them; nil where it failed.
    func preserveAttributes(
        of target: ChangeTarget, _ record: InodeRecord
    ) -> RecordedAttributes? {
        if let known = record.contents.withLock({ $0.attributes }) { return known }
        storing("the attributes of inode \(target.key.inode) could not be preserved") {
            () throws(Errno) in
            try record.firstChange.withLock { (_) throws(Errno) -> Void in
                if record.contents.withLock({ $0.attributes != nil }) { return }
                let status = try FileStatus(of: target.descriptor)
                if target.key.birth != 0, cut.absence?.includes(changeOf: status) == true {
                    return cut.didChangeBeside(
                        target.key, "inode \(target.key.inode) was changed while no daemon was there")
                }
                let attributes = RecordedAttributes(
                    status: source.withoutStore(status), extended: try allExtendedAttributes(target.descriptor))
                try store.record([.reference(target.reference), .attributes(target.key, attributes)])
                record.contents.withLock { $0.attributes = attributes }
                map.countAreas(1)
            }
        }
        return record.contents.withLock { $0.attributes }
    }

    // MARK: Data

    /// Before a change to the bytes in `range` of a file; a truncation changes all from the new size on.
    ///
    /// Preserves at most `RecordLimits.sliceBytesMax`; false where more is left, so that the caller lets a cut
    /// through and asks again. `clones`: by clones alone, which must succeed; else large pieces are cloned where the
    /// file system can.
    package func willChangeData(
        of target: ChangeTarget, _ range: Range<Int64>, clones: Bool = false
    ) -> Bool {
        guard let record = record(of: target) else { return true }
        guard let attributes = preserveAttributes(of: target, record) else { return true }
        let size = attributes.status.size
        let lower = range.lowerBound
        let upper = min(range.upperBound, size)
        guard lower < upper else {
            preserveEnd(of: target, record, beforeChangeAt: lower, size: size)
            return true
        }
        let blocks = RecordLimits.blockNumbers(lower..<upper)
        let isPreserved = record.contents.withLock { contents in
            contents.isUnreadable || contents.haveChanged(blocks)
        }
        if isPreserved { return true }
        var isDone = true
        storing("the data of inode \(target.key.inode) could not be preserved") {
            () throws(Errno) in
            isDone = try preserveData(of: target, record, blocks, size: size, clones: clones)
        }
        return isDone
    }

    /// Before space is allocated for the bytes in `range` of a file, with their data unchanged: what was a hole at the
    /// cut is recorded as one, since allocated space may show as data.
    package func willAllocate(of target: ChangeTarget, _ range: Range<Int64>) {
        guard let record = record(of: target) else { return }
        guard let attributes = preserveAttributes(of: target, record) else { return }
        let size = attributes.status.size
        let upper = min(range.upperBound, size)
        guard range.lowerBound < upper else {
            return preserveEnd(of: target, record, beforeChangeAt: range.lowerBound, size: size)
        }
        let isUnreadable = record.contents.withLock { $0.isUnreadable }
        if isUnreadable { return }
        storing("the holes of inode \(target.key.inode) could not be preserved") {
            () throws(Errno) in
            try record.firstChange.withLock { (_) throws(Errno) -> Void in
                guard let reader = try reader(of: target, record) else { return }
                try preserveHoles(of: record, reader, range.lowerBound..<upper, size: size)
            }
        }
    }

    /// Before a change behind the size at the cut, in the block that the file ended in: where that was a hole it is
    /// recorded as one, since the whole block will be data. Looked at once: data stay data, or are preserved.
    private func preserveEnd(
        of target: ChangeTarget, _ record: InodeRecord, beforeChangeAt offset: Int64, size: Int64
    ) {
        let last = size / RecordLimits.blockBytes * RecordLimits.blockBytes
        guard last < size, offset < last + RecordLimits.blockBytes else { return }
        let isPreserved = record.contents.withLock { $0.knowsEnd || $0.isUnreadable }
        if isPreserved { return }
        storing("the holes of inode \(target.key.inode) could not be preserved") {
            () throws(Errno) in
            try record.firstChange.withLock { (_) throws(Errno) -> Void in
                if record.contents.withLock({ $0.knowsEnd }) { return }
                guard let reader = try reader(of: target, record) else { return }
                try preserveHoles(of: record, reader, last..<size, size: size)
                try store.record([.flags(record.key, .knowsEnd)])
                record.contents.withLock { $0.knowsEnd = true }
            }
        }
    }

    private func preserveHoles(
        of record: InodeRecord, _ reader: Descriptor, _ range: Range<Int64>, size: Int64
    ) throws(Errno) {
        let block = RecordLimits.blockBytes
        var at = range.lowerBound / block * block
        while at < range.upperBound {
            let data = min(try seek(reader, SEEK_DATA, from: at) ?? size, size)
            // Whole blocks only; the last one of the file is whole where the file ends.
            let first = RecordLimits.blockCount(at)
            let end = data == size ? RecordLimits.blockCount(data) : UInt64(data / block)
            if first < end {
                try store.record([.holes(record.key, first..<end)])
                map.countAreas(record.contents.withLock { $0.insert(first..<end) })
            }
            guard data < range.upperBound else { return }
            at = try seek(reader, SEEK_HOLE, from: data) ?? size
        }
    }

    private func preserveData(
        of target: ChangeTarget, _ record: InodeRecord, _ blocks: Range<UInt64>, size: Int64,
        clones: Bool
    ) throws(Errno) -> Bool {
        let block = UInt64(RecordLimits.blockBytes)
        var left = UInt64(RecordLimits.sliceBytesMax) / block
        return try record.firstChange.withLock { (_) throws(Errno) -> Bool in
            guard let reader = try reader(of: target, record) else { return true }
            var at = blocks.lowerBound
            while at < blocks.upperBound {
                var (isPresent, runEnd) = record.contents.withLock {
                    $0.changedRun(from: at, limit: blocks.upperBound)
                }
                if isPresent {
                    at = runEnd
                    continue
                }
                if let released {
                    let isReleased: Bool
                    (isReleased, runEnd) = released.run(of: record.key, from: at, limit: runEnd)
                    if isReleased {
                        record.contents.withLock { $0.insertGone(at..<runEnd) }
                        map.countAreas(runEnd - at)
                        at = runEnd
                        continue
                    }
                }
                let hole = try endOfHole(reader, fromBlock: at, limit: runEnd, size: size)
                if hole > at {
                    try store.record([.holes(record.key, at..<hole)])
                    map.countAreas(record.contents.withLock { $0.insert(at..<hole) })
                    at = hole
                    continue
                }
                if left == 0 { return false }
                let end = min(runEnd, at + left)
                let bytes =
                    RecordLimits.offset(ofBlock: at)..<min(RecordLimits.offset(ofBlock: end), size)
                try store.storeOriginal(of: record.key, from: reader, bytes, clones: clones)
                try store.record([.data(record.key, at..<end)])
                map.countAreas(record.contents.withLock { $0.insert(at..<end) })
                left -= end - at
                at = end
            }
            return true
        }
    }

    /// Where the hole ends that `block` begins, in whole blocks; `block` where it holds data.
    private func endOfHole(
        _ reader: Descriptor, fromBlock block: UInt64, limit: UInt64, size: Int64
    ) throws(Errno) -> UInt64 {
        let start = RecordLimits.offset(ofBlock: block)
        guard start < size else { return limit }
        guard let data = try seek(reader, SEEK_DATA, from: start), data < size else { return limit }
        return max(block, min(limit, UInt64(data / RecordLimits.blockBytes)))
    }

    /// Before the graveyard is removed, the snapshot having become inexact: lets go of what is held of files there, so
    /// that their space is free.
    package func willRemoveGraves() {
        hasGraves.store(false, ordering: .sequentiallyConsistent)
        readers.removeAll()
    }

    /// A descriptor of the inode to read from, which leaves its access time alone; nil where this user may not read
    /// it.
    private func reader(
        of target: ChangeTarget, _ record: InodeRecord
    ) throws(Errno) -> Descriptor? {
        if let kept = readers.descriptor(for: record.key) { return kept }
        let opened: Descriptor
        do throws(Errno) {
            opened = try Descriptor.reopenQuietly(target.descriptor, O_RDONLY | O_NONBLOCK)
        } catch .permissionDenied {
            // What the application holds open may be read through its own descriptor.
            if target.isReadable { return target.descriptor }
            try store.record([.flags(record.key, .isUnreadable)])
            record.contents.withLock { $0.isUnreadable = true }
            return nil
        }
        readers.keep(opened, for: record.key)
        return opened
    }

    // MARK: Names

    /// Before a name in a directory comes, goes, or stands for something else. `now` is what it stands for.
    package func willChangeEntry(
        in directory: ChangeTarget, _ name: UnsafePointer<CChar>, now entry: RecordedEntry
    ) {
        willChangeAttributes(of: directory)
        guard let record = record(of: directory) else { return }
        let key = FileName(name)
        if record.contents.withLock({ $0.entries[key] != nil }) { return }
        record.firstChange.withLock { _ in
            if record.contents.withLock({ $0.entries[key] != nil }) { return }
            note([.name(in: record.key, key, entry)])
            record.contents.withLock { $0.entries[key] = entry }
            map.countAreas(1)
        }
    }

    /// After an inode was made: it is not in the snapshot. Nor is it without this: the name that it was made under is
    /// recorded as absent by then, and so is each that it gets later, before it gets it.
    package func didMake(_ status: FileStatus) {
        guard end.isRecording, status.device == source.device else { return }
        if let scope, !status.isDirectory, !scope.owns(status) { return }
        didMake(InodeReference(status, handle: FileHandle()))
    }

    private func didMake(_ reference: InodeReference) {
        note([.born(reference)])
        if !map.insertBorn(reference.key) {
            becomeInexact("inode number \(reference.key.inode) was used again within one tick of the clock")
        }
    }
}

extension Preserve {
    /// Whether an inode lives on in the graveyard only (or there and under names that it has left): then its link
    /// count is one higher than applications may see.
    package func isInGraveyard(_ status: FileStatus) -> Bool {
        guard status.device == source.device, hasGraves.load(ordering: .sequentiallyConsistent) else {
            return false
        }
        return map.record(of: InodeKey(status))?.contents.withLock { $0.place == .graveyard }
            ?? false
    }
}
