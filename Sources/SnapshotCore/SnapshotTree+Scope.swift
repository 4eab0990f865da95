internal import Glibc
internal import LinuxSystem
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// Which directories lead to something that a snapshot of some users' files shows: what is known by now. Safe for use by
/// all threads.
final class LeadingDirectories: Sendable {
    private let known = Mutex<[InodeKey: Bool]>([:])

    subscript(key: InodeKey) -> Bool? { known.withLock { $0[key] } }

    func note(_ key: InodeKey, _ leads: Bool) {
        known.withLock { $0[key] = leads }
    }
}

// A snapshot of one user's files.
//
// A file is shown where its owner or group at the cut is one of the scope's. A directory can be looked up always, and is
// listed where it is owned so itself, or leads to something that is shown. That is found out when it is listed: the tree
// below it is searched, by descriptors and without a request of the kernel, until the first such file; what was found of
// each directory on the way is kept, since it never changes. So a start costs nothing, a path that is known costs nothing,
// and listing all of the snapshot costs at most one more look at each directory. Without file handles, as in an ordinary
// user's daemon, every directory is listed.
extension OverlayView {
    /// Whether something that a name stands for is shown; `find` opens it where it is, O_PATH.
    func shows(
        _ reference: InodeReference, _ scope: SnapshotScope, find: () throws(Errno) -> Descriptor
    ) throws(Errno) -> Bool {
        if reference.kind == UInt32(S_IFDIR) { return true }
        if reference.device != source.device || map.isBorn(reference.key) { return false }
        do throws(Errno) {
            // Others' files may have changed since, whoever recorded that.
            if absence != nil, map.record(of: reference.key) == nil,
                let inode = try open(reference, O_PATH, find: find), !scope.owns(try FileStatus(of: inode))
            {
                return false
            }
            let status = try status(of: reference) { () throws(Errno) in
                guard let inode = try open(reference, O_PATH, find: find) else { throw .staleNFSFileHandle }
                return inode
            }
            // One that was made by somebody else, or so seemed when it was made, may have been noted meanwhile.
            return scope.owns(status) && !map.isBorn(reference.key)
        } catch {
            // Gone without a record: had it been the scope's, there would be one.
            let isGone = error == .staleNFSFileHandle || error == .noSuchFileOrDirectory
            guard isGone, map.record(of: reference.key) == nil else { throw error }
            return false
        }
    }

    func entry(
        in reference: InodeReference, _ directory: Descriptor?, _ name: UnsafePointer<CChar>,
        _ scope: SnapshotScope
    ) throws(Errno) -> SnapshotEntry {
        let found = try entry(in: reference, directory, name)
        let isShown = try shows(found.reference, scope) { () throws(Errno) in
            guard let directory else { throw .staleNFSFileHandle }
            return try Descriptor.open(at: directory, name, O_PATH | O_NOFOLLOW)
        }
        if !isShown { throw .noSuchFileOrDirectory }
        return found
    }

    /// The names in a directory that are shown.
    func listing(
        of reference: InodeReference, _ directory: Descriptor?, _ scope: SnapshotScope,
        _ leading: LeadingDirectories,
        check: () throws(Errno) -> Void
    ) throws(Errno) -> Listing {
        let all = try listing(of: reference, directory)
        var shown = Listing()
        for index in 0..<all.count {
            try all.withEntry(index) { (name, inode, kind) throws(Errno) in
                if isPlainlyHidden(name, in: reference, directory, scope) { return }
                guard let found = try entryIfShown(in: reference, directory, name, scope) else { return }
                let isDirectory = found.kind == UInt32(S_IFDIR)
                if isDirectory, try !leads(found, scope, leading, check: check) { return }
                shown.append(name, inode: inode, kind: kind)
            }
        }
        return shown
    }

    private func entryIfShown(
        in reference: InodeReference, _ directory: Descriptor?, _ name: UnsafePointer<CChar>,
        _ scope: SnapshotScope
    ) throws(Errno) -> InodeReference? {
        do throws(Errno) {
            return try entry(in: reference, directory, name, scope).reference
        } catch .noSuchFileOrDirectory {
            return nil
        }
    }

