internal import Glibc
internal import FuseSession
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// What applications see: the source, with a snapshot's originals preserved before they change; or, in redirect, the
/// source with what was changed since the cut.
///
/// An operation that changes anything passes the gate, and inside it asks which snapshot is active; so either all of
/// it is before a cut, or all of it after.
final class LiveView: Sendable {
    let source: SourceTree
    let nodes: NodeTable
    let lifecycle: SnapshotLifecycle
    let credentials: Credentials
    let policy: CachePolicy
    /// What is open for writing, and how the freeze helper finds it.
    let writers = Writers()
    let freezeDirectory = FreezeDirectory()
    let backings = Backings()
    let budget = DescriptorBudget()
    let habits = ListingHabits()
    /// Whom the kernel is told through.
    let session = MutexBox<Session?>(nil)
    /// Of the open files that have a descriptor of their own.
    let openFiles = OpenNodes<Descriptor>()
    /// The name under which the root shows the snapshot.
    let snapshotName: FileName

    init(
        source: SourceTree, lifecycle: SnapshotLifecycle, credentials: Credentials,
        policy: CachePolicy, snapshotName: FileName
    ) {
        self.source = source
        self.lifecycle = lifecycle
        self.credentials = credentials
        self.policy = policy
        self.snapshotName = snapshotName
        nodes = NodeTable(
            isSnapshot: false, keepsNames: !source.usesHandles, forgottenMax: Self.forgottenMax)
    }

    /// How many inodes are found by file handles of the mount after the kernel has forgotten them.
    private static let forgottenMax = 16_384

    // MARK: Nodes

    func reference(of node: UInt64) throws(Errno) -> InodeReference {
        if node == NodeTable.mountRoot { return source.rootReference }
        let reference = try nodes.reference(of: node)
        try lifecycle.vanished.check(reference.key)
        return reference
    }

    /// An O_PATH descriptor of a node's inode (the root's is open for reading).
    func descriptor(of node: UInt64) throws(Errno) -> Descriptor {
        if lifecycle.vanished.isUsed { _ = try reference(of: node) }
        return try nodes.descriptor(of: node, SourceOpener(source: source))
    }

    /// A descriptor to look at a node's inode with: that of a file which is open already saves opening one, which takes
    /// longer than all the rest. (The kernel asks for the attributes after each first read of a file.)
    func look(at node: UInt64) throws(Errno) -> Descriptor {
        if !lifecycle.vanished.isUsed, let open = openFiles[node] { return open }
        return try descriptor(of: node)
    }

    /// The open file of a handle; throws ESTALE where it was thrown away.
    func file(_ handle: UInt64) throws(Errno) -> OpenFile {
        let file = Handle.object(handle, as: OpenFile.self)
        try lifecycle.vanished.check(file.reference.key)
        return file
    }

    func target(of node: UInt64) throws(Errno) -> ChangeTarget {
        ChangeTarget(try reference(of: node), try descriptor(of: node))
    }

