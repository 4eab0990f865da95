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

    /// Redirect: one that is born has a record too, of its names and links, with `InodePlace.store`.
    package let isRedirect: Bool

    package init(isRedirect: Bool = false) {
        self.isRedirect = isRedirect
    }

    private func shard(_ key: InodeKey) -> MutexBox<Shard> {
        let mixed = (key.inode ^ UInt64(bitPattern: key.birth)) &* 0x9e37_79b9_7f4a_7c15
        return shards[Int(mixed >> 60)]
    }

    /// The number of areas recorded: blocks, names, sets of attributes.
    package var changedAreas: UInt64 { areas.load(ordering: .relaxed) }

    /// Whether it says nothing of any inode.
    package var isEmpty: Bool {
        shards.allSatisfy { $0.mutex.withLock { $0.records.isEmpty && $0.born.isEmpty } }
    }

    /// The blocks that delta files hold.
    package var storedBlocks: UInt64 {
        records.reduce(0) { sum, record in sum + record.contents.withLock { $0.blocks.count } }
    }

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

    /// All records and all that were born, as they are together at some moment while this is called.
    var inodes: (records: [InodeRecord], born: Set<InodeKey>) {
        var (records, born): ([InodeRecord], Set<InodeKey>) = ([], [])
        for shard in shards {
            shard.mutex.withLock {
                records += $0.records.values
                born.formUnion($0.born)
            }
        }
        return (records, born)
    }

    /// The record of an inode that is about to change, made where there is none; nil in preserve for one that was
    /// born after the cut, of which the snapshot needs nothing. `reference` is kept in it, to find the inode again.
    package func recordForChange(of key: InodeKey, _ reference: InodeReference? = nil) -> InodeRecord? {
        shard(key).mutex.withLock { shard in
            if !isRedirect, shard.born.contains(key) { return nil }
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

        fileprivate mutating func add(_ contents: InodeRecord.Contents) {
            // Without attributes nothing has been changed yet.
            guard let attributes = contents.attributes, !attributes.status.isDirectory else { return }
            let status = attributes.status
            files += 1
            let size = UInt64(clamping: status.isRegular ? status.size : 0)
            bytes += contents.place == .source ? min(size, contents.changedBytes) : size
        }
    }

    /// How much has changed. Costs as much.
    package var changes: Changes { changes { _ in true } }

    /// How much has changed of the inodes that `isCounted` says to count. Costs as much as has changed.
    package func changes(where isCounted: (InodeRecord) -> Bool) -> Changes {
        var sum = Changes()
        for shard in shards {
            // The records' locks are not taken under the shard's.
            let (records, born) = shard.mutex.withLock { (Array($0.records.values), $0.born) }
            sum.created += UInt64(born.count)
            for record in records {
                if isCounted(record) {
                    record.contents.withLock { sum.add($0) }
                } else if born.contains(record.key) {
                    sum.created -= 1
                }
            }
        }
        return sum
    }

    /// Notes that an inode was made after the cut. False where its key is that of an inode of the cut, so that
    /// the two cannot be told apart. In redirect it has a record from now on, which keeps `reference`.
    package func insertBorn(_ key: InodeKey, _ reference: InodeReference? = nil) -> Bool {
        shard(key).mutex.withLock { shard in
            if shard.records[key] != nil { return shard.born.contains(key) }
            shard.born.insert(key)
            guard isRedirect else { return true }
            let record = InodeRecord(key: key, reference: reference)
            record.contents.withLock { $0.place = .store }
            shard.records[key] = record
            return true
        }
    }
}
