internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

// Names: what an operation changes is decided on what applications see, then written as one record. The kernel holds the
// locks of the directories concerned, so no two of these meet in one directory.
extension Redirect {
    /// Longest name; the kernel's FUSE lets longer ones through.
    private static let nameBytesMax = 255

    private static func check(_ name: UnsafePointer<CChar>) throws(Errno) {
        if strlen(name) > nameBytesMax { throw .fileNameTooLong }
    }

    // MARK: Attributes that names change

    /// A directory in which a name has changed, which may be that of a directory. With `metadata` held.
    private func touched(
        _ record: InodeRecord, subdirectories: Int = 0, _ now: Timestamp
    ) -> RecordChange {
        let before = attributes(record)
        var status = before.status
        (status.modified, status.changed) = (now, now)
        // Some file systems do not count subdirectories: then every directory has one link.
        if status.links >= 2 { status.links = UInt32(max(2, Int(status.links) + subdirectories)) }
        return .attributes(record.key, RecordedAttributes(status: status, extended: before.extended))
    }

    /// An inode whose names change.
    private enum Relinked {
        /// Its attributes are its own, but for count and time.
        case new(InodeReference, LinkCount)
        case recorded(InodeRecord)

        var key: InodeKey {
            switch self {
            case .new(let reference, _): reference.key
            case .recorded(let record): record.key
            }
        }
    }

    private func relinked(_ target: ChangeTarget, _ stack: LayerStack) throws(Errno) -> Relinked {
        if stack.isNew(target.key), target.reference.kind != UInt32(S_IFDIR) {
            let status = relinked(try FileStatus(of: target.descriptor), stack)
            return .new(target.reference, LinkCount(count: status.links, changed: status.changed))
        }
        return .recorded(try changeable(target, stack))
    }

    /// The changes by which an inode gets names or loses them. With `metadata` held.
    private func relink(
        _ inode: Relinked, _ names: Int, _ now: Timestamp, _ stack: LayerStack
    ) -> [RecordChange] {
        switch inode {
        case .new(let reference, let before):
            let count = stack.links(of: reference.key)?.count ?? before.count
            let links = LinkCount(count: UInt32(max(0, Int(count) + names)), changed: now)
            return [.reference(reference), .links(reference.key, links)]
        case .recorded(let record):
            let before = attributes(record)
            var status = before.status
            status.links = UInt32(max(0, Int(status.links) + names))
            if status.isDirectory && names < 0 { status.links = 0 }
            status.changed = now
            return [.attributes(record.key, RecordedAttributes(status: status, extended: before.extended))]
        }
    }

    // MARK: Making

    /// What a directory gives to what is made in it: files are made in one that gives the same.
    struct TemplateDirectory: Hashable, Sendable {
        let group: UInt32
        let givesGroup: Bool
        let list: [UInt8]
    }

    private static let defaultList = FileName("system.posix_acl_default")

    /// A directory of the store in which what is made comes out as in `directory`: with its group, where it gives that,
    /// and by its default access control list.
    private func template(for directory: RecordedAttributes) throws(Errno) -> Descriptor {
        let list = directory.extended.values[Self.defaultList] ?? []
        let givesGroup = directory.status.mode & UInt32(S_ISGID) != 0
        if !givesGroup && list.isEmpty, try !everyDirectoryGivesGroup() { return newFiles }
        let template = TemplateDirectory(group: directory.status.group, givesGroup: givesGroup, list: list)
        if let known = templates.withLock({ $0[template] }) { return known }
        try credentials.assumeDaemon()
        let name = temporaryName()
        let made = try name.withCString { (string) throws(Errno) in
            try makeDirectory(at: newFiles, string, mode: 0o700)
            return try Descriptor.open(at: newFiles, string, O_RDONLY | O_DIRECTORY)
        }
        try changeOwner(made, user: .max, group: template.group)
        if template.givesGroup { try changeMode(made, 0o2700) }
        if !template.list.isEmpty {
            try Self.defaultList.withCString { (name) throws(Errno) in
                try template.list.withUnsafeBytesTyped { (list) throws(Errno) in
                    try setExtendedAttribute(made, name, list, 0)
                }
            }
        }
        return templates.withLock { templates in
            if let other = templates[template] { return other }
            // The directories of those that are dropped go with `newFiles`.
            if templates.count >= Self.templatesMax { templates = [:] }
            templates[template] = made
            return made
        }
    }

