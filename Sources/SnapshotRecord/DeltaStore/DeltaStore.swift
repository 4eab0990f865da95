internal import Glibc
package import LinuxSystem
package import SystemPackage
internal import Synchronization

/// What the store keeps for one snapshot: a delta file for each inode whose data changed, sparse, at the file's own
/// offsets, so that the map needs only to say which blocks are there; the graveyard; and the journal of the map, by which
/// a snapshot outlives a daemon that is killed.
///
/// Safe for use by all threads; two that write one inode's delta file must keep apart (`InodeRecord.firstChange`).
package final class DeltaStore: Sendable {
    private let store: Store
    package let files: DeltaFiles
    private let graveyard: Descriptor
    /// nil where the snapshot cannot be taken up after a kill.
    private let journal: Journal?
    /// Why the next daemon will find none, where that is not this daemon's nature.
    private let whyUnjournaled: String?
    /// Of the bytes stored those that lie in the graveyard, and still count in their owners' quotas.
    private let buried = Atomic<UInt64>(0)
    /// What was stored when its space was given back.
    private let peak = Atomic<UInt64>(0)
    /// Files with originals that are clones, which were not counted.
    private let cloned = Mutex<Set<InodeKey>>([])

    /// Makes the directories of a new snapshot. `bytesMax` bounds what may be stored. `head` nil keeps no journal;
    /// `whyUnjournaled`: what the daemon that finds the snapshot after a kill is to say then.
    package init(
        in store: Store, bytesMax: UInt64?, head: JournalHead? = nil, whyUnjournaled: String? = nil
    ) throws(Errno) {
        self.store = store
        self.whyUnjournaled = whyUnjournaled
        files = DeltaFiles(
            in: try Self.makeEmpty(Store.snapshotName, in: store.directory), bytesMax: bytesMax)
        graveyard = try Self.makeEmpty(Store.graveyardName, in: store.companion)
        let directory = files.directory
        journal = try head.map { (head) throws(Errno) in try Journal(creatingIn: directory, head: head) }
    }

    /// Goes on with what an earlier daemon kept, whose journal has been read and whose files have been looked at.
    /// `countsClones` false: delta files are clones, which count for nothing.
    package init(
        takingUp scan: JournalScan, _ kept: KeptFiles, in store: Store, bytesMax: UInt64?, countsClones: Bool
    ) throws(Errno) {
        guard let directory = kept.directory else { throw .noSuchFileOrDirectory }
        self.store = store
        whyUnjournaled = nil
        files = DeltaFiles(in: directory, bytesMax: bytesMax)
        if let there = kept.graveyard {
            graveyard = there
        } else {
            graveyard = try Self.makeEmpty(Store.graveyardName, in: store.companion)
        }
        journal = try Journal(resuming: scan, in: directory)
        if countsClones { files.count(kept.deltaBytes) }
        countBuried(kept.buriedBytes)
    }

    private static func makeEmpty(
        _ name: FileName, in parent: Descriptor
    ) throws(Errno) -> Descriptor {
        _ = try removeTree(at: parent, name)
        return try name.withCString { (string) throws(Errno) in
            try makeDirectory(at: parent, string, mode: 0o700)
            return try Descriptor.open(at: parent, string, O_RDONLY | O_DIRECTORY)
        }
    }

    /// Bytes stored: originals copied, and those that lie in the graveyard.
    package var storedBytes: UInt64 { files.storedBytes }

    /// The most that was stored: it grows until all of it is given back.
    package var peakBytes: UInt64 { max(storedBytes, peak.load(ordering: .relaxed)) }

    /// Whether the map is in a journal.
    package var isJournaled: Bool { journal != nil }

    // MARK: The journal

    /// Writes to the journal what the map is about to hold: one record, with one write that is not synced.
    package func record(_ changes: [RecordChange]) throws(Errno) {
        try journal?.append(.changes(changes))
    }

    /// Says in the journal when the cut was, and that the start came to its end: what has no such mark was promised to
    /// nobody, and is not taken up.
    package func begin(cut: Timestamp) throws(Errno) {
        guard let journal else {
            if let whyUnjournaled { try KeptFiles.noteUnjournaled(whyUnjournaled, in: files.directory) }
            return
        }
        try journal.append(.cut(cut))
        try journal.append(.mark(through: 0, inodes: []))
    }

    /// Says in the journal that the snapshot is over, before the first change goes by that is not recorded: so that it is
    /// not taken up. Where nothing more can be written, the journal goes.
    package func forsake() throws(Errno) {
        guard let journal else {
            if whyUnjournaled != nil { try KeptFiles.removeUnjournaled(in: files.directory) }
            return
        }
        do throws(Errno) {
            try journal.append(.discarded)
        } catch {
            try journal.remove()
        }
    }

    /// Keeps, for a daemon that takes the snapshot up, why a part of it cannot be read.
    package func noteInexact(_ why: String) throws(Errno) {
        guard journal != nil else { return }
        try KeptFiles.noteInexact(why, in: files.directory)
    }

    // MARK: Originals

    /// Copies `range` of `source`, as it is now, to the delta file, at the same offsets: data as data, holes as
    /// holes. Where the file system can, a large range is cloned; `clones`: every range must be.
    package func storeOriginal(
        of key: InodeKey, from source: Descriptor, _ range: Range<Int64>, clones: Bool = false
    ) throws(Errno) {
        var at = range.lowerBound
        // Made in any case: by what a journal says, recovery misses it.
        let target = try target(of: key)
        while at < range.upperBound {
            guard let data = try seek(source, SEEK_DATA, from: at), data < range.upperBound else {
                break
            }
            let start = max(data, at)
            let hole = try seek(source, SEEK_HOLE, from: start) ?? range.upperBound
            let end = min(hole, range.upperBound)
            if clones { cloned.withLock { _ = $0.insert(key) } }
            try storeData(to: target, from: source, start..<end, clones: clones)
            at = end
        }
        // Where the range ends in a hole: the file reaches as far as what is recorded as stored, so that one that was
        // cut short is told from it.
        if at < range.upperBound, try FileStatus(of: target).size < range.upperBound {
            try truncate(target, to: range.upperBound)
        }
    }

    private func storeData(
        to target: Descriptor, from source: Descriptor, _ range: Range<Int64>, clones: Bool
    ) throws(Errno) {
        // A clone takes no space by itself, and what will be written to the live file nobody sees: it is not counted.
        if clones { return try cloneRange(source, to: target, range) }
        try files.reserve(UInt64(range.count))
        if range.count >= RecordLimits.cloneBytesMin, clone(source, to: target, range) { return }
        var at = range.lowerBound
        while at < range.upperBound {
            let piece = min(Int(range.upperBound - at), RecordLimits.copyBytesMax)
            let buffer = WorkerThread.buffer(piece)
            let count = try readFully(source, into: buffer, at: at)
            if count == 0 { return }
            try writeFully(target, UnsafeRawBufferPointer(rebasing: buffer[..<count]), at: at)
            at += Int64(count)
        }
    }

    private func target(of key: InodeKey) throws(Errno) -> Descriptor {
        try files.file(of: key, createFor: (geteuid(), getegid()))
    }

    private func clone(_ source: Descriptor, to target: Descriptor, _ range: Range<Int64>) -> Bool {
        do throws(Errno) {
            try cloneRange(source, to: target, range)
            return true
        } catch {
            // No reflink here, or not for this range: it is copied, which says what is wrong if something is.
            return false
        }
    }

    /// Gives the space of originals back that nobody reads any more: of whole blocks.
    package func giveBack(of key: InodeKey, _ range: Range<Int64>) throws(Errno) {
        guard let target = try files.existingFile(of: key) else { return }  // They were holes.
        var stored: Int64 = 0
        var at = range.lowerBound
        while at < range.upperBound, let data = try seek(target, SEEK_DATA, from: at), data < range.upperBound {
            at = min(try seek(target, SEEK_HOLE, from: data) ?? range.upperBound, range.upperBound)
            stored += at - max(data, range.lowerBound)
        }
        try allocate(
            target, mode: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset: range.lowerBound,
            length: Int64(range.count))
        if !cloned.withLock({ $0.contains(key) }) { uncount(UInt64(stored)) }
    }

    /// Counts bytes out.
    private func uncount(_ number: UInt64) {
        peak.max(files.storedBytes, ordering: .relaxed)
        files.release(atMost: number)
    }

    // MARK: The graveyard

    /// Moves a name into the graveyard: the inode has lost its last name, and lives on there.
    package func bury(
        _ key: InodeKey, bytes: UInt64, from directory: Descriptor, _ name: UnsafePointer<CChar>
    ) throws(Errno) {
        try key.fileName.withCString { (grave) throws(Errno) in
            try rename(at: directory, name, to: graveyard, grave)
        }
        countBuried(bytes)
    }

    /// Gives an inode a further name in the graveyard, before the rename that takes its last one.
    package func linkIntoGraveyard(
        _ key: InodeKey, bytes: UInt64, from directory: Descriptor, _ name: UnsafePointer<CChar>
    ) throws(Errno) {
        try key.fileName.withCString { (grave) throws(Errno) in
            try link(at: directory, name, to: graveyard, grave)
        }
        countBuried(bytes)
    }

    /// Takes an inode out of the graveyard: it is free once nobody holds it open.
    package func removeGrave(_ key: InodeKey) throws(Errno) {
        let size = try key.fileName.withCString { (grave) throws(Errno) in
            let size = try FileStatus(at: graveyard, grave).blocks * 512
            try unlink(at: graveyard, grave)
            return UInt64(size)
        }
        uncount(size)
        buried.subtract(min(size, buried.load(ordering: .relaxed)), ordering: .relaxed)
    }

    private func countBuried(_ number: UInt64) {
        files.count(number)
        buried.add(number, ordering: .relaxed)
    }

    /// Bytes of files that were removed and live on in the graveyard.
    package var buriedBytes: UInt64 { buried.load(ordering: .relaxed) }

    /// Whether more is stored than allowed.
    package var isOverBound: Bool { files.isOverBound }

    /// Opens an inode in the graveyard: for a source without file handles.
    package func openGrave(_ key: InodeKey, _ flags: Int32) throws(Errno) -> Descriptor {
        try key.fileName.withCString { (grave) throws(Errno) in
            try Descriptor.open(at: graveyard, grave, flags | O_NOFOLLOW)
        }
    }

    /// Gives the space of delta files and graveyard back.
    package func discard() throws(Errno) {
        files.releaseDescriptors()
        try journal?.remove()
        _ = try removeTree(at: store.directory, Store.snapshotName)
        _ = try removeTree(at: store.companion, Store.graveyardName)
        peak.max(files.releaseAll(), ordering: .relaxed)
        buried.store(0, ordering: .relaxed)
    }
}
