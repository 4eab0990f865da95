internal import FuseSession
internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import SystemPackage

// Names: look-ups, and all that makes, removes and moves them. The kernel holds the locks of the directories
// concerned (and of an inode that loses a name), so no two of these meet in one directory.
extension LiveView {
    func lookup(_ parent: UInt64, _ name: UnsafePointer<CChar>) throws(Errno) -> EntryReply {
        let directory = try descriptor(of: parent)
        do throws(Errno) {
            return try entry(parent, directory, name)
        } catch .noSuchFileOrDirectory where policy.negativeSeconds > 0 {
            return EntryReply(node: 0, attributes: nil, timeout: policy.negativeSeconds)
        }
    }

    /// What a file handle of the mount (name_to_handle_at(2), NFS) names, after the kernel has forgotten it: the inode
    /// itself. Throws ESTALE where nothing leads to it any more.
    func lookupSelf(_ node: UInt64) throws(Errno) -> EntryReply {
        try nodes.retain(node)
        do throws(Errno) {
            let reply = reply(node, try FileStatus(of: try descriptor(of: node)))
            // Kept for a snapshot, without a name in the live view.
            if reply.attributes?.status.links == 0 { throw .staleNFSFileHandle }
            return reply
        } catch {
            nodes.forget(node, 1)
            throw error
        }
    }

    /// The directory above that of such a handle.
    func lookupParent(_ node: UInt64) throws(Errno) -> EntryReply {
        let inode = try Descriptor.open(at: try descriptor(of: node), "..", O_PATH | O_DIRECTORY)
        let status = try FileStatus(of: inode)
        if status.device == source.device, InodeKey(status) == source.rootReference.key {
            return reply(NodeTable.mountRoot, status)
        }
        return reply(try remember(inode, status, node, "..", at: nodes.moment), status)
    }

    /// Names that applications cannot have: the snapshot's in the root.
    private func checkName(_ parent: UInt64, _ name: UnsafePointer<CChar>) throws(Errno) {
        if parent == NodeTable.mountRoot && snapshotName.equals(name) {
            throw .notPermitted
        }
    }

    /// Makes a name with `body`, which gets the directory's descriptor, as the user who asks. `maker`: who, where it is
    /// not a directory.
    private func make(
        _ context: RequestContext, _ parent: UInt64, _ name: UnsafePointer<CChar>, maker: RequestContext?,
        _ body: (Descriptor) throws(Errno) -> Void
    ) throws(Errno) -> EntryReply {
        try checkName(parent, name)
        let directory = try target(of: parent)
        return try change { (snapshot) throws(Errno) in
            if let snapshot { try willMake(name, in: directory, snapshot, maker: maker) }
            try assume(context)
            try body(directory.descriptor)
            if let snapshot {
                snapshot.didMake(try FileStatus(at: directory.descriptor, name))
            }
            return try entry(parent, directory.descriptor, name)
        }
    }

    /// Before a name is made. The kernel found none; where one was made beside the mount since, it is that which the
    /// snapshot has, and making it will fail. `maker` makes a new file for it; nil: it is for a directory, or for a file
    /// that there is already.
    func willMake(
        _ name: UnsafePointer<CChar>, in directory: ChangeTarget, _ snapshot: Preserve,
        maker: RequestContext? = nil
    ) throws(Errno) {
        if let maker, !snapshot.concernsMaker(user: maker.user, group: maker.group, in: directory) {
            return snapshot.willChangeAttributes(of: directory)
        }
        var now = RecordedEntry.absent
        do throws(Errno) {
            now = snapshot.shown(try target(in: directory, name).0)
        } catch .noSuchFileOrDirectory {
            // As the kernel says.
        }
        snapshot.willChangeEntry(in: directory, name, now: now)
    }

    func makeNode(
        _ context: RequestContext, _ parent: UInt64, _ name: UnsafePointer<CChar>, mode: UInt32,
        device: UInt64
    ) throws(Errno) -> EntryReply {
        try make(context, parent, name, maker: context) { (directory) throws(Errno) in
            try LinuxSystem.makeNode(at: directory, name, mode: mode, device: device)
        }
    }

    func makeDirectory(
        _ context: RequestContext, _ parent: UInt64, _ name: UnsafePointer<CChar>, mode: UInt32
    ) throws(Errno) -> EntryReply {
        try make(context, parent, name, maker: nil) { (directory) throws(Errno) in
            try LinuxSystem.makeDirectory(at: directory, name, mode: mode)
        }
    }

