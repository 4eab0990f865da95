package import ControlSocket
internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// Reads the snapshot of a fusesnap mount without the operating system's help: from source and store, past the mount, while
/// applications go on writing through it.
///
/// What it reads is as exact as what `.snapshot` shows, and costs no FUSE requests. The daemon gives it the source and the
/// store (over its control socket, to root and to who mounted); the reader keeps its own copy of the delta map, follows the
/// journal, which the daemon appends to before it changes anything, and looks after each read of the source whether a record
/// has come meanwhile. Where that cannot be done (`reasonNotDirect`) it reads `.snapshot` through the mount instead,
/// with the same result.
///
/// ```swift
/// let reader = try SnapshotReader(mountPoint: "/srv/data")
/// try reader.root().visit { node in
///     print(node.path, try node.attributes().size)
/// }
/// try reader.verify()
/// ```
///
/// A reader does not keep the snapshot from ending: after that everything throws `SnapshotReaderError.ended`. Each result is
/// of the cut where `verify()`, called after all of it has been read, does not throw: what only the daemon knows (that
/// it was killed; that a change past the mount was noticed) is told there. Safe for use by all threads; so are its nodes.
public final class SnapshotReader: Sendable {
    /// The instant of the cut, in seconds since 1970 and nanoseconds.
    public let cut: (seconds: Int64, nanoseconds: UInt32)
    /// Why the snapshot is read through the mount; nil where it is read from source and store.
    public let reasonNotDirect: String?
    let tree: SnapshotTree
    private let snapshotCut: SnapshotCut
    private let mountPoint: String
    private let serial: UInt64
    private let connection: Mutex<Connection>
    private let follower: Follower?

    /// A client, which is not copied.
    private struct Connection: ~Copyable {
        var client: ControlClient
    }

    /// Opens the active snapshot of the mount at `mountPoint`.
    ///
    /// Throws `noDaemon`, `noSnapshot`, `refused`, `damaged` and `system`.
    public convenience init(mountPoint: String) throws(SnapshotReaderError) {
        guard let resolved = realpath(mountPoint, nil) else {
            throw .system(Errno(rawValue: errno), action: "find", path: mountPoint)
        }
        defer { free(resolved) }
        let path = String(cString: resolved)
        try self.init(try Self.connect(path), mountPoint: path)
    }

    /// A mount's socket lies where its user's do.
    private static func connect(_ path: String) throws(SnapshotReaderError) -> ControlClient {
        let user = geteuid()
        do throws(ControlClientError) {
            return try ControlClient(mountpoint: path, owner: user)
        } catch {
            if case .noDaemon = error, user != 0 {
                do throws(ControlClientError) {
                    return try ControlClient(mountpoint: path, owner: 0)
                } catch {
                    throw SnapshotReaderError(error, mountPoint: path)
                }
            }
            throw SnapshotReaderError(error, mountPoint: path)
        }
    }

    /// Opens the snapshot by a connection to the mount's daemon.
    package init(_ client: consuming ControlClient, mountPoint: String) throws(SnapshotReaderError) {
        var client = client
        let access: ReaderAccess
        do throws(ControlClientError) {
            access = try client.reader(ReaderOptions())
        } catch {
            throw SnapshotReaderError(error, mountPoint: mountPoint)
        }
        let report = access.report
        cut = (report.cut.seconds, report.cut.nanoseconds)
        serial = report.snapshot
        self.mountPoint = mountPoint
        var whyNot = report.whyNotDirect
        // Root opens nothing by what an ordinary user's daemon says.
        if whyNot == nil, geteuid() == 0, client.daemonUser != 0 { whyNot = "the daemon is an ordinary user's" }
        let direct = try whyNot == nil ? Self.openDirectly(access) : nil
        if let direct {
            (snapshotCut, follower) = direct
        } else {
            whyNot = whyNot ?? "file handles cannot be opened here, by which the snapshot's files are found"
            let path = Self.directory(of: mountPoint) ?? report.snapshotDirectory
            (snapshotCut, follower) = (try Self.openThroughMount(path, of: mountPoint), nil)
        }
        reasonNotDirect = whyNot
        tree = SnapshotTree(snapshotCut)
        connection = Mutex(Connection(client: client))
    }

