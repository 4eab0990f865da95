internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
internal import SystemPackage

// A single pass: what the backup has read of a file is written straight to the primary from then on, and what the layer
// holds there is brought into it at once; so the merge, which is yet to come, has less to do.
//
// Blocks *go* (`SnapshotCut+Release.swift`): before the first byte of one changes in the primary it is noted in the cut's
// map, with the attributes of the cut, since size and times of the primary are the file's own no more. Whole blocks below the primary's end
// alone, so that its size stays what it was. Of such a block the layer holds nothing: neither data nor a hole.
//
// Moving blocks that are in the layer, in this order:
// 1. they go; 2. their data are written to the primary; 3. they are made durable there, outside the gate and with no lock of the
// file held, so that neither a writer nor a stop waits for it; 4. the record `merged` of those that were not written in the layer
// meanwhile (`BlocksToMove.willStore`), and with it, in the map: the blocks are the primary's; 5. behind a mark that covers the
// record their space in the delta is given back.
//
// - A crash before 4: the layer has them still, and a recovery serves that. An error in 2 and 3 too, and a seal: they stay in the
//   layer, and are the merge's.
// - One move at a time (`mover`), or a later one's data could be taken for what an earlier one has made durable. A worker that finds
//   one under way leaves its own to the next: so at most one worker waits for the disk.
// - The file may also hold what applications wrote there themselves. An error of the sync, of which the kernel tells once, is kept for
//   their next fsync (`UntoldErrors`).
// - A reader of the live view that has read the delta looks again where the block is (`LayerStack.read`).
// - A reader of the snapshot that has read the primary looks at the cut's map again (`OverlayView`).
// - For the sync they are gathered, by file, until they are worth one (`BlocksToMove`). A block that is written meanwhile is written
//   in the layer, as it is there.
//
// Where the file's `firstChange` is held, the record in the cut's map is locked after it. `mover` is taken before the gate.
extension Redirect {
    /// Whether blocks may go: as long as the snapshot has not been sealed.
    private func isBeforeSeal(_ stack: LayerStack) -> Bool {
        stack.sealed == nil && !stack.top.journal.head.isContinued
    }

    /// After the backup has read whole blocks of a file. Inside the gate. What is to be moved now, once outside (`move`).
    package func didRead(_ blocks: Range<UInt64>, of reference: InodeReference) -> ReleasedBlocks? {
        let stack = stack
        guard let singlePass = cut.singlePass, cut.end.isRecording, isBeforeSeal(stack) else { return nil }
        singlePass.released.note(blocks, of: reference.key)
        // A writer that has not seen that yet has its record made before.
        guard let record = stack.top.map.record(of: reference.key) else { return nil }
        // One that is storing blocks which were not released when it looked.
        let stored = record.firstChange.withLock { _ in record.contents.withLock { $0.blocks.runs(in: blocks) } }
        return toMove.add(stored, of: reference)
    }

    /// Moves what has been gathered, file by file as long as `goesOn` says so; called now and then, outside the gate.
    package func moveReleased(_ gate: OperationGate, while goesOn: () -> Bool) {
        while goesOn(), let released = toMove.takeOne() {
            mover.withLock { _ in move(released, gate) }
        }
    }

    /// Moves blocks of a file, unless others are being moved: then they are gathered again. Outside the gate.
    package func moveUnlessBusy(_ released: ReleasedBlocks, _ gate: OperationGate) {
        if mover.withLockIfAvailable({ _ in move(released, gate) }) == nil { toMove.giveBack(released) }
    }

    /// Moves blocks of a file, as far as the layer holds them. With `mover` held.
    private func move(_ released: ReleasedBlocks, _ gate: OperationGate) {
        do throws(Errno) {
            guard let primary = try gate.pass({ () throws(Errno) in try copyToPrimary(released) }) else { return }
            defer { toMove.end() }
            try untold.noting(released.reference.key) { () throws(Errno) in try synchronizeData(primary) }
            try gate.pass { () throws(Errno) in try becomePrimary(released.reference.key) }
        } catch {
            // Then they stay in the layer, and are the merge's.
        }
    }

    /// Calls `body` with the file's record in the top layer and its `firstChange` held; nil where there is none, or the snapshot
    /// has been sealed.
    private func beforeSeal<Result>(
        _ key: InodeKey, _ body: (InodeRecord, Layer) throws(Errno) -> Result?
    ) throws(Errno) -> Result? {
        let stack = stack
        guard isBeforeSeal(stack), let record = stack.top.map.record(of: key) else { return nil }
        return try record.firstChange.withLock { (_) throws(Errno) in try body(record, stack.top) }
    }

