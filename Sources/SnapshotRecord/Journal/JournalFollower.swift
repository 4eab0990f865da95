internal import Glibc
package import LinuxSystem
internal import Synchronization
internal import SystemPackage

/// Keeps a map up with a journal that another process writes.
///
/// The writer appends a record before it changes what the record is of, and what ends the snapshot before the first change
/// goes by that is not recorded. So who has read something, catches up then, and finds no record of it and no end, has read
/// what was there before any change. A record of which only a part is there yet is of a change that has not begun.
///
/// Safe for use by all threads; a thread that catches up while another does so waits for it.
package final class JournalFollower: Sendable {
    private let directory: Descriptor
    private let path: String
    /// What changes are applied to; nil where only the end matters.
    private let map: DeltaMap?
    private let device: UInt64
    private let tail: Mutex<Tail>
    package let head: JournalHead

    /// How far the journal has been read.
    private struct Tail {
        var file: Descriptor
        var stream: RecordStream
        var isOver: Bool

        init(_ scan: JournalScan) {
            file = scan.file
            stream = RecordStream(behind: scan)
            isOver = scan.isSealed || scan.isDiscarded
        }
    }

    /// Reads the journal in `directory`, whose path for messages is `path`, into `map`. All inodes are of `device`.
    ///
    /// Throws `noHead` where there is none, and what `JournalScan.read` and `replay` throw.
    package init(in directory: Descriptor, path: String, device: UInt64, into map: DeltaMap?) throws(RecordError) {
        guard let scan = try JournalScan.read(in: directory, path: path) else { throw .noHead(file: path) }
        if let map { try scan.replay(.all, device: device, into: map) }
        (self.directory, self.path, self.map, self.device) = (directory, path, map, device)
        head = scan.head
        tail = Mutex(Tail(scan))
    }

    /// Applies what has been appended since the last call. Whether the snapshot still goes on. Throws `damaged` and
    /// `system`: then nothing can be said of what was read.
    package func catchUp() throws(RecordError) -> Bool {
        try tail.withLock { (tail) throws(RecordError) -> Bool in
            if tail.isOver { return false }
            let status: FileStatus
            do throws(Errno) {
                status = try FileStatus(of: tail.file)
            } catch {
                throw .system(error, action: "look at", path: path)
            }
            if status.links == 0 {
                try followReplacement(&tail)
            } else if status.size < Int64(tail.stream.offset) {
                // It was to be removed, and could only be emptied: the snapshot is over. What the writer cuts off of a record lies
                // behind the last good one.
                tail.isOver = true
            } else if status.size != Int64(tail.stream.offset) {
                try readOn(&tail, to: UInt64(clamping: status.size))
            }
            return !tail.isOver
        }
    }

    private func readOn(_ tail: inout Tail, to end: UInt64) throws(RecordError) {
        let stream = tail.stream
        stream.extend(to: end)
        while !tail.isOver, let record = try next(stream) {
            do throws(DecodeProblem) {
                tail.isOver = try isEnd(record)
            } catch {
                throw error.error(file: path, offset: record.offset)
            }
        }
        if !tail.isOver, stream.offset < stream.end, !stream.isUnfinished {
            throw .damaged(file: path, offset: stream.offset, problem: "what is appended is no record")
        }
    }

    /// A compacted journal has taken the place of the one that is open, which happens in redirect; or the snapshot is over,
    /// and it was removed.
    private func followReplacement(_ tail: inout Tail) throws(RecordError) {
        let scan = map == nil ? try JournalScan.read(in: directory, path: path) : nil
        guard let scan, scan.head.serial == head.serial else {
            tail.isOver = true
            return
        }
        tail = Tail(scan)
    }

    private func next(_ stream: RecordStream) throws(RecordError) -> RecordStream.Record? {
        do throws(RecordStream.Failure) {
            return try stream.next()
        } catch {
            throw error.error(file: path)
        }
    }

    /// Takes a record in; whether it ends the snapshot.
    private func isEnd(_ record: RecordStream.Record) throws(DecodeProblem) -> Bool {
        switch record.kind {
        case .sealed, .baseSealed, .discarded, .baseDiscarded: return true
        case .mark, .baseMark, .cut: return false
        case .changes, .baseChanges: break
        }
        guard let map else { return false }
        var reader = RecordReader(record.payload, device: device)
        while !reader.isAtEnd { map.apply(try reader.change()) }
        return false
    }
}
