internal import FuseSession
internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// What the backup sees: `.snapshot`, while a snapshot is active.
///
/// Every operation first takes the tree that is active, then looks its node up; a snapshot that ends takes its nodes
/// with it before the next begins. So a node of one snapshot never meets the tree of another.
final class SnapshotView: Sendable {
    /// Its contents never change, and its end is told to the kernel: no need to ask again.
    static let cacheSeconds: Double = 86400

    private struct Active {
        let tree: SnapshotTree
        let root: UInt64
    }

    let lifecycle: SnapshotLifecycle
    let nodes: NodeTable
    private let active = Mutex<Active?>(nil)
    /// The files of the nodes that are open: what the kernel may have cached though no name leads there any more.
    private let openNodes = OpenNodes<OpenSnapshotFile>()

    private let openFiles = Mutex<[UInt64: OpenSnapshotFile]>([:])

    init(lifecycle: SnapshotLifecycle) {
        self.lifecycle = lifecycle
        nodes = NodeTable(isSnapshot: true, keepsNames: !lifecycle.source.usesHandles)
    }

    // MARK: Phases

    func begin(_ cut: SnapshotCut) {
        do throws(Errno) {
            let root = try nodes.remember(lifecycle.source.rootReference, parent: 0, "", at: 0)
            active.withLock { $0 = Active(tree: SnapshotTree(cut), root: root) }
        } catch {
            cut.becomeInexact("no node for the root of the snapshot: \(error)")
        }
    }

    /// Ends the view.
    func end() {
        active.withLock { $0 = nil }
        nodes.reset()
    }

    /// The nodes of which files are open.
    var openNodesLeft: [UInt64] { openNodes.nodes }

    private func tree() throws(Errno) -> SnapshotTree {
        guard let active = active.withLock({ $0 }) else { throw .staleNFSFileHandle }
        return active.tree
    }

    /// The entry of the root; nil where no snapshot is active.
    func rootEntry() throws(Errno) -> EntryReply? {
        guard let active = active.withLock({ $0 }) else { return nil }
        let reference = lifecycle.source.rootReference
        let node = try nodes.remember(reference, parent: 0, "", at: 0)
        return try reply(active.tree, node, reference)
    }

    // MARK: Nodes

    private func find(
        _ tree: SnapshotTree, _ node: UInt64
    ) throws(Errno) -> Descriptor {
        try nodes.descriptor(of: node, SnapshotOpener(tree: tree))
    }

    /// A descriptor to look at the node's inode with: that of a file which is open already saves opening one.
    private func look(_ tree: SnapshotTree, _ node: UInt64) throws(Errno) -> Descriptor {
        if let open = openNodes[node]?.primary { return open }
        return try find(tree, node)
    }

    /// Opens a node's inode anew; nil where it is detached.
    private func open(
        _ tree: SnapshotTree, _ node: UInt64, _ reference: InodeReference, _ flags: Int32
    ) throws(Errno) -> Descriptor? {
        func open(_ flags: Int32) throws(Errno) -> Descriptor? {
            try tree.open(reference, flags) { () throws(Errno) in try find(tree, node) }
        }
        do throws(Errno) {
            return try open(flags | O_NOATIME)
        } catch .notPermitted {
            // Another user's file, and no privilege: then reading it shows in its access time.
            return try open(flags)
        }
    }

    private func reply(
        _ tree: SnapshotTree, _ node: UInt64, _ reference: InodeReference, seen: FileStatus? = nil
    ) throws(Errno) -> EntryReply {
        do throws(Errno) {
            let status = try tree.status(of: reference, seen: seen) { () throws(Errno) in
                try find(tree, node)
            }
            let attributes = AttributeReply(status, timeout: Self.cacheSeconds)
            return EntryReply(node: node, attributes: attributes, timeout: Self.cacheSeconds)
        } catch {
            nodes.forget(node, 1)
            throw error
        }
    }