    /// nil where file handles cannot be opened.
    private static func openDirectly(
        _ access: ReaderAccess
    ) throws(SnapshotReaderError) -> (SnapshotCut, Follower)? {
        let report = access.report
        guard access.descriptors.count == 2, let path = report.directory else {
            throw .damaged("the daemon's answer has not what is needed to read its snapshot")
        }
        let (sent, directory) = (access.descriptors[0], access.descriptors[1])
        let hidden = (report.hidden ?? []).map { InodeKey(inode: $0.inode, birth: $0.birth) }
        let source: SourceTree
        do throws(Errno) {
            // Opened anew: what was sent has its place in a listing in common with the daemon's.
            let root = try Descriptor.open(at: sent, ".", O_RDONLY | O_DIRECTORY)
            source = try SourceTree(root: root, hidden: hidden)
        } catch {
            throw .system(error, action: "open", path: "")
        }
        guard source.usesHandles else { return nil }
        let isRedirect = report.mode == "redirect"
        let map = DeltaMap()
        do throws(RecordError) {
            let journal = try JournalFollower(
                in: directory, path: path, device: source.device, into: isRedirect ? nil : map)
            let follower = Follower(journal)
            // In redirect nothing changes in the source from the cut to the stop.
            let absence =
                isRedirect
                ? Absence(cut: report.cut.timestamp, end: Timestamp(seconds: .max, nanoseconds: 0))
                : report.absence.map { Absence(cut: $0.cut.timestamp, end: $0.end.timestamp) }
            let cut = SnapshotCut(
                source: source, store: nil, map: map, absence: absence,
                files: isRedirect ? nil : DeltaFiles(in: directory, bytesMax: nil), follower: follower,
                didBecomeInexact: { _ in })
            follower.follow(cut.end)
            return (cut, follower)
        } catch {
            throw .damaged("\(error)")
        }
    }

    /// Within `fusesnap run` the snapshot lies where the environment says.
    private static func directory(of mountPoint: String) -> String? {
        guard let name = getenv("FUSESNAP_MOUNTPOINT"), String(cString: name) == mountPoint,
            let directory = getenv("FUSESNAP_SNAPSHOT")
        else { return nil }
        return String(cString: directory)
    }

    private static func openThroughMount(
        _ path: String, of mountPoint: String
    ) throws(SnapshotReaderError) -> SnapshotCut {
        do throws(Errno) {
            let root = try Descriptor.open(at: .workingDirectory, path, O_RDONLY | O_DIRECTORY)
            let mount = try Descriptor.open(at: .workingDirectory, mountPoint, O_PATH | O_DIRECTORY)
            // What a daemon says lies in its own mount, or is not read.
            guard try FileStatus(of: root).device == FileStatus(of: mount).device else {
                throw .improperLink
            }
            let source = try SourceTree(root: root, hidden: [], mayUseHandles: false)
            return SnapshotCut(source: source, store: nil, didBecomeInexact: { _ in })
        } catch {
            throw .system(error, action: "open", path: path)
        }
    }

    /// Whether the snapshot is read from source and store.
    public var isDirect: Bool { reasonNotDirect == nil }

    /// In which bits of an inode number the tree's differs from the source's. (The mount's differ already.)
    var inodeMask: UInt64 { isDirect ? SnapshotTree.inodeBit : 0 }

    /// The snapshot's root.
    public func root() -> SnapshotNode {
        SnapshotNode(root: self, tree.overlay.source.rootReference)
    }

    /// Makes sure that what has been read so far is of the cut.
    ///
    /// Throws `ended` where the snapshot is over, and `inexact` where a part of it is lost; `noDaemon` where the daemon does not
    /// answer any more: then nobody knows.
    public func verify() throws(SnapshotReaderError) {
        if let reason = snapshotCut.end.inexactReason { throw .inexact(reason) }
        let report: ReaderReport
        do throws(ControlClientError) {
            report = try connection.withLock { (connection) throws(ControlClientError) in
                try connection.client.reader(ReaderOptions(looks: true)).report
            }
        } catch {
            let failure = SnapshotReaderError(error, mountPoint: mountPoint)
            throw failure == .noSnapshot ? .ended : failure
        }
        if report.snapshot != serial { throw .ended }
        if let reason = report.inexactReason { throw .inexact(reason) }
        do throws(Errno) {
            try follower?.catchUp()
            try snapshotCut.end.check()
        } catch {
            throw self.error(error, "read", "")
        }
    }

    /// What an error of the tree means.
    func error(_ error: Errno, _ action: String, _ path: String) -> SnapshotReaderError {
        if let problem = follower?.problem { return .damaged(problem) }
        if !isDirect, error == .staleNFSFileHandle { return .ended }
        return snapshotCut.end.isRecording ? .system(error, action: action, path: path) : .ended
    }
}

/// Brings the reader's map up to date.
private final class Follower: RecordFollower {
    private let journal: JournalFollower
    private let end = Mutex<SnapshotEnd?>(nil)
    private let failure = Mutex<String?>(nil)

    init(_ journal: JournalFollower) {
        self.journal = journal
    }

    /// Why nothing can be said any more.
    var problem: String? { failure.withLock { $0 } }

    /// Before the first look.
    func follow(_ end: SnapshotEnd) {
        self.end.withLock { $0 = end }
    }

    func catchUp() throws(Errno) {
        do throws(RecordError) {
            if try journal.catchUp() { return }
        } catch {
            failure.withLock { $0 = "\(error)" }
            throw .ioError
        }
        end.withLock { $0 }?.end()
        throw .staleNFSFileHandle
    }
}