    /// The node of a name in a directory, with its attributes; counts a look-up.
    func entry(
        _ parent: UInt64, _ directory: Descriptor, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply {
        var isNew = false
        return try entry(parent, directory, name, isNew: &isNew)
    }

    /// `isNew`: whether the kernel probably does not remember the inode, and then, whether it did not: so that in a listing one
    /// entry tells what to expect of the next. What it remembers one system call tells; all else has to be opened anyway.
    func entry(
        _ parent: UInt64, _ directory: Descriptor, _ name: UnsafePointer<CChar>, isNew: inout Bool
    ) throws(Errno) -> EntryReply {
        if let redirect = lifecycle.redirect {
            return try redirectedEntry(redirect, parent, directory, name)
        }
        let moment = nodes.moment
        func known(_ status: FileStatus) throws(Errno) -> UInt64? {
            if source.hides(status) { throw .noSuchFileOrDirectory }
            return nodes.lookup(status, parent: parent, name, at: moment)
        }
        if !isNew {
            let status = try FileStatus(at: directory, name)
            if let node = try known(status) { return reply(node, status) }
        }
        let inode = try Descriptor.open(at: directory, name, O_PATH | O_NOFOLLOW)
        let status = try FileStatus(of: inode)
        if let node = try known(status) {
            isNew = false
            return reply(node, status)
        }
        isNew = true
        return reply(try rememberNew(inode, status, parent, name, at: moment), status)
    }

    /// Counts a look-up of what `inode` refers to, which had this name at `moment`.
    func remember(
        _ inode: Descriptor, _ status: FileStatus, _ parent: UInt64, _ name: UnsafePointer<CChar>,
        at moment: UInt64
    ) throws(Errno) -> UInt64 {
        if let node = nodes.lookup(status, parent: parent, name, at: moment) { return node }
        return try rememberNew(inode, status, parent, name, at: moment)
    }

    private func rememberNew(
        _ inode: Descriptor, _ status: FileStatus, _ parent: UInt64, _ name: UnsafePointer<CChar>,
        at moment: UInt64
    ) throws(Errno) -> UInt64 {
        if status.device != source.device {
            // In a file system mounted below the source, which the source's handles do not reach.
            let reference = InodeReference(status, handle: FileHandle())
            let node = try nodes.remember(reference, parent: parent, name, at: moment)
            nodes.pin(reference, inode)
            return node
        }
        return try nodes.remember(
            try source.reference(of: inode, status), parent: parent, name, at: moment)
    }

    func reply(_ node: UInt64, _ status: FileStatus) -> EntryReply {
        EntryReply(node: node, attributes: presented(status, node), timeout: policy.entrySeconds)
    }

    /// The attributes of a node as applications may see them. `isHeeded` false: in an answer that the kernel may pass over.
    func attributes(
        _ node: UInt64, of descriptor: Descriptor, isHeeded: Bool = true
    ) throws(Errno) -> AttributeReply {
        guard let redirect = lifecycle.redirect else {
            return presented(try FileStatus(of: descriptor), node, isHeeded: isHeeded)
        }
        return try redirectedAttributes(redirect, node, of: descriptor)
    }

    /// The attributes that the source has, as applications may see them.
    func presented(_ status: FileStatus, _ node: UInt64, isHeeded: Bool = true) -> AttributeReply {
        var status = source.withoutStore(status)
        if !status.isDirectory, status.links > 0,
            lifecycle.current?.isInGraveyard(status) == true
        {
            status.links -= 1  // its grave
        }
        if policy.gathersWrites, status.isRegular, let times = writers.times(of: node) {
            if isHeeded { times.willTell(blocks: status.blocks) }
            // What the kernel has gathered takes no space yet; but a file without any is, to tar, one without data.
            if status.blocks == 0 { status.blocks = Self.gatheredBlocks }
            return AttributeReply(status, timeout: min(policy.attributeSeconds, Self.writerSeconds))
        }
        return AttributeReply(status, timeout: policy.attributeSeconds)
    }

    /// For how long the kernel relies on the attributes of a file that is open for writing whose writes it gathers: it knows
    /// size and times itself, but not the blocks, which it asks for anew once the file is closed, or synchronized with much new
    /// (`synchronize`). Not shorter: with each answer it forgets that the file has no capabilities, and asks for those
    /// before the next write.
    private static let writerSeconds: Double = 1

    /// In blocks of 512 bytes.
    private static let gatheredBlocks: Int64 = 8

    // MARK: Changes

    /// Runs a change: inside the gate, with the snapshot that is active.
    ///
    /// In redirect, while changes go elsewhere, `redirected` does it instead. Else, before `body` the bytes in `range` of `target` are preserved, in slices between which a cut may come; `body`
    /// runs in the same passage as the last slice. `clones`: by clones alone, whatever the size. A change that fails for want of space is tried again once the
    /// delta's space is given back.
    func change<Result>(
        _ target: ChangeTarget? = nil, data range: Range<Int64>? = nil, clones: Bool = false,
        _ body: (Preserve?) throws(Errno) -> Result, redirected: (Redirect) throws(Errno) -> Result
    ) throws(Errno) -> Result {
        var mayGiveBack = true
        while true {
            do throws(Errno) {
                let result = try lifecycle.gate.pass { () throws(Errno) -> Result? in
                    if let redirect = lifecycle.redirect { return try redirected(redirect) }
                    let snapshot = lifecycle.current
                    if let snapshot, let target, let range,
                        !snapshot.willChangeData(of: target, range, clones: clones)
                    {
                        return nil
                    }
                    return try body(snapshot)
                }
                if let result { return result }
            } catch {
                guard mayGiveBack, lifecycle.giveSpaceBack(after: error) else { throw error }
                mayGiveBack = false
            }
        }
    }

    /// `change`, again and again until `body` answers true: between two calls a cut may come.
    func changeInSlices(
        _ body: (Preserve?) throws(Errno) -> Bool, redirected: (Redirect) throws(Errno) -> Void
    ) throws(Errno) {
        while try !change(
            nil, data: nil, clones: false, body,
            redirected: { (redirect) throws(Errno) -> Bool in
                try redirected(redirect)
                return true
            })
        {}
    }

    /// The calling thread makes files as the user who asks.
    func assume(_ context: RequestContext) throws(Errno) {
        try credentials.assume(
            user: context.user, group: context.group, mask: context.mask)
    }

    /// The calling thread changes what is there as the user who asks: with any umask.
    func assumeChanger(_ context: RequestContext) throws(Errno) {
        try credentials.assume(user: context.user, group: context.group, mask: nil)
    }

    /// The calling thread changes data as the user who asks.
    func assumeWriter(_ context: RequestContext) throws(Errno) {
        try credentials.assume(
            user: context.user, group: context.group, mask: nil, keepsSetID: !context.killsPrivileges)
    }

    /// The calling thread writes to an open file as the user who asks; what the kernel writes of its page cache, as the
    /// one who opened the file: then nobody asks, and written as root it would be what takes the blocks reserved for root.
    func assumeWriter(_ context: RequestContext, _ file: OpenFile) throws(Errno) {
        guard context.isWriteBack else { return try assumeWriter(context) }
        try credentials.assume(user: file.user, group: file.group, mask: nil)
    }
}

/// Opens inodes of the live view: where they are in the source.
private struct SourceOpener: NodeOpener {
    let source: SourceTree