    /// Whether a name is of somebody else's file: in one system call, for directories with many of those. Neither the
    /// name nor the file's owner has been recorded after they were looked at, so they were these at the cut, or others
    /// that are not shown either.
    private func isPlainlyHidden(
        _ name: UnsafePointer<CChar>, in reference: InodeReference, _ directory: Descriptor?,
        _ scope: SnapshotScope
    ) -> Bool {
        guard let directory else { return false }
        do throws(Errno) {
            let status = try FileStatus(at: directory, name)
            if status.isDirectory || scope.owns(status) || status.device != source.device { return false }
            if map.record(of: InodeKey(status)) != nil { return false }
            return map.record(of: reference.key)?.contents.withLock { $0.entries[FileName(name)] } == nil
        } catch {
            return false
        }
    }

    // MARK: What a directory leads to

    /// A directory on the way down, and those in it that are still to be looked at.
    private struct Level {
        let key: InodeKey
        var left: [InodeReference]
    }

    /// What is found in one directory.
    private enum Finding {
        case shown
        /// Nothing but these directories.
        case directories([InodeReference])
    }

    /// Whether a directory of the snapshot is owned as the scope says, or has something below it that is. `check` throws
    /// where the snapshot has ended.
    private func leads(
        _ start: InodeReference, _ scope: SnapshotScope, _ leading: LeadingDirectories,
        check: () throws(Errno) -> Void
    ) throws(Errno) -> Bool {
        if !source.usesHandles { return true }
        if let known = leading[start.key] { return known }
        // A level holds no descriptor: a tree may be deeper than a process may have files open.
        var way = [Level(key: source.rootReference.key, left: [start])]
        while let at = way.indices.last {
            guard let next = way[at].left.popLast() else {
                if at > 0 { leading.note(way[at].key, false) }
                way.removeLast()
                continue
            }
            try check()
            let finding: Finding
            if let known = leading[next.key] {
                finding = known ? .shown : .directories([])
            } else {
                finding = try look(next, scope, check: check)
            }
            switch finding {
            case .shown:
                leading.note(next.key, true)
                for level in way.dropFirst() { leading.note(level.key, true) }
                return true
            case .directories(let below): way.append(Level(key: next.key, left: below))
            }
        }
        return false
    }

    private func look(
        _ reference: InodeReference, _ scope: SnapshotScope, check: () throws(Errno) -> Void
    ) throws(Errno) -> Finding {
        // A file system mounted below the source.
        if reference.device != source.device { return .directories([]) }
        func opened(_ flags: Int32) throws(Errno) -> Descriptor? {
            try open(reference, flags) { () throws(Errno) in throw .staleNFSFileHandle }
        }
        do throws(Errno) {
            let status = try status(of: reference) { () throws(Errno) in
                guard let inode = try opened(O_PATH) else { throw .staleNFSFileHandle }
                return inode
            }
            if scope.owns(status) { return .shown }
            let directory = try opened(O_RDONLY | O_DIRECTORY | O_NOATIME)
            return try look(in: reference, directory, scope)
        } catch {
            try check()
            // It is lost, or cannot be read: it is listed, and who goes there gets the error.
            return .shown
        }
    }

    private func look(
        in reference: InodeReference, _ directory: Descriptor?, _ scope: SnapshotScope
    ) throws(Errno) -> Finding {
        let all = try listing(of: reference, directory)
        var below: [InodeReference] = []
        for index in 0..<all.count {
            let isShown = try all.withEntry(index) { (name, _, _) throws(Errno) -> Bool in
                if isPlainlyHidden(name, in: reference, directory, scope) { return false }
                guard let found = try entryIfShown(in: reference, directory, name, scope) else { return false }
                if found.kind != UInt32(S_IFDIR) { return true }
                below.append(found)
                return false
            }
            if isShown { return .shown }
        }
        return .directories(below)
    }
}