    /// Writes blocks that the layer holds to the primary, which is returned; nil where there are none. Inside the gate.
    private func copyToPrimary(_ released: ReleasedBlocks) throws(Errno) -> Descriptor? {
        try beforeSeal(released.reference.key) { (record, layer) throws(Errno) in
            try copy(Self.stored(released.blocks, record), of: released.reference, layer)
        }
    }

    private static func stored(_ blocks: BlockSet, _ record: InodeRecord) -> [Range<UInt64>] {
        record.contents.withLock { contents in blocks.runs.flatMap { contents.blocks.runs(in: $0) } }
    }

    private func copy(
        _ stored: [Range<UInt64>], of reference: InodeReference, _ layer: Layer
    ) throws(Errno) -> Descriptor? {
        try credentials.assumeDaemon()
        let primary = try source.open(reference, O_RDWR | O_NONBLOCK)
        let end = UInt64(clamping: try FileStatus(of: primary).size / RecordLimits.blockBytes)
        let runs = stored.filter { $0.lowerBound < end }.map { $0.clamped(to: 0..<end) }
        if runs.isEmpty { return nil }
        // Not the worker's: the answer to the backup's read is in that.
        let data = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.copyBytesMax, alignment: 4096)
        defer { data.deallocate() }
        for run in runs {
            try willGo(run, of: reference, primary)
            let bytes = RecordLimits.offset(ofBlock: run.lowerBound)..<RecordLimits.offset(ofBlock: run.upperBound)
            for offset in stride(from: bytes.lowerBound, to: bytes.upperBound, by: Self.copyBytesMax) {
                let count = min(Int(bytes.upperBound - offset), Self.copyBytesMax)
                let piece = UnsafeMutableRawBufferPointer(rebasing: data[..<count])
                try layer.files.read(of: reference.key, into: piece, at: offset)
                try writeFully(primary, UnsafeRawBufferPointer(piece), at: offset)
            }
        }
        toMove.begin(runs, of: reference.key)
        return primary
    }

    /// What was copied, is durable, and was not written in the layer meanwhile is the primary's. Inside the gate.
    private func becomePrimary(_ key: InodeKey) throws(Errno) {
        _ = try beforeSeal(key) { (record, layer) throws(Errno) -> Void? in
            let runs = Self.stored(toMove.end(), record)
            if runs.isEmpty { return nil }
            try metadata.withLock { (_) throws(Errno) in
                try self.record(layer, runs.map { .merged(key, $0) })
            }
            for run in runs {
                commits.afterMark(covering: layer.journal.nextSequence) { [self] in
                    giveBack(run, of: record, layer)
                }
            }
            return nil
        }
    }

    private static let copyBytesMax = 256 << 10

    /// Space of blocks that were moved.
    private func giveBack(_ blocks: Range<UInt64>, of record: InodeRecord, _ layer: Layer) {
        punch(blocks, of: record, layer) { contents, block, limit in
            let (isStored, end) = contents.blocks.run(from: block, limit: limit)
            return (!isStored, end)
        }
        layer.files.release(UInt64(blocks.count) * UInt64(RecordLimits.blockBytes))
    }

    /// Before blocks change in the primary.
    private func willGo(
        _ blocks: Range<UInt64>, of reference: InodeReference, _ inode: Descriptor
    ) throws(Errno) {
        guard let record = cut.map.recordForChange(of: reference.key, reference) else {
            preconditionFailure("the map of a cut in redirect knows of nothing that was born")
        }
        try record.firstChange.withLock { (_) throws(Errno) in
            let isKnown = record.contents.withLock { $0.attributes != nil || $0.isLost }
            if !isKnown {
                let attributes = RecordedAttributes(
                    status: source.withoutStore(try FileStatus(of: inode)),
                    extended: try allExtendedAttributes(inode))
                record.contents.withLock { $0.attributes = attributes }
            }
            record.contents.withLock { $0.insertGone(blocks) }
        }
    }

    // MARK: Writing

    /// The run that begins at `offset`: whether it is written straight to the primary, and where it ends. `size`: the
    /// primary's.
    private func writtenRun(
        _ record: InodeRecord, _ singlePass: SinglePass, from offset: Int64, limit: Int64, size: Int64
    ) -> (isPrimary: Bool, end: Int64) {
        let first = UInt64(offset / RecordLimits.blockBytes)
        let last = RecordLimits.blockCount(limit)
        let whole = UInt64(size / RecordLimits.blockBytes)
        func bytes(_ block: UInt64) -> Int64 { min(RecordLimits.offset(ofBlock: block), limit) }
        guard first < whole else { return (false, limit) }
        let (isReleased, releasedEnd) = singlePass.released.run(
            of: record.key, from: first, limit: min(last, whole))
        guard isReleased else { return (false, releasedEnd >= whole ? limit : bytes(releasedEnd)) }
        return record.contents.withLock { contents in
            let (isStored, storedEnd) = contents.blocks.run(from: first, limit: releasedEnd)
            if isStored { return (false, bytes(storedEnd)) }
            let (isHole, end) = contents.holes.run(from: first, limit: storedEnd)
            return (!isHole, bytes(end))
        }
    }

    /// Splits a write in what goes to the primary and what is to be stored in the layer. Under the record's `firstChange`.
    func runs(
        _ target: ChangeTarget, _ record: InodeRecord, _ stack: LayerStack, _ range: Range<Int64>
    ) throws(Errno) -> [(isPrimary: Bool, range: Range<Int64>)] {
        guard let singlePass = cut.singlePass, isBeforeSeal(stack) else { return [(false, range)] }
        let size = try FileStatus(of: target.descriptor).size
        var runs: [(isPrimary: Bool, range: Range<Int64>)] = []
        var at = range.lowerBound
        while at < range.upperBound {
            let (isPrimary, end) = writtenRun(record, singlePass, from: at, limit: range.upperBound, size: size)
            runs.append((isPrimary, at..<end))
            at = end
        }
        return runs
    }

    /// Writes to blocks of the primary that the backup has read, as the user who asks. What this takes of set-id bits the layer
    /// knows. Under the record's `firstChange`.
    func writePrimary(
        _ target: ChangeTarget, _ data: UnsafeRawBufferPointer, at offset: Int64
    ) throws(Errno) {
        let primary = try source.open(target.reference, O_WRONLY | O_NONBLOCK)
        let range = offset..<offset + Int64(data.count)
        try willGo(RecordLimits.blockNumbers(range), of: target.reference, primary)
        try writeFully(primary, data, at: offset)
    }
}

