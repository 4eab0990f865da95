import Glibc
import LinuxSystem
import SnapshotCore
import SnapshotRecord
import SystemPackage
import TestSupport

/// A snapshot of a plain directory, without a mount: changes are announced to it by hand.
struct SnapshotUnderTest {
    let top: Path
    let source: SourceTree
    let store: Store
    let preserve: Preserve
    var tree: SnapshotTree { SnapshotTree(preserve.cut) }

    /// Calls `body` with a snapshot of a new directory that `prepare` has filled.
    static func with(
        bytesMax: UInt64? = nil, usesHandles: Bool = true, scope: SnapshotScope? = nil,
        isSinglePass: Bool = false,
        prepare: (Path) throws -> Void,
        _ body: (SnapshotUnderTest) throws -> Void
    ) throws {
        try TemporaryDirectory.with { top in
            try prepare(top)
            let root = try top.string.withCString {
                try Descriptor.open(at: .workingDirectory, $0, O_RDONLY | O_DIRECTORY)
            }
            let store = try Store(source: root, sourcePath: top.string, path: nil)
            defer { store.close() }
            let source = try SourceTree(root: root, hidden: store.hidden, mayUseHandles: usesHandles)
            let delta = try DeltaStore(in: store, bytesMax: bytesMax)
            let preserve = Preserve(
                source: source, store: delta, credentials: try Credentials(), scope: scope,
                isSinglePass: isSinglePass
            ) { _ in }
            try body(
                SnapshotUnderTest(top: top, source: source, store: store, preserve: preserve))
            try delta.discard()
        }
    }

    func target(_ path: Path, _ flags: Int32 = O_PATH | O_NOFOLLOW) throws -> ChangeTarget {
        let opened = try (top / path).string.withCString {
            try Descriptor.open(at: .workingDirectory, $0, flags)
        }
        let status = try FileStatus(of: opened)
        return ChangeTarget(
            try source.reference(of: opened, status), opened, isReadable: flags & O_PATH == 0)
    }

    var root: ChangeTarget { ChangeTarget(source.rootReference, source.root) }

    /// What a name of the root stands for in the snapshot; nil for nothing.
    func entry(_ name: String) throws -> InodeReference? {
        do {
            return try name.withCString {
                try tree.entry(in: source.rootReference, source.root, $0).reference
            }
        } catch Errno.noSuchFileOrDirectory {
            return nil
        }
    }

    /// The names of the root in the snapshot.
    func names() throws -> Set<String> {
        let directory = try Descriptor.open(at: source.root, ".", O_RDONLY | O_DIRECTORY)
        var names: Set<String> = []
        try tree.listing(of: source.rootReference, directory).forEach { name, _, _ in
            names.insert(String(cString: name))
        }
        return names
    }

    func descriptor(_ reference: InodeReference) throws(Errno) -> Descriptor? {
        try tree.open(reference, O_RDONLY) { () throws(Errno) in throw .staleNFSFileHandle }
    }

    func status(_ reference: InodeReference) throws(Errno) -> FileStatus {
        try tree.status(of: reference) { () throws(Errno) in
            guard let found = try descriptor(reference) else { throw .staleNFSFileHandle }
            return found
        }
    }

    /// All data of a file of the snapshot.
    func data(_ reference: InodeReference) throws -> [UInt8] {
        let size = try status(reference).size
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(size) + 1, alignment: 1)
        defer { buffer.deallocate() }
        let count = try tree.read(
            reference.key, primary: try descriptor(reference), size: size, into: buffer, at: 0)
        return Array(buffer[..<count])
    }

    /// unlink(2) or rmdir(2) of a name in the root.
    func unlink(_ name: String, _ flags: Int32 = 0) throws {
        let victim = try target(Path(name))
        try name.withCString {
            while try !preserve.unlink(in: root, $0, victim: victim, flags) {}
        }
    }

    func linkTarget(_ reference: InodeReference) throws -> String {
        let target = try tree.target(of: reference) { () throws(Errno) in
            throw .staleNFSFileHandle
        }
        return String(decoding: target, as: UTF8.self)
    }

    /// Where data or a hole comes next in a file of the snapshot; nil for nowhere.
    func place(_ reference: InodeReference, _ whence: Int32, from offset: Int64) throws -> Int64? {
        let size = try status(reference).size
        let primary = try descriptor(reference)
        do {
            return try tree.seek(reference.key, primary: primary, size: size, whence, from: offset)
        } catch Errno.noSuchAddressOrDevice {
            return nil
        }
    }
}
