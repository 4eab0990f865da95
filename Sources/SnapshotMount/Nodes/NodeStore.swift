internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import SystemPackage

/// What is known of one node. Holds no references: it lies in memory that is given back as a whole.
struct Node {
    var reference: InodeReference
    /// How often the kernel has looked it up and not forgotten it.
    var lookups: UInt64 = 0
    /// Where the table's ring of forgotten nodes has it; only good while it is not looked up.
    var forgottenPlace: UInt32 = 0
    /// Whether another node may stand for the same inode: this one is known by its number alone.
    var isDetached = false
    /// What the slot's ids are told apart by. 0 in a slot that holds no node.
    fileprivate(set) var serial: UInt64 = 0

    init(_ reference: InodeReference) {
        self.reference = reference
    }
}

/// Where a node was seen last; only in a source without handles.
struct NodePlace {
    var parent: UInt64 = 0
    /// How many nodes have this one as their parent.
    var children: UInt32 = 0
    /// When the inode was moved last, by the table's count of moves.
    var moved: UInt64 = 0
    /// A C string of malloc's; nil in no directory.
    fileprivate var string: UnsafeMutablePointer<CChar>?

    var name: FileName? { string.map { FileName(UnsafePointer($0)) } }
}

/// Slots for nodes, in chunks of memory of their own: a chunk whose nodes are all forgotten goes back to the system,
/// wherever the others lie. Slots are numbers below 2^28.
///
/// A slot and its serial number together are never used again: a chunk counts the nodes that it ever held, and goes
/// on counting when its memory comes back. One whose numbers are used up is not used any more.
///
/// Not safe for use by several threads: the table that owns it has it behind its lock.
final class NodeStore: @unchecked Sendable {
    static let slotBits: UInt64 = 28
    private static let serialMax: UInt64 = 1 << (63 - NodeStore.slotBits) - 1
    private static let chunkSlots = 2048
    private static let nodesBytes = chunkSlots * MemoryLayout<Node>.stride
    private static let placesBytes = chunkSlots * MemoryLayout<NodePlace>.stride

    private struct Chunk {
        var memory: UnsafeMutablePointer<Node>?
        /// Behind the nodes, where places are kept.
        var places: UnsafeMutablePointer<NodePlace>?
        var used = 0
        /// How many slots, from the first, have ever been taken since the memory came.
        var touched = 0
        /// The free slots among the touched ones, a list through `lookups`: a slot's number in the chunk, plus one.
        var free = 0
        var serial: UInt64 = 0
        /// Whether `roomy` has it.
        var isListed = false
    }

    private let keepsPlaces: Bool
    private let chunkBytes: Int
    private var chunks: [Chunk] = []
    /// Chunks that may have room; the last one is used.
    private var roomy: [Int] = []
    /// The chunks without memory.
    private var absent: [Int] = []
    /// An empty chunk that is kept, so that a node that comes and goes does not cost two system calls.
    private var spare: Int?
    private(set) var count = 0

    init(keepsPlaces: Bool) {
        self.keepsPlaces = keepsPlaces
        chunkBytes = Self.nodesBytes + (keepsPlaces ? Self.placesBytes : 0)
    }

    deinit {
        for chunk in chunks {
            if let memory = chunk.memory { munmap(memory, chunkBytes) }
        }
    }

    /// How many bytes of address space the nodes take.
    var memoryBytes: Int { chunks.count { $0.memory != nil } * chunkBytes }

    /// The node of a slot; the slot holds one.
    subscript(_ slot: Int) -> Node {
        get { address(slot).pointee }
        set { address(slot).pointee = newValue }
    }

    private func address(_ slot: Int) -> UnsafeMutablePointer<Node> {
        guard let memory = chunks[slot / Self.chunkSlots].memory else {
            preconditionFailure("a slot that is in use has memory")
        }
        return memory + slot % Self.chunkSlots
    }

    /// The place of a slot that holds a node; where places are kept.
    func place(_ slot: Int) -> NodePlace { placeAddress(slot).pointee }

    private func placeAddress(_ slot: Int) -> UnsafeMutablePointer<NodePlace> {
        guard let places = chunks[slot / Self.chunkSlots].places else {
            preconditionFailure("places are kept, and a slot that is in use has memory")
        }
        return places + slot % Self.chunkSlots
    }

    func setParent(_ slot: Int, _ parent: UInt64) { placeAddress(slot).pointee.parent = parent }

    func setMoved(_ slot: Int, _ moved: UInt64) { placeAddress(slot).pointee.moved = moved }

    func addChildren(_ slot: Int, _ number: Int) {
        let place = placeAddress(slot)
        place.pointee.children = UInt32(Int(place.pointee.children) + number)
    }

    func setName(_ slot: Int, _ name: UnsafePointer<CChar>) {
        let place = placeAddress(slot)
        if let old = place.pointee.string {
            if strcmp(old, name) == 0 { return }
            free(old)
        }
        place.pointee.string = strdup(name)
    }