/// Blocks of a file that the backup has read and that the layer held then.
package struct ReleasedBlocks: Sendable {
    package let reference: InodeReference
    package let blocks: BlockSet
}

/// Blocks that the backup has read and that the layer holds, by file, and those that are just being moved. Safe for use by all
/// threads; its locks are taken after all others.
final class BlocksToMove: Sendable {
    /// So many are worth a sync of the file.
    private static let blocksMax: UInt64 = 256
    private let gathered = Mutex<[InodeKey: ReleasedBlocks]>([:])
    private let moving = Mutex<(key: InodeKey, blocks: BlockSet)?>(nil)

    /// Adds blocks of a file. All that have been gathered of it, where they are worth a sync: then they are gathered no more.
    func add(_ runs: [Range<UInt64>], of reference: InodeReference) -> ReleasedBlocks? {
        if runs.isEmpty { return nil }
        return gathered.withLock { gathered in
            let released = Self.joined(runs, of: reference, gathered.removeValue(forKey: reference.key))
            if released.blocks.count >= Self.blocksMax { return released }
            gathered[reference.key] = released
            return nil
        }
    }

    /// Gathers blocks again that were not moved.
    func giveBack(_ released: ReleasedBlocks) {
        gathered.withLock { gathered in
            let key = released.reference.key
            gathered[key] = Self.joined(released.blocks.runs, of: released.reference, gathered[key])
        }
    }

    private static func joined(
        _ runs: [Range<UInt64>], of reference: InodeReference, _ others: ReleasedBlocks?
    ) -> ReleasedBlocks {
        var blocks = others?.blocks ?? BlockSet()
        for run in runs { blocks.insert(run) }
        return ReleasedBlocks(reference: reference, blocks: blocks)
    }

    /// Blocks of a file were copied to the primary. With the file's `firstChange` held.
    func begin(_ runs: [Range<UInt64>], of key: InodeKey) {
        var blocks = BlockSet()
        for run in runs { blocks.insert(run) }
        moving.withLock { $0 = (key, blocks) }
    }

    /// Before the layer stores blocks: what the primary has of them is not what they are. With the file's `firstChange` held.
    func willStore(_ blocks: Range<UInt64>, of key: InodeKey) {
        moving.withLock { moving in
            if moving?.key == key { moving?.blocks.remove(blocks) }
        }
    }

    /// The blocks that were copied and have not been stored anew since; no others are being moved now.
    @discardableResult
    func end() -> BlockSet {
        moving.withLock { moving in
            defer { moving = nil }
            return moving?.blocks ?? BlockSet()
        }
    }

    /// Those of one file, which are gathered no more.
    func takeOne() -> ReleasedBlocks? {
        gathered.withLock { gathered in
            guard let key = gathered.keys.first else { return nil }
            return gathered.removeValue(forKey: key)
        }
    }
}
