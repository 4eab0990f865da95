internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

// Data of inodes that are not new in a layer: they go to the top layer's delta file, in whole blocks.
//
// What a write does not cover of a block is taken from what applications see; but of a block that is in the top layer
// already only the bytes written change, as in any file. What the delta file holds behind the file's size means nothing:
// it is made zero when the file grows past it.
extension Redirect {
    private static let block = RecordLimits.blockBytes

    /// What a change of data takes away of set-id bits and file capabilities. `changing` changes the data of the file that
    /// it is given, as the user who asks.
    package struct PrivilegeLoss {
        let mayLose: Bool
        let changing: (Descriptor) throws(Errno) -> Void

        package init(mayLose: Bool, changing: @escaping (Descriptor) throws(Errno) -> Void) {
            self.mayLose = mayLose
            self.changing = changing
        }
    }

    /// Writes `data` at `offset` of a file: as many bytes as there are.
    package func write(
        _ target: ChangeTarget, _ data: UnsafeRawBufferPointer, at offset: Int64, _ loss: PrivilegeLoss
    ) throws(Errno) -> Int {
        let stack = stack
        let record = try changeable(target, stack)
        try changingData(record, stack.top) { (changes) throws(Errno) in
            let size = attributes(record).status.size
            let isZeroed = try zeroTail(target, record, stack, upTo: offset, &changes)
            try store(target, record, stack, data, at: offset, size: size, &changes)
            try finish(
                target, record, stack, size: max(size, offset + Int64(data.count)), changes, loss,
                isZeroed: isZeroed)
        }
        return data.count
    }

    /// Runs a change of data with the record's `firstChange` held; it notes what it has stored. Where it throws, that is not counted
    /// any more: the map does not get it.
    private func changingData<Result>(
        _ record: InodeRecord, _ layer: Layer, _ body: (inout [RecordChange]) throws(Errno) -> Result
    ) throws(Errno) -> Result {
        try record.firstChange.withLock { (_) throws(Errno) in
            var changes: [RecordChange] = []
            do throws(Errno) {
                return try body(&changes)
            } catch {
                let known = record.contents.withLock { $0.blocks }
                layer.files.release(
                    (Self.withData(of: changes, known).count - known.count) * UInt64(Self.block))
                throw error
            }
        }
    }

    /// The blocks that a map will have after these changes of data, if no other kind is among them.
    private static func withData(of changes: [RecordChange], _ known: BlockSet) -> BlockSet {
        var all = known
        for case .data(_, let blocks) in changes { all.insert(blocks) }
        return all
    }

