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
            let attributes = try attributes(node, of: try descriptor(of: node))
            let reply = EntryReply(node: node, attributes: attributes, timeout: policy.entrySeconds)
            if nodes.isDetached(node) { throw Errno.staleNFSFileHandle }
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
        if let redirect = lifecycle.redirect, let parent = try redirectedParent(redirect, of: node) {
            return parent
        }
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

    /// Makes a name with `body`, which gets the directory's descriptor and the name, as the user who asks. `maker`: who,
    /// where it is not a directory.
    private func make(
        _ context: RequestContext, _ parent: UInt64, _ name: UnsafePointer<CChar>, maker: RequestContext?,
        _ body: (Descriptor, UnsafePointer<CChar>) throws(Errno) -> Void
    ) throws(Errno) -> EntryReply {
        try checkName(parent, name)
        let directory = try target(of: parent)
        func makeOwn(_ snapshot: Preserve?) throws(Errno) -> EntryReply {
            if let snapshot { try willMake(name, in: directory, snapshot, maker: maker) }
            try assume(context)
            try body(directory.descriptor, name)
            if let snapshot {
                snapshot.didMake(try FileStatus(at: directory.descriptor, name))
            }
            return try entry(parent, directory.descriptor, name)
        }
        return try change { (snapshot) throws(Errno) -> EntryReply in
            try makeOwn(snapshot)
        } redirected: { (redirect) throws(Errno) -> EntryReply in
            if isElsewhere(directory) { return try makeOwn(nil) }
            let made = try redirect.make(in: directory, name) { (place, temporary) throws(Errno) -> Descriptor? in
                try assume(context)
                try body(place, temporary)
                return nil
            }
            return try redirectedReply(redirect, made.2, parent, name)
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
        try make(context, parent, name, maker: context) { (directory, name) throws(Errno) in
            try LinuxSystem.makeNode(at: directory, name, mode: mode, device: device)
        }
    }

    func makeDirectory(
        _ context: RequestContext, _ parent: UInt64, _ name: UnsafePointer<CChar>, mode: UInt32
    ) throws(Errno) -> EntryReply {
        try make(context, parent, name, maker: nil) { (directory, name) throws(Errno) in
            try LinuxSystem.makeDirectory(at: directory, name, mode: mode)
        }
    }

    func makeSymbolicLink(
        _ context: RequestContext, _ parent: UInt64, _ name: UnsafePointer<CChar>,
        target: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply {
        try make(context, parent, name, maker: context) { (directory, name) throws(Errno) in
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
        func linkOwn(_ snapshot: Preserve?) throws(Errno) -> EntryReply {
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
        return try change { (snapshot) throws(Errno) -> EntryReply in
            try linkOwn(snapshot)
        } redirected: { (redirect) throws(Errno) -> EntryReply in
            // Between file systems it fails, as it must.
            if isElsewhere(directory) || isElsewhere(inode) { return try linkOwn(nil) }
            try redirect.link(inode, in: directory, newName)
            return try redirectedReply(redirect, inode.reference, newParent, newName)
        }
    }

    /// What a name stands for, as the target of a change; `needsHandle`: it will be recorded. Throws ENOENT for nothing and
    /// for the store.
    func target(
        in directory: ChangeTarget, _ name: UnsafePointer<CChar>, needsHandle: Bool = true
    ) throws(Errno) -> (ChangeTarget, FileStatus) {
        let inode = try Descriptor.open(
            at: directory.descriptor, name, O_PATH | O_NOFOLLOW)
        let status = try FileStatus(of: inode)
        if source.hides(status) { throw .noSuchFileOrDirectory }
        let handle =
            needsHandle && source.usesHandles && status.device == source.device
            ? try FileHandle(of: inode) : FileHandle()
        return (ChangeTarget(InodeReference(status, handle: handle), inode), status)
    }

    func unlink(
        _ parent: UInt64, _ name: UnsafePointer<CChar>, _ flags: Int32
    ) throws(Errno) {
        let directory = try target(of: parent)
        func unlinkOwn(_ snapshot: Preserve?) throws(Errno) -> Bool {
            let (victim, status) = try target(in: directory, name, needsHandle: snapshot != nil)
            if let snapshot {
                guard try snapshot.unlink(in: directory, name, victim: victim, flags) else { return false }
            } else {
                try LinuxSystem.unlink(at: directory.descriptor, name, flags)
            }
            didLoseName(victim, status, (parent, name), snapshot)
            return true
        }
        try changeInSlices(unlinkOwn) { (redirect) throws(Errno) in
            if isElsewhere(directory) {
                _ = try unlinkOwn(nil)
                return
            }
            let (victim, status) = try redirectedTarget(redirect, in: directory, name)
            try checkIsNoMountPoint(victim)
            try redirect.unlink(in: directory, name, victim: victim, isDirectory: flags & AT_REMOVEDIR != 0)
            didLoseName(victim, status, (parent, name), nil)
        }
    }

    /// After an inode lost a name, maybe the one that leads to it: where the kernel remembers it (open, even if only
    /// as O_PATH, or a working directory), its node keeps it by a descriptor: that of an open file, where there is one,
    /// so that removed files take no more descriptors than others. `status` is from before.
    private func didLoseName(
        _ victim: ChangeTarget, _ status: FileStatus, _ lost: (parent: UInt64, name: UnsafePointer<CChar>),
        _ snapshot: Preserve?
    ) {
        let isLast = status.isDirectory || status.links <= 1 || snapshot?.isInGraveyard(status) == true
        guard isLast || !source.usesHandles else { return }
        nodes.pin(victim.reference, victim.descriptor, lost: isLast ? nil : lost) {
            openFiles[$0]
        }
    }

    func rename(
        _ context: RequestContext, _ parent: UInt64, _ name: UnsafePointer<CChar>, _ newParent: UInt64,
        _ newName: UnsafePointer<CChar>, _ flags: UInt32
    ) throws(Errno) {
        try checkName(parent, name)
        try checkName(newParent, newName)
        let directory = try target(of: parent)
        let newDirectory = try target(of: newParent)
        func renameOwn(_ snapshot: Preserve?) throws(Errno) -> Bool {
            try nodes.whileMoving { () throws(Errno) in
                try rename(
                    context, (directory, parent, name), (newDirectory, newParent, newName), flags, snapshot)
            }
        }
        try changeInSlices(renameOwn) { (redirect) throws(Errno) in
            if isElsewhere(directory) || isElsewhere(newDirectory) {
                _ = try renameOwn(nil)
                return
            }
            let (moved, _) = try redirectedTarget(redirect, in: directory, name)
            try checkIsNoMountPoint(moved)
            var replaced: (ChangeTarget, FileStatus)?
            do throws(Errno) {
                replaced = try redirectedTarget(redirect, in: newDirectory, newName)
            } catch .noSuchFileOrDirectory {
                try checkIsNotStore(newDirectory, newName)
            }
            if let replaced { try checkIsNoMountPoint(replaced.0) }
            let move = Redirect.Move(moved, replacing: replaced?.0, flags: flags)
            try redirect.rename(
                move, from: directory, name, to: newDirectory, newName
            ) { (place, temporary) throws(Errno) -> Descriptor? in
                try assume(context)
                try LinuxSystem.makeNode(at: place, temporary, mode: UInt32(S_IFCHR), device: 0)
                return nil
            }
            let isExchange = flags & UInt32(RENAME_EXCHANGE) != 0
            if let (other, status) = replaced, other.key != moved.key, !isExchange {
                didLoseName(other, status, (newParent, newName), nil)
            }
        }
    }

    /// What lies there and is hidden keeps its name.
    private func checkIsNotStore(
        _ directory: ChangeTarget, _ name: UnsafePointer<CChar>
    ) throws(Errno) {
        guard directory.reference == source.rootReference else { return }
        do throws(Errno) {
            if source.hides(try FileStatus(at: directory.descriptor, name)) { throw Errno.fileExists }
        } catch .noSuchFileOrDirectory {
            // There is none.
        }
    }

    /// A directory, its node, and a name in it.
    private typealias Place = (directory: ChangeTarget, node: UInt64, name: UnsafePointer<CChar>)

    private func rename(
        _ context: RequestContext, _ old: Place, _ new: Place, _ flags: UInt32, _ snapshot: Preserve?
    ) throws(Errno) -> Bool {
        let (moved, _) = try target(in: old.directory, old.name, needsHandle: snapshot != nil)
        var replaced: (ChangeTarget, FileStatus)?
        do throws(Errno) {
            replaced = try target(in: new.directory, new.name, needsHandle: snapshot != nil)
        } catch .noSuchFileOrDirectory {
            replaced = nil
        }
        let isExchange = flags & UInt32(RENAME_EXCHANGE) != 0
        if let snapshot {
            let move = Preserve.Move(
                moved, replacing: replaced?.0, flags: flags,
                ancestors: nodes.ancestors(of: new.node) + nodes.ancestors(of: old.node))
            let isDone = try snapshot.rename(
                move, from: old.directory, old.name, to: new.directory, new.name,
                assume: { () throws(Errno) in try assumeChanger(context) })
            guard isDone else { return false }
        } else {
            try assumeChanger(context)
            try LinuxSystem.rename(
                at: old.directory.descriptor, old.name, to: new.directory.descriptor, new.name,
                flags: flags)
        }
        nodes.move(moved.reference, to: new.node, new.name)
        if let (other, status) = replaced, other.key != moved.key {
            if isExchange {
                nodes.move(other.reference, to: old.node, old.name)
            } else {
                didLoseName(other, status, (new.node, new.name), snapshot)
            }
        }
        if flags & UInt32(RENAME_WHITEOUT) != 0, let snapshot {
            snapshot.didMake(try FileStatus(at: old.directory.descriptor, old.name))
        }
        return true
    }
}
