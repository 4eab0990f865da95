internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// How a view opens an inode.
protocol NodeOpener {
    /// What the mount's root, which no table holds, stands for.
    var root: Descriptor { get }
    /// An O_PATH descriptor of the inode; `find` opens it through its parent, by name.
    func open(
        _ reference: InodeReference, find: () throws(Errno) -> Descriptor
    ) throws(Errno) -> Descriptor
}

/// The inodes that the kernel remembers of one view, by node id.
///
/// A node id is never used again: it is made of the node's slot and of a serial number that counts how often the
/// slot was taken (a slot whose serial is used up is retired). Ids of the snapshot view have the highest bit set.
///
/// No descriptor is held per node: a node is opened by its file handle, or, in a source without handles, through
/// its parent by name, and then its identity is checked. A few descriptors used lately are kept. A node that no name
/// leads to any more keeps one of its own («pinned») until one does again, or the kernel forgets it.
///
/// Applications may keep ids for longer than the kernel does, in file handles (name_to_handle_at(2), NFS). So the nodes
/// forgotten last stay, without a descriptor, and are found again by their ids. Safe for use by all threads.
final class NodeTable: Sendable {
    /// The node of the mount's root: FUSE's own.
    static let mountRoot: UInt64 = 1
    static let snapshotBit: UInt64 = 1 << 63
    private static let slotBits = NodeStore.slotBits

    private struct State {
        let store: NodeStore
        var index = IdentityIndex()
        /// Ids of nodes forgotten last, a ring, and the place that is taken next. A node may have been looked up since.
        var forgotten: [UInt64] = []
        var forgottenNext = 0
        /// The descriptors of nodes that no name leads to.
        var pinned: [UInt32: Pin] = [:]
        /// The nodes of a source without handles that were pinned last though a name is left, and when; a ring, and the
        /// place that is taken next.
        var loose: [(node: UInt64, made: UInt64)] = []
        var looseNext = 0

        init(keepsPlaces: Bool) { store = NodeStore(keepsPlaces: keepsPlaces) }
    }

    private struct Pin {
        let descriptor: Descriptor
        /// When it was made, by the table's count of changes.
        let made: UInt64
    }

    private let viewBit: UInt64
    private let keepsNames: Bool
    private let forgottenMax: Int
    private let state: Mutex<State>
    private let descriptors: DescriptorCache<UInt64>
    private let moves = Moves()
    /// How often an inode was moved or lost the name that led to it. Grows under the lock of `state`.
    private let changes = Atomic<UInt64>(0)

    /// `keepsNames`: the source has no file handles. `forgottenMax`: how many nodes stay that the kernel has forgotten.
    init(isSnapshot: Bool, keepsNames: Bool, forgottenMax: Int = 0) {
        self.forgottenMax = keepsNames ? 0 : forgottenMax
        viewBit = isSnapshot ? Self.snapshotBit : 0
        self.keepsNames = keepsNames
        state = Mutex(State(keepsPlaces: keepsNames))
        descriptors = DescriptorCache(capacity: isSnapshot ? 128 : 512)
    }

    private func id(slot: Int, _ state: borrowing State) -> UInt64 {
        viewBit | state.store[slot].serial << Self.slotBits | UInt64(slot)
    }

    /// The slot of a node that is still known.
    private static func slot(_ node: UInt64, _ state: borrowing State) -> Int? {
        let slot = Int(node & (1 << slotBits - 1))
        return state.store.holds(slot, serial: (node & ~snapshotBit) >> slotBits) ? slot : nil
    }

    /// The number of nodes that are known.
    var count: Int { state.withLock { $0.store.count } }

    // MARK: Look-ups and forgetting

    /// To be asked before a name is looked at: a look-up that a rename or unlink overtakes then does not note the old
    /// place, nor lets go of the descriptor that is needed from now on. (The kernel holds the directory's lock in a
    /// look-up, but not where it asks whether what it remembers still holds.)
    var moment: UInt64 { changes.load(ordering: .sequentiallyConsistent) }

    /// The count of changes with one more. Under the lock of `state`.
    private func countChange() -> UInt64 { changes.add(1, ordering: .sequentiallyConsistent).newValue }

