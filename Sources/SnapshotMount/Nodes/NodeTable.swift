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
/// its parent by name, and then its identity is checked. A few descriptors used lately are kept. A node whose last
/// name is gone keeps one of its own («pinned») until the kernel forgets it. Safe for use by all threads.
final class NodeTable: Sendable {
    /// The node of the mount's root: FUSE's own.
    static let mountRoot: UInt64 = 1
    static let snapshotBit: UInt64 = 1 << 63
    private static let slotBits: UInt64 = 28
    private static let serialMax: UInt64 = 1 << (63 - NodeTable.slotBits) - 1
    private static let openMax = 512

    private struct Node {
        var reference: InodeReference
        var lookups: UInt64
        var pinned: Descriptor?
        /// Where the node was seen last; only in a source without handles. A parent stays while it has children.
        var parent: UInt64
        var name: FileName?
        var children: UInt32 = 0
    }

    private struct State {
        var nodes: [Node?] = []
        var serials: [UInt64] = []
        var free: [UInt32] = []
        var index = IdentityIndex()
    }

    private let viewBit: UInt64
    private let keepsNames: Bool
    private let state = Mutex(State())
    private let descriptors = DescriptorCache<UInt64>(capacity: NodeTable.openMax)

    /// `keepsNames`: the source has no file handles.
    init(isSnapshot: Bool, keepsNames: Bool) {
        viewBit = isSnapshot ? Self.snapshotBit : 0
        self.keepsNames = keepsNames
    }

    private func id(slot: Int, serial: UInt64) -> UInt64 {
        viewBit | serial << Self.slotBits | UInt64(slot)
    }

    /// The slot of a node that is still known.
    private static func slot(_ node: UInt64, _ state: borrowing State) -> Int? {
        let slot = Int(node & (1 << slotBits - 1))
        guard slot < state.nodes.count, state.nodes[slot] != nil,
            state.serials[slot] == (node & ~snapshotBit) >> slotBits
        else { return nil }
        return slot
    }

    /// The number of nodes that the kernel remembers.
    var count: Int { state.withLock { $0.index.count } }

    // MARK: Look-ups and forgetting

    /// Counts a look-up of a known inode; nil where it is not known.
    func lookup(
        _ status: FileStatus, parent: UInt64, _ name: UnsafePointer<CChar>
    ) -> UInt64? {
        state.withLock { state in
            let identity = Identity(device: status.device, key: InodeKey(status))
            guard let slot = Self.find(identity, state) else { return nil }
            state.nodes[slot]?.lookups += 1
            if keepsNames { setPlace(slot, parent: parent, FileName(name), &state) }
            return id(slot: slot, serial: state.serials[slot])
        }
    }

    func isKnown(_ status: FileStatus) -> Bool {
        state.withLock { Self.find(Identity(device: status.device, key: InodeKey(status)), $0) != nil }
    }

