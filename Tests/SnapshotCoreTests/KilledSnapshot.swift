import Glibc
import LinuxSystem
import SnapshotCore
import SnapshotRecord
import SystemPackage
import TestSupport

/// A snapshot of a plain directory whose daemon can be killed: what it keeps in memory is forgotten, at any place between
/// two steps, and the snapshot taken up from what is on the disk.
final class KilledSnapshot {
    let top: Path
    let source: SourceTree
    let store: Store
    let boot: BootIdentity
    private(set) var preserve: Preserve
    /// What the snapshot has to show for ever.
    let expected: [String: String]

    static func with(prepare: (Path) throws -> Void, _ body: (KilledSnapshot) throws -> Void) throws {
        try TemporaryDirectory.with { top in
            try prepare(top)
            let root = try top.string.withCString {
                try Descriptor.open(at: .workingDirectory, $0, O_RDONLY | O_DIRECTORY)
            }
            let store = try Store(source: root, sourcePath: top.string, path: nil)
            defer { store.close() }
            try body(try KilledSnapshot(top, root, store))
            try store.discardSnapshot()
        }
    }

    private init(_ top: Path, _ root: Descriptor, _ store: Store) throws {
        (self.top, self.store) = (top, store)
        source = try SourceTree(root: root, hidden: store.hidden)
        boot = try BootIdentity.current(source: root)
        let head = JournalHead(
            embodiment: .preserve, layer: 7, isContinued: false, source: source.rootReference.key,
            cut: Timestamp(seconds: 1, nanoseconds: 0), serial: 7, boot: boot)
        preserve = Preserve(
            source: source, store: try DeltaStore(in: store, bytesMax: nil, head: head),
            credentials: try Credentials()
        ) { _ in }
        expected = try Self.capture(preserve, source)
        preserve.didStart(.current)
    }

    var journal: Path { top / ".fusesnap/snapshot/journal" }

    /// The ends of the journal's records, the head's first.
    func recordEnds() throws -> [Int] {
        let bytes = try journal.contents()
        var ends = [112]
        while let last = ends.last, last + 4 <= bytes.count {
            let length = (0..<4).reduce(0) { $0 | Int(bytes[last + $1]) << (8 * $1) }
            if length == 0 { break }
            ends.append(last + length)
        }
        return ends
    }

    func recordCount() throws -> Int { try recordEnds().count - 1 }

    /// Cuts the journal off behind its first `count` records: what comes after them was not written any more.
    func keepRecords(_ count: Int) throws { try journal.truncate(try recordEnds()[count]) }

    func recovery(boot other: BootIdentity? = nil) throws -> PreserveRecovery {
        PreserveRecovery(
            store: store, source: source, credentials: try Credentials(), boot: other ?? boot, bytesMax: nil
        ) { _ in }
    }

    /// The next daemon takes the snapshot up; throws where it does not.
    func takeUp() throws {
        let outcome = try recovery().recover()
        guard case .active(let next, let head) = outcome else {
            throw TestFailure("the snapshot was not taken up: \(outcome)")
        }
        guard head.serial == 7 else { throw TestFailure("it is another: \(head)") }
        preserve = next
    }

    /// What the snapshot shows.
    func shown() throws -> [String: String] { try Self.capture(preserve, source) }

    private static func capture(_ preserve: Preserve, _ source: SourceTree) throws -> [String: String] {
        var found: [String: String] = [:]
        try visit(SnapshotTree(preserve.cut), source.rootReference, ".", &found)
        return found
    }

    private static func visit(
        _ tree: SnapshotTree, _ reference: InodeReference, _ path: String, _ found: inout [String: String]
    ) throws {
        func open(_ flags: Int32) throws(Errno) -> Descriptor? {
            try tree.open(reference, flags) { () throws(Errno) in throw .staleNFSFileHandle }
        }
        func present() throws(Errno) -> Descriptor {
            guard let opened = try open(O_PATH) else { throw .staleNFSFileHandle }
            return opened
        }
        let status = try tree.status(of: reference, present)
        var facts =
            "\(status.inode) \(String(status.mode, radix: 8)) \(status.links) \(status.size) \(status.modified)"
        facts += " \(status.changed)"
        if path == "." { facts = String(status.mode, radix: 8) }
        let extended = try tree.extendedAttributes(of: reference, present)
        for name in extended.names.sorted(by: { $0.description < $1.description }) {
            facts += " \(name)=\(try extended.value(name))"
        }
        switch status.kind {
        case UInt32(S_IFDIR):
            let directory = try open(O_RDONLY | O_DIRECTORY)
            var names: [String] = []
            try tree.listing(of: reference, directory).forEach { name, _, _ in names.append(String(cString: name))
            }
            for name in names {
                let child = try name.withCString { try tree.entry(in: reference, directory, $0).reference }
                try visit(tree, child, path + "/" + name, &found)
            }
        case UInt32(S_IFREG):
            let room = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(status.size) + 1, alignment: 1)
            defer { room.deallocate() }
            let primary = try open(O_RDONLY)
            let count = try tree.read(reference.key, primary: primary, size: status.size, into: room, at: 0)
            facts +=
                " \(room[..<count].reduce(UInt64(14_695_981_039_346_656_037)) { ($0 ^ UInt64($1)) &* 1_099_511_628_211 })"
        case UInt32(S_IFLNK):
            facts += " -> \(String(decoding: try tree.target(of: reference, present), as: UTF8.self))"
        default: break
        }
        found[path] = facts
    }

    // MARK: Changes

    func target(_ path: Path, _ flags: Int32 = O_PATH | O_NOFOLLOW) throws -> ChangeTarget {
        let opened = try (top / path).string.withCString {
            try Descriptor.open(at: .workingDirectory, $0, flags)
        }
        let status = try FileStatus(of: opened)
        return ChangeTarget(try source.reference(of: opened, status), opened, isReadable: flags & O_PATH == 0)
    }

    func directory(_ path: Path) throws -> ChangeTarget {
        path == "." ? ChangeTarget(source.rootReference, source.root) : try target(path)
    }
}
