internal import Glibc
package import LinuxSystem
internal import SystemPackage

/// What one journal file says: read once, from begin to end, without a map; `replay` then reads it again.
///
/// Keeps the file open, and of its content the marks alone: memory in proportion to the inodes that they name.
package struct JournalScan: Sendable {
    /// How the file ends.
    package enum End: Sendable, Equatable {
        case whole
        /// At `offset` begins what is no good record: after a power cut that is the end, after a kill damage, unless
        /// it is `isUnfinished`.
        case torn(offset: UInt64)
    }

    /// Which records count.
    package enum Counting: Sendable {
        /// All: the machine has not gone down since they were written.
        case all
        /// What marks cover: after a power cut. Everything before the highest `through`, but data of an inode only
        /// where a mark with `through` behind them names the inode.
        case marked
    }

    /// With the time of the cut that a record says.
    package let head: JournalHead
    /// Of the record that would come next.
    package let nextSequence: UInt64
    /// Up to the end of the last good record.
    package let goodBytes: UInt64
    package let end: End
    /// Whether the bytes behind the last good record are the beginning of the next one: a write that a kill (in the midst
    /// of its pages), a full disk or a power cut ended. No record is lost by that which had been written whole: after a
    /// kill too this is no damage. False for all else that is torn.
    package let isUnfinished: Bool
    package let sealedSequence: UInt64?
    package let isDiscarded: Bool
    /// The highest of the marks, 0 where there is none: what has a sequence below it counts.
    package let through: UInt64
    /// Of the last mark: nil where there is none, or only compaction's.
    package let lastMarkSequence: UInt64?

    /// Whether there are bytes behind the last good record.
    package var isCutShort: Bool { end != .whole }
    package var isSealed: Bool { sealedSequence != nil }

    let file: Descriptor
    private let path: String
    private let stored: StoredHead
    private let marks: JournalMarks

    /// Reads the journal in `directory`, whose path for messages is `path`; nil where there is none.
    ///
    /// Throws `noHead` for a file without a whole good head, `newer` for one that this version cannot read, and
    /// `damaged` for a record that is whole and makes no sense, and for a compacted journal that ends before the records
    /// that were there when it came into force.
    package static func read(in directory: Descriptor, path: String) throws(RecordError) -> JournalScan? {
        let path = path + "/" + Journal.fileName.description
        let file: Descriptor
        do throws(Errno) {
            file = try Journal.fileName.withCString { (name) throws(Errno) in
                // O_NONBLOCK: not to wait at what is no file.
                try Descriptor.open(at: directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
            }
        } catch .noSuchFileOrDirectory {
            return nil
        } catch {
            throw .system(error, action: "open", path: path)
        }
        return try JournalScan(file, path)
    }

    private init(_ file: Descriptor, _ path: String) throws(RecordError) {
        (self.file, self.path) = (file, path)
        let front = UnsafeMutableRawBufferPointer.allocate(byteCount: JournalFormat.headBytesMax, alignment: 16)
        defer { front.deallocate() }
        let (status, count) = try Self.attempt("read", path) { () throws(Errno) in
            let status = try FileStatus(of: file)
            return (status, status.isRegular ? try readFully(file, into: front, at: 0) : 0)
        }
        let head = try StoredHead(UnsafeRawBufferPointer(rebasing: front[..<count]), file: path)
        guard let head else { throw .noHead(file: path) }
        stored = head
        let size = UInt64(clamping: status.size)
        let stream = RecordStream(file, head, end: size)
        marks = try Self.marks(stream, path)
        var stated = head.head
        if let cut = marks.cut { stated.cut = cut }
        self.head = stated
        guard stream.isPastBase else {
            throw .damaged(
                file: path, offset: stream.offset,
                problem: "what it began with when it was compacted is not whole")
        }
        nextSequence = stream.nextSequence
        goodBytes = stream.offset
        end = stream.offset == size ? .whole : .torn(offset: stream.offset)
        isUnfinished = stream.isUnfinished
        (sealedSequence, isDiscarded) = (marks.sealed, marks.isDiscarded)
        (through, lastMarkSequence) = (marks.through, marks.last)
    }

    private static func attempt<Result>(
        _ action: String, _ path: String, _ body: () throws(Errno) -> Result
    ) throws(RecordError) -> Result {
        do throws(Errno) {
            return try body()
        } catch {
            throw .system(error, action: action, path: path)
        }
    }

    private static func next(
        _ stream: RecordStream, _ path: String
    ) throws(RecordError) -> RecordStream.Record? {
        do throws(RecordStream.Failure) {
            return try stream.next()
        } catch {
            throw error.error(file: path)
        }
    }

    private static func marks(_ stream: RecordStream, _ path: String) throws(RecordError) -> JournalMarks {
        var marks = JournalMarks()
        while let record = try next(stream, path) {
            do throws(DecodeProblem) {
                try marks.add(record, nextSequence: stream.nextSequence)
            } catch {
                throw error.error(file: path, offset: record.offset)
            }
        }
        return marks
    }

    /// Applies what counts to `map`, which is empty: by `DeltaMap.apply`, in the journal's order. All inodes are of one
    /// device, whose number is now `device`: the recorded one was that of an earlier start of the machine, or mount.
    ///
    /// The map is of no use after an error. Throws `damaged` where a record makes no sense, or the file is not what it
    /// was when it was scanned, and `newer`.
    package func replay(
        _ counting: Counting, device: UInt64? = nil, into map: DeltaMap
    ) throws(RecordError) {
        try forEachRecord { (record) throws(DecodeProblem) in
            guard record.kind == .changes || record.kind == .baseChanges else { return }
            let countsWhole = counting == .all || record.kind == .baseChanges
            var reader = RecordReader(record.payload, device: device)
            while !reader.isAtEnd {
                let change = try reader.change()
                if countsWhole || marks.covers(change, record.sequence) { map.apply(change) }
            }
        }
    }

    /// Calls `body` with each record in turn: to look at a journal, or to check that all of it can be read. The sequence
    /// is nil for what compaction wrote; its mark is of all inodes, and comes without them. Throws what `replay` throws.
    package func forEachEvent(_ body: (UInt64?, JournalEvent) -> Void) throws(RecordError) {
        try forEachRecord { (record) throws(DecodeProblem) in
            body(record.kind.isBase ? nil : record.sequence, try record.event())
        }
    }

    private func forEachRecord(
        _ body: (RecordStream.Record) throws(DecodeProblem) -> Void
    ) throws(RecordError) {
        let stream = RecordStream(file, stored, end: goodBytes)
        while let record = try Self.next(stream, path) {
            do throws(DecodeProblem) {
                try body(record)
            } catch {
                throw error.error(file: path, offset: record.offset)
            }
        }
        guard stream.offset == goodBytes else {
            throw .damaged(file: path, offset: stream.offset, problem: "it changed while it was read")
        }
    }
}

extension RecordStream.Record {
    fileprivate func event() throws(DecodeProblem) -> JournalEvent {
        var reader = RecordReader(payload)
        switch kind {
        case .changes, .baseChanges:
            var changes: [RecordChange] = []
            while !reader.isAtEnd { changes.append(try reader.change()) }
            return .changes(changes)
        case .mark, .baseMark:
            var inodes: [InodeKey] = []
            let (through, _) = try reader.mark { inode, _ in inodes.append(inode) }
            return .mark(through: through, inodes: inodes)
        case .sealed, .baseSealed:
            return .sealed
        case .discarded, .baseDiscarded:
            return .discarded
        case .cut:
            return .cut(try reader.time())
        }
    }
}

/// What the records say that are no changes.
private struct JournalMarks {
    var through: UInt64 = 0
    var throughOfAll: UInt64 = 0
    /// By inode, the highest `through` of the marks that name it.
    var throughByInode: [InodeKey: UInt64] = [:]
    var last: UInt64?
    var sealed: UInt64?
    var isDiscarded = false
    var cut: Timestamp?

    /// Whether a change counts after a power cut.
    func covers(_ change: RecordChange, _ sequence: UInt64) -> Bool {
        guard case .data(let inode, _) = change else { return sequence < through }
        return sequence < throughOfAll || sequence < throughByInode[inode] ?? 0
    }

    /// Takes note of a record.
    mutating func add(
        _ record: RecordStream.Record, nextSequence: UInt64
    ) throws(DecodeProblem) {
        var reader = RecordReader(record.payload)
        switch record.kind {
        case .changes, .baseChanges: return
        case .mark, .baseMark:
            let (through, scope) = try reader.mark { inode, through in
                throughByInode[inode] = max(throughByInode[inode] ?? 0, through)
            }
            guard through <= nextSequence else { throw .damaged("a mark of records that come after it") }
            self.through = max(self.through, through)
            if scope == .all { throughOfAll = max(throughOfAll, through) }
            if record.kind == .mark { last = record.sequence }
        case .sealed:
            sealed = record.sequence
        case .baseSealed:
            sealed = try reader.number(UInt64.self)
        case .discarded, .baseDiscarded:
            isDiscarded = true
        case .cut:
            cut = try reader.time()
        }
        if record.kind != .mark, record.kind != .baseMark { try reader.expectEnd() }
    }
}
