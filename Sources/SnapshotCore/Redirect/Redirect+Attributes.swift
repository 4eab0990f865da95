internal import Glibc
package import LinuxSystem
internal import SnapshotRecord
internal import Synchronization
package import SystemPackage

// Attributes of inodes that are not new files: changed in the map. What chmod(2), chown(2) and the calls for extended
// attributes make of each other (access control lists, set-id bits, capabilities) only the file system knows: they are
// called on a scratch file that has the inode's attributes, and what became of that is recorded.
extension Redirect {
    /// Changes attributes by `change`, which gets a descriptor of a file that has them now, as the user who asks.
    /// `isExtended`: extended ones.
    package func changeAttributes(
        of target: ChangeTarget, isExtended: Bool, _ change: (Descriptor) throws(Errno) -> Void
    ) throws(Errno) {
        let stack = stack
        let record = try changeable(target, stack)
        try record.firstChange.withLock { (_) throws(Errno) in
            let before = attributes(record)
            let after = try onScratch(before, needsExtended: isExtended, change)
            let isGivenAway =
                before.status.user != after.status.user || before.status.group != after.status.group
            if isGivenAway, let file = try stack.top.files.existingFile(of: record.key) {
                // What it takes counts in the new owner's quota. First, since what has been recorded is done.
                try credentials.assumeDaemon()
                try changeOwner(file, user: after.status.user, group: after.status.group)
            }
            let now = Self.now
            try metadata.withLock { (_) throws(Errno) in
                var status = attributes(record).status
                status.mode = after.status.mode
                (status.user, status.group) = (after.status.user, after.status.group)
                status.changed = now
                try self.record(
                    stack.top,
                    [.attributes(record.key, RecordedAttributes(status: status, extended: after.extended))])
            }
        }
    }

    /// utimensat(2): each side a time, `.now` or `.omitted`.
    package func changeTimes(
        of target: ChangeTarget, accessed: Timestamp, modified: Timestamp
    ) throws(Errno) {
        let stack = stack
        let record = try changeable(target, stack)
        let (accessed, modified) = (try kept(accessed), try kept(modified))
        let now = Self.now
        func time(_ wanted: Timestamp, _ old: Timestamp) -> Timestamp {
            wanted == .omitted ? old : wanted == .now ? now : wanted
        }
        try metadata.withLock { (_) throws(Errno) in
            let before = attributes(record)
            var status = before.status
            status.accessed = time(accessed, status.accessed)
            status.modified = time(modified, status.modified)
            status.changed = now
            try self.record(
                stack.top,
                [.attributes(record.key, RecordedAttributes(status: status, extended: before.extended))])
        }
    }

    /// What the source's file system makes of a time: not every one keeps times before 1970 or after 2038.
    private func kept(_ time: Timestamp) throws(Errno) -> Timestamp {
        if time == .now || time == .omitted || (0...Int64(Int32.max)).contains(time.seconds) { return time }
        try credentials.assumeDaemon()
        let scratch = try ScratchFile(in: newFiles, kind: UInt32(S_IFREG), temporaryName())
        defer { scratch.remove(credentials) }
        try LinuxSystem.changeTimes(scratch.descriptor, accessed: .omitted, modified: time)
        return try FileStatus(of: scratch.descriptor).modified
    }

