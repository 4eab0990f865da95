/// Finds a slot by the hash of what it holds: open addressing with linear probing, four bytes a place. The slots'
/// contents stay with the owner, who tells their hashes and compares them.
struct IdentityIndex: Sendable {
    private static let empty = UInt32.max

    private var places: [UInt32] = Array(repeating: IdentityIndex.empty, count: 64)
    private(set) var count = 0

    private func place(_ hash: UInt64) -> Int {
        Int(truncatingIfNeeded: hash & UInt64(places.count - 1))
    }

    /// The slot of this hash for which `matches` holds.
    func find(_ hash: UInt64, _ matches: (UInt32) -> Bool) -> UInt32? {
        var at = place(hash)
        while places[at] != Self.empty {
            if matches(places[at]) { return places[at] }
            at = (at + 1) & (places.count - 1)
        }
        return nil
    }

    /// Adds a slot that is not in yet.
    mutating func insert(_ slot: UInt32, _ hash: UInt64, hashOf: (UInt32) -> UInt64) {
        // At most three quarters full.
        if (count + 1) * 4 > places.count * 3 {
            let old = places
            places = Array(repeating: Self.empty, count: old.count * 2)
            for moved in old where moved != Self.empty { put(moved, hashOf(moved)) }
        }
        put(slot, hash)
        count += 1
    }

    private mutating func put(_ slot: UInt32, _ hash: UInt64) {
        var at = place(hash)
        while places[at] != Self.empty { at = (at + 1) & (places.count - 1) }
        places[at] = slot
    }

    /// Removes a slot that is in, and moves up those behind it that would not be found across the gap.
    mutating func remove(_ slot: UInt32, _ hash: UInt64, hashOf: (UInt32) -> UInt64) {
        let mask = places.count - 1
        var gap = place(hash)
        while places[gap] != slot {
            precondition(places[gap] != Self.empty, "a slot that is removed is in the index")
            gap = (gap + 1) & mask
        }
        var at = gap
        while true {
            at = (at + 1) & mask
            if places[at] == Self.empty { break }
            let home = place(hashOf(places[at]))
            // Moves if its home is not cyclically in (gap, at].
            if (at - home) & mask >= (at - gap) & mask {
                places[gap] = places[at]
                gap = at
            }
        }
        places[gap] = Self.empty
        count -= 1
        // Memory follows what the kernel remembers: given back once an eighth is left.
        if places.count > 64, count * 8 < places.count {
            let old = places
            places = Array(repeating: Self.empty, count: old.count / 2)
            for moved in old where moved != Self.empty { put(moved, hashOf(moved)) }
        }
    }
}