    /// Whether a slot holds the node of this serial number.
    func holds(_ slot: Int, serial: UInt64) -> Bool {
        let chunk = slot / Self.chunkSlots
        guard chunk < chunks.count, let memory = chunks[chunk].memory,
            slot % Self.chunkSlots < chunks[chunk].touched
        else { return false }
        return serial != 0 && memory[slot % Self.chunkSlots].serial == serial
    }

    /// Whether the node of a slot stands for this inode.
    func holds(_ slot: UInt32, _ identity: Identity) -> Bool {
        let node = address(Int(slot))
        return node.pointee.reference.key == identity.key && node.pointee.reference.device == identity.device
    }

    func hash(ofSlot slot: UInt32) -> UInt64 {
        let node = address(Int(slot))
        return Identity(device: node.pointee.reference.device, key: node.pointee.reference.key).hash
    }

    /// Every slot that holds a node.
    func forEachSlot(_ body: (Int) -> Void) {
        for index in chunks.indices {
            guard let memory = chunks[index].memory else { continue }
            for at in 0..<chunks[index].touched where memory[at].serial != 0 {
                body(index * Self.chunkSlots + at)
            }
        }
    }

    /// Puts a node in a free slot. Throws ENOMEM where there is none, or no memory.
    func insert(_ node: Node) throws(Errno) -> Int {
        let index = try roomyChunk()
        guard let memory = chunks[index].memory else { preconditionFailure("a roomy chunk has memory") }
        if spare == index { spare = nil }
        let at: Int
        if chunks[index].free != 0 {
            at = chunks[index].free - 1
            chunks[index].free = Int(memory[at].lookups)
        } else {
            at = chunks[index].touched
            chunks[index].touched += 1
        }
        chunks[index].used += 1
        chunks[index].serial += 1
        (memory + at).initialize(to: node)
        if let places = chunks[index].places { (places + at).initialize(to: NodePlace()) }
        memory[at].serial = chunks[index].serial
        count += 1
        return index * Self.chunkSlots + at
    }

    private static func hasRoom(_ chunk: Chunk) -> Bool {
        chunk.memory != nil && chunk.used < chunkSlots && chunk.serial < serialMax
    }

    private func roomyChunk() throws(Errno) -> Int {
        while let last = roomy.last {
            if Self.hasRoom(chunks[last]) { return last }
            chunks[last].isListed = false
            roomy.removeLast()
        }
        let index: Int
        if let old = absent.last {
            index = old
        } else {
            guard chunks.count < 1 << Int(Self.slotBits) / Self.chunkSlots else { throw .noMemory }
            index = chunks.count
        }
        let memory = mmap(
            nil, chunkBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let memory, memory != MAP_FAILED else { throw .noMemory }
        if index == chunks.count { chunks.append(Chunk()) } else { absent.removeLast() }
        chunks[index].memory = memory.bindMemory(to: Node.self, capacity: Self.chunkSlots)
        if keepsPlaces {
            chunks[index].places = (memory + Self.nodesBytes)
                .bindMemory(to: NodePlace.self, capacity: Self.chunkSlots)
        }
        chunks[index].isListed = true
        roomy.append(index)
        return index
    }

    /// Empties a slot that holds a node.
    func remove(_ slot: Int) {
        let index = slot / Self.chunkSlots
        let at = slot % Self.chunkSlots
        if keepsPlaces { free(placeAddress(slot).pointee.string) }
        let node = address(slot)
        node.pointee.serial = 0
        node.pointee.lookups = UInt64(chunks[index].free)
        chunks[index].free = at + 1
        chunks[index].used -= 1
        count -= 1
        if chunks[index].used == 0 {
            if spare == nil, chunks[index].serial < Self.serialMax {
                spare = index
            } else {
                release(index)
                return
            }
        }
        if !chunks[index].isListed, Self.hasRoom(chunks[index]) {
            chunks[index].isListed = true
            roomy.append(index)
        }
    }

    /// Gives an empty chunk's memory back.
    private func release(_ index: Int) {
        if let memory = chunks[index].memory { munmap(memory, chunkBytes) }
        chunks[index].memory = nil
        chunks[index].places = nil
        chunks[index].touched = 0
        chunks[index].free = 0
        if chunks[index].serial < Self.serialMax { absent.append(index) }
    }

    /// Empties every slot, and gives all memory back.
    func removeAll() {
        if keepsPlaces { forEachSlot { free(placeAddress($0).pointee.string) } }
        for index in chunks.indices where chunks[index].memory != nil {
            chunks[index].used = 0
            release(index)
        }
        spare = nil
        count = 0
    }
}

/// What two nodes must not have in common.
struct Identity {
    let device: UInt64
    let key: InodeKey

    var hash: UInt64 {
        var value = key.inode &* 0x9e37_79b9_7f4a_7c15
        value ^= (UInt64(bitPattern: key.birth) &+ device) &* 0xc2b2_ae3d_27d4_eb4f
        return value ^ value >> 29
    }
}
