internal import FuseSession
internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

// Files: opening, data, holes.
extension LiveView {
    /// What one COPY_FILE_RANGE does at most, so that a cut does not wait for more; callers go on from there.
    private static let copyBytesMax = 64 << 20

    /// Flags that are the kernel's business, not the source's: direct I/O goes around the kernel's cache of the
    /// mount; what the daemon reads and writes need not be aligned.
    private static func sourceFlags(_ flags: Int32) -> Int32 {
        // Nor O_APPEND: the kernel says with each write where it goes, and a descriptor with that flag would not listen.
        flags & ~(O_CREAT | O_EXCL | O_NOCTTY | O_DIRECT | O_NOFOLLOW | O_APPEND) | O_NONBLOCK
    }

    /// Adds what `-o noatime` asks for.
    private func quiet(_ flags: Int32) -> Int32 { policy.readsQuietly ? flags | O_NOATIME : flags }

    private static func writes(_ flags: Int32) -> Bool { flags & O_ACCMODE != O_RDONLY }

    /// Opens a file for what `flags` ask, and for reading too where that may be, since originals are read before
    /// they change.
    private func openFile(
        _ context: RequestContext, _ node: UInt64, _ flags: Int32,
        _ open: (Int32) throws(Errno) -> Descriptor
    ) throws(Errno) -> OpenReply {
        let isWriteOnly = flags & O_ACCMODE == O_WRONLY
        if isWriteOnly {
            do throws(Errno) {
                let both = flags & ~O_ACCMODE | O_RDWR
                return try opened(context, try open(both), node, flags)
            } catch .permissionDenied {
                // An ordinary user's daemon, and a file that this user may write but not read.
            }
        }
        return try opened(context, try open(flags), node, flags, isReadable: !isWriteOnly)
    }

    /// The answer to an open for what `flags` ask.
    private func opened(
        _ context: RequestContext, _ descriptor: Descriptor, _ node: UInt64, _ flags: Int32,
        isReadable: Bool = true, hasName: Bool = true, isNew: Bool = false
    ) throws(Errno) -> OpenReply {
        let isWritable = Self.writes(flags)
        let isPassed = backings.areUsed
        let kept =
            isPassed && isWritable
            ? try Descriptor.reopen(descriptor, O_RDONLY | O_NONBLOCK) : descriptor
        // Only where the kernel has a time of its own it matters which the file had.
        let status = isWritable && policy.gathersWrites ? try FileStatus(of: kept) : nil
        let reference = try reference(of: node)
        let backing = try backings.open(node, kept)
        let file = OpenFile(
            access(kept, node, reference, flags, mayReopen: hasName && !isPassed && isReadable), reference,
            user: context.user, group: context.group, isReadable: isReadable || isPassed, isWritable: isWritable,
            times: isWritable ? writers.add(node, status?.modified ?? .omitted) : nil, isPassedThrough: isPassed)
        if file.isKept { openFiles.add(node, kept) }
        // It may have been told so for as long as nobody could write, which is for ever over the source.
        if !isNew, status?.blocks == 0 { session.mutex.withLock { $0 }?.invalidateAttributes(node: node) }
        // The kernel fills the rest of a page before it gathers writes to it.
        return OpenReply(
            handle: Handle.make(file), keepsCache: flags & O_TRUNC == 0,
            isDirect: !isReadable && policy.gathersWrites, backing: backing)
    }

    /// How a file that was opened with `flags` is reached from now on.
    private func access(
        _ descriptor: Descriptor, _ node: UInt64, _ reference: InodeReference, _ flags: Int32, mayReopen: Bool
    ) -> OpenFile.Access {
        if let share = budget.take() { return .kept(descriptor, share) }
        // An ordinary user's daemon may not open it a second time: its mode may have changed.
        guard mayReopen, source.usesHandles, reference.device == source.device else {
            return .kept(descriptor, budget.overdraw())
        }
        let mode = Self.writes(flags) ? O_RDWR : O_RDONLY
        let again = Self.sourceFlags(flags) & ~(O_ACCMODE | O_TRUNC) | mode
        return .anew { [self] () throws(Errno) in try open(node, reference, again) }
    }

