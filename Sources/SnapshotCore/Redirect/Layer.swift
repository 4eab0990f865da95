internal import Glibc
internal import LinuxSystem
package import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// One generation of what redirect has put aside: its map, its delta files, and its journal.
///
/// A layer is written while it is the top one of its stack. Once it is sealed it never changes again, and is merged into
/// the primary as a whole.
package final class Layer: Sendable {
    package let number: UInt64
    package let map: DeltaMap
    package let files: DeltaFiles
    package let journal: Journal
    /// Whether what lies below is durable: no mark counts before that.
    let isBelowDurable = Atomic<Bool>(false)
    /// How long the journal was when it was compacted last.
    let compactedBytes = Atomic<UInt64>(0)
    /// Whether it is sealed, and all of it durable.
    let isSealDurable = Atomic<Bool>(false)

    package init(
        number: UInt64, map: DeltaMap, files: DeltaFiles, journal: Journal
    ) {
        self.number = number
        self.map = map
        self.files = files
        self.journal = journal
    }

    /// What a record says of an inode here; nil where the layer says nothing.
    func contents<Result>(of key: InodeKey, _ body: (borrowing InodeRecord.Contents) -> Result) -> Result? {
        map.record(of: key)?.contents.withLock { body($0) }
    }
}

/// The layers over the primary, the top one first: one while a snapshot is active, two while the lower one is merged.
/// Immutable; the redirect swaps whole stacks, inside the closed gate.
package final class LayerStack: Sendable {
    package let layers: [Layer]

    init(_ layers: [Layer]) {
        precondition(!layers.isEmpty && layers.count <= 2, "one layer is merged at a time")
        self.layers = layers
    }

    /// The one that changes go to.
    package var top: Layer { layers[0] }

    /// The one that is being merged.
    package var sealed: Layer? { layers.count > 1 ? layers[1] : nil }

    // MARK: What the layers say

    /// What a name in a directory stands for; nil where no layer says anything, and the primary decides.
    func entry(in directory: InodeKey, _ name: UnsafePointer<CChar>) -> RecordedEntry? {
        var key: FileName?
        for layer in layers {
            guard let record = layer.map.record(of: directory) else { continue }
            let name = key ?? FileName(name)
            key = name
            if let entry = record.contents.withLock({ $0.entries[name] }) { return entry }
        }
        return nil
    }

    /// Every name in a directory of which a layer says something, with what the topmost says.
    func entries(of directory: InodeKey) -> [FileName: RecordedEntry] {
        var all: [FileName: RecordedEntry] = [:]
        for layer in layers.reversed() {
            guard let entries = layer.contents(of: directory, { $0.entries }) else { continue }
            all.merge(entries) { _, upper in upper }
        }
        return all
    }

    /// Whether an inode is a file in the store, which is read and written as it is. A new directory's names and
    /// attributes are in the layers all the same.
    package func isNew(_ key: InodeKey) -> Bool {
        layers.contains { $0.contents(of: key) { $0.place == .store } == true }
    }

    /// Whether a layer holds attributes, so that size and data may differ from the primary's.
    func hasAttributes(_ key: InodeKey) -> Bool {
        layers.contains { $0.contents(of: key) { $0.attributes != nil } == true }
    }

    /// The attributes that a layer holds, with the names counted as the topmost says; nil where the inode's own are good.
    func attributes(of key: InodeKey) -> RecordedAttributes? {
        for layer in layers {
            if let known = layer.contents(of: key, { $0.attributes }), let known { return known }
        }
        return nil
    }

    /// The link count and time of change of an inode whose other attributes are its own.
    func links(of key: InodeKey) -> LinkCount? {
        for layer in layers {
            if let known = layer.contents(of: key, { $0.links }), let known { return known }
        }
        return nil
    }

    /// How an inode is found again, where a layer knows it.
    func reference(of key: InodeKey) -> InodeReference? {
        for layer in layers {
            if let reference = layer.map.record(of: key)?.reference { return reference }
        }
        return nil
    }

    /// The blocks that the layers hold of a file.
    private func storedBlocks(_ key: InodeKey) -> Int64 {
        layers.reduce(0) { $0 + Int64(clamping: $1.contents(of: key) { $0.blocks.count } ?? 0) }
    }

    /// The status that a layer holds.
    func status(of key: InodeKey) -> FileStatus? {
        guard var status = attributes(of: key)?.status else { return nil }
        if status.isRegular {
            // Blocks that the primary has under those of the delta are counted twice: no more than the file can have.
            let most = Int64(clamping: RecordLimits.blockCount(status.size)) * Self.sectorsInBlock
            status.blocks = min(status.blocks + storedBlocks(key) * Self.sectorsInBlock, most)
        }
        return status
    }

    private static let sectorsInBlock = RecordLimits.blockBytes / 512

    // MARK: Data

    /// Where the bytes of a run are.
    enum Origin {
        case delta(Layer)
        case hole
        /// In the primary, as far as it reaches; zeros behind its end.
        case primary
    }

    /// The run of bytes that begins at `offset`: where it is, and where it ends, at `limit` at most.
    func run(_ key: InodeKey, from offset: Int64, limit: Int64) -> (Origin, end: Int64) {
        let first = UInt64(offset / RecordLimits.blockBytes)
        var end = RecordLimits.blockCount(limit)
        func bytes(_ block: UInt64) -> Int64 { min(RecordLimits.offset(ofBlock: block), limit) }
        for layer in layers {
            let found = layer.contents(of: key) { contents -> (Origin?, UInt64) in
                let (isStored, storedEnd) = contents.blocks.run(from: first, limit: end)
                if isStored { return (.delta(layer), storedEnd) }
                let (isHole, holeEnd) = contents.holes.run(from: first, limit: end)
                return (isHole ? .hole : nil, min(storedEnd, holeEnd))
            }
            guard let (origin, runEnd) = found else { continue }
            end = runEnd
            if let origin { return (origin, bytes(end)) }
        }
        return (.primary, bytes(end))
    }

    /// Reads the file as it is now from `offset` on, as far as `size` reaches: the number of bytes read. `primary` is the
    /// inode opened for reading.
    func read(
        _ key: InodeKey, primary: Descriptor, size: Int64, into buffer: UnsafeMutableRawBufferPointer,
        at offset: Int64
    ) throws(Errno) -> Int {
        guard offset < size else { return 0 }
        let end = offset + min(size - offset, Int64(buffer.count))
        var at = offset
        while at < end {
            let (origin, runEnd) = run(key, from: at, limit: end)
            let piece = UnsafeMutableRawBufferPointer(
                rebasing: buffer[Int(at - offset)..<Int(runEnd - offset)])
            switch origin {
            case .delta(let layer):
                try layer.files.read(of: key, into: piece, at: at)
                // A merge that needs the space gives blocks back that the primary has by now, and so does a single pass.
                guard case (.delta(let now), runEnd) = run(key, from: at, limit: runEnd), now === layer else {
                    continue
                }
            case .hole: piece.initializeMemory(as: UInt8.self, repeating: 0)
            case .primary:
                let count = try readFully(primary, into: piece, at: at)
                UnsafeMutableRawBufferPointer(rebasing: piece[count...])
                    .initializeMemory(as: UInt8.self, repeating: 0)
            }
            at = runEnd
        }
        return Int(end - offset)
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE; nil where there is no such place.
    func seek(
        _ key: InodeKey, primary: Descriptor, size: Int64, _ whence: Int32, from offset: Int64
    ) throws(Errno) -> Int64? {
        guard offset >= 0, offset < size else { return nil }
        var at = offset
        while at < size {
            let (origin, end) = run(key, from: at, limit: size)
            switch origin {
            case .delta:
                if whence == SEEK_DATA { return at }
            case .hole:
                if whence == SEEK_HOLE { return at }
            case .primary:
                // Behind the primary's end there is nothing but a hole.
                let found = try LinuxSystem.seek(primary, whence, from: at)
                if let place = found ?? (whence == SEEK_HOLE ? at : nil), place < end { return place }
            }
            at = end
        }
        return whence == SEEK_HOLE ? size : nil
    }
}
