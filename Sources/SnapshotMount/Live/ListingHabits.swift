internal import Synchronization

/// Which processes look up what they list, so that the attributes of all entries are told with a listing.
///
/// A listing begins with attributes, as the kernel's own adaptive READDIRPLUS does. But where a program reads a directory of
/// many entries to its end before it looks at them (find, rsync, du: fts(3)), the kernel learns of that too late, and each
/// further entry costs a request of its own. Here it is learned from the process's first such directory.
///
/// Hints only: a process may be forgotten, or taken for another. Safe for use by all threads.
final class ListingHabits: @unchecked Sendable {
    private static let slotCount = 256
    /// So many look-ups in a directory that was listed without attributes.
    private static let lookupsMin: UInt64 = 8

    /// Of a process each: its number in the upper half; below that 24 bits of the directory that was listed without attributes last;
    /// below that how many look-ups in it followed, up to `lookupsMin`, from where on it stays.
    private let slots: UnsafeMutablePointer<Atomic<UInt64>>

    init() {
        slots = .allocate(capacity: Self.slotCount)
        for index in 0..<Self.slotCount { (slots + index).initialize(to: Atomic(0)) }
    }

    deinit { slots.deallocate() }

    private func slot(_ process: Int32) -> UnsafeMutablePointer<Atomic<UInt64>> {
        slots + Int(UInt32(bitPattern: process)) % Self.slotCount
    }

    private static func key(_ process: Int32, _ directory: UInt64) -> UInt64 {
        UInt64(UInt32(bitPattern: process)) << 32 | directory & 0xff_ffff << 8
    }

    private static func isOf(_ process: Int32, _ value: UInt64) -> Bool {
        value >> 32 == UInt64(UInt32(bitPattern: process))
    }

    /// Whether the process has shown that it looks up what it lists.
    func looksUp(_ process: Int32) -> Bool {
        let value = slot(process).pointee.load(ordering: .relaxed)
        return Self.isOf(process, value) && value & 0xff >= Self.lookupsMin
    }

    /// The process was told a part of the directory's listing without attributes.
    func didListPlainly(_ process: Int32, _ directory: UInt64) {
        let slot = slot(process)
        let value = slot.pointee.load(ordering: .relaxed)
        let key = Self.key(process, directory)
        if value & ~0xff != key { slot.pointee.store(key, ordering: .relaxed) }
    }

    /// The process asked for a name in the directory.
    func didLookUp(_ process: Int32, _ directory: UInt64) {
        let slot = slot(process)
        let value = slot.pointee.load(ordering: .relaxed)
        guard value & ~0xff == Self.key(process, directory), value & 0xff < Self.lookupsMin else { return }
        slot.pointee.store(value + 1, ordering: .relaxed)
    }
}