    /// Opens the source's file.
    private func open(
        _ node: UInt64, _ reference: InodeReference, _ flags: Int32
    ) throws(Errno) -> Descriptor {
        if source.usesHandles, reference.device == source.device {
            do throws(Errno) {
                return try untilUnleased { () throws(Errno) in try source.open(reference, quiet(flags)) }
            } catch .staleNFSFileHandle {
                // It has no name any more: the node holds it.
            }
        }
        let inode = try descriptor(of: node)
        return try untilUnleased { () throws(Errno) in
            try policy.readsQuietly ? Descriptor.reopenQuietly(inode, flags) : Descriptor.reopen(inode, flags)
        }
    }

    func open(
        _ context: RequestContext, _ node: UInt64, _ flags: Int32
    ) throws(Errno) -> OpenReply {
        let reference = try reference(of: node)
        func openedNode() throws(Errno) -> OpenReply {
            try openFile(context, node, Self.sourceFlags(flags)) { (flags) throws(Errno) in
                try open(node, reference, flags)
            }
        }
        // Truncation is a request of its own, but for a file that was made beside the mount while the kernel was about
        // to make it.
        let truncates = flags & O_TRUNC != 0
        // A file that is written to unseen changes from now on.
        guard truncates || backings.areUsed && Self.writes(flags) else { return try openedNode() }
        let target = try target(of: node)
        return try change(target, data: 0..<Int64.max) { (snapshot) throws(Errno) -> OpenReply in
            snapshot?.willChangeAttributes(of: target)
            if truncates { try assumeWriter(context) }
            return try openedNode()
        } redirected: { (redirect) throws(Errno) -> OpenReply in
            let asItIs = try changeAsItIs(target, redirect) { () throws(Errno) -> OpenReply in
                if truncates { try assumeWriter(context) }
                return try openedNode()
            }
            if let asItIs { return asItIs }
            let opened = try openFile(context, node, Self.sourceFlags(flags) & ~O_TRUNC) { (flags) throws(Errno) in
                try open(node, reference, flags)
            }
            if truncates { try redirect.truncate(target, to: 0, privilegeLoss(context)) }
            return opened
        }
    }

    /// Opens a file that a lease of `hasUnseenWriters` may be on for the moment.
    private func untilUnleased(
        _ open: () throws(Errno) -> Descriptor
    ) throws(Errno) -> Descriptor {
        var attempts = 0
        while true {
            do throws(Errno) {
                return try open()
            } catch .wouldBlock where backings.areUsed && attempts < Self.leaseAttemptsMax {
                attempts += 1
                sched_yield()
            }
        }
    }

    /// A lease lasts for two system calls; one that lasts longer is somebody else's.
    private static let leaseAttemptsMax = 10_000

    func release(_ node: UInt64, _ handle: UInt64) {
        let file = Handle.object(handle, as: OpenFile.self)
        if file.isWritable {
            do throws(Errno) {
                try restoreTimes(file)
            } catch {
                // As where the kernel cannot send its time: the source keeps its own.
            }
            let lingers = writers.remove(node) {
                file.isPassedThrough && Self.hasUnseenWriters(file)
            }
            if lingers { keepLingering(node) }
        }
        backings.release(node)
        if file.isKept { openFiles.remove(node) }
        Handle.release(handle, as: OpenFile.self)
    }

    /// The node stays as long as it lingers: a snapshot's start looks at it.
    private func keepLingering(_ node: UInt64) {
        do throws(Errno) {
            try nodes.retain(node)
        } catch {
            preconditionFailure("the kernel remembers a node as long as a handle of it is open: \(error)")
        }
    }

