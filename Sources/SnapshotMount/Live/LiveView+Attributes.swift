internal import FuseSession
internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SystemPackage

// Attributes, extended attributes and the file system's own figures.
extension LiveView {
    func attributes(_ node: UInt64, _ handle: UInt64?) throws(Errno) -> AttributeReply {
        let descriptor = if let handle { try file(handle).descriptor() } else { try look(at: node) }
        return try attributes(node, of: descriptor)
    }

    func setAttributes(
        _ context: RequestContext, _ node: UInt64, _ handle: UInt64?, _ wanted: AttributeChange
    ) throws(Errno) -> AttributeReply {
        let file: OpenFile? = if let handle { try self.file(handle) } else { nil }
        let target = if let file { try file.target() } else { try target(of: node) }
        let cutOff = wanted.size.map { $0..<Int64.max }
        func changeOwn() throws(Errno) {
            if wanted.size != nil { try assumeWriter(context) } else { try assumeChanger(context) }
            let descriptor = target.descriptor
            var modified = wanted.modified
            if wanted.isEmpty { try changeNothing(context, node, descriptor) }
            if wanted.user != nil || wanted.group != nil {
                try changeOwner(context, descriptor, user: wanted.user ?? .max, group: wanted.group ?? .max)
            }
            // After the owner, since that takes set-id bits away.
            if let mode = wanted.mode { try changeMode(descriptor, mode) }
            if let size = wanted.size {
                // The kernel sends its time with a new size; with none it keeps the time that it has.
                if policy.gathersWrites && wanted.modified == nil {
                    modified = try FileStatus(of: descriptor).modified
                }
                if let file, file.isWritable, !file.isPassedThrough {
                    try truncate(descriptor, to: size)
                } else {
                    try truncatePath(descriptor, to: size)
                }
            }
            if wanted.accessed != nil || modified != nil {
                try changeTimes(
                    descriptor, accessed: wanted.accessed ?? .omitted,
                    modified: modified ?? .omitted)
                if policy.gathersWrites, let modified, modified != .now {
                    writers.times(of: node)?.didSet(modified)
                }
            }
        }
        try change(target, data: cutOff) { (snapshot) throws(Errno) -> Void in
            if wanted.user != nil || wanted.group != nil {
                writers.ownerWillChange()
                snapshot?.willChangeOwner(of: target)
            } else {
                snapshot?.willChangeAttributes(of: target)
            }
            try changeOwn()
        } redirected: { (redirect) throws(Errno) -> Void in
            // A change of the owner is redirected whoever that is, or the snapshot would not know whose it was.
            let changesOwner = wanted.user != nil || wanted.group != nil
            if isWritten(asItIs: target.reference, redirect) { return try changeOwn() }
            if !changesOwner, try redirect.changingOthers(target, changeOwn) != nil { return }
            try redirectAttributes(redirect, context, node, target, wanted)
        }
        // Of the time that it sends by itself, with what it writes back, the kernel reads no answer.
        return try attributes(node, of: target.descriptor, isHeeded: !wanted.isTimeAlone)
    }

    /// A change of nothing: before a change of data that takes set-id bits or file capabilities away
    /// (FUSE_HANDLE_KILLPRIV_V2), or chown(2) of neither owner nor group. The kernel does not say which; but data are
    /// changed only where the file is open for writing.
    func changeNothing(
        _ context: RequestContext, _ node: UInt64, _ descriptor: Descriptor
    ) throws(Errno) {
        if writers.times(of: node) == nil {
            return try changeOwner(context, descriptor, user: .max, group: .max)
        }
        // From root's change the kernel has taken the capabilities itself, and that is all that goes.
        if context.user != 0 { try killPrivileges(context, descriptor) }
    }

    /// chown(2) as the user who asks, which the kernel has allowed, and what that takes away of set-id bits. Where
    /// neither owner nor group is given the kernel has not looked: only the owner may lose the bits so.
    func changeOwner(
        _ context: RequestContext, _ descriptor: Descriptor, user: UInt32, group: UInt32
    ) throws(Errno) {
        guard context.user != 0 else {
            try assumeChanger(context)
            return try LinuxSystem.changeOwner(descriptor, user: user, group: group)
        }
        let status = try FileStatus(of: descriptor)
        let keepsGroupBit = keepsGroupBit(context, status)
        let losesBits =
            status.mode & UInt32(S_ISUID) != 0 || status.mode & UInt32(S_ISGID) != 0 && !keepsGroupBit
        if losesBits && !status.isDirectory && context.user != status.user && user == .max && group == .max {
            throw .notPermitted
        }
        try credentials.assume(
            user: context.user, group: context.group, mask: nil, keepsSetID: keepsGroupBit)
        try LinuxSystem.changeOwner(descriptor, user: user, group: group)
    }

    /// Whether an inode keeps its set-group-id bit through a change by a user: without the right to execute, it does
    /// where the user is in the group.
    private func keepsGroupBit(_ context: RequestContext, _ status: FileStatus) -> Bool {
        status.mode & UInt32(S_ISGID | S_IXGRP) == UInt32(S_ISGID)
            && (context.group == status.group
                || supplementaryGroups(of: context.process).contains(status.group))
    }

