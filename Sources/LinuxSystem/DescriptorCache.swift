package import Synchronization

/// Keeps the descriptors used last open, at most `capacity` of them, so that the daemon's count of descriptors
/// does not follow the size of the tree. Safe for use by all threads.
package final class DescriptorCache<Key: Hashable & Sendable>: Sendable {
    private struct Slot {
        let key: Key
        let descriptor: Descriptor
        /// Set by each use, cleared by the hand that looks for a victim (the clock algorithm).
        var isUsed: Bool
    }

    private struct Shard {
        var index: [Key: Int] = [:]
        var slots: [Slot?] = []
        var hand = 0
    }

    private static var shardCount: Int { 8 }

    private let shards: [MutexBox<Shard>]
    private let shardCapacity: Int
    private let spare: UInt64

    package init(capacity: Int) {
        shardCapacity = max(1, capacity / Self.shardCount)
        let shards = (0..<Self.shardCount).map { _ in MutexBox(Shard()) }
        self.shards = shards
        spare = SpareDescriptors.add { Self.empty(shards) }
    }

    deinit { SpareDescriptors.remove(spare) }

    private func shard(_ key: Key) -> MutexBox<Shard> {
        shards[Int(truncatingIfNeeded: UInt(bitPattern: key.hashValue) % UInt(Self.shardCount))]
    }

    /// The descriptor kept for `key`.
    package func descriptor(for key: Key) -> Descriptor? {
        shard(key).mutex.withLock { shard in
            guard let at = shard.index[key] else { return nil }
            shard.slots[at]?.isUsed = true
            return shard.slots[at]?.descriptor
        }
    }

    /// Keeps `descriptor` for `key`, in place of another, and lets one go that was not used lately.
    package func keep(_ descriptor: Descriptor, for key: Key) {
        let capacity = shardCapacity
        // The victim is closed after the lock is let go.
        let victim: Slot? = shard(key).mutex.withLock { shard in
            let slot = Slot(key: key, descriptor: descriptor, isUsed: false)
            if let at = shard.index[key] {
                defer { shard.slots[at] = slot }
                return shard.slots[at]
            }
            if shard.slots.count < capacity {
                shard.index[key] = shard.slots.count
                shard.slots.append(slot)
                return nil
            }
            while shard.slots[shard.hand]?.isUsed == true {
                shard.slots[shard.hand]?.isUsed = false
                shard.hand = (shard.hand + 1) % capacity
            }
            let at = shard.hand
            let old = shard.slots[at]
            if let old { shard.index[old.key] = nil }
            shard.slots[at] = slot
            shard.index[key] = at
            shard.hand = (at + 1) % capacity
            return old
        }
        _ = victim
    }

    /// Lets the descriptor of `key` go.
    package func remove(_ key: Key) {
        let victim: Slot? = shard(key).mutex.withLock { shard in
            guard let at = shard.index.removeValue(forKey: key) else { return nil }
            let old = shard.slots[at]
            shard.slots[at] = nil
            return old
        }
        _ = victim
    }

    /// Lets every descriptor go.
    package func removeAll() { Self.empty(shards) }

    private static func empty(_ shards: [MutexBox<Shard>]) {
        for box in shards {
            let old = box.mutex.withLock { shard in
                let old = shard
                shard = Shard()
                return old
            }
            _ = old.slots.count
        }
    }
}

/// A mutex that can stand in an array.
package final class MutexBox<Value: ~Copyable>: Sendable {
    package let mutex: Mutex<Value>

    package init(_ value: consuming sending Value) {
        mutex = Mutex(value)
    }
}
