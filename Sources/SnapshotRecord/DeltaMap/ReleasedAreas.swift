internal import LinuxSystem
internal import Synchronization

/// Which blocks of each file the backup has read, so that the snapshot need not keep them any more (single pass).
///
/// A file that is read from its begin on costs an entry of a dictionary, whatever its size; one that is read here and
/// there a `BlockSet`. Safe for use by all threads.
package final class ReleasedAreas: Sendable {
    private enum Progress {
        /// The blocks before this one.
        case upTo(UInt64)
        case scattered(BlockSet)
    }

    private static let shardCount = 16
    private let shards = (0..<ReleasedAreas.shardCount).map { _ in MutexBox<[InodeKey: Progress]>([:]) }
    private let blockCount = Atomic<UInt64>(0)

    package init() {}

    private func shard(_ key: InodeKey) -> MutexBox<[InodeKey: Progress]> {
        shards[Int((key.inode &* 0x9e37_79b9_7f4a_7c15) >> 60)]
    }

    /// The blocks of all files together.
    package var count: UInt64 { blockCount.load(ordering: .relaxed) }

    /// Notes that blocks have been read.
    package func note(_ blocks: Range<UInt64>, of key: InodeKey) {
        let added = shard(key).mutex.withLock { shard in
            switch shard[key] ?? .upTo(0) {
            case .upTo(let end) where blocks.lowerBound <= end:
                shard[key] = .upTo(max(end, blocks.upperBound))
                return max(end, blocks.upperBound) - end
            case .upTo(let end):
                var set = BlockSet()
                set.insert(0..<end)
                return Self.scatter(set, blocks, &shard[key])
            case .scattered(let set):
                shard[key] = nil  // So that the set is not copied.
                return Self.scatter(set, blocks, &shard[key])
            }
        }
        blockCount.add(added, ordering: .relaxed)
    }

    private static func scatter(
        _ set: consuming BlockSet, _ blocks: Range<UInt64>, _ progress: inout Progress?
    ) -> UInt64 {
        var set = set
        let before = set.count
        set.insert(blocks)
        let added = set.count - before
        // What came in any order is a prefix again once the gaps are filled.
        let (isPresent, end) = set.run(from: 0, limit: RecordLimits.blockCount(.max))
        progress = isPresent && end == set.count ? .upTo(end) : .scattered(set)
        return added
    }

    /// The run that begins with `block`: whether its blocks have been read, and where it ends, at `limit` at most.
    package func run(of key: InodeKey, from block: UInt64, limit: UInt64) -> (isReleased: Bool, end: UInt64) {
        shard(key).mutex.withLock { shard in
            guard let progress = shard[key] else { return (false, limit) }
            switch progress {
            case .upTo(let end): return block < end ? (true, min(end, limit)) : (false, limit)
            case .scattered(let set):
                let (isPresent, end) = set.run(from: block, limit: limit)
                return (isPresent, end)
            }
        }
    }
}
