import Glibc
import LinuxSystem
import SnapshotRecord
import Synchronization
import SystemPackage
import TestSupport

func openDirectory(_ path: Path) throws(Errno) -> Descriptor {
    try FileName(path.string).withCString { (name) throws(Errno) in
        try Descriptor.open(at: .workingDirectory, name, O_RDONLY | O_DIRECTORY)
    }
}

let journalName = Path("journal")

extension JournalHead {
    static func test(
        _ embodiment: Embodiment = .redirect, layer: UInt64 = 7, isContinued: Bool = false, boot: UInt64 = 1
    ) -> JournalHead {
        JournalHead(
            embodiment: embodiment, layer: layer, isContinued: isContinued, source: InodeKey(inode: 2, birth: 3),
            cut: LinuxSystem.Timestamp(seconds: 1_700_000_000, nanoseconds: 5), serial: 11,
            boot: BootIdentity(high: boot, low: 0x0102_0304_0506_0708, mount: 99))
    }
}

/// A journal in a directory of a test.
struct JournalPlace {
    let path: Path
    let directory: Descriptor

    init(_ path: Path) throws(Errno) {
        self.path = path
        directory = try openDirectory(path)
    }

    var file: Path { path / journalName }

    func make(_ head: JournalHead = .test()) throws(Errno) -> Journal {
        try Journal(creatingIn: directory, head: head)
    }

    func scan() throws -> JournalScan {
        guard let scan = try JournalScan.read(in: directory, path: path.string) else {
            throw TestFailure("there is no journal")
        }
        return scan
    }

    func map(_ counting: JournalScan.Counting = .all) throws -> DeltaMap {
        let scan = try scan()
        let map = DeltaMap(isRedirect: scan.head.embodiment == .redirect)
        try scan.replay(counting, into: map)
        return map
    }

    /// What the journal says, as it can be appended.
    func events() throws -> [JournalEvent] {
        var events: [JournalEvent] = []
        try scan().forEachEvent { events.append($1) }
        return events
    }

    /// Puts bytes in the place of the journal.
    func replace(_ bytes: [UInt8]) throws(Errno) {
        let file = try self.file.open(O_WRONLY | O_CREAT | O_TRUNC)
        try file.writeAll(bytes)
    }
}

/// All that a map says of one inode.
struct Picture: Equatable {
    var isBorn: Bool
    var reference: InodeReference?
    var attributes: RecordedAttributes?
    var blocks: [Range<UInt64>]
    var holes: [Range<UInt64>]
    var links: LinkCount?
    var place: InodePlace
    var target: [UInt8]?
    var entries: [FileName: RecordedEntry]
    var flags: [Bool]
}

func pictures(_ map: DeltaMap) -> [InodeKey: Picture] {
    var pictures: [InodeKey: Picture] = [:]
    for record in map.records {
        let contents = record.contents.withLock { $0 }
        pictures[record.key] = Picture(
            isBorn: map.isBorn(record.key), reference: record.reference, attributes: contents.attributes,
            blocks: contents.blocks.runs, holes: contents.holes.runs, links: contents.links,
            place: contents.place, target: contents.target, entries: contents.entries,
            flags: [contents.knowsEnd, contents.isUnreadable, contents.isLost])
    }
    return pictures
}

/// Changes at random, of few inodes, so that they meet.
struct ChangeGenerator {
    var random: SeededGenerator
    let inodes: UInt64

    init(seed: UInt64, inodes: UInt64 = 12) {
        random = SeededGenerator(seed: seed)
        self.inodes = inodes
    }

    mutating func key() -> InodeKey {
        let inode = random.next() % inodes
        return InodeKey(inode: inode, birth: inode % 3 == 0 ? -5 : Int64(inode) * 1_000_000_007)
    }