    /// Whether somebody may write to the file by a descriptor or mapping that the mount knows nothing of: the kernel
    /// grants no lease for reading then. Only where the daemon has no descriptor for writing of its own.
    private static func hasUnseenWriters(_ file: OpenFile) -> Bool {
        do throws(Errno) {
            return hasUnseenWriters(try file.descriptor())
        } catch {
            preconditionFailure("files that are passed through are kept open: \(error)")
        }
    }

    private static func hasUnseenWriters(_ file: Descriptor) -> Bool {
        guard fcntl(file.raw, F_SETLEASE, F_RDLCK) == 0 else { return true }
        _ = fcntl(file.raw, F_SETLEASE, F_UNLCK)
        return false
    }

    /// Forgets nodes that linger and can no longer be written to. Returns those that can.
    func lingeringWriters() -> Set<UInt64> {
        for node in writers.lingeringNodes {
            let isOver = writers.removeLingering(node) {
                do throws(Errno) {
                    return Self.hasUnseenWriters(
                        try Descriptor.reopenQuietly(try descriptor(of: node), O_RDONLY | O_NONBLOCK))
                } catch {
                    return true
                }
            }
            if isOver { nodes.forget(node, 1) }
        }
        return writers.lingeringNodes
    }

    /// Whether a node that is open for writing may be of a file of the scope's.
    func isWriter(_ node: UInt64, in scope: SnapshotScope) -> Bool {
        do throws(Errno) {
            return scope.owns(try FileStatus(of: try descriptor(of: node)))
        } catch {
            return true
        }
    }

    /// Answers the freeze helper's open. No descriptor of the source is kept for it.
    func openToFreeze(_ node: UInt64) throws(Errno) -> OpenReply {
        var reply = OpenReply(handle: Intake.freezeHandle, keepsCache: true)
        if backings.areUsed {
            // All opens of a node must be passed through, or none.
            let file = try Descriptor.reopenQuietly(try descriptor(of: node), O_RDONLY | O_NONBLOCK)
            reply.backing = try backings.open(node, file)
        }
        return reply
    }

    func releaseFrozen(_ node: UInt64) {
        backings.release(node)
    }

    /// Preserves all of a file that is written to unseen, while it is frozen, by a clone: the kernel lets direct I/O
    /// that is under way finish before that.
    func preserveUnseen(_ node: UInt64) throws(Errno) {
        let target = try target(of: node)
        try change(target, data: 0..<Int64.max, clones: true) { (snapshot) in
            snapshot?.willChangeAttributes(of: target)
        } redirected: { (_) -> Void in
            preconditionFailure("what is redirected is not passed through")
        }
    }

    /// Writes what is dirty of a file in the source's own page cache, so that cloning it need not.
    func flush(_ node: UInt64) throws(Errno) {
        let file = try Descriptor.reopenQuietly(try descriptor(of: node), O_RDONLY | O_NONBLOCK)
        try flushPages(file)
    }

    /// Gives a file the time of modification that the kernel says it has, where data were written back since.
    func restoreTimes(_ target: ChangeTarget, _ times: WrittenTimes?) throws(Errno) {
        guard let modified = times?.takeStale() else { return }
        try change { (snapshot) throws(Errno) in
            snapshot?.willChangeAttributes(of: target)
            try changeTimes(target.descriptor, accessed: .omitted, modified: modified)
        } redirected: { (_) -> Void in
            preconditionFailure("what is redirected is not gathered by the kernel")
        }
    }

    func restoreTimes(_ file: OpenFile) throws(Errno) {
        if file.times != nil { try restoreTimes(try file.target(), file.times) }
    }

    /// `restoreTimes` of a node that is open for writing.
    func restoreTimes(of node: UInt64) throws(Errno) {
        try restoreTimes(try target(of: node), writers.times(of: node))
    }

