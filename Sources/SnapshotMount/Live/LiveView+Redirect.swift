internal import FuseSession
internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

// While changes are redirected: applications see the layers over the source.
extension LiveView {
    /// Whether an inode is changed where it is: a file that was made since the cut, in the store; or one of a file system
    /// mounted below the source, of which there is no snapshot.
    func isWritten(asItIs reference: InodeReference, _ redirect: Redirect) -> Bool {
        if reference.device != source.device { return true }
        return reference.kind != UInt32(S_IFDIR) && redirect.isNew(reference.key)
    }

    /// Changes an inode where it is, by `body`; nil where its change is to be redirected.
    func changeAsItIs<Result>(
        _ target: ChangeTarget, _ redirect: Redirect, _ body: () throws(Errno) -> Result
    ) throws(Errno) -> Result? {
        if isWritten(asItIs: target.reference, redirect) { return try body() }
        return try redirect.changingOthers(target, body)
    }

    /// Whether a directory or another inode is in a file system mounted below the source, where nothing is redirected.
    func isElsewhere(_ target: ChangeTarget) -> Bool { target.reference.device != source.device }

    /// Such a file system's root cannot be removed, moved or replaced. Throws EBUSY.
    func checkIsNoMountPoint(_ target: ChangeTarget) throws(Errno) {
        if isElsewhere(target) { throw .resourceBusy }
    }

    /// The directory above one that a layer has moved, or that was made since the cut; nil where it is still where the
    /// source has it. Throws ESTALE where it has been removed.
    func redirectedParent(_ redirect: Redirect, of node: UInt64) throws(Errno) -> EntryReply? {
        let reference = try reference(of: node)
        guard reference.device == source.device else { return nil }
        let parent: InodeReference
        if let recorded = redirect.recordedParent(of: reference.key) {
            parent = recorded
        } else {
            if redirect.isNew(reference.key) { throw .staleNFSFileHandle }
            let above = try Descriptor.open(at: try descriptor(of: node), "..", O_PATH | O_DIRECTORY)
            let status = try FileStatus(of: above)
            guard status.device == source.device else { return nil }
            parent = try source.reference(of: above, status)
        }
        if parent.key == source.rootReference.key {
            return try redirectedReply(redirect, NodeTable.mountRoot, source.root)
        }
        return try redirectedReply(redirect, parent, node, "..")
    }

