internal import Glibc
package import LinuxSystem
internal import Synchronization
package import SystemPackage

/// What one record of a journal says.
package enum JournalEvent: Sendable, Equatable {
    /// What one operation does: all of it counts or nothing.
    case changes([RecordChange])
    /// A commit. After a power cut counts what has a sequence below `through`: names, attributes, links, holes, births
    /// and places; data of an inode where a mark behind them names it.
    case mark(through: UInt64, inodes: [InodeKey])
    case sealed
    case discarded
    /// When the cut was, which is known at the end of a start: the head says only when that began. It counts whether a mark
    /// covers it or not.
    case cut(Timestamp)
}

/// The journal of one layer: the file `journal` in its directory, which is appended to only.
///
/// Every record has a length, a checksum and a sequence number, its index in the journal. `JournalFormat` has the bytes.
/// `JournalScan` reads it.
///
/// Safe for use by all threads. One lock guards the file's end and the buffer for encoding; it is held across one
/// write (and, for one short moment of a compaction, across a sync), never while `synchronize` waits for the disk. It
/// is taken after any lock of the caller's.
package final class Journal: Sendable {
    package static let fileName = FileName("journal")
    /// A file of less has not even a head.
    package static let bytesMin = JournalFormat.headBytes
    /// What compaction fills; it is of no meaning before it has the other name.
    static let newFileName = FileName("journal.new")

    struct State {
        var file: JournalFile
        let buffer = RecordBuffer()
        var nextSequence: UInt64
        var head: JournalHead
        /// The highest of the marks.
        var through: UInt64
        var sealedSequence: UInt64?
        var isDiscarded: Bool
        /// A sync failed: what the kernel had of the file then may be gone, and a later one would not tell.
        var syncError: Errno?
        /// The directory's sync failed after a compaction, so that the journal may be the one before it after a power cut.
        var isNameUnsynced = false
    }

    let directory: Descriptor
    let state: Mutex<State>
    /// Held across a compaction, so that there is one at a time; taken before `state`.
    let compaction = Mutex<Void>(())

    /// Makes the journal of a new layer: writes the head, which is not synced, nor is the directory.
    ///
    /// Throws EEXIST where there is one. Where the head cannot be written the file is removed.
    package init(creatingIn directory: Descriptor, head: JournalHead) throws(Errno) {
        self.directory = directory
        let buffer = RecordBuffer()
        buffer.put(head, isCompacted: false, firstSequence: 0)
        var file = try JournalFile(creating: Self.fileName, in: directory)
        do throws(Errno) {
            try file.append(buffer.bytes)
        } catch {
            Self.removeLeftover(Self.fileName, in: directory)
            throw error
        }
        state = Mutex(
            State(
                file: file, nextSequence: 0, head: head, through: 0, sealedSequence: nil, isDiscarded: false))
    }

    /// Goes on behind the last good record of the journal that was read, and cuts off what is behind that.
    ///
    /// Throws ESTALE where the file in `directory` is not the one that was read.
    package init(resuming scan: JournalScan, in directory: Descriptor) throws(Errno) {
        self.directory = directory
        let descriptor = try Self.fileName.withCString { (name) throws(Errno) in
            try Descriptor.open(at: directory, name, O_RDWR | O_NOFOLLOW)
        }
        let (status, scanned) = (try FileStatus(of: descriptor), try FileStatus(of: scan.file))
        guard (status.device, status.inode) == (scanned.device, scanned.inode) else {
            throw .staleNFSFileHandle
        }
        if scan.isCutShort { try truncate(descriptor, to: Int64(scan.goodBytes)) }
        Self.removeLeftover(Self.newFileName, in: directory)
        state = Mutex(
            State(
                file: JournalFile(descriptor, end: scan.goodBytes), nextSequence: scan.nextSequence,
                head: scan.head, through: scan.through, sealedSequence: scan.sealedSequence,
                isDiscarded: scan.isDiscarded))
    }

    /// Of the record that comes next.
    package var nextSequence: UInt64 { state.withLock { $0.nextSequence } }

    /// With the time of the cut that has been noted since it was written.
    package var head: JournalHead { state.withLock { $0.head } }

    /// Whether a sync has failed: then only a compaction makes anything durable again.
    package var hasFailed: Bool { state.withLock { $0.syncError != nil } }

    /// The size of the file, without what is allocated ahead.
    package var bytes: UInt64 { state.withLock { $0.file.end } }

    /// Appends one record, with one write that is not synced: its sequence number.
    ///
    /// Throws what the write throws (ENOSPC, EDQUOT, EIO ...); EMSGSIZE for a record of more than
    /// `JournalFormat.recordBytesMax`, ENAMETOOLONG for a name that no file system has. Then the journal is as it was
    /// before, and takes later records.
    @discardableResult
    package func append(_ event: JournalEvent) throws(Errno) -> UInt64 {
        try state.withLock { (state) throws(Errno) in
            try state.append(event)
        }
    }

    /// Takes the file's name away, then what it says, whose space is given back though the file is open; one of the two
    /// will do. There is no journal from then on: what is appended is lost.
    package func remove() throws(Errno) {
        var problem: Errno?
        do throws(Errno) {
            try Self.fileName.withCString { (name) throws(Errno) in
                try unlink(at: directory, name)
            }
        } catch {
            if error != .noSuchFileOrDirectory { problem = error }
        }
        do throws(Errno) {
            try truncate(state.withLock { $0.file.descriptor }, to: 0)
        } catch {
            throw problem ?? error
        }
    }

    /// fdatasync(2): when it returns, all that was appended before the call outlasts a power cut.
    ///
    /// The lock is not held meanwhile, so that appends go on. Once it has thrown it always throws, until a compaction
    /// has written the journal anew: the kernel tells of lost pages once.
    package func synchronize() throws(Errno) {
        let (file, isNameUnsynced) = try state.withLock { (state) throws(Errno) in
            if let error = state.syncError { throw error }
            return (state.file.descriptor, state.isNameUnsynced)
        }
        do throws(Errno) {
            try synchronizeData(file)
        } catch {
            state.withLock { state in
                if state.file.descriptor === file { state.syncError = error }
            }
            throw error
        }
        guard isNameUnsynced else { return }
        try synchronizeAll(directory)
        state.withLock { state in
            if state.file.descriptor === file { state.isNameUnsynced = false }
        }
    }

    /// Removes a file that says nothing. That it stays, where it cannot be removed, does no harm: it is overwritten by the
    /// next that makes it, or found to be without a head.
    static func removeLeftover(_ name: FileName, in directory: Descriptor) {
        do throws(Errno) {
            try name.withCString { (string) throws(Errno) in
                try unlink(at: directory, string)
            }
        } catch {
            // Mostly ENOENT: there is none.
        }
    }
}

extension Journal.State {
    mutating func append(_ event: JournalEvent) throws(Errno) -> UInt64 {
        let sequence = nextSequence
        buffer.clear()
        let kind: RecordKind
        switch event {
        case .changes: kind = .changes
        case .mark: kind = .mark
        case .sealed: kind = .sealed
        case .discarded: kind = .discarded
        case .cut: kind = .cut
        }
        let record = buffer.beginRecord(kind, sequence: sequence)
        switch event {
        case .changes(let changes):
            for change in changes { try buffer.put(change) }
        case .mark(let through, let inodes):
            precondition(through <= sequence, "a mark covers what was recorded before it")
            try buffer.putMark(through: through, .listed, inodes)
        case .cut(let time):
            buffer.put(time)
        case .sealed, .discarded:
            break
        }
        try buffer.endRecord(record, seed: JournalFormat.seed(layer: head.layer))
        try file.append(buffer.bytes)
        nextSequence += 1
        switch event {
        case .changes: break
        case .mark(let through, _): self.through = max(self.through, through)
        case .sealed: sealedSequence = sequence
        case .discarded: isDiscarded = true
        case .cut(let time): head.cut = time
        }
        return sequence
    }
}