    /// The bytes behind the file's end in its last block become zeros, since it is about to grow. Whether they had to be written.
    private func zeroTail(
        _ target: ChangeTarget, _ record: InodeRecord, _ stack: LayerStack, upTo end: Int64,
        _ changes: inout [RecordChange]
    ) throws(Errno) -> Bool {
        let size = attributes(record).status.size
        let start = size / Self.block * Self.block
        guard start < size, end > size else { return false }
        if case .hole = stack.run(target.key, from: start, limit: size).0 { return false }
        let blockEnd = start + Self.block
        let zeros = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(blockEnd - size), alignment: 16)
        defer { zeros.deallocate() }
        zeros.initializeMemory(as: UInt8.self, repeating: 0)
        try store(
            target, record, stack, UnsafeRawBufferPointer(zeros), at: size, size: size, &changes)
        return true
    }

    /// Stores `data`: in the layer, but for what a single pass has left to the primary.
    private func store(
        _ target: ChangeTarget, _ record: InodeRecord, _ stack: LayerStack, _ data: UnsafeRawBufferPointer,
        at offset: Int64, size: Int64, _ changes: inout [RecordChange]
    ) throws(Errno) {
        if data.isEmpty { return }
        for (isPrimary, range) in try runs(target, record, stack, offset..<offset + Int64(data.count)) {
            let part = UnsafeRawBufferPointer(
                rebasing: data[Int(range.lowerBound - offset)..<Int(range.upperBound - offset)])
            if isPrimary {
                try writePrimary(target, part, at: range.lowerBound)
            } else {
                try storeInLayer(target, record, stack, part, at: range.lowerBound, size: size, &changes)
            }
        }
    }

    /// Stores `data` in the delta file, with the rest of its first and last block where the top layer does not have them.
    private func storeInLayer(
        _ target: ChangeTarget, _ record: InodeRecord, _ stack: LayerStack, _ data: UnsafeRawBufferPointer,
        at offset: Int64, size: Int64, _ changes: inout [RecordChange]
    ) throws(Errno) {
        let end = offset + Int64(data.count)
        let blocks = UInt64(offset / Self.block)..<RecordLimits.blockCount(end)
        // Its lock is one for all files: only where blocks are moved at all.
        if cut.singlePass != nil { toMove.willStore(blocks, of: record.key) }
        let (hasFirst, hasLast, missing) = record.contents.withLock { contents in
            // What this change has stored itself has been counted.
            let counted =
                changes.isEmpty
                ? Self.count(of: blocks, in: contents.blocks)
                : Self.count(of: blocks, in: Self.withData(of: changes, contents.blocks))
            return (
                contents.blocks.contains(blocks.lowerBound), contents.blocks.contains(blocks.upperBound - 1),
                blocks.upperBound - blocks.lowerBound - counted
            )
        }
        if missing > 0 { try reserve(missing, stack.top) }
        do throws(Errno) {
            let status = attributes(record).status
            let file = try stack.top.files.file(of: record.key, createFor: (status.user, status.group))
            let first = RecordLimits.offset(ofBlock: blocks.lowerBound)
            let last = RecordLimits.offset(ofBlock: blocks.upperBound)
            // Where the bytes before are missing, or behind the size; and those after, as far as the size reaches.
            let head = offset > first && (!hasFirst || offset > size) ? offset - first : 0
            let tail = end < min(last, size) && !hasLast ? min(last, size) - end : 0
            if head == 0 && tail == 0 {
                try writeFully(file, data, at: offset)
            } else {
                try composed(target, record, stack, data, at: offset, head: Int(head), tail: Int(tail), size: size)
                {
                    (whole) throws(Errno) in try writeFully(file, whole, at: offset - head)
                }
            }
        } catch {
            stack.top.files.release(missing * UInt64(Self.block))
            throw error
        }
        changes.append(.data(record.key, blocks))
    }

    /// Hands out `data` with `head` bytes before it and `tail` behind it, as applications see them.
    private func composed(
        _ target: ChangeTarget, _ record: InodeRecord, _ stack: LayerStack, _ data: UnsafeRawBufferPointer,
        at offset: Int64, head: Int, tail: Int, size: Int64, _ body: (UnsafeRawBufferPointer) throws(Errno) -> Void
    ) throws(Errno) {
        let whole = WorkerThread.buffer(head + data.count + tail)
        func part(_ range: Range<Int>) -> UnsafeMutableRawBufferPointer {
            UnsafeMutableRawBufferPointer(rebasing: whole[range])
        }
        let dataEnd = head + data.count
        try compose(target, record, stack, into: part(0..<head), at: offset - Int64(head), size: size)
        part(head..<dataEnd).copyMemory(from: data)
        try compose(
            target, record, stack, into: part(dataEnd..<whole.count), at: offset + Int64(data.count), size: size)
        try body(UnsafeRawBufferPointer(whole))
    }

    private static func count(of blocks: Range<UInt64>, in set: BlockSet) -> UInt64 {
        var found: UInt64 = 0
        var at = blocks.lowerBound
        while at < blocks.upperBound {
            let (isPresent, end) = set.run(from: at, limit: blocks.upperBound)
            if isPresent { found += end - at }
            at = end
        }
        return found
    }

    /// Counts blocks in that are to be stored.
    private func reserve(_ blocks: UInt64, _ layer: Layer) throws(Errno) {
        let bytes = blocks * UInt64(Self.block)
        do throws(Errno) {
            try layer.files.reserve(bytes)
        } catch {
            layer.files.release(bytes)
            throw error
        }
    }

    /// What applications see there; zeros behind the size.
    private func compose(
        _ target: ChangeTarget, _ record: InodeRecord, _ stack: LayerStack,
        into buffer: UnsafeMutableRawBufferPointer, at offset: Int64, size: Int64
    ) throws(Errno) {
        if buffer.isEmpty { return }
        let count = try stack.read(
            record.key, primary: try reader(of: target), size: size, into: buffer, at: offset)
        UnsafeMutableRawBufferPointer(rebasing: buffer[count...]).initializeMemory(as: UInt8.self, repeating: 0)
    }

    /// A descriptor of the inode to read from, which leaves its access time alone.
    private func reader(of target: ChangeTarget) throws(Errno) -> Descriptor {
        if target.isReadable { return target.descriptor }
        if let kept = readers.descriptor(for: target.key) { return kept }
        let opened = try Descriptor.reopenQuietly(target.descriptor, O_RDONLY | O_NONBLOCK)
        readers.keep(opened, for: target.key)
        return opened
    }

    /// Notes a change of data, one record: the data are there by now. `isZeroed`: also what was behind the file's end was
    /// made zero.
    private func finish(
        _ target: ChangeTarget, _ record: InodeRecord, _ stack: LayerStack, size: Int64,
        _ changes: [RecordChange], _ loss: PrivilegeLoss, isZeroed: Bool
    ) throws(Errno) {
        let before = attributes(record)
        let lost: RecordedAttributes? =
            Self.mayLose(before, loss)
            ? try onScratch(before, loss.changing) : nil
        let now = Self.now
        try metadata.withLock { (_) throws(Errno) in
            var changes = changes
            if let lost {
                var status = attributes(record).status
                status.mode = lost.status.mode
                (status.size, status.modified, status.changed) = (size, now, now)
                changes.append(
                    .attributes(record.key, RecordedAttributes(status: status, extended: lost.extended)))
            } else {
                changes.append(.written(record.key, size: size, modified: now, changed: now))
            }
            try self.record(stack.top, changes)
            commits.noteData(of: target.reference)
            // The new size must not count without these zeros, or after a power cut what had been cut off would show again.
            if isZeroed { commits.noteReplacing(target.reference) }
        }
    }

    /// Writes to anything take file capabilities away, and those of a user who may not keep them set-id bits.
    private static func mayLose(_ attributes: RecordedAttributes, _ loss: PrivilegeLoss) -> Bool {
        loss.mayLose && attributes.status.mode & UInt32(S_ISUID | S_ISGID) != 0
            || attributes.extended.values[capability] != nil
    }

    private static let capability = FileName("security.capability")

    // MARK: Size and holes

    /// truncate(2).
    package func truncate(
        _ target: ChangeTarget, to size: Int64, _ loss: PrivilegeLoss
    ) throws(Errno) {
        let stack = stack
        let record = try changeable(target, stack)
        try changingData(record, stack.top) { (changes) throws(Errno) in
            let old = attributes(record).status.size
            var isZeroed = false
            if size > old {
                try checkSize(size, record, stack)
                isZeroed = try zeroTail(target, record, stack, upTo: size, &changes)
            } else {
                // Blocks that are cut off must not show again when the file grows.
                let cutOff = RecordLimits.blockCount(size)..<RecordLimits.blockCount(old)
                if !cutOff.isEmpty { changes.append(.holes(record.key, cutOff)) }
            }
            let freed = Self.storedBlocks(changes, record)
            try finish(target, record, stack, size: size, changes, loss, isZeroed: isZeroed)
            giveBack(changes, freed, record, stack.top)
        }
    }

    /// Throws EFBIG where the store's file system has no files of that size; nor has then the source's, as a rule.
    private func checkSize(_ size: Int64, _ record: InodeRecord, _ stack: LayerStack) throws(Errno) {
        let status = attributes(record).status
        let file = try stack.top.files.file(of: record.key, createFor: (status.user, status.group))
        if try FileStatus(of: file).size < size { try LinuxSystem.truncate(file, to: size) }
    }

    /// fallocate(2), with what FUSE knows of its modes.
    package func allocate(
        _ target: ChangeTarget, mode: Int32, _ range: Range<Int64>, _ loss: PrivilegeLoss
    ) throws(Errno) {
        let stack = stack
        let record = try changeable(target, stack)
        try changingData(record, stack.top) { (changes) throws(Errno) in
            let old = attributes(record).status.size
            let size = mode & FALLOC_FL_KEEP_SIZE != 0 ? old : max(old, range.upperBound)
            var isZeroed = false
            if size > old {
                try checkSize(size, record, stack)
                isZeroed = try zeroTail(target, record, stack, upTo: size, &changes)
            }
            if mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) != 0 {
                try empty(target, record, stack, range.clamped(to: 0..<max(range.lowerBound, old)), &changes)
            } else {
                try allocateSpace(record, stack, range)
            }
            let freed = Self.storedBlocks(changes, record)
            try finish(target, record, stack, size: size, changes, loss, isZeroed: isZeroed)
            giveBack(changes, freed, record, stack.top)
        }
    }

    /// Space for what is to be written: in the delta, since that is where it will be written.
    private func allocateSpace(
        _ record: InodeRecord, _ stack: LayerStack, _ range: Range<Int64>
    ) throws(Errno) {
        let status = attributes(record).status
        let file = try stack.top.files.file(of: record.key, createFor: (status.user, status.group))
        try LinuxSystem.allocate(
            file, mode: FALLOC_FL_KEEP_SIZE, offset: range.lowerBound, length: range.upperBound - range.lowerBound)
    }

    /// Makes a range zeros: holes of the whole blocks, zeros in those that are covered in part.
    private func empty(
        _ target: ChangeTarget, _ record: InodeRecord, _ stack: LayerStack, _ range: Range<Int64>,
        _ changes: inout [RecordChange]
    ) throws(Errno) {
        if range.isEmpty { return }
        let size = attributes(record).status.size
        let first = RecordLimits.blockCount(range.lowerBound)
        // The file's last block is whole only where that is asked for: a file system keeps it too, with zeros in it.
        let last = UInt64(range.upperBound / Self.block)
        func zero(_ part: Range<Int64>) throws(Errno) {
            if part.isEmpty { return }
            switch stack.run(record.key, from: part.lowerBound, limit: part.upperBound).0 {
            case .hole: return
            case .delta: break
            case .primary:
                // A hole of the primary stays one.
                let start = part.lowerBound / Self.block * Self.block
                let data = try LinuxSystem.seek(try reader(of: target), SEEK_DATA, from: start)
                if data.map({ $0 >= start + Self.block }) ?? true { return }
            }
            let zeros = UnsafeMutableRawBufferPointer.allocate(byteCount: part.count, alignment: 16)
            defer { zeros.deallocate() }
            zeros.initializeMemory(as: UInt8.self, repeating: 0)
            try store(
                target, record, stack, UnsafeRawBufferPointer(zeros), at: part.lowerBound, size: size, &changes)
        }
        if first > last { return try zero(range) }
        let start = RecordLimits.offset(ofBlock: first)
        let end = RecordLimits.offset(ofBlock: last)
        try zero(range.lowerBound..<min(start, range.upperBound))
        if end < range.upperBound { try zero(max(end, range.lowerBound)..<range.upperBound) }
        if first < last { changes.append(.holes(record.key, first..<last)) }
    }

    /// How many blocks that are stored become holes. Before they do.
    private static func storedBlocks(_ changes: [RecordChange], _ record: InodeRecord) -> UInt64 {
        var stored: UInt64 = 0
        for case .holes(_, let range) in changes {
            stored += record.contents.withLock { count(of: range, in: $0.blocks) }
        }
        return stored
    }

    /// The space of blocks that have become holes comes back once a mark covers that; and what they were counted, not what
    /// the file system says: that knows of space too that fallocate(2) has set aside. With `firstChange` held.
    private func giveBack(
        _ changes: [RecordChange], _ freed: UInt64, _ record: InodeRecord, _ layer: Layer
    ) {
        for case .holes(_, let range) in changes {
            commits.afterMark(covering: layer.journal.nextSequence) { [self] in
                punch(range, of: record, layer) { $0.holes.run(from: $1, limit: $2) }
            }
        }
        if freed == 0 { return }
        commits.afterMark(covering: layer.journal.nextSequence) {
            layer.files.release(freed * UInt64(Self.block))
        }
    }

    /// Gives the space of blocks of a delta file back, as far as `isFree` says of the run that begins with a block, and tells
    /// where it ends.
    func punch(
        _ range: Range<UInt64>, of record: InodeRecord, _ layer: Layer,
        where isFree: (borrowing InodeRecord.Contents, _ block: UInt64, _ limit: UInt64) -> (Bool, UInt64)
    ) {
        record.firstChange.withLock { _ in
            var at = range.lowerBound
            while at < range.upperBound {
                let (isFreeNow, end) = record.contents.withLock { isFree($0, at, range.upperBound) }
                defer { at = end }
                guard isFreeNow else { continue }
                do throws(Errno) {
                    guard let file = try layer.files.existingFile(of: record.key) else { return }
                    let start = RecordLimits.offset(ofBlock: at)
                    let length = RecordLimits.offset(ofBlock: end) - start
                    try LinuxSystem.allocate(
                        file, mode: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset: start, length: length)
                } catch {
                    // The space is used until the layer goes: no more than that.
                    return
                }
            }
        }
    }

    /// What of a range copy_file_range(2) copies by sharing blocks, where the source's file system does that: whole blocks,
    /// unless the range ends where both files do. The rest is for the next call. `size` and `newSize` are those of the two
    /// files.
    private func sharedLength(
        _ length: Int, at offset: Int64, of size: Int64, to newOffset: Int64, of newSize: Int64
    ) throws(Errno) -> Int {
        guard offset % Self.block == 0, newOffset % Self.block == 0, try sharesBlocks() else { return length }
        let count = min(Int64(length), max(0, size - offset))
        let endsBoth = offset + count == size && newOffset + count >= newSize
        let shared = endsBoth ? count : count / Self.block * Self.block
        return shared > 0 ? Int(shared) : length
    }

    /// Whether the source's file system shares blocks between files. Found out once.
    private func sharesBlocks() throws(Errno) -> Bool {
        if let known = isSharing.withLock({ $0 }) { return known }
        try credentials.assumeDaemon()
        var shares = true
        do throws(Errno) { try store.checkClones() } catch { shares = false }
        isSharing.withLock { $0 = shares }
        return shares
    }

    /// copy_file_range(2): how many bytes were copied, no more than a buffer at a time. `input` is the file opened for
    /// reading; `write` writes what was read to `output`, at `newOffset`.
    package func copy(
        from key: InodeKey, _ input: Descriptor, at offset: Int64, length: Int,
        to output: ChangeTarget, at newOffset: Int64, _ write: (UnsafeRawBufferPointer) throws(Errno) -> Int
    ) throws(Errno) -> Int {
        func size(_ key: InodeKey, _ file: Descriptor) throws(Errno) -> Int64 {
            try status(of: key) { () throws(Errno) in try FileStatus(of: file) }.size
        }
        let shared = try sharedLength(
            length, at: offset, of: try size(key, input), to: newOffset,
            of: try size(output.key, output.descriptor))
        let length = min(shared, RecordLimits.copyBytesMax)
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: length, alignment: 4096)
        defer { buffer.deallocate() }
        let count = try read(key, primary: input, into: buffer, at: offset)
        if count == 0 { return 0 }
        return try write(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
    }
}
