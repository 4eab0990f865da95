internal import Glibc
package import LinuxSystem
package import SystemPackage
internal import Synchronization

/// What the store keeps for one snapshot: a delta file for each inode whose data changed, sparse, at the file's own
/// offsets, so that the map needs only to say which blocks are there; and the graveyard.
///
/// Safe for use by all threads; two that write one inode's delta file must keep apart (`InodeRecord.firstChange`).
package final class DeltaStore: Sendable {
    private let store: Store
    private let directory: Descriptor
    private let graveyard: Descriptor
    private let files = DescriptorCache<InodeKey>(capacity: RecordLimits.openDeltaFilesMax)
    private let bytes = Atomic<UInt64>(0)
    /// Those of `bytes` that lie in the graveyard, and still count in their owners' quotas.
    private let buried = Atomic<UInt64>(0)
    /// What `bytes` was when its space was given back.
    private let peak = Atomic<UInt64>(0)
    private let bytesMax: UInt64
    /// Files with originals that are clones, which were not counted.
    private let cloned = Mutex<Set<InodeKey>>([])

    /// Makes the directories of a new snapshot. `bytesMax` bounds what may be stored.
    package init(in store: Store, bytesMax: UInt64?) throws(Errno) {
        self.store = store
        self.bytesMax = bytesMax ?? .max
        directory = try Self.makeEmpty(Store.snapshotName, in: store.directory)
        graveyard = try Self.makeEmpty(Store.graveyardName, in: store.companion)
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
    package var storedBytes: UInt64 { bytes.load(ordering: .relaxed) }

    /// The most that was stored: it grows until all of it is given back.
    package var peakBytes: UInt64 { max(storedBytes, peak.load(ordering: .relaxed)) }

    /// Counts `number` bytes in; throws ENOSPC where that is over the bound.
    package func reserve(_ number: UInt64) throws(Errno) {
        let (_, sum) = bytes.add(number, ordering: .relaxed)
        if sum > bytesMax { throw .noSpace }
    }

    /// The delta file of an inode, made where `create` says so.
    package func file(of key: InodeKey, create: Bool) throws(Errno) -> Descriptor {
        if let open = files.descriptor(for: key) { return open }
        let flags = O_RDWR | (create ? O_CREAT : 0)
        let opened = try key.fileName.withCString { (name) throws(Errno) in
            try Descriptor.open(at: directory, name, flags, mode: 0o600)
        }
        files.keep(opened, for: key)
        return opened
    }

    // MARK: Originals

    /// Copies `range` of `source`, as it is now, to the delta file, at the same offsets: data as data, holes as
    /// holes. Where the file system can, a large range is cloned; `clones`: every range must be.
    package func storeOriginal(
        of key: InodeKey, from source: Descriptor, _ range: Range<Int64>, clones: Bool = false
    ) throws(Errno) {
        var at = range.lowerBound
        while at < range.upperBound {
            guard let data = try seek(source, SEEK_DATA, from: at), data < range.upperBound else {
                return
            }
            let start = max(data, at)
            let hole = try seek(source, SEEK_HOLE, from: start) ?? range.upperBound
            let end = min(hole, range.upperBound)
            try storeData(of: key, from: source, start..<end, clones: clones)
            at = end
        }
    }

    private func storeData(
        of key: InodeKey, from source: Descriptor, _ range: Range<Int64>, clones: Bool
    ) throws(Errno) {
        // A clone takes no space by itself, and what will be written to the live file nobody sees: it is not counted.
        if clones {
            cloned.withLock { _ = $0.insert(key) }
            return try cloneRange(source, to: try file(of: key, create: true), range)
        }
        try reserve(UInt64(range.count))
        let target = try file(of: key, create: true)
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
        let target: Descriptor
        do throws(Errno) {
            target = try file(of: key, create: false)
        } catch .noSuchFileOrDirectory {
            return  // They were holes.
        }
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
        peak.max(bytes.load(ordering: .relaxed), ordering: .relaxed)
        var now = bytes.load(ordering: .relaxed)
        while true {
            let (exchanged, original) = bytes.compareExchange(
                expected: now, desired: now - min(now, number), ordering: .relaxed)
            if exchanged { return }
            now = original
        }
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
        bytes.add(number, ordering: .relaxed)
        buried.add(number, ordering: .relaxed)
    }

    /// Bytes of files that were removed and live on in the graveyard.
    package var buriedBytes: UInt64 { buried.load(ordering: .relaxed) }

    /// Whether more is stored than allowed.
    package var isOverBound: Bool { storedBytes > bytesMax }

    /// Opens an inode in the graveyard: for a source without file handles.
    package func openGrave(_ key: InodeKey, _ flags: Int32) throws(Errno) -> Descriptor {
        try key.fileName.withCString { (grave) throws(Errno) in
            try Descriptor.open(at: graveyard, grave, flags | O_NOFOLLOW)
        }
    }

    /// Gives the space of delta files and graveyard back.
    package func discard() throws(Errno) {
        files.removeAll()
        _ = try removeTree(at: store.directory, Store.snapshotName)
        _ = try removeTree(at: store.companion, Store.graveyardName)
        peak.max(bytes.exchange(0, ordering: .relaxed), ordering: .relaxed)
        buried.store(0, ordering: .relaxed)
    }
}
