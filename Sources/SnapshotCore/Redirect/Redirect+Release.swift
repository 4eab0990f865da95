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
// 1. they go; 2. their data are written to the primary, and made durable there; 3. the record `merged`, and with it, in the map: the
// blocks are the primary's; 4. behind a mark that covers the record their space in the delta is given back.
//
// - A crash before 3: the layer has them still, and a recovery serves that. An error in 2 too: they stay in the layer.
// - A reader of the live view that has read the delta looks again where the block is (`LayerStack.read`).
// - A reader of the snapshot that has read the primary looks at the cut's map again (`OverlayView`).
// - For the sync they are gathered, by file, until they are worth one (`BlocksToMove`). A block that is written meanwhile is written
//   in the layer, as it is there.
//
// Where the file's `firstChange` is held, the record in the cut's map is locked after it.
extension Redirect {
    /// Whether blocks may go: as long as the snapshot has not been sealed.
    private func isBeforeSeal(_ stack: LayerStack) -> Bool {
        stack.sealed == nil && !stack.top.journal.head.isContinued
    }

    /// After the backup has read whole blocks of a file. Inside the gate.
    package func didRead(_ blocks: Range<UInt64>, of reference: InodeReference) {
        let stack = stack
        guard let singlePass = cut.singlePass, cut.end.isRecording, isBeforeSeal(stack) else { return }
        singlePass.released.note(blocks, of: reference.key)
        // A writer that has not seen that yet has its record made before.
        guard let record = stack.top.map.record(of: reference.key) else { return }
        // One that is storing blocks which were not released when it looked.
        let stored = record.firstChange.withLock { _ in record.contents.withLock { $0.blocks.runs(in: blocks) } }
        if let due = toMove.add(stored, of: reference) { move(due, of: reference, record, stack) }
    }

    /// Moves what has been gathered; called now and then.
    package func moveReleased(_ gate: OperationGate) {
        for (reference, blocks) in toMove.takeAll() {
            gate.pass {
                let stack = stack
                guard isBeforeSeal(stack), let record = stack.top.map.record(of: reference.key) else { return }
                move(blocks, of: reference, record, stack)
            }
        }
    }

    private func move(
        _ blocks: BlockSet, of reference: InodeReference, _ record: InodeRecord, _ stack: LayerStack
    ) {
        record.firstChange.withLock { _ in
            let stored = record.contents.withLock { contents in
                blocks.runs.flatMap { contents.blocks.runs(in: $0) }
            }
            do throws(Errno) {
                try move(stored, of: reference, record, stack.top)
            } catch {
                // Then they stay in the layer, and are the merge's.
            }
        }
    }

    /// Brings blocks that the layer holds into the primary. Under the record's `firstChange`.
    private func move(
        _ stored: [Range<UInt64>], of reference: InodeReference, _ record: InodeRecord, _ layer: Layer
    ) throws(Errno) {
        try credentials.assumeDaemon()
        let primary = try source.open(reference, O_RDWR | O_NONBLOCK)
        let end = UInt64(clamping: try FileStatus(of: primary).size / RecordLimits.blockBytes)
        let runs = stored.filter { $0.lowerBound < end }.map { $0.clamped(to: 0..<end) }
        if runs.isEmpty { return }
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
        try synchronizeData(primary)
        try metadata.withLock { (_) throws(Errno) in
            try self.record(layer, runs.map { .merged(reference.key, $0) })
        }
        for run in runs {
            commits.afterMark(covering: layer.journal.nextSequence) { [self] in
                giveBack(run, of: record, layer)
            }
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

/// Blocks that the backup has read and that the layer holds, by file. Safe for use by all threads.
final class BlocksToMove: Sendable {
    private typealias Gathered = (reference: InodeReference, blocks: BlockSet)
    /// So many are worth a sync of the file.
    private static let blocksMax: UInt64 = 256
    private let gathered = Mutex<[InodeKey: Gathered]>([:])

    /// Adds blocks of a file. All that have been gathered of it, where they are worth a sync: then they are gathered no more.
    func add(_ runs: [Range<UInt64>], of reference: InodeReference) -> BlockSet? {
        if runs.isEmpty { return nil }
        return gathered.withLock { gathered in
            var blocks = gathered.removeValue(forKey: reference.key)?.blocks ?? BlockSet()
            for run in runs { blocks.insert(run) }
            if blocks.count >= Self.blocksMax { return blocks }
            gathered[reference.key] = (reference, blocks)
            return nil
        }
    }

    func takeAll() -> [(reference: InodeReference, blocks: BlockSet)] {
        gathered.withLock { gathered in
            defer { gathered = [:] }
            return Array(gathered.values)
        }
    }
}
