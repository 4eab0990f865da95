internal import LinuxSystem
internal import Synchronization

/// The delta map of one snapshot, a generation: which areas changed since the cut, and what they were before.
///
/// An inode is in one of three states: unknown (it has not changed), recorded, or born (it was made after the cut
/// and is not in the snapshot). Names are areas of their directory's record. Safe for use by all threads.
package final class DeltaMap: Sendable {
    private struct Shard {
        var records: [InodeKey: InodeRecord] = [:]
        var born: Set<InodeKey> = []
    }

    private static let shardCount = 16
    private let shards = (0..<DeltaMap.shardCount).map { _ in MutexBox(Shard()) }
    private let areas = Atomic<UInt64>(0)

    package init() {}

    private func shard(_ key: InodeKey) -> MutexBox<Shard> {
        let mixed = (key.inode ^ UInt64(bitPattern: key.birth)) &* 0x9e37_79b9_7f4a_7c15
        return shards[Int(mixed >> 60)]
    }

    /// The number of areas recorded: blocks, names, sets of attributes.
    package var changedAreas: UInt64 { areas.load(ordering: .relaxed) }

    package func countAreas(_ number: UInt64) {
        areas.add(number, ordering: .relaxed)
    }

    /// The record of an inode that has changed.
    package func record(of key: InodeKey) -> InodeRecord? {
        shard(key).mutex.withLock { $0.records[key] }
    }

    /// All records that there are at some moment while this is called.
    package var records: [InodeRecord] {
        shards.flatMap { shard in shard.mutex.withLock { Array($0.records.values) } }
    }

    package func isBorn(_ key: InodeKey) -> Bool {
        shard(key).mutex.withLock { $0.born.contains(key) }
    }

    /// The record of an inode that is about to change, made where there is none; nil for one that was born after
    /// the cut, of which the snapshot needs nothing. `reference` is kept in it, to find the inode again.
    package func recordForChange(of key: InodeKey, _ reference: InodeReference? = nil) -> InodeRecord? {
        shard(key).mutex.withLock { shard in
            if shard.born.contains(key) { return nil }
            if let record = shard.records[key] { return record }
            let record = InodeRecord(key: key, reference: reference)
            shard.records[key] = record
            return record
        }
    }

    /// How much has changed, counted by inode.
    package struct Changes: Sendable, Equatable {
        /// Inodes of the cut, other than directories, whose data, attributes or last name changed.
        package var files: UInt64 = 0
        /// Of their data: what was overwritten, cut off or removed with the file, by whole blocks.
        package var bytes: UInt64 = 0
        /// Inodes made since, directories too.
        package var created: UInt64 = 0

        package init() {}

        fileprivate mutating func add(_ contents: InodeRecord.Contents, _ isCounted: (RecordedAttributes) -> Bool)
        {
            // Without attributes nothing has been changed yet.
            guard let attributes = contents.attributes, !attributes.status.isDirectory, isCounted(attributes)
            else { return }
            let status = attributes.status
            files += 1
            let size = UInt64(clamping: status.isRegular ? status.size : 0)
            bytes += contents.place == .source ? min(size, contents.changedBytes) : size
        }
    }

    /// How much has changed of the inodes that `isCounted` says to count. Costs as much as has changed.
    package func changes(where isCounted: (RecordedAttributes) -> Bool) -> Changes {
        var sum = Changes()
        for shard in shards {
            // The records' locks are not taken under the shard's.
            let records = shard.mutex.withLock { shard in
                sum.created += UInt64(shard.born.count)
                return Array(shard.records.values)
            }
            for record in records { record.contents.withLock { sum.add($0, isCounted) } }
        }
        return sum
    }

    /// Notes that an inode was made after the cut. False where its key is that of an inode of the cut, so that
    /// the two cannot be told apart.
    package func insertBorn(_ key: InodeKey) -> Bool {
        shard(key).mutex.withLock { shard in
            if shard.records[key] != nil { return false }
            shard.born.insert(key)
            return true
        }
    }
}