    /// The node whose number `name` is, for the freeze helper alone.
    func lookupToFreeze(
        _ context: RequestContext, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply {
        guard freezeDirectory.isHelper(context) else { throw .noSuchFileOrDirectory }
        let node = try freezeDirectory.target(of: name)
        let attributes = try attributes(node, nil)
        try nodes.retain(node)
        return EntryReply(node: node, attributes: attributes, timeout: 0)
    }

    func create(
        _ context: RequestContext, _ parent: UInt64, _ name: UnsafePointer<CChar>, mode: UInt32,
        flags: Int32
    ) throws(Errno) -> (EntryReply, OpenReply) {
        if parent == NodeTable.mountRoot && snapshotName.equals(name) { throw .notPermitted }
        let directory = try target(of: parent)
        let sourceFlags = Self.sourceFlags(flags) & ~(O_ACCMODE | O_TRUNC) | O_RDWR
        do throws(Errno) {
            func make(
                _ directory: Descriptor, _ name: UnsafePointer<CChar>
            ) throws(Errno) -> Descriptor {
                try assume(context)
                return try Descriptor.open(
                    at: directory, name, quiet(sourceFlags) | O_CREAT | O_EXCL, mode: mode)
            }
            func makeOwn(_ snapshot: Preserve?) throws(Errno) -> (EntryReply, OpenReply) {
                if let snapshot { try willMake(name, in: directory, snapshot, maker: context) }
                let made = try make(directory.descriptor, name)
                let status = try FileStatus(of: made)
                snapshot?.didMake(status)
                let node = try remember(made, status, parent, name, at: nodes.moment)
                // Before the attributes: a file that is open for writing shows others.
                let opened = try openedAnew(context, made, node, flags)
                return (reply(node, status), opened)
            }
            return try change { (snapshot) throws(Errno) -> (EntryReply, OpenReply) in
                try makeOwn(snapshot)
            } redirected: { (redirect) throws(Errno) -> (EntryReply, OpenReply) in
                if isElsewhere(directory) { return try makeOwn(nil) }
                let (made, status, reference) = try redirect.make(in: directory, name, make)
                let node = try nodes.remember(reference, parent: parent, name, at: nodes.moment)
                let opened = try openedAnew(context, made, node, flags)
                return (reply(node, status), opened)
            }
        } catch .fileExists where flags & O_EXCL == 0 {
            // Made beside the mount since the kernel looked.
            let entry = try entry(parent, directory.descriptor, name)
            do throws(Errno) {
                return (entry, try open(context, entry.node, flags))
            } catch {
                nodes.forget(entry.node, 1)
                throw error
            }
        }
    }

    /// The answer to the open of a file that was just made: where there is none, the kernel does not learn of the node
    /// either, and the look-up that was counted for it goes.
    private func openedAnew(
        _ context: RequestContext, _ made: Descriptor, _ node: UInt64, _ flags: Int32, hasName: Bool = true
    ) throws(Errno) -> OpenReply {
        do throws(Errno) {
            return try opened(context, made, node, flags & ~O_TRUNC, hasName: hasName, isNew: true)
        } catch {
            nodes.forget(node, 1)
            throw error
        }
    }

    /// A file without a name, which one may get later (link): kept by its descriptor until then.
    func createTemporary(
        _ context: RequestContext, _ parent: UInt64, mode: UInt32, flags: Int32
    ) throws(Errno) -> (EntryReply, OpenReply) {
        let directory = try descriptor(of: parent)
        let sourceFlags = Self.sourceFlags(flags) & ~(O_ACCMODE | O_TRUNC) | O_RDWR | O_TMPFILE
        // O_EXCL says that it never gets a name.
        let exclusive = flags & O_EXCL
        func make(_ directory: Descriptor) throws(Errno) -> Descriptor {
            try assume(context)
            return try Descriptor.open(at: directory, ".", sourceFlags | exclusive, mode: mode)
        }
        let target = try target(of: parent)
        func makeOwn(_ snapshot: Preserve?) throws(Errno) -> (EntryReply, OpenReply) {
            let made = try make(directory)
            let status = try FileStatus(of: made)
            snapshot?.didMake(status)
            let node = try remember(made, status, parent, ".", at: nodes.moment)
            let opened = try openedAnew(context, made, node, flags, hasName: false)
            // Not `made` where that is not what the open file keeps: a descriptor for writing would be taken for an
            // application's (`hasUnseenWriters`), and the node stay for ever.
            nodes.pin(try reference(of: node), made) { openFiles[$0] }
            return (reply(node, status), opened)
        }
        return try change { (snapshot) throws(Errno) -> (EntryReply, OpenReply) in
            try makeOwn(snapshot)
        } redirected: { (redirect) throws(Errno) -> (EntryReply, OpenReply) in
            if isElsewhere(target) { return try makeOwn(nil) }
            let (made, status, reference) = try redirect.makeTemporary(
                in: target, mayGetName: exclusive == 0, make)
            let node = try nodes.remember(reference, parent: parent, ".", at: nodes.moment)
            let opened = try openedAnew(context, made, node, flags, hasName: false)
            nodes.pin(reference, made) { openFiles[$0] }
            return (reply(node, status), opened)
        }
    }

    func read(_ handle: UInt64, size: Int, offset: Int64) throws(Errno) -> ReadReply {
        let file = try file(handle)
        if let redirect = lifecycle.redirect, redirect.holdsData(of: file.reference.key) {
            let buffer = WorkerThread.buffer(size)
            let count = try redirect.read(
                file.reference.key, primary: try file.descriptor(), into: buffer, at: offset)
            return .bytes(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
        }
        return .file(try file.descriptor(), offset: offset)
    }

    func write(
        _ context: RequestContext, _ handle: UInt64, _ data: UnsafeRawBufferPointer, offset: Int64
    ) throws(Errno) -> Int {
        let file = try file(handle)
        let range = offset..<offset + Int64(data.count)
        let target = try file.target()
        func write() throws(Errno) -> Int {
            try assumeWriter(context, file)
            let count = try writeMost(try file.writer(target.descriptor), data, at: offset)
            didChangeData(file)
            return count
        }
        return try change(target, data: range) { (_) throws(Errno) -> Int in
            try write()
        } redirected: { (redirect) throws(Errno) -> Int in
            if let count = try changeAsItIs(target, redirect, write) { return count }
            try assumeWriter(context, file)
            return try redirect.write(target, data, at: offset, privilegeLoss(context))
        }
    }

    private func didChangeData(_ file: OpenFile) {
        if policy.gathersWrites { file.times?.didChangeData() }
    }

    /// Writes all of `data`, or, where the file system takes only a part, that part: an error then shows with the
    /// next write, as it does on the source.
    private func writeMost(
        _ descriptor: Descriptor, _ data: UnsafeRawBufferPointer, at offset: Int64
    ) throws(Errno) -> Int {
        var done = 0
        while done < data.count {
            do throws(Errno) {
                done += try Steps.step("write") { () throws(Errno) in
                    try checked {
                        pwrite(
                            descriptor.raw, data.baseAddress.map { $0 + done }, data.count - done,
                            Int(offset) + done)
                    }
                }
            } catch  where done > 0 {
                return done
            }
        }
        return done
    }

    /// fsync(2) of a file; what it gathered has taken its space then, and the kernel must not go on telling much less. But where
    /// that is little it does so for a second (`writerSeconds`): to forget it costs a GETATTR and a GETXATTR before the next write, and
    /// databases synchronize small ones.
    func synchronize(_ node: UInt64, _ file: OpenFile, dataOnly: Bool) throws(Errno) {
        try restoreTimes(file)
        let descriptor = try file.descriptor()
        try synchronize(descriptor, dataOnly: dataOnly)
        guard policy.gathersWrites, let times = file.times else { return }
        if times.mayTell(farFrom: try FileStatus(of: descriptor).blocks) {
            session.mutex.withLock { $0 }?.invalidateAttributes(node: node)
        }
    }

    func synchronize(_ descriptor: Descriptor, dataOnly: Bool) throws(Errno) {
        try dataOnly ? synchronizeData(descriptor) : synchronizeAll(descriptor)
    }

    func allocate(
        _ context: RequestContext, _ handle: UInt64, mode: Int32, offset: Int64, length: Int64
    ) throws(Errno) {
        let file = try file(handle)
        let changesData = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) != 0
        let (end, isTooFar) = offset.addingReportingOverflow(length)
        // What the source will refuse changes nothing.
        let range = !isTooFar && offset >= 0 && length > 0 ? offset..<end : nil
        let target = try file.target()
        func allocate() throws(Errno) {
            try assumeWriter(context)
            try LinuxSystem.allocate(
                try file.writer(target.descriptor), mode: mode, offset: offset, length: length)
            didChangeData(file)
        }
        try change(target, data: changesData ? range : nil) { (snapshot) throws(Errno) -> Void in
            snapshot?.willChangeAttributes(of: target)
            if let range, !changesData { snapshot?.willAllocate(of: target, range) }
            try allocate()
        } redirected: { (redirect) throws(Errno) -> Void in
            // What the source would refuse, it refuses so too.
            guard let range else { return try allocate() }
            if try changeAsItIs(target, redirect, allocate) != nil { return }
            try assumeWriter(context)
            try redirect.allocate(target, mode: mode, range, privilegeLoss(context))
        }
    }

    func copyRange(
        _ context: RequestContext, from handle: UInt64, offset: Int64, to newHandle: UInt64,
        newOffset: Int64, length: Int
    ) throws(Errno) -> Int {
        let input = try file(handle)
        let output = try file(newHandle)
        let length = min(length, Self.copyBytesMax)
        let range = newOffset..<newOffset + Int64(length)
        let reader = try input.descriptor()
        let target = try output.target()
        func copy() throws(Errno) -> Int {
            try assumeWriter(context)
            var from = Int(offset)
            var to = Int(newOffset)
            let writer = try output.writer(target.descriptor)
            let count = try Steps.step("copy") { () throws(Errno) in
                try checked { copy_file_range(reader.raw, &from, writer.raw, &to, length, 0) }
            }
            didChangeData(output)
            return count
        }
        return try change(target, data: range) { (snapshot) throws(Errno) -> Int in
            snapshot?.willChangeAttributes(of: target)
            return try copy()
        } redirected: { (redirect) throws(Errno) -> Int in
            let readsAsItIs = !redirect.holdsData(of: input.reference.key)
            if readsAsItIs, let count = try changeAsItIs(target, redirect, copy) { return count }
            return try redirect.copy(
                from: input.reference.key, reader, at: offset, length: length, to: target, at: newOffset
            ) { (data) throws(Errno) in
                try assumeWriter(context)
                let asItIs = try changeAsItIs(target, redirect) { () throws(Errno) in
                    try writeMost(try output.writer(target.descriptor), data, at: newOffset)
                }
                if let asItIs { return asItIs }
                return try redirect.write(target, data, at: newOffset, privilegeLoss(context))
            }
        }
    }

    func seek(_ handle: UInt64, offset: Int64, whence: Int32) throws(Errno) -> Int64 {
        let file = try file(handle)
        if let redirect = lifecycle.redirect, redirect.holdsData(of: file.reference.key) {
            return try redirect.seek(
                file.reference.key, primary: try file.descriptor(), whence, from: offset)
        }
        let found = try LinuxSystem.seek(try file.descriptor(), whence, from: offset)
        guard let found else { throw .noSuchAddressOrDevice }
        return found
    }
}