    /// What becomes of attributes by `change`, which gets a file that has them. `needsExtended`: its outcome depends on all
    /// extended ones, so that it cannot be tried where one of them cannot be set for want of space, say.
    func onScratch(
        _ attributes: RecordedAttributes, needsExtended: Bool = false, _ change: (Descriptor) throws(Errno) -> Void
    ) throws(Errno) -> RecordedAttributes {
        try credentials.assumeDaemon()
        let scratch = try ScratchFile(in: newFiles, kind: attributes.status.kind, temporaryName())
        defer { scratch.remove(credentials) }
        let descriptor = scratch.descriptor
        let status = attributes.status
        do throws(Errno) {
            try changeOwner(descriptor, user: status.user, group: status.group)
        } catch .notPermitted {
            // An ordinary user's daemon; the kernel has found that this user may do what is asked.
        }
        if !status.isSymbolicLink { try changeMode(descriptor, status.mode & 0o7777) }
        var kept: Set<FileName> = []
        for (name, value) in attributes.extended.values {
            do throws(Errno) {
                try name.withCString { (name) throws(Errno) in
                    try value.withUnsafeBytesTyped { (value) throws(Errno) in
                        try setExtendedAttribute(descriptor, name, value, 0)
                    }
                }
            } catch {
                // Not ours to set: it stays as it is. But a list has a part of the mode, and the other way round.
                let isOurs = error != .notPermitted && error != .permissionDenied && error != .notSupportedOnSocket
                if isOurs && (needsExtended || Self.lists.contains(name)) { throw error }
                kept.insert(name)
            }
        }
        try change(descriptor)
        try credentials.assumeDaemon()
        var extended = try allExtendedAttributes(descriptor)
        for name in kept { extended.values[name] = attributes.extended.values[name] }
        extended.unreadable = attributes.extended.unreadable
        var result = try FileStatus(of: descriptor)
        if status.isSymbolicLink { result.mode = status.mode }
        result.mode = result.mode & 0o7777 | status.kind
        return RecordedAttributes(status: result, extended: extended)
    }

    private static let lists: Set<FileName> = [
        FileName("system.posix_acl_access"), FileName("system.posix_acl_default"),
    ]

    /// A name in the directory of new files that no other has.
    func temporaryName() -> FileName {
        FileName("t" + String(nameless.add(1, ordering: .relaxed).newValue, radix: 16))
    }
}

extension [UInt8] {
    func withUnsafeBytesTyped<Result>(
        _ body: (UnsafeRawBufferPointer) throws(Errno) -> Result
    ) throws(Errno) -> Result {
        try withUnsafeBufferPointer { (buffer) throws(Errno) in try body(UnsafeRawBufferPointer(buffer)) }
    }
}

/// A file of some kind that lives as long as one call.
private struct ScratchFile {
    let descriptor: Descriptor
    private let directory: Descriptor
    /// nil where it has no name.
    private let name: FileName?
    private let isDirectory: Bool

    init(in directory: Descriptor, kind: UInt32, _ name: FileName) throws(Errno) {
        self.directory = directory
        isDirectory = kind == UInt32(S_IFDIR)
        if kind == UInt32(S_IFREG) {
            do throws(Errno) {
                descriptor = try Descriptor.open(at: directory, ".", O_TMPFILE | O_RDWR, mode: 0o600)
                self.name = nil
                return
            } catch .notSupportedOnSocket {
                // No files without names here.
            }
        }
        self.name = name
        descriptor = try name.withCString { (string) throws(Errno) -> Descriptor in
            switch kind {
            case UInt32(S_IFDIR): try makeDirectory(at: directory, string, mode: 0o700)
            case UInt32(S_IFLNK): try makeSymbolicLink(to: "scratch", at: directory, string)
            case UInt32(S_IFREG):
                return try Descriptor.open(at: directory, string, O_CREAT | O_EXCL | O_RDWR, mode: 0o600)
            default: try makeNode(at: directory, string, mode: UInt32(S_IFIFO) | 0o600, device: 0)
            }
            return try Descriptor.open(at: directory, string, O_PATH | O_NOFOLLOW)
        }
    }

    func remove(_ credentials: Credentials) {
        guard let name else { return }
        do throws(Errno) {
            try credentials.assumeDaemon()
            try name.withCString { (string) throws(Errno) in
                try unlink(at: directory, string, isDirectory ? AT_REMOVEDIR : 0)
            }
        } catch {
            // An empty file without meaning: recovery, or the end of the redirect, removes it.
        }
    }
}