    /// That of an inode is the same each time.
    mutating func reference(_ key: InodeKey) -> InodeReference {
        var status = FileStatus()
        (status.inode, status.birth, status.device) = (key.inode, key.birth, 0x801)
        status.mode = [UInt32(S_IFREG), UInt32(S_IFDIR), UInt32(S_IFLNK), UInt32(S_IFSOCK)][Int(key.inode % 4)]
        let data = bytes(Int(key.inode % 25), seed: key.inode &+ 1)
        let handle = data.withUnsafeBytes { FileHandle(kind: Int32(key.inode % 200) - 3, bytes: $0) }
        return InodeReference(status, handle: handle ?? FileHandle())
    }

    mutating func name() -> FileName {
        if random.isTrue(oneIn: 50) {
            return FileName(bytes: bytes(random.number(200...255), seed: random.next()).map { $0 == 47 ? 1 : $0 })
        }
        return FileName("name \(random.next() % 30)\u{e4}")
    }

    mutating func time() -> LinuxSystem.Timestamp {
        Timestamp(
            seconds: Int64(bitPattern: random.next()), nanoseconds: UInt32(random.next() % 1_000_000_000))
    }

    mutating func blocks() -> Range<UInt64> {
        if random.isTrue(oneIn: 20) { return (1 << 51) - 3..<(1 << 51) }
        let first = random.next() % 4000
        return first..<first + random.next() % 600
    }

    mutating func attributes(_ key: InodeKey) -> RecordedAttributes {
        var status = FileStatus()
        (status.device, status.inode, status.birth) = (0x801, key.inode, key.birth)
        status.mode = UInt32(S_IFREG) | UInt32(random.next() % 0o10000)
        (status.links, status.user, status.group) = (UInt32(random.next() % 9), .max, 7)
        status.specialDevice = random.next()
        status.size = Int64(random.next() >> 1)
        (status.blocks, status.blockSize) = (Int64(random.next() >> 40), 4096)
        (status.accessed, status.modified, status.changed) = (time(), time(), time())
        var extended = ExtendedAttributes()
        for _ in 0..<random.number(0...3) {
            extended.values[FileName("user.\(random.next() % 9)")] = random.data(random.number(0...300))
        }
        if random.isTrue(oneIn: 4) { extended.unreadable = [FileName("user.secret"), name()] }
        return RecordedAttributes(status: status, extended: extended)
    }

    /// One of each kind in turn; `name` twice, for both that it can be.
    mutating func change(_ kind: Int) -> RecordChange {
        let key = key()
        return switch kind % 13 {
        case 0: .reference(reference(key))
        case 1: .name(in: key, name(), .absent)
        case 2: .name(in: key, name(), .present(reference(self.key())))
        case 3: .attributes(key, attributes(key))
        case 4: .written(key, size: Int64(random.next() >> 1), modified: time(), changed: time())
        case 5: .links(key, LinkCount(count: UInt32(random.next() >> 32), changed: time()))
        case 6: .data(key, blocks())
        case 7: .holes(key, blocks())
        case 8: .born(reference(key))
        case 9: .place(key, random.pick([.source, .graveyard, .detached, .store]))
        case 10: .target(key, random.data(random.number(0...400)))
        case 11: .merged(key, blocks())
        default: .flags(key, RecordFlags(rawValue: UInt8(random.next() % 8)))
        }
    }

    mutating func changes() -> [RecordChange] {
        (0..<random.number(0...5)).map { _ in change(random.number(0...12)) }
    }

    /// What an operation, a commit or an end appends; `sequence` is that of its record.
    mutating func event(_ sequence: UInt64) -> JournalEvent {
        switch random.number(0...19) {
        case 0, 1:
            .mark(
                through: random.next() % (sequence + 1), inodes: (0..<random.number(0...6)).map { _ in key() })
        case 2: .sealed
        case 3: .discarded
        case 4: .cut(LinuxSystem.Timestamp(seconds: Int64(random.number(0...2_000_000_000)), nanoseconds: 7))
        default: .changes(changes())
        }
    }
}