    var root: Descriptor { source.root }

    func open(
        _ reference: InodeReference, find: () throws(Errno) -> Descriptor
    ) throws(Errno) -> Descriptor {
        if source.usesHandles && reference.device == source.device {
            return try source.open(reference, O_PATH)
        }
        let found = try find()
        guard InodeKey(try FileStatus(of: found)) == reference.key else {
            throw .staleNFSFileHandle
        }
        return found
    }
}

/// For how long the kernel may rely on what it was told, in seconds.
package struct CachePolicy: Sendable {
    package var entrySeconds: Double
    package var attributeSeconds: Double
    /// For how long the kernel may remember that a name does not exist.
    package var negativeSeconds: Double
    /// Whether the kernel gathers writes, and so owns the size and time of modification of files.
    package var gathersWrites: Bool
    /// Whether the kernel may keep the listings of directories: nothing but the mount changes them.
    package var keepsListings: Bool
    /// Whether reading leaves the access time as it is, where the source's file system allows that.
    package var readsQuietly: Bool

    package init(
        entrySeconds: Double, attributeSeconds: Double, negativeSeconds: Double,
        keepsListings: Bool = false, gathersWrites: Bool = false, readsQuietly: Bool = false
    ) {
        self.entrySeconds = entrySeconds
        self.attributeSeconds = attributeSeconds
        self.negativeSeconds = negativeSeconds
        self.keepsListings = keepsListings
        self.gathersWrites = gathersWrites
        self.readsQuietly = readsQuietly
    }
}