    /// Counts a look-up of an inode, known or not.
    func remember(
        _ reference: InodeReference, parent: UInt64, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> UInt64 {
        let result: UInt64? = state.withLock { state in
            let identity = Identity(device: reference.device, key: reference.key)
            let slot: Int
            if let known = Self.find(identity, state) {
                slot = known
            } else {
                guard let fresh = Self.takeSlot(&state) else { return nil }
                slot = fresh
                state.nodes[slot] = Node(reference: reference, lookups: 0, parent: 0)
                state.index.insert(UInt32(slot), identity.hash) {
                    Self.hash(ofSlot: Int($0), state.nodes)
                }
            }
            state.nodes[slot]?.lookups += 1
            if keepsNames { setPlace(slot, parent: parent, FileName(name), &state) }
            return id(slot: slot, serial: state.serials[slot])
        }
        guard let result else { throw .noMemory }
        return result
    }

    /// Counts a look-up of a node by its id; throws ESTALE where it is not known.
    func retain(_ node: UInt64) throws(Errno) {
        let isKnown = state.withLock { state in
            guard let slot = Self.slot(node, state) else { return false }
            state.nodes[slot]?.lookups += 1
            return true
        }
        if !isKnown { throw .staleNFSFileHandle }
    }

    private static func find(_ identity: Identity, _ state: borrowing State) -> Int? {
        let nodes = state.nodes
        return state.index.find(identity.hash) { slot in
            guard let node = nodes[Int(slot)] else { return false }
            return node.reference.key == identity.key && node.reference.device == identity.device
        }.map { Int($0) }
    }

    private static func hash(ofSlot slot: Int, _ nodes: [Node?]) -> UInt64 {
        guard let node = nodes[slot] else {
            preconditionFailure("the index names nodes that are known")
        }
        return Identity(device: node.reference.device, key: node.reference.key).hash
    }

    private static func takeSlot(_ state: inout State) -> Int? {
        if let slot = state.free.popLast() { return Int(slot) }
        guard state.nodes.count < 1 << slotBits else { return nil }
        state.nodes.append(nil)
        state.serials.append(1)
        return state.nodes.count - 1
    }

    /// Drops `count` look-ups; at none the node goes.
    func forget(_ node: UInt64, _ count: UInt64) {
        // Descriptors are closed after the lock is let go.
        let closing: [Descriptor] = state.withLock { state in
            guard let slot = Self.slot(node, state) else { return [] }
            let lookups = state.nodes[slot]?.lookups ?? 0
            state.nodes[slot]?.lookups = lookups - min(count, lookups)
            var closing: [Descriptor] = []
            removeUnused(slot, &state, &closing)
            return closing
        }
        if !closing.isEmpty || !isKnown(node) { descriptors.remove(node) }
    }

    private func isKnown(_ node: UInt64) -> Bool {
        state.withLock { Self.slot(node, $0) != nil }
    }

    private func removeUnused(_ first: Int, _ state: inout State, _ closing: inout [Descriptor]) {
        var slot: Int? = first
        while let current = slot, let node = state.nodes[current], node.lookups == 0,
            node.children == 0
        {
            let hash = Self.hash(ofSlot: current, state.nodes)
            state.index.remove(UInt32(current), hash) { Self.hash(ofSlot: Int($0), state.nodes) }
            if let pinned = node.pinned { closing.append(pinned) }
            state.nodes[current] = nil
            state.serials[current] += 1
            if state.serials[current] < Self.serialMax { state.free.append(UInt32(current)) }
            slot = Self.slot(node.parent, state)
            if let slot { state.nodes[slot]?.children -= 1 }
        }
    }

    /// Forgets every node: the view has ended. The kernel's ids are not known from now on.
    func reset() {
        let closing: [Descriptor] = state.withLock { state in
            var closing: [Descriptor] = []
            for slot in state.nodes.indices {
                guard let node = state.nodes[slot] else { continue }
                if let pinned = node.pinned { closing.append(pinned) }
                state.nodes[slot] = nil
                state.serials[slot] += 1
                if state.serials[slot] < Self.serialMax { state.free.append(UInt32(slot)) }
            }
            state.index = IdentityIndex()
            return closing
        }
        _ = closing.count
        descriptors.removeAll()
    }

    // MARK: Where a node is

    private func setPlace(
        _ slot: Int, parent: UInt64, _ name: FileName?, _ state: inout State
    ) {
        let old = state.nodes[slot]?.parent ?? 0
        if old != parent {
            if let oldSlot = Self.slot(old, state) { state.nodes[oldSlot]?.children -= 1 }
            if let newSlot = Self.slot(parent, state) { state.nodes[newSlot]?.children += 1 }
            state.nodes[slot]?.parent = parent
        }
        state.nodes[slot]?.name = name
    }

    /// Notes, in a source without handles, that an inode is now found under another name.
    func move(_ reference: InodeReference, to parent: UInt64, _ name: UnsafePointer<CChar>) {
        guard keepsNames else { return }
        state.withLock { state in
            let identity = Identity(device: reference.device, key: reference.key)
            guard let slot = Self.find(identity, state) else { return }
            setPlace(slot, parent: parent, FileName(name), &state)
        }
    }

    /// Keeps `descriptor` with a node, since no name leads to its inode any more.
    func pin(_ reference: InodeReference, _ descriptor: Descriptor) {
        state.withLock { state in
            let identity = Identity(device: reference.device, key: reference.key)
            guard let slot = Self.find(identity, state) else { return }
            state.nodes[slot]?.pinned = descriptor
        }
    }

    /// What the node stands for; throws ESTALE where it is not known.
    func reference(of node: UInt64) throws(Errno) -> InodeReference {
        let found: InodeReference? = state.withLock { state in
            Self.slot(node, state).flatMap { state.nodes[$0]?.reference }
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
    func descriptor(
        of node: UInt64, _ opener: some NodeOpener, depth: Int = 0
    ) throws(Errno) -> Descriptor {
        if depth > Self.depthMax { throw .staleNFSFileHandle }
        if node == Self.mountRoot { return opener.root }
        if let kept = descriptors.descriptor(for: node) { return kept }
        let found: (InodeReference, Descriptor?, UInt64, FileName?)? = state.withLock { state in
            guard let slot = Self.slot(node, state), let node = state.nodes[slot] else {
                return nil
            }
            return (node.reference, node.pinned, node.parent, node.name)
        }
        guard let (reference, pinned, parent, name) = found else { throw .staleNFSFileHandle }
        if let pinned { return pinned }
        let opened = try opener.open(reference) { () throws(Errno) in
            guard let name else { throw .staleNFSFileHandle }
            let directory = try descriptor(of: parent, opener, depth: depth + 1)
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
            var ancestors: [Ancestor] = []
            var at = directory
            // A place that was noted a moment late may lead in a circle.
            while ancestors.count < Self.depthMax, let slot = Self.slot(at, state), let node = state.nodes[slot],
                let name = node.name
            {
                let parent = Self.slot(node.parent, state).flatMap { state.nodes[$0] }
                ancestors.append(
                    Ancestor(
                        key: node.reference.key, parent: parent?.reference.key, name: name))
                at = node.parent
            }
            return ancestors
        }
    }
}

/// What two nodes must not have in common.
private struct Identity {
    let device: UInt64
    let key: InodeKey

    var hash: UInt64 {
        var value = key.inode &* 0x9e37_79b9_7f4a_7c15
        value ^= (UInt64(bitPattern: key.birth) &+ device) &* 0xc2b2_ae3d_27d4_eb4f
        return value ^ value >> 29
    }
}