    private static let templatesMax = 256

    /// Whether what is made in any directory gets its group: the mount options `grpid` and `bsdgroups`. Found out once.
    private func everyDirectoryGivesGroup() throws(Errno) -> Bool {
        if let known = givesGroups.withLock({ $0 }) { return known }
        try credentials.assumeDaemon()
        let name = temporaryName()
        let directory = try name.withCString { (string) throws(Errno) in
            try makeDirectory(at: newFiles, string, mode: 0o700)
            return try Descriptor.open(at: newFiles, string, O_RDONLY | O_DIRECTORY)
        }
        defer { removeStray(newFiles, name) }
        let group = try FileStatus(of: directory).group + 1
        try changeOwner(directory, user: .max, group: group)
        let child = FileName("t")
        let gives = try child.withCString { (string) throws(Errno) in
            try makeDirectory(at: directory, string, mode: 0o700)
            return try FileStatus(at: directory, string).group == group
        }
        removeStray(directory, child)
        givesGroups.withLock { $0 = gives }
        return gives
    }

    /// Makes something under a name of a directory: `making` makes it under a name in the directory that it is given, as
    /// the user who asks, and may return a descriptor of it. Returns that, or one opened with O_PATH.
    package func make(
        in directory: ChangeTarget, _ name: UnsafePointer<CChar>,
        _ making: (Descriptor, UnsafePointer<CChar>) throws(Errno) -> Descriptor?
    ) throws(Errno) -> (Descriptor, FileStatus, InodeReference) {
        try Self.check(name)
        let stack = stack
        let parent = try changeable(directory, stack)
        // A directory that has been removed, by a name that the kernel still has.
        if attributes(parent).status.links == 0 { throw .noSuchFileOrDirectory }
        try checkIsAbsent(directory, name, stack)
        func note(_ status: FileStatus, _ reference: InodeReference) throws(Errno) {
            let own = try ownAttributes(status, reference)
            let entry = RecordChange.name(in: directory.key, FileName(name), .present(reference))
            try metadata.withLock { (_) throws(Errno) -> Void in
                let touched = touched(parent, subdirectories: status.isDirectory ? 1 : 0, Self.now)
                try record(stack.top, [.born(reference), own, entry, touched])
            }
        }
        return try makeFile(attributes(parent), making, note: note)
    }

    /// What is recorded of an inode that was just made, under its first name.
    private func ownAttributes(
        _ status: FileStatus, _ reference: InodeReference
    ) throws(Errno) -> RecordChange {
        guard status.isDirectory else {
            return .links(reference.key, LinkCount(count: 1, changed: status.changed))
        }
        let extended = try allExtendedAttributes(try open(reference))
        return .attributes(reference.key, RecordedAttributes(status: status, extended: extended))
    }