    /// Counts a look-up of a known inode, which had this name at `moment`; nil where it is not known. Nor is one that the
    /// kernel has forgotten: its number may have been used again within one tick of the clock, and only the handle tells
    /// (`remember`).
    func lookup(
        _ status: FileStatus, parent: UInt64, _ name: UnsafePointer<CChar>, at moment: UInt64
    ) -> UInt64? {
        // Closed after the lock is let go.
        var unpinned: Pin?
        let node: UInt64? = state.withLock { state in
            let identity = Identity(device: status.device, key: InodeKey(status))
            guard let slot = Self.find(identity, state), state.store[slot].lookups != 0 else { return nil }
            state.store[slot].lookups += 1
            if keepsNames {
                guard state.store.place(slot).moved <= moment else { return id(slot: slot, state) }
                setPlace(slot, parent: parent, name, state)
            }
            if let pin = state.pinned[UInt32(slot)], pin.made <= moment, status.links > 0,
                keepsNames || !state.store[slot].reference.handle.isEmpty
            {
                unpinned = state.pinned.removeValue(forKey: UInt32(slot))
            }
            return id(slot: slot, state)
        }
        _ = unpinned
        return node
    }

    func isKnown(_ status: FileStatus) -> Bool {
        state.withLock { Self.find(Identity(device: status.device, key: InodeKey(status)), $0) != nil }
    }

    /// Counts a look-up of an inode, known or not, which had this name at `moment`. Throws ENOMEM.
    func remember(
        _ reference: InodeReference, parent: UInt64, _ name: UnsafePointer<CChar>, at moment: UInt64
    ) throws(Errno) -> UInt64 {
        try state.withLock { (state) throws(Errno) -> UInt64 in
            let identity = Identity(device: reference.device, key: reference.key)
            removePredecessor(of: reference, identity, &state)
            let slot: Int
            if let known = Self.find(identity, state) {
                slot = known
            } else {
                slot = try state.store.insert(Node(reference))
                let store = state.store
                state.index.insert(UInt32(slot), identity.hash) { store.hash(ofSlot: $0) }
            }
            state.store[slot].lookups += 1
            if keepsNames && state.store.place(slot).moved <= moment {
                setPlace(slot, parent: parent, name, state)
            }
            return id(slot: slot, state)
        }
    }

    /// Removes a forgotten node whose number and birth `reference` has by now: it has no descriptor.
    private func removePredecessor(of reference: InodeReference, _ identity: Identity, _ state: inout State) {
        guard forgottenMax > 0, let old = Self.find(identity, state), state.store[old].lookups == 0,
            state.store[old].reference.handle != reference.handle
        else { return }
        var closing: [Descriptor] = []
        removeUnused(old, &state, &closing)
    }

    /// Counts a look-up of a node by its id; throws ESTALE where it is not known.
    func retain(_ node: UInt64) throws(Errno) {
        let isKnown = state.withLock { state in
            guard let slot = Self.slot(node, state) else { return false }
            state.store[slot].lookups += 1
            return true
        }
        if !isKnown { throw .staleNFSFileHandle }
    }

    private static func find(_ identity: Identity, _ state: State) -> Int? {
        let store = state.store
        return state.index.find(identity.hash) { store.holds($0, identity) }.map { Int($0) }
    }

    /// Drops `count` look-ups; at none the node goes, sooner or later, and its descriptors at once.
    func forget(_ node: UInt64, _ count: UInt64) {
        // Descriptors are closed after the lock is let go.
        var closing: [Descriptor] = []
        let isUnused = state.withLock { state in
            guard let slot = Self.slot(node, state) else { return true }
            let store = state.store
            guard store[slot].lookups <= count else {
                store[slot].lookups -= count
                return false
            }
            store[slot].lookups = 0
            // What lies in a file system mounted below the source has no handle, and is found by its descriptor alone.
            if forgottenMax > 0, !store[slot].reference.handle.isEmpty {
                if let pin = state.pinned.removeValue(forKey: UInt32(slot)) { closing.append(pin.descriptor) }
                if let oldest = putForgotten(node, slot, &state) { removeUnused(oldest, &state, &closing) }
            } else {
                removeUnused(slot, &state, &closing)
            }
            return true
        }
        if isUnused { descriptors.remove(node) }
    }

    /// Puts a node among those forgotten last. Returns the slot of the one that has to go for it.
    private func putForgotten(_ node: UInt64, _ slot: Int, _ state: inout State) -> Int? {
        let place = state.forgottenNext
        state.forgottenNext = (place + 1) % forgottenMax
        state.store[slot].forgottenPlace = UInt32(place)
        guard place < state.forgotten.count else {
            state.forgotten.append(node)
            return nil
        }
        let old = state.forgotten[place]
        state.forgotten[place] = node
        // Looked up since, or forgotten once more and so in another place too.
        guard old != node, let oldest = Self.slot(old, state), state.store[oldest].lookups == 0,
            state.store[oldest].forgottenPlace == UInt32(place)
        else { return nil }
        return oldest
    }