    private func entry(
        _ tree: SnapshotTree, _ parent: UInt64, _ directory: InodeReference,
        _ descriptor: Descriptor?, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply {
        let entry = try tree.entry(in: directory, descriptor, name)
        let node = try nodes.remember(entry.reference, parent: parent, name, at: 0)
        return try reply(tree, node, entry.reference, seen: entry.seen)
    }

    // MARK: Operations

    func lookup(_ parent: UInt64, _ name: UnsafePointer<CChar>) throws(Errno) -> EntryReply {
        let tree = try tree()
        let directory = try nodes.reference(of: parent)
        let descriptor = try tree.open(directory, O_PATH | O_DIRECTORY) { () throws(Errno) in
            try find(tree, parent)
        }
        do throws(Errno) {
            return try entry(tree, parent, directory, descriptor, name)
        } catch .noSuchFileOrDirectory {
            return EntryReply(node: 0, attributes: nil, timeout: Self.cacheSeconds)
        }
    }

    func attributes(_ node: UInt64) throws(Errno) -> AttributeReply {
        let tree = try tree()
        let status = try tree.status(of: try nodes.reference(of: node)) { () throws(Errno) in
            try look(tree, node)
        }
        return AttributeReply(status, timeout: Self.cacheSeconds)
    }

    func readLink(_ node: UInt64) throws(Errno) -> [UInt8] {
        let tree = try tree()
        return try tree.target(of: try nodes.reference(of: node)) { () throws(Errno) in
            try find(tree, node)
        }
    }

    func extendedAttributes(_ node: UInt64) throws(Errno) -> ExtendedAttributes {
        let tree = try tree()
        return try tree.extendedAttributes(of: try nodes.reference(of: node)) { () throws(Errno) in
            try find(tree, node)
        }
    }

    func open(_ node: UInt64, _ flags: Int32) throws(Errno) -> OpenReply {
        if flags & O_ACCMODE != O_RDONLY || flags & O_TRUNC != 0 { throw .readOnlyFileSystem }
        let tree = try tree()
        let reference = try nodes.reference(of: node)
        let primary = try open(tree, node, reference, O_RDONLY | O_NONBLOCK)
        let status = try tree.status(of: reference) { () throws(Errno) in
            if let primary { primary } else { try find(tree, node) }
        }
        let file = OpenSnapshotFile(tree, reference, primary, size: status.size, links: status.links)
        openNodes.add(node, file)
        let handle = Handle.make(file)
        openFiles.withLock { $0[handle] = file }
        // In a single pass each read is a request, so that it is known; and the kernel reads nothing ahead.
        return OpenReply(handle: handle, keepsCache: !tree.isSinglePass, isDirect: tree.isSinglePass)
    }

    /// Holds nothing of the source open any more.
    func releaseDescriptors() {
        for file in openFiles.withLock({ Array($0.values) }) { file.releaseDescriptor() }
        // The first of a node may have been released since.
        for file in openNodes.all { file.releaseDescriptor() }
        nodes.releaseDescriptors()
    }

    /// `isOwn`: an application's read(2) itself, not the kernel's for its cache (a mapping, splice).
    func read(_ handle: UInt64, size: Int, offset: Int64, isOwn: Bool) throws(Errno) -> ReadReply {
        let file = Handle.object(handle, as: OpenSnapshotFile.self)
        let buffer = WorkerThread.buffer(size)
        let count = try file.tree.read(
            file.reference.key, primary: file.primary, size: file.size, into: buffer, at: offset)
        lifecycle.countBytesRead(count)
        if isOwn, let blocks = file.didRead(offset..<offset + Int64(count)) {
            lifecycle.didRead(blocks, of: file.reference, in: file.tree)
        }
        return .bytes(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
    }

    func seek(_ handle: UInt64, offset: Int64, whence: Int32) throws(Errno) -> Int64 {
        let file = Handle.object(handle, as: OpenSnapshotFile.self)
        return try file.tree.seek(
            file.reference.key, primary: file.primary, size: file.size, whence, from: offset)
    }

    func release(_ node: UInt64, _ handle: UInt64) {
        _ = openFiles.withLock { $0.removeValue(forKey: handle) }
        Handle.release(handle, as: OpenSnapshotFile.self)
        openNodes.remove(node)
    }

    func openDirectory(_ node: UInt64) throws(Errno) -> OpenReply {
        let tree = try tree()
        let reference = try nodes.reference(of: node)
        let descriptor = try open(tree, node, reference, O_RDONLY | O_DIRECTORY)
        let listing = try tree.listing(of: reference, descriptor)
        let directory = OpenSnapshotDirectory(tree, reference, descriptor, listing)
        return OpenReply(handle: Handle.make(directory), keepsCache: true, cachesListing: true)
    }

    func readDirectory(
        _ node: UInt64, _ handle: UInt64, offset: Int64, into buffer: inout DirectoryBuffer
    ) throws(Errno) {
        let directory = Handle.object(handle, as: OpenSnapshotDirectory.self)
        let dots = 2
        var at = Int(offset)
        while at < directory.listing.count + dots {
            let next = Int64(at + 1)
            let isAdded: Bool
            if at < dots {
                let inode = directory.reference.key.inode ^ SnapshotTree.inodeBit
                isAdded = buffer.append(
                    at == 0 ? "." : "..", inode: inode, kind: UInt8(DT_DIR), next: next)
            } else {
                isAdded = try directory.listing.withEntry(at - dots) {
                    (name, inode, kind) throws(Errno) -> Bool in
                    guard buffer.wantsEntries else {
                        return buffer.append(
                            name, inode: inode ^ SnapshotTree.inodeBit, kind: kind, next: next)
                    }
                    guard buffer.hasRoom(for: name) else { return false }
                    do throws(Errno) {
                        let entry = try entry(
                            directory.tree, node, directory.reference, directory.descriptor, name)
                        buffer.append(name, entry, next: next)
                        return true
                    } catch {
                        // What is lost has a name all the same; whoever looks it up gets the error.
                        return buffer.append(
                            name, inode: inode ^ SnapshotTree.inodeBit, kind: kind, next: next)
                    }
                }
            }
            if !isAdded { return }
            at += 1
        }
    }

    func releaseDirectory(_ handle: UInt64) {
        Handle.release(handle, as: OpenSnapshotDirectory.self)
    }
}

/// Opens inodes of the snapshot: where they are now.
private struct SnapshotOpener: NodeOpener {
    let tree: SnapshotTree

    var root: Descriptor { tree.overlay.source.root }

    func open(
        _ reference: InodeReference, find: () throws(Errno) -> Descriptor
    ) throws(Errno) -> Descriptor {
        if reference == tree.overlay.source.rootReference { return tree.overlay.source.root }
        guard let found = try tree.open(reference, O_PATH, find: find) else {
            throw .staleNFSFileHandle
        }
        return found
    }
}

/// A file of the snapshot that is open. Keeps its tree: after the end of the snapshot that one refuses.
final class OpenSnapshotFile: Sendable {
    let tree: SnapshotTree
    let reference: InodeReference
    private let descriptor: Mutex<Descriptor?>
    /// The inode itself, nil where it is detached, or the snapshot can be read no more.
    var primary: Descriptor? { descriptor.withLock { $0 } }
    /// The size at the cut.
    let size: Int64
    /// nil where it does not matter what is read.
    private let progress: Mutex<ReadProgress?>

    /// `links`: a file with several names may be read once by each.
    init(
        _ tree: SnapshotTree, _ reference: InodeReference, _ primary: Descriptor?, size: Int64, links: UInt32
    ) {
        progress = Mutex(tree.isSinglePass && links == 1 ? ReadProgress() : nil)
        self.tree = tree
        self.reference = reference
        descriptor = Mutex(primary)
        self.size = size
    }

    /// The blocks that have been read whole by this; nil where that is of no interest.
    func didRead(_ range: Range<Int64>) -> Range<UInt64>? {
        progress.withLock { $0?.didRead(range, size: size) }
    }

    func releaseDescriptor() {
        descriptor.withLock { $0 = nil }
    }
}

/// A directory of the snapshot that is being listed.
final class OpenSnapshotDirectory: Sendable {
    let tree: SnapshotTree
    let reference: InodeReference
    let descriptor: Descriptor?
    let listing: Listing

    init(
        _ tree: SnapshotTree, _ reference: InodeReference, _ descriptor: Descriptor?,
        _ listing: Listing
    ) {
        self.tree = tree
        self.reference = reference
        self.descriptor = descriptor
        self.listing = listing
    }
}