    /// Makes a file for the store, under its name there; `note` writes the record of it. What fails leaves nothing.
    private func makeFile(
        _ parent: RecordedAttributes, _ making: (Descriptor, UnsafePointer<CChar>) throws(Errno) -> Descriptor?,
        note: (FileStatus, InodeReference) throws(Errno) -> Void
    ) throws(Errno) -> (Descriptor, FileStatus, InodeReference) {
        let place = try template(for: parent)
        let temporary = temporaryName()
        let opened = try temporary.withCString { (name) throws(Errno) -> Descriptor in
            let made = try making(place, name)
            try credentials.assumeDaemon()
            if let made { return made }
            return try Descriptor.open(at: place, name, O_PATH | O_NOFOLLOW)
        }
        var at = (place, temporary)
        do throws(Errno) {
            let status = try FileStatus(of: opened)
            let reference = try source.reference(of: opened, status)
            try temporary.withCString { (old) throws(Errno) in
                try reference.key.fileName.withCString { (new) throws(Errno) in
                    try LinuxSystem.rename(at: place, old, to: newFiles, new)
                }
            }
            didMakeName()
            at = (newFiles, reference.key.fileName)
            // The rename has changed its time of change, before anybody has seen it.
            let made = try FileStatus(of: opened)
            try note(made, reference)
            return (opened, made, reference)
        } catch {
            removeStray(at.0, at.1)
            throw error
        }
    }

    /// A name is in `newFiles`, and its record not yet in the journal: so the mark that covers that finds this noted. (Noted
    /// before it is there, a mark in between would take the note and miss the name.)
    private func didMakeName() {
        hasMade.store(true, ordering: .sequentiallyConsistent)
    }

    private func removeStray(_ directory: Descriptor, _ name: FileName) {
        do throws(Errno) {
            try name.withCString { (string) throws(Errno) in
                do throws(Errno) {
                    try LinuxSystem.unlink(at: directory, string)
                } catch .isDirectory {
                    try LinuxSystem.unlink(at: directory, string, AT_REMOVEDIR)
                }
            }
        } catch {
            // A file that no record names: recovery, or the end of the redirect, removes it.
        }
    }

    private func open(_ reference: InodeReference) throws(Errno) -> Descriptor {
        try source.open(reference, O_PATH)
    }

    /// Throws EEXIST where a name stands for something, be it the store.
    private func checkIsAbsent(
        _ directory: ChangeTarget, _ name: UnsafePointer<CChar>, _ stack: LayerStack
    ) throws(Errno) {
        switch stack.entry(in: directory.key, name) {
        case .present: throw .fileExists
        case .absent: return
        case nil:
            do throws(Errno) {
                _ = try FileStatus(at: directory.descriptor, name)
            } catch .noSuchFileOrDirectory {
                return
            }
            throw .fileExists
        }
    }

    /// Makes a file without a name, as in `directory`: `making` makes it in the directory that it is given.
    package func makeTemporary(
        in directory: ChangeTarget, mayGetName: Bool, _ making: (Descriptor) throws(Errno) -> Descriptor
    ) throws(Errno) -> (Descriptor, FileStatus, InodeReference) {
        let stack = stack
        let parent = try changeable(directory, stack)
        let made = try making(try template(for: attributes(parent)))
        try credentials.assumeDaemon()
        let status = try FileStatus(of: made)
        let reference = try source.reference(of: made, status)
        try metadata.withLock { (_) throws(Errno) in
            try record(
                stack.top,
                [.born(reference), .links(reference.key, LinkCount(count: 0, changed: status.changed))])
        }
        if mayGetName { _ = temporaries.withLock { $0.insert(reference.key) } }
        return (made, status, reference)
    }

    // MARK: Names of what is there

    /// link(2).
    package func link(
        _ target: ChangeTarget, in directory: ChangeTarget, _ name: UnsafePointer<CChar>
    ) throws(Errno) {
        try Self.check(name)
        let stack = stack
        try checkIsAbsent(directory, name, stack)
        if target.reference.kind == UInt32(S_IFDIR) { throw .notPermitted }
        let parent = try changeable(directory, stack)
        let inode = try relinked(target, stack)
        let status = try status(of: target.key) { () throws(Errno) in try FileStatus(of: target.descriptor) }
        if status.links == 0, !temporaries.withLock({ $0.contains(target.key) }),
            try FileStatus(of: target.descriptor).links > 0
        {
            throw .noSuchFileOrDirectory
        }
        if try Int(status.links) >= linksMax() { throw .tooManyLinks }
        try credentials.assumeDaemon()
        try metadata.withLock { (_) throws(Errno) in
            let now = Self.now
            if status.links == 0 { try keepTemporary(target) }
            try record(
                stack.top,
                [.name(in: directory.key, FileName(name), .present(target.reference)), touched(parent, now)]
                    + relink(inode, 1, now, stack))
        }
        _ = temporaries.withLock { $0.remove(target.key) }
    }

