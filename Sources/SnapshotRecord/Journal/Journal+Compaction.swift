internal import Glibc
internal import LinuxSystem
internal import Synchronization
package import SystemPackage

extension Journal {
    /// Writes the journal anew, in proportion to the map, while appends go on.
    ///
    /// 1. From the moment of the call on, what is appended is the tail.
    /// 2. `dump` emits the map as it is at some moment while it runs (`DeltaMap.forEachChange`). What was appended before
    ///    the call has to be in it: who appends and then changes the map does both under a lock or gate that `dump`
    ///    passes through before it looks at the map.
    /// 3. The tail so far is written behind.
    /// 4. `makeDurable` flushes all data that the records so far stand for, and what lies below the layer.
    /// 5. A mark of all inodes is written behind, then the rest of the tail: the last bit of it under the lock of `append`.
    /// 6. The new file is synced, takes the name of the old one, and the directory is synced.
    ///
    /// Sequence numbers of the tail stay what they were. `head`, where there is one, replaces the head (of the same
    /// layer: else EINVAL): recovery after a power cut writes one of this boot. Then a seal that no mark covers is left
    /// out too, as what does not count.
    ///
    /// After an error the old journal is in force and the new file removed; but where only the last sync of the directory
    /// failed the new one is, and `synchronize` repeats that sync.
    package func compact(
        dump: (_ emit: (RecordChange) throws(Errno) -> Void) throws(Errno) -> Void,
        makeDurable: () throws(Errno) -> Void, head newHead: JournalHead? = nil
    ) throws(Errno) {
        try compaction.withLock { (_: inout Void) throws(Errno) in
            Self.removeLeftover(Self.newFileName, in: directory)
            var isInForce = false
            do throws(Errno) {
                try writeAnew(dump, makeDurable, newHead, &isInForce)
            } catch {
                if !isInForce { Self.removeLeftover(Self.newFileName, in: directory) }
                throw error
            }
        }
    }

    private func writeAnew(
        _ dump: ((RecordChange) throws(Errno) -> Void) throws(Errno) -> Void,
        _ makeDurable: () throws(Errno) -> Void, _ newHead: JournalHead?, _ isInForce: inout Bool
    ) throws(Errno) {
        let start = state.withLock { Moment($0) }
        let head = newHead ?? start.head
        guard head.layer == start.head.layer else { throw .invalidArgument }
        let isSealKept = newHead == nil || start.sealedSequence.map { $0 < start.through } == true

        let file = try JournalFile(creating: Self.newFileName, in: directory)
        let base = BaseWriter(file, seed: JournalFormat.seed(layer: head.layer))
        try base.begin(head, start, isSealKept: isSealKept)
        try dump { (change) throws(Errno) in try base.put(change) }
        try base.endChanges()

        let durable = state.withLock { Moment($0) }
        try base.copy(durable.file, start.end..<durable.end)
        try makeDurable()
        try base.mark(through: durable.nextSequence)

        // What came meanwhile, and its sync, without the lock; then what came in the meantime.
        let late = state.withLock { Moment($0) }
        try base.copy(late.file, durable.end..<late.end)
        try synchronizeData(base.file.descriptor)
        try state.withLock { (state) throws(Errno) in
            try base.copy(state.file.descriptor, late.end..<state.file.end)
            try synchronizeData(base.file.descriptor)
            try Self.newFileName.withCString { (from) throws(Errno) in
                try Self.fileName.withCString { (to) throws(Errno) in
                    try rename(at: directory, from, to: directory, to)
                }
            }
            isInForce = true
            state.file = base.file
            // When the cut was may have been noted meanwhile.
            let cut = state.head.cut
            state.head = head
            state.head.cut = cut
            state.through = max(state.through, durable.nextSequence)
            if !isSealKept, state.sealedSequence == start.sealedSequence { state.sealedSequence = nil }
            (state.syncError, state.isNameUnsynced) = (nil, true)
            try synchronizeAll(directory)
            state.isNameUnsynced = false
        }
    }
}

/// What a journal was at one moment.
private struct Moment {
    let file: Descriptor
    let end: UInt64
    let nextSequence: UInt64
    let head: JournalHead
    let through: UInt64
    let sealedSequence: UInt64?
    let isDiscarded: Bool

    init(_ state: borrowing Journal.State) {
        (file, end) = (state.file.descriptor, state.file.end)
        (nextSequence, head, through) = (state.nextSequence, state.head, state.through)
        (sealedSequence, isDiscarded) = (state.sealedSequence, state.isDiscarded)
    }
}

/// Writes what a compacted journal begins with. For one thread.
private final class BaseWriter {
    private(set) var file: JournalFile
    private let seed: UInt32
    private let buffer = RecordBuffer()
    private var next: UInt64 = 0
    /// The offset in `buffer` of the record that is being filled.
    private var open: Int?

    init(_ file: JournalFile, seed: UInt32) {
        (self.file, self.seed) = (file, seed)
    }

    private func write() throws(Errno) {
        try file.append(buffer.bytes)
        buffer.clear()
    }

    private func begin(_ kind: RecordKind) -> Int {
        defer { next += 1 }
        return buffer.beginRecord(kind, sequence: next)
    }

    /// The head, and what was said before the tail other than changes.
    func begin(_ head: JournalHead, _ moment: Moment, isSealKept: Bool) throws(Errno) {
        buffer.put(head, isCompacted: true, firstSequence: moment.nextSequence)
        if let sealed = moment.sealedSequence, isSealKept {
            let record = begin(.baseSealed)
            buffer.put(sealed)
            try buffer.endRecord(record, seed: seed)
        }
        if moment.isDiscarded { try buffer.endRecord(begin(.baseDiscarded), seed: seed) }
        try write()
    }

    func put(_ change: RecordChange) throws(Errno) {
        let record = open ?? begin(.baseChanges)
        open = record
        try buffer.put(change)
        if buffer.count >= JournalFormat.baseRecordBytes { try endChanges() }
    }

    func endChanges() throws(Errno) {
        guard let record = open else { return }
        open = nil
        try buffer.endRecord(record, seed: seed)
        try write()
    }

    func mark(through: UInt64) throws(Errno) {
        let record = begin(.baseMark)
        try buffer.putMark(through: through, .all)
        try buffer.endRecord(record, seed: seed)
        try write()
    }

    /// Copies whole records of the old journal as they are.
    func copy(_ old: Descriptor, _ range: Range<UInt64>) throws(Errno) {
        guard !range.isEmpty else { return }
        let length = Int(min(UInt64(JournalFormat.bufferBytes), range.upperBound - range.lowerBound))
        let room = UnsafeMutableRawBufferPointer.allocate(byteCount: length, alignment: 16)
        defer { room.deallocate() }
        var at = range.lowerBound
        while at < range.upperBound {
            let part = UnsafeMutableRawBufferPointer(
                rebasing: room[..<Int(min(UInt64(length), range.upperBound - at))])
            guard try readFully(old, into: part, at: Int64(at)) == part.count else { throw .ioError }
            try file.append(UnsafeRawBufferPointer(part))
            at += UInt64(part.count)
        }
    }
}