    private func removeUnused(_ first: Int, _ state: inout State, _ closing: inout [Descriptor]) {
        let store = state.store
        var slot: Int? = first
        while let current = slot, store[current].lookups == 0,
            !keepsNames || store.place(current).children == 0
        {
            if !store[current].isDetached { Self.removeFromIndex(current, &state) }
            if let pin = state.pinned.removeValue(forKey: UInt32(current)) { closing.append(pin.descriptor) }
            slot = keepsNames ? Self.slot(store.place(current).parent, state) : nil
            store.remove(current)
            if let slot { store.addChildren(slot, -1) }
        }
    }

    private static func removeFromIndex(_ slot: Int, _ state: inout State) {
        let store = state.store
        state.index.remove(UInt32(slot), store.hash(ofSlot: UInt32(slot))) { store.hash(ofSlot: $0) }
    }

    /// The inode is found by another node from now on; this one stays for who has it.
    func detach(_ key: InodeKey, device: UInt64) {
        state.withLock { state in
            guard let slot = Self.find(Identity(device: device, key: key), state) else { return }
            Self.removeFromIndex(slot, &state)
            state.store[slot].isDetached = true
        }
    }

    func isDetached(_ node: UInt64) -> Bool {
        state.withLock { state in Self.slot(node, state).map { state.store[$0].isDetached } ?? false }
    }

    /// Forgets every node: the view has ended. The kernel's ids are not known from now on.
    func reset() {
        let closing = state.withLock { state in
            state.store.removeAll()
            state.index = IdentityIndex()
            state.forgotten = []
            state.forgottenNext = 0
            state.loose = []
            state.looseNext = 0
            defer { state.pinned = [:] }
            return state.pinned
        }
        _ = closing.count
        descriptors.removeAll()
    }

    // MARK: Where a node is

    private func setPlace(
        _ slot: Int, parent: UInt64, _ name: UnsafePointer<CChar>, _ state: State
    ) {
        let store = state.store
        let old = store.place(slot).parent
        if old != parent {
            if let oldSlot = Self.slot(old, state) { store.addChildren(oldSlot, -1) }
            if let newSlot = Self.slot(parent, state) { store.addChildren(newSlot, 1) }
            store.setParent(slot, parent)
        }
        store.setName(slot, name)
    }

    /// Runs a rename; `body` also notes the new places, by `move`. Who looks for an inode at its old place meanwhile
    /// waits: so `body` must look for none.
    func whileMoving<Result>(_ body: () throws(Errno) -> Result) throws(Errno) -> Result {
        keepsNames ? try moves.run(body) : try body()
    }

    /// Notes, in a source without handles, that an inode is now found under another name.
    func move(_ reference: InodeReference, to parent: UInt64, _ name: UnsafePointer<CChar>) {
        guard keepsNames else { return }
        state.withLock { state in
            let identity = Identity(device: reference.device, key: reference.key)
            guard let slot = Self.find(identity, state) else { return }
            state.store.setMoved(slot, countChange())
            setPlace(slot, parent: parent, name, state)
        }
    }

    /// Keeps a descriptor with a node that the kernel remembers, since no name leads to its inode any more: `descriptor`,
    /// or the one that `open` has for the node. `open` must take no lock under which the table is asked.
    ///
    /// `lost`: the name that is gone, where others are left, in a source without handles. The node may be found by one of
    /// those, and then needs none. Otherwise the kernel's next look-up tells one; until then at most `looseMax` nodes keep
    /// a descriptor. Without it the kernel hears ESTALE where it uses the node, and then looks the name up itself.
    func pin(
        _ reference: InodeReference, _ descriptor: Descriptor,
        lost: (parent: UInt64, name: UnsafePointer<CChar>)? = nil, open: (UInt64) -> Descriptor? = { _ in nil }
    ) {
        // Closed after the lock is let go.
        var closing: [Pin] = []
        state.withLock { state in
            let identity = Identity(device: reference.device, key: reference.key)
            guard let slot = Self.find(identity, state), state.store[slot].lookups != 0 else { return }
            let now = countChange()
            if keepsNames {
                state.store.setMoved(slot, now)
                if let lost, let name = state.store.place(slot).name,
                    state.store.place(slot).parent != lost.parent || !name.equals(lost.name)
                {
                    return
                }
            }
            let node = id(slot: slot, state)
            let pin = Pin(descriptor: open(node) ?? descriptor, made: now)
            if let old = state.pinned.updateValue(pin, forKey: UInt32(slot)) { closing.append(old) }
            if lost != nil, let oldest = putLoose((node, now), &state), let slot = Self.slot(oldest.node, state),
                let old = state.pinned[UInt32(slot)], old.made == oldest.made, open(oldest.node) == nil
            {
                closing.append(old)
                state.pinned[UInt32(slot)] = nil
            }
        }
        _ = closing.count
    }