    /// A file that was made without a name, be it before the cut, gets its place in the store. With `metadata` held, so that
    /// a merge does not take it for one that nothing names. Throws ENOENT where it may not have a name.
    private func keepTemporary(_ target: ChangeTarget) throws(Errno) {
        defer { didMakeName() }
        do throws(Errno) {
            try target.key.fileName.withCString { (name) throws(Errno) in
                try LinuxSystem.link(target.descriptor, at: newFiles, name)
            }
        } catch .fileExists {
            // By an attempt that failed afterwards.
        }
    }

    /// How many names the source's file system gives a file.
    private func linksMax() throws(Errno) -> Int {
        let most = fpathconf(source.root.raw, Int32(_PC_LINK_MAX))
        // What the C library says of file systems that it does not know.
        if most == Self.unknownLinksMax {
            return try fileSystemType(of: source.root) == Self.btrfsType ? Self.btrfsLinksMax : .max
        }
        return most > 0 ? most : .max
    }

    private static let unknownLinksMax = 127
    private static let btrfsLinksMax = 65_535
    private static let btrfsType: UInt32 = 0x9123_683E

    /// unlink(2) or rmdir(2) of a name that stands for `victim`.
    package func unlink(
        in directory: ChangeTarget, _ name: UnsafePointer<CChar>, victim: ChangeTarget, isDirectory: Bool
    ) throws(Errno) {
        let stack = stack
        if isDirectory {
            if victim.reference.kind != UInt32(S_IFDIR) { throw .notDirectory }
            if try !isEmpty(victim, stack) { throw .directoryNotEmpty }
        } else if victim.reference.kind == UInt32(S_IFDIR) {
            throw .isDirectory
        }
        let parent = try changeable(directory, stack)
        let inode = try relinked(victim, stack)
        try metadata.withLock { (_) throws(Errno) in
            let now = Self.now
            try record(
                stack.top,
                [
                    .name(in: directory.key, FileName(name), .absent),
                    touched(parent, subdirectories: isDirectory ? -1 : 0, now),
                ] + relink(inode, -1, now, stack))
        }
        didLoseName(victim.reference, stack)
    }

    /// A new file that has no name left goes from the store once a mark covers that; who has it open keeps it.
    private func didLoseName(_ reference: InodeReference, _ stack: LayerStack) {
        let key = reference.key
        let isDirectory = reference.kind == UInt32(S_IFDIR)
        // One of a sealed layer is the merge's to remove.
        guard stack.top.contents(of: key, { $0.place == .store }) == true else { return }
        let isGone =
            stack.top.contents(of: key) { contents in
                isDirectory || contents.links?.count == 0
            } ?? false
        guard isGone, !temporaries.withLock({ $0.contains(key) }) else { return }
        commits.afterMark(covering: stack.top.journal.nextSequence) { [self] in
            guard self.stack.top === stack.top else { return }
            let isStillGone = metadata.withLock { _ in
                isDirectory || stack.links(of: key)?.count == 0
            }
            if isStillGone { removeStray(newFiles, key.fileName) }
        }
    }

    /// What a rename moves, and what it replaces.
    package struct Move {
        let moved: ChangeTarget
        let replaced: ChangeTarget?
        let flags: UInt32

        package init(_ moved: ChangeTarget, replacing replaced: ChangeTarget?, flags: UInt32) {
            self.moved = moved
            self.replaced = replaced
            self.flags = flags
        }

        var isExchange: Bool { flags & UInt32(RENAME_EXCHANGE) != 0 }
        var leavesWhiteout: Bool { flags & UInt32(RENAME_WHITEOUT) != 0 }
        var movesDirectory: Bool { moved.reference.kind == UInt32(S_IFDIR) }
        var replacesDirectory: Bool { replaced?.reference.kind == UInt32(S_IFDIR) }
    }