    func makeSymbolicLink(
        _ context: RequestContext, _ parent: UInt64, _ name: UnsafePointer<CChar>,
        target: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply {
        try make(context, parent, name, maker: context) { (directory) throws(Errno) in
            try LinuxSystem.makeSymbolicLink(to: target, at: directory, name)
        }
    }

    func link(
        _ context: RequestContext, _ node: UInt64, _ newParent: UInt64,
        _ newName: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply {
        try checkName(newParent, newName)
        let inode = try target(of: node)
        let directory = try target(of: newParent)
        return try change { (snapshot) throws(Errno) in
            snapshot?.willChangeAttributes(of: inode)
            if let snapshot, snapshot.concerns(inode) {
                try willMake(newName, in: directory, snapshot)
            } else {
                snapshot?.willChangeAttributes(of: directory)
            }
            try LinuxSystem.link(
                inode.descriptor, at: directory.descriptor, newName)
            return try entry(newParent, directory.descriptor, newName)
        }
    }

    /// What a name stands for, as the target of a change. Throws ENOENT for nothing and for the store.
    private func target(
        in directory: ChangeTarget, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> (ChangeTarget, FileStatus) {
        let inode = try Descriptor.open(
            at: directory.descriptor, name, O_PATH | O_NOFOLLOW)
        let status = try FileStatus(of: inode)
        if source.hides(status) { throw .noSuchFileOrDirectory }
        let handle =
            source.usesHandles && status.device == source.device
            ? try FileHandle(of: inode) : FileHandle()
        return (ChangeTarget(InodeReference(status, handle: handle), inode), status)
    }

    func unlink(
        _ parent: UInt64, _ name: UnsafePointer<CChar>, _ flags: Int32
    ) throws(Errno) {
        let directory = try target(of: parent)
        try changeInSlices { (snapshot) throws(Errno) in
            let (victim, status) = try target(in: directory, name)
            if let snapshot {
                guard try snapshot.unlink(in: directory, name, victim: victim, flags) else { return false }
            } else {
                try LinuxSystem.unlink(at: directory.descriptor, name, flags)
            }
            didLoseName(victim, status, snapshot)
            return true
        }
    }

    /// After an inode lost a name, maybe the one that leads to it: where the kernel remembers it (open, even if only
    /// as O_PATH, or a working directory), its node keeps it by the descriptor. `status` is from before.
    private func didLoseName(
        _ victim: ChangeTarget, _ status: FileStatus, _ snapshot: Preserve?
    ) {
        let isLast = status.isDirectory || status.links <= 1 || snapshot?.isInGraveyard(status) == true
        if isLast || !source.usesHandles { nodes.pin(victim.reference, victim.descriptor) }
    }

    func rename(
        _ parent: UInt64, _ name: UnsafePointer<CChar>, _ newParent: UInt64,
        _ newName: UnsafePointer<CChar>, _ flags: UInt32
    ) throws(Errno) {
        try checkName(parent, name)
        try checkName(newParent, newName)
        let directory = try target(of: parent)
        let newDirectory = try target(of: newParent)
        try changeInSlices { (snapshot) throws(Errno) in
            try nodes.whileMoving { () throws(Errno) in
                try rename((directory, parent, name), (newDirectory, newParent, newName), flags, snapshot)
            }
        }
    }

    /// A directory, its node, and a name in it.
    private typealias Place = (directory: ChangeTarget, node: UInt64, name: UnsafePointer<CChar>)

    private func rename(
        _ old: Place, _ new: Place, _ flags: UInt32, _ snapshot: Preserve?
    ) throws(Errno) -> Bool {
        let (moved, _) = try target(in: old.directory, old.name)
        var replaced: (ChangeTarget, FileStatus)?
        do throws(Errno) {
            replaced = try target(in: new.directory, new.name)
        } catch .noSuchFileOrDirectory {
            replaced = nil
        }
        let isExchange = flags & UInt32(RENAME_EXCHANGE) != 0
        if let snapshot {
            let move = Preserve.Move(
                moved, replacing: replaced?.0, flags: flags,
                ancestors: nodes.ancestors(of: new.node) + nodes.ancestors(of: old.node))
            guard try snapshot.rename(move, from: old.directory, old.name, to: new.directory, new.name) else {
                return false
            }
        } else {
            try LinuxSystem.rename(
                at: old.directory.descriptor, old.name, to: new.directory.descriptor, new.name,
                flags: flags)
        }
        nodes.move(moved.reference, to: new.node, new.name)
        if let (other, status) = replaced, other.key != moved.key {
            if isExchange {
                nodes.move(other.reference, to: old.node, old.name)
            } else {
                didLoseName(other, status, snapshot)
            }
        }
        if flags & UInt32(RENAME_WHITEOUT) != 0, let snapshot {
            snapshot.didMake(try FileStatus(at: old.directory.descriptor, old.name))
        }
        return true
    }
}