    /// The set-id bits and file capabilities go, as Linux takes them away where data change. Where the daemon will change
    /// the data, the source's file system knows no other group of the user's than the first, and the bit must not stay
    /// in the kernel's idea of the mode when that takes it.
    private func killPrivileges(_ context: RequestContext, _ descriptor: Descriptor) throws(Errno) {
        let status = try FileStatus(of: descriptor)
        let mode = status.mode
        var kept = mode & 0o7777 & ~UInt32(S_ISUID)
        let isFirstGroup = status.group == context.group
        if !keepsGroupBit(context, status) || !backings.areUsed && !isFirstGroup { kept &= ~UInt32(S_ISGID) }
        if kept != mode & 0o7777 { try changeMode(descriptor, kept) }
        do throws(Errno) {
            try LinuxSystem.removeExtendedAttribute(descriptor, "security.capability")
        } catch {
            guard error == .noData || error == .notSupportedOnSocket || error == .notPermitted else {
                throw error
            }
            // It has none, or the file system knows none, or it is not this user's to take.
        }
    }

    func readLink(_ node: UInt64) throws(Errno) -> [UInt8] {
        try LinuxSystem.readLink(try descriptor(of: node))
    }

    func fileSystemStatus(_ node: UInt64) throws(Errno) -> FileSystemStatus {
        try FileSystemStatus(of: try descriptor(of: node))
    }

    func setExtendedAttribute(
        _ context: RequestContext, _ node: UInt64, _ name: UnsafePointer<CChar>,
        _ value: UnsafeRawBufferPointer, _ flags: Int32
    ) throws(Errno) {
        let target = try target(of: node)
        func set(_ inode: Descriptor) throws(Errno) {
            try assumeWriter(context)
            try LinuxSystem.setExtendedAttribute(inode, name, value, flags)
        }
        try change { (snapshot) throws(Errno) in
            snapshot?.willChangeAttributes(of: target)
            try set(target.descriptor)
        } redirected: { (redirect) throws(Errno) in
            let own: Void? = try changeAsItIs(target, redirect) { () throws(Errno) in try set(target.descriptor) }
            if own != nil { return }
            try redirect.changeAttributes(of: target, isExtended: true, set)
        }
    }

    func removeExtendedAttribute(
        _ context: RequestContext, _ node: UInt64, _ name: UnsafePointer<CChar>
    ) throws(Errno) {
        let target = try target(of: node)
        func remove(_ inode: Descriptor) throws(Errno) {
            try assumeChanger(context)
            try LinuxSystem.removeExtendedAttribute(inode, name)
        }
        try change { (snapshot) throws(Errno) in
            snapshot?.willChangeAttributes(of: target)
            try remove(target.descriptor)
        } redirected: { (redirect) throws(Errno) in
            let own: Void? = try changeAsItIs(target, redirect) { () throws(Errno) in try remove(target.descriptor)
            }
            if own != nil { return }
            try redirect.changeAttributes(of: target, isExtended: true, remove)
        }
    }

    func extendedAttribute(
        _ node: UInt64, _ name: UnsafePointer<CChar>, into buffer: UnsafeMutableRawBufferPointer
    ) throws(Errno) -> Int {
        guard let known = try redirectedExtendedAttributes(node) else {
            // The kernel asks for file capabilities before the first write to a file that has just been opened.
            return try LinuxSystem.extendedAttribute(try look(at: node), name, into: buffer)
        }
        do throws(Errno) {
            return try Self.fill(buffer, with: try known.value(FileName(name)))
        } catch .noData {
            // Which names there cannot be at all the source's file system says; one that it has, has been removed.
            let nothing = UnsafeMutableRawBufferPointer(start: nil, count: 0)
            _ = try LinuxSystem.extendedAttribute(try descriptor(of: node), name, into: nothing)
            throw .noData
        }
    }

    func extendedAttributeNames(_ node: UInt64) throws(Errno) -> [FileName] {
        if let known = try redirectedExtendedAttributes(node) { return known.names }
        return try LinuxSystem.extendedAttributeNames(try descriptor(of: node))
    }

    /// Puts the names into `buffer`, a NUL byte after each; the number of bytes that they take.
    static func fill(
        _ buffer: UnsafeMutableRawBufferPointer, with names: [FileName]
    ) throws(Errno) -> Int {
        try fill(buffer, with: names.flatMap { $0.bytes + [0] })
    }

    /// Puts `bytes` into `buffer`, unless that is empty; their number. Throws ERANGE where they do not fit.
    static func fill(
        _ buffer: UnsafeMutableRawBufferPointer, with bytes: [UInt8]
    ) throws(Errno) -> Int {
        if buffer.isEmpty { return bytes.count }
        guard bytes.count <= buffer.count else { throw .outOfRange }
        buffer.copyBytes(from: bytes)
        return bytes.count
    }
}