    /// renameat2(2). `makingWhiteout` makes the device that a whiteout is, as the user who asks.
    package func rename(
        _ move: Move, from directory: ChangeTarget, _ name: UnsafePointer<CChar>,
        to newDirectory: ChangeTarget, _ newName: UnsafePointer<CChar>,
        makingWhiteout: (Descriptor, UnsafePointer<CChar>) throws(Errno) -> Descriptor?
    ) throws(Errno) {
        try Self.check(newName)
        let stack = stack
        try checkRename(move, stack)
        if let replaced = move.replaced, replaced.key == move.moved.key { return }
        let (parent, newParent) = (try changeable(directory, stack), try changeable(newDirectory, stack))
        if attributes(newParent).status.links == 0 { throw .noSuchFileOrDirectory }
        let moved = try relinked(move.moved, stack)
        var replaced: Relinked?
        if let other = move.replaced { replaced = try relinked(other, stack) }

        func note(_ whiteout: (FileStatus, InodeReference)?) throws(Errno) {
            try metadata.withLock { (_) throws(Errno) in
                let now = Self.now
                let isHere = parent.key == newParent.key
                let oldEntry: RecordedEntry =
                    if move.isExchange, let other = move.replaced {
                        .present(other.reference)
                    } else {
                        whiteout.map { .present($0.1) } ?? .absent
                    }
                var changes: [RecordChange] = []
                if let (status, reference) = whiteout {
                    changes += [
                        .born(reference), .links(reference.key, LinkCount(count: 1, changed: status.changed)),
                    ]
                }
                changes += [
                    .name(in: directory.key, FileName(name), oldEntry),
                    .name(in: newDirectory.key, FileName(newName), .present(move.moved.reference)),
                ]
                changes += relink(moved, 0, now, stack)
                if let replaced { changes += relink(replaced, move.isExchange ? 0 : -1, now, stack) }
                let leaving = move.movesDirectory ? 1 : 0
                let coming = move.replacesDirectory ? 1 : 0
                if isHere {
                    let net = move.isExchange ? 0 : -coming
                    changes.append(touched(parent, subdirectories: net, now))
                } else {
                    changes += [
                        touched(parent, subdirectories: (move.isExchange ? coming : 0) - leaving, now),
                        touched(newParent, subdirectories: leaving - coming, now),
                    ]
                }
                try record(stack.top, changes)
                // What replaces another is looked for after a power cut, with its data.
                if move.replaced != nil, !move.isExchange { commits.noteReplacing(move.moved.reference) }
            }
        }

        if move.leavesWhiteout {
            let attributes = attributes(parent)
            _ = try makeFile(attributes, makingWhiteout) { (status, reference) throws(Errno) in
                try note((status, reference))
            }
        } else {
            try note(nil)
        }
        if let other = move.replaced, !move.isExchange {
            didLoseName(other.reference, stack)
        }
    }

    private func checkRename(_ move: Move, _ stack: LayerStack) throws(Errno) {
        if move.flags & UInt32(RENAME_NOREPLACE) != 0, move.replaced != nil { throw .fileExists }
        if move.isExchange {
            if move.replaced == nil { throw .noSuchFileOrDirectory }
            return
        }
        guard let replaced = move.replaced, replaced.key != move.moved.key else { return }
        if move.movesDirectory && !move.replacesDirectory { throw .notDirectory }
        if !move.movesDirectory && move.replacesDirectory { throw .isDirectory }
        if move.replacesDirectory, try !isEmpty(replaced, stack) { throw .directoryNotEmpty }
    }
}