    /// The node of a name in a directory, with its attributes; counts a look-up.
    func redirectedEntry(
        _ redirect: Redirect, _ parent: UInt64, _ directory: Descriptor, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply {
        switch redirect.entry(in: try reference(of: parent).key, name) {
        case .absent: throw .noSuchFileOrDirectory
        case .present(let reference): return try redirectedReply(redirect, reference, parent, name)
        case nil:
            let moment = nodes.moment
            let inode = try Descriptor.open(at: directory, name, O_PATH | O_NOFOLLOW)
            let status = try FileStatus(of: inode)
            if source.hides(status) { throw .noSuchFileOrDirectory }
            let node = try remember(inode, status, parent, name, at: moment)
            return try redirectedReply(redirect, node, inode)
        }
    }

    /// Counts a look-up of an inode.
    func redirectedReply(
        _ redirect: Redirect, _ reference: InodeReference, _ parent: UInt64, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply {
        let node = try nodes.remember(reference, parent: parent, name, at: nodes.moment)
        do throws(Errno) {
            return try redirectedReply(redirect, node, try descriptor(of: node))
        } catch {
            nodes.forget(node, 1)
            throw error
        }
    }

    private func redirectedReply(
        _ redirect: Redirect, _ node: UInt64, _ inode: Descriptor
    ) throws(Errno) -> EntryReply {
        EntryReply(
            node: node, attributes: try redirectedAttributes(redirect, node, of: inode),
            timeout: policy.entrySeconds)
    }

    func redirectedAttributes(
        _ redirect: Redirect, _ node: UInt64, of descriptor: Descriptor
    ) throws(Errno) -> AttributeReply {
        let status = try redirect.status(of: try reference(of: node).key) { () throws(Errno) in
            try FileStatus(of: descriptor)
        }
        return AttributeReply(status, timeout: policy.attributeSeconds)
    }

    /// What a name stands for, as the target of a change, with its attributes. Throws ENOENT for nothing and for the store.
    func redirectedTarget(
        _ redirect: Redirect, in directory: ChangeTarget, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> (ChangeTarget, FileStatus) {
        let target: ChangeTarget
        switch redirect.entry(in: directory.key, name) {
        case .absent: throw .noSuchFileOrDirectory
        case .present(let reference): target = ChangeTarget(reference, try source.open(reference, O_PATH))
        case nil: target = try self.target(in: directory, name).0
        }
        let status = try redirect.status(of: target.key) { () throws(Errno) in
            try FileStatus(of: target.descriptor)
        }
        return (target, status)
    }

    /// The extended attributes that a redirect holds of a node; nil where the inode's own are good.
    func redirectedExtendedAttributes(_ node: UInt64) throws(Errno) -> ExtendedAttributes? {
        guard let redirect = lifecycle.redirect else { return nil }
        return redirect.extendedAttributes(of: try reference(of: node).key)
    }

    /// SETATTR of an inode whose attributes are redirected.
    func redirectAttributes(
        _ redirect: Redirect, _ context: RequestContext, _ node: UInt64, _ target: ChangeTarget,
        _ wanted: AttributeChange
    ) throws(Errno) {
        if wanted.isEmpty || wanted.user != nil || wanted.group != nil || wanted.mode != nil {
            try redirect.changeAttributes(of: target, isExtended: false) { (scratch) throws(Errno) in
                try assume(context)
                if wanted.isEmpty { try changeNothing(context, node, scratch) }
                if wanted.user != nil || wanted.group != nil {
                    try changeOwner(context, scratch, user: wanted.user ?? .max, group: wanted.group ?? .max)
                }
                if let mode = wanted.mode { try changeMode(scratch, mode) }
            }
        }
        if let size = wanted.size {
            try assumeWriter(context)
            try redirect.truncate(target, to: size, privilegeLoss(context))
        }
        if wanted.accessed != nil || wanted.modified != nil {
            try redirect.changeTimes(
                of: target, accessed: wanted.accessed ?? .omitted, modified: wanted.modified ?? .omitted)
        }
    }

    /// What the file system takes away of set-id bits and capabilities where this user changes data.
    func privilegeLoss(_ context: RequestContext) -> Redirect.PrivilegeLoss {
        Redirect.PrivilegeLoss(mayLose: context.killsPrivileges) { [self] (scratch) throws(Errno) in
            try assumeWriter(context)
            try changeByte(scratch)
        }
    }

    private func changeByte(_ file: Descriptor) throws(Errno) {
        var byte: UInt8 = 0
        try checked { pwrite(file.raw, &byte, 1, 0) }
    }

    /// After all that was changed since the cut has been thrown away: the kernel forgets the names and the data that it
    /// has of that. It may wait for requests, so no worker calls this.
    func didDiscard(_ map: DeltaMap, _ session: Session) {
        nodes.releaseDescriptors()
        let device = source.device
        for record in map.records {
            let (entries, wasRemoved) = record.contents.withLock { contents in
                let status = contents.attributes?.status
                return (contents.entries, status?.isDirectory == true && status?.links == 0)
            }
            // A directory that was removed is dead to the kernel for good. It is there again, as another node.
            if wasRemoved { nodes.detach(record.key, device: device) }
            let node =
                record.key == source.rootReference.key
                ? NodeTable.mountRoot : nodes.node(of: record.key, device: device)
            guard let node else { continue }
            for name in entries.keys { session.invalidateEntry(parent: node, name) }
            session.invalidateData(node: node)
        }
    }
}