    private static let looseMax = 1024

    /// Puts a node among the loose ones. Returns the one that has to go for it.
    private func putLoose(
        _ node: (node: UInt64, made: UInt64), _ state: inout State
    ) -> (node: UInt64, made: UInt64)? {
        guard state.loose.count == Self.looseMax else {
            state.loose.append(node)
            return nil
        }
        let place = state.looseNext
        state.looseNext = (place + 1) % Self.looseMax
        defer { state.loose[place] = node }
        return state.loose[place]
    }

    /// The descriptor of a node that no name leads to; nil where the kernel does not remember it.
    func pinned(_ reference: InodeReference) -> Descriptor? {
        state.withLock { state in
            Self.find(Identity(device: reference.device, key: reference.key), state)
                .flatMap { state.pinned[UInt32($0)]?.descriptor }
        }
    }

    /// The node of an inode that the kernel remembers.
    func node(of key: InodeKey, device: UInt64) -> UInt64? {
        state.withLock { state in
            Self.find(Identity(device: device, key: key), state).flatMap {
                state.store[$0].lookups != 0 ? id(slot: $0, state) : nil
            }
        }
    }

    /// What the node stands for; throws ESTALE where it is not known.
    func reference(of node: UInt64) throws(Errno) -> InodeReference {
        let found: InodeReference? = state.withLock { state in
            Self.slot(node, state).map { state.store[$0].reference }
        }
        guard let found else { throw .staleNFSFileHandle }
        return found
    }

    /// Lets go of the descriptors that were kept for speed.
    func releaseDescriptors() {
        descriptors.removeAll()
    }

    /// Deeper trees than paths can name: more directories than that are a circle.
    private static let depthMax = 4096

    /// An O_PATH descriptor of the node's inode.
    func descriptor(of node: UInt64, _ opener: some NodeOpener) throws(Errno) -> Descriptor {
        if node == Self.mountRoot { return opener.root }
        if let kept = descriptors.descriptor(for: node) { return kept }
        guard keepsNames else { return try open(node, opener, depth: 0) }
        // A rename may be between its system call and noting the new place.
        var attempt = 0
        while true {
            let seen = moves.count
            do throws(Errno) {
                return try open(node, opener, depth: 0)
            } catch
                where (error == .noSuchFileOrDirectory || error == .staleNFSFileHandle)
                && attempt < Self.attemptsMax
            {
                guard moves.waitForAny(since: seen) else { throw error }
                attempt += 1
            }
        }
    }

    /// For each a rename has ended meanwhile, so that more than a few have other causes.
    private static let attemptsMax = 100

    private func open(_ node: UInt64, _ opener: some NodeOpener, depth: Int) throws(Errno) -> Descriptor {
        if depth > Self.depthMax { throw .staleNFSFileHandle }
        if node == Self.mountRoot { return opener.root }
        if depth > 0, let kept = descriptors.descriptor(for: node) { return kept }
        let found: (InodeReference, Descriptor?, UInt64, FileName?)? = state.withLock { state in
            guard let slot = Self.slot(node, state) else { return nil }
            let place = keepsNames ? state.store.place(slot) : nil
            return (
                state.store[slot].reference, state.pinned[UInt32(slot)]?.descriptor, place?.parent ?? 0,
                place?.name
            )
        }
        guard let (reference, pinned, parent, name) = found else { throw .staleNFSFileHandle }
        if let pinned { return pinned }
        let opened = try opener.open(reference) { () throws(Errno) in
            guard let name else { throw .staleNFSFileHandle }
            let directory = try open(parent, opener, depth: depth + 1)
            return try name.withCString { (string) throws(Errno) in
                try Descriptor.open(at: directory, string, O_PATH | O_NOFOLLOW)
            }
        }
        descriptors.keep(opened, for: node)
        return opened
    }

    /// In a source without handles: a directory and those above it, up to the root, as they are reached now.
    func ancestors(of directory: UInt64) -> [Ancestor] {
        guard keepsNames else { return [] }
        return state.withLock { state in
            let store = state.store
            var ancestors: [Ancestor] = []
            var at = directory
            // A file system mounted below may have been mounted anew: no more than a path can name.
            while ancestors.count < Self.depthMax, let slot = Self.slot(at, state),
                let name = store.place(slot).name
            {
                let above = store.place(slot).parent
                ancestors.append(
                    Ancestor(
                        key: store[slot].reference.key,
                        parent: Self.slot(above, state).map { store[$0].reference.key }, name: name))
                at = above
            }
            return ancestors
        }
    }
}
