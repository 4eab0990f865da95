internal import Glibc
internal import LinuxSystem
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
// Moving a block that is in the layer, in this order:
// 1. it goes; 2. its data are written to the primary; 3. the record `merged`, and with it, in the map: the block is the
// primary's; 4. behind a mark that covers the record its space in the delta is given back.
//
// - A crash before 3: the layer has it still, and a recovery serves that.
// - A power cut after 3: the record counts only with a mark behind it, and that mark waits for the primary's data: the inode
//   is noted as to be flushed (`CommitQueue.noteReplacing`) with the record.
// - A reader of the live view that has read the delta looks again where the block is (`LayerStack.read`).
// - A reader of the snapshot that has read the primary looks at the cut's map again (`OverlayView`).
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
        // A writer that has not seen that yet has made its record before.
        guard let record = stack.top.map.record(of: reference.key) else { return }
        record.firstChange.withLock { _ in
            do throws(Errno) {
                try move(blocks, of: reference, record, stack)
            } catch {
                // Then it stays in the layer, and is the merge's.
            }
        }
    }

    /// Brings blocks that the layer holds into the primary. Under the record's `firstChange`.
    private func move(
        _ blocks: Range<UInt64>, of reference: InodeReference, _ record: InodeRecord, _ stack: LayerStack
    ) throws(Errno) {
        let layer = stack.top
        let stored = record.contents.withLock { $0.blocks.runs(in: blocks) }
        if stored.isEmpty { return }
        try credentials.assumeDaemon()
        let primary = try source.open(reference, O_RDWR | O_NONBLOCK)
        let end = UInt64(clamping: try FileStatus(of: primary).size / RecordLimits.blockBytes)
        for run in stored where run.lowerBound < end {
            let run = run.clamped(to: 0..<end)
            try willGo(run, of: reference, primary)
            // Not the worker's: the answer to the backup's read is in that.
            let data = UnsafeMutableRawBufferPointer.allocate(
                byteCount: run.count * Int(RecordLimits.blockBytes), alignment: 4096)
            defer { data.deallocate() }
            let offset = RecordLimits.offset(ofBlock: run.lowerBound)
            try layer.files.read(of: reference.key, into: data, at: offset)
            try writeFully(primary, UnsafeRawBufferPointer(data), at: offset)
            try metadata.withLock { (_) throws(Errno) in
                commits.noteReplacing(reference)
                try self.record(layer, [.merged(reference.key, run)])
            }
            commits.afterMark(covering: layer.journal.nextSequence) { [self] in
                giveBack(run, of: record, layer)
            }
        }
    }

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
    ) throws(Errno) -> (primary: [Range<Int64>], layer: [Range<Int64>]) {
        guard let singlePass = cut.singlePass, isBeforeSeal(stack) else { return ([], [range]) }
        let size = try FileStatus(of: target.descriptor).size
        var (primary, layer): ([Range<Int64>], [Range<Int64>]) = ([], [])
        var at = range.lowerBound
        while at < range.upperBound {
            let (isPrimary, end) = writtenRun(record, singlePass, from: at, limit: range.upperBound, size: size)
            if isPrimary { primary.append(at..<end) } else { layer.append(at..<end) }
            at = end
        }
        return (primary, layer)
    }

    /// Writes to blocks of the primary that the backup has read. What this takes of set-id bits the layer knows. Under the
    /// record's `firstChange`.
    func writePrimary(
        _ target: ChangeTarget, _ data: UnsafeRawBufferPointer, at offset: Int64
    ) throws(Errno) {
        try credentials.assumeDaemon()
        let primary = try source.open(target.reference, O_WRONLY | O_NONBLOCK)
        let range = offset..<offset + Int64(data.count)
        try willGo(RecordLimits.blockNumbers(range), of: target.reference, primary)
        try writeFully(primary, data, at: offset)
    }
}
