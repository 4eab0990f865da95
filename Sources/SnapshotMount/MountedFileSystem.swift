package import FuseSession
internal import Glibc
package import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import Synchronization
package import SystemPackage

/// The file system of a mount: the live view, and in its root, hidden, the snapshot view. Hands each operation to the
/// view that its node belongs to; the snapshot refuses every change with EROFS.
package final class MountedFileSystem: FileSystemOperations {
    private let live: LiveView
    private let snapshots: SnapshotView
    private let lifecycle: SnapshotLifecycle
    private let snapshotName: FileName
    private let didStartServing: @Sendable () -> Void

    /// `didStartServing` is called once the kernel sends requests.
    package init(
        lifecycle: SnapshotLifecycle, credentials: Credentials, policy: CachePolicy,
        snapshotName: FileName, didStartServing: @escaping @Sendable () -> Void
    ) {
        self.lifecycle = lifecycle
        self.snapshotName = snapshotName
        self.didStartServing = didStartServing
        live = LiveView(
            source: lifecycle.source, lifecycle: lifecycle, credentials: credentials,
            policy: policy, snapshotName: snapshotName)
        snapshots = SnapshotView(lifecycle: lifecycle)
    }

    /// Follows the phases: shows and hides the snapshot, and tells the kernel through `session`.
    /// `launcher` starts the helper that freezes writers; `willFreeze` is told before and after that.
    package func follow(
        _ session: Session, launcher: any FreezeHelperLauncher,
        willFreeze: @escaping @Sendable (_ isFreezing: Bool) -> Void,
        didBecomeInexact: @escaping @Sendable (String) -> Void
    ) {
        live.backings.attach(session)
        live.session.mutex.withLock { $0 = session }
        lifecycle.foreignChanges?.ask { [live, snapshots] status in
            live.nodes.isKnown(status) || snapshots.nodes.isKnown(status)
        }
        lifecycle.freeze(
            with: Freezer(session, live, gate: lifecycle.gate, launcher: launcher, willFreeze: willFreeze))
        let forgetSnapshot: @Sendable () -> Void = { [snapshotName] in
            session.invalidateEntry(parent: NodeTable.mountRoot, snapshotName)
        }
        lifecycle.observe(
            SnapshotLifecycle.Observer(
                didStart: { [snapshots] cut in snapshots.begin(cut) },
                releaseDescriptors: { [snapshots] in snapshots.releaseDescriptors() },
                didStop: { [snapshots] in snapshots.end() },
                forget: { [snapshots] in
                    forgetSnapshot()
                    for node in snapshots.openNodesLeft { session.invalidateData(node: node) }
                },
                didBecomeInexact: { [lifecycle] reason in
                    // On a thread of its own: the worker that calls may hold what this waits for.
                    do throws(Errno) {
                        try Thread.start {
                            didBecomeInexact(reason)
                            _ = lifecycle.discardInexact()
                            forgetSnapshot()
                        }
                    } catch {
                        // No thread is to be had: the space comes back when a write needs it, or at the stop.
                        didBecomeInexact(reason)
                    }
                },
                openUnnamed: { [live] reference in live.nodes.pinned(reference) },
                didDiscard: { [live] map in live.didDiscard(map, session) }))
    }

    private func isSnapshot(_ node: UInt64) -> Bool { node & NodeTable.snapshotBit != 0 }

    private func isSnapshotName(_ parent: UInt64, _ name: UnsafePointer<CChar>) -> Bool {
        parent == NodeTable.mountRoot && snapshotName.equals(name)
    }

    private func isSelf(_ name: UnsafePointer<CChar>) -> Bool { strcmp(name, ".") == 0 }

    private func isParent(_ name: UnsafePointer<CChar>) -> Bool { strcmp(name, "..") == 0 }

    /// Before a change to a node or in a directory.
    private func refuseInSnapshot(_ node: UInt64) throws(Errno) {
        if isSnapshot(node) { throw .readOnlyFileSystem }
    }

    package func didStart() { didStartServing() }

    // MARK: Nodes

    package func lookup(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply {
        if isSelf(name) || isParent(name) {
            // Of a file handle; those of a snapshot are good as long as the kernel remembers the inode.
            if isSnapshot(parent) { throw .staleNFSFileHandle }
            return try isSelf(name) ? live.lookupSelf(parent) : live.lookupParent(parent)
        }
        if isSnapshot(parent) { return try snapshots.lookup(parent, name) }
        if isSnapshotName(parent, name) {
            guard let entry = try snapshots.rootEntry() else { throw .noSuchFileOrDirectory }
            return entry
        }
        if parent == NodeTable.mountRoot && live.freezeDirectory.isName(name) {
            return live.freezeDirectory.entry
        }
        if parent == FreezeDirectory.node { return try live.lookupToFreeze(context, name) }
        live.habits.didLookUp(context.process, parent)
        return try live.lookup(parent, name)
    }

    package func forget(node: UInt64, count: UInt64) {
        if node == FreezeDirectory.node { return }
        (isSnapshot(node) ? snapshots.nodes : live.nodes).forget(node, count)
    }

    package func attributes(node: UInt64, handle: UInt64?) throws(Errno) -> AttributeReply {
        if isSnapshot(node) { return try snapshots.attributes(node) }
        if node == FreezeDirectory.node { return live.freezeDirectory.attributes }
        return try live.attributes(node, handle == Intake.freezeHandle ? nil : handle)
    }

    package func setAttributes(
        _ context: RequestContext, node: UInt64, handle: UInt64?, _ change: AttributeChange
    ) throws(Errno) -> AttributeReply {
        try refuseInSnapshot(node)
        return try live.setAttributes(context, node, handle, change)
    }

    package func readLink(node: UInt64) throws(Errno) -> [UInt8] {
        try isSnapshot(node) ? snapshots.readLink(node) : live.readLink(node)
    }

    package func fileSystemStatus(node: UInt64) throws(Errno) -> FileSystemStatus {
        try live.fileSystemStatus(isSnapshot(node) ? NodeTable.mountRoot : node)
    }

    // MARK: Names

    package func makeNode(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>, mode: UInt32,
        device: UInt64
    ) throws(Errno) -> EntryReply {
        try refuseInSnapshot(parent)
        return try live.makeNode(context, parent, name, mode: mode, device: device)
    }

    package func makeDirectory(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>, mode: UInt32
    ) throws(Errno) -> EntryReply {
        try refuseInSnapshot(parent)
        return try live.makeDirectory(context, parent, name, mode: mode)
    }

    package func makeSymbolicLink(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>,
        target: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply {
        try refuseInSnapshot(parent)
        return try live.makeSymbolicLink(context, parent, name, target: target)
    }

    package func unlink(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>
    ) throws(Errno) {
        try refuseInSnapshot(parent)
        try live.unlink(parent, name, 0)
    }

    package func removeDirectory(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>
    ) throws(Errno) {
        try refuseInSnapshot(parent)
        if isSnapshotName(parent, name) { throw .readOnlyFileSystem }
        try live.unlink(parent, name, AT_REMOVEDIR)
    }

    package func rename(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>,
        newParent: UInt64, _ newName: UnsafePointer<CChar>, flags: UInt32
    ) throws(Errno) {
        try refuseInSnapshot(parent)
        try refuseInSnapshot(newParent)
        try live.rename(context, parent, name, newParent, newName, flags)
    }

    package func link(
        _ context: RequestContext, node: UInt64, newParent: UInt64,
        _ newName: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply {
        try refuseInSnapshot(newParent)
        if isSnapshot(node) { throw .improperLink }
        return try live.link(context, node, newParent, newName)
    }

    // MARK: Data

    package func open(
        _ context: RequestContext, node: UInt64, flags: Int32
    ) throws(Errno) -> OpenReply {
        if isSnapshot(node) { return try snapshots.open(node, flags) }
        if live.freezeDirectory.isHelper(context) {
            return try live.openToFreeze(node)
        }
        return try live.open(context, node, flags)
    }

    package func create(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>, mode: UInt32,
        flags: Int32
    ) throws(Errno) -> (EntryReply, OpenReply) {
        try refuseInSnapshot(parent)
        return try live.create(context, parent, name, mode: mode, flags: flags)
    }

    package func createTemporary(
        _ context: RequestContext, parent: UInt64, mode: UInt32, flags: Int32
    ) throws(Errno) -> (EntryReply, OpenReply) {
        try refuseInSnapshot(parent)
        return try live.createTemporary(context, parent, mode: mode, flags: flags)
    }

    package func read(
        node: UInt64, handle: UInt64, size: Int, offset: Int64, isOwn: Bool
    ) throws(Errno) -> ReadReply {
        if isSnapshot(node) {
            return try snapshots.read(handle, size: size, offset: offset, isOwn: isOwn)
        }
        return try live.read(handle, size: size, offset: offset)
    }

    package func write(
        _ context: RequestContext, node: UInt64, handle: UInt64, _ data: UnsafeRawBufferPointer,
        offset: Int64
    ) throws(Errno) -> Int {
        try refuseInSnapshot(node)
        return try live.write(context, handle, data, offset: offset)
    }

    package func release(node: UInt64, handle: UInt64) {
        if isSnapshot(node) {
            snapshots.release(node, handle)
        } else if handle == Intake.freezeHandle {
            live.releaseFrozen(node)
        } else {
            live.release(node, handle)
        }
    }

    package func synchronize(node: UInt64, handle: UInt64, dataOnly: Bool) throws(Errno) {
        if isSnapshot(node) { return }
        let file = try live.file(handle)
        if let redirect = lifecycle.redirect, try !redirect.isOthers(try file.target()) {
            return try redirect.synchronize(file.reference)
        }
        try live.synchronize(node, file, dataOnly: dataOnly)
    }

    package func allocate(
        _ context: RequestContext, node: UInt64, handle: UInt64, mode: Int32, offset: Int64,
        length: Int64
    ) throws(Errno) {
        try refuseInSnapshot(node)
        try live.allocate(context, handle, mode: mode, offset: offset, length: length)
    }

    package func copyRange(
        _ context: RequestContext, from node: UInt64, handle: UInt64, offset: Int64,
        to newNode: UInt64, newHandle: UInt64, newOffset: Int64, length: Int
    ) throws(Errno) -> Int {
        try refuseInSnapshot(newNode)
        // The kernel then copies by itself, through both views.
        if isSnapshot(node) { throw .improperLink }
        return try live.copyRange(
            context, from: handle, offset: offset, to: newHandle, newOffset: newOffset,
            length: length)
    }

    package func hidesWrites(node: UInt64) -> Bool {
        !isSnapshot(node) && live.policy.gathersWrites && live.writers.times(of: node) != nil
    }

    package func seek(
        node: UInt64, handle: UInt64, offset: Int64, whence: Int32
    ) throws(Errno) -> Int64 {
        if isSnapshot(node) { return try snapshots.seek(handle, offset: offset, whence: whence) }
        return try live.seek(handle, offset: offset, whence: whence)
    }

    // MARK: Directories

    package func openDirectory(
        _ context: RequestContext, node: UInt64
    ) throws(Errno) -> OpenReply {
        try isSnapshot(node) ? snapshots.openDirectory(node) : live.openDirectory(context, node)
    }

    package func readDirectory(
        node: UInt64, handle: UInt64, offset: Int64, into buffer: inout DirectoryBuffer
    ) throws(Errno) {
        if isSnapshot(node) {
            try snapshots.readDirectory(node, handle, offset: offset, into: &buffer)
        } else {
            try live.readDirectory(node, handle, offset: offset, into: &buffer)
        }
    }

    package func releaseDirectory(node: UInt64, handle: UInt64) {
        if isSnapshot(node) {
            snapshots.releaseDirectory(handle)
        } else {
            Handle.release(handle, as: OpenDirectory.self)
        }
    }

    package func synchronizeDirectory(
        node: UInt64, handle: UInt64, dataOnly: Bool
    ) throws(Errno) {
        if isSnapshot(node) { return }
        if let redirect = lifecycle.redirect { return try redirect.synchronize(nil) }
        let directory = Handle.object(handle, as: OpenDirectory.self)
        try live.synchronize(try directory.descriptor(), dataOnly: dataOnly)
    }

    // MARK: Extended attributes

    package func setExtendedAttribute(
        _ context: RequestContext, node: UInt64, _ name: UnsafePointer<CChar>,
        _ value: UnsafeRawBufferPointer, flags: Int32
    ) throws(Errno) {
        try refuseInSnapshot(node)
        try live.setExtendedAttribute(context, node, name, value, flags)
    }

    package func extendedAttribute(
        node: UInt64, _ name: UnsafePointer<CChar>, into buffer: UnsafeMutableRawBufferPointer
    ) throws(Errno) -> Int {
        guard isSnapshot(node) else {
            return try live.extendedAttribute(node, name, into: buffer)
        }
        return try LiveView.fill(buffer, with: try snapshots.extendedAttributes(node).value(FileName(name)))
    }

    package func extendedAttributeNames(
        _ context: RequestContext, node: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(Errno) -> Int {
        let names =
            try isSnapshot(node) ? snapshots.extendedAttributes(node).names : live.extendedAttributeNames(node)
        var shown = names
        // A file system lists these to those who may read them; the daemon, which lists them all, is asked for anybody.
        if names.contains(where: Self.isTrusted), !mayAdminister(context.process, as: context.user) {
            shown.removeAll(where: Self.isTrusted)
        }
        return try LiveView.fill(buffer, with: shown)
    }

    private static func isTrusted(_ name: FileName) -> Bool { name.hasPrefix("trusted.") }

    package func removeExtendedAttribute(
        _ context: RequestContext, node: UInt64, _ name: UnsafePointer<CChar>
    ) throws(Errno) {
        try refuseInSnapshot(node)
        try live.removeExtendedAttribute(context, node, name)
    }
}
