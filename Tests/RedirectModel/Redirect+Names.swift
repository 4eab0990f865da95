// Names: what an operation changes is decided on the live view, then written as one record; while idle, the primary
// takes the same changes at once.
extension Redirect {
    mutating func performNaming(_ operation: Operation, _ now: Int) throws(Refusal) {
        switch operation {
        case .make(let inode, let kind, let directory, let name):
            if entry(directory, name) != nil { throw .exists }
            make(inode, kind, now)
            apply(
                born(inode, kind, now) + [.name(in: directory, name, inode), touched(directory, now)])
        case .makeUnnamed(let inode):
            var status = Ideal.fresh(.file, now)
            status.links = 0
            step { $0.make(inode, .file, status, in: nil, 0) }
            opens[inode] = 1
            linkable.insert(inode)
            if phase != .idle {
                record([.born(inode, isDirectory: false), .links(inode, 0, changed: now)])
            }
        case .link(let inode, let directory, let name):
            try link(inode, directory, name, now)
        case .unlink(let directory, let name):
            guard let inode = entry(directory, name) else { throw .noEntry }
            if isDirectory(inode) { throw .isDirectory }
            apply([.name(in: directory, name, nil), touched(directory, now), relinked(inode, -1, now)])
            didLoseName(inode)
        case .removeDirectory(let directory, let name):
            guard let inode = entry(directory, name) else { throw .noEntry }
            if !isDirectory(inode) { throw .notDirectory }
            if !entries(inode).isEmpty { throw .notEmpty }
            apply([.name(in: directory, name, nil), touched(directory, now)], removed: inode)
        case .rename(let directory, let name, let newDirectory, let newName, let kind):
            try rename(directory, name, newDirectory, newName, kind, now)
        case .change, .set, .open, .close, .synchronize:
            preconditionFailure("not an operation on names")
        }
    }

    /// Makes the real file of a new inode; while idle, without a name yet.
    private mutating func make(_ inode: Inode, _ kind: Kind, _ now: Int) {
        let status = Ideal.fresh(kind, now)
        if phase == .idle {
            disk.make(inode, kind, status, in: nil, 0)
        } else {
            step { $0.make(inode, kind, status, in: Disk.newFiles, inode) }
        }
    }

    private func born(_ inode: Inode, _ kind: Kind, _ now: Int) -> [Change] {
        if phase == .idle { return [] }
        if kind == .directory { return [.born(inode, isDirectory: true)] }
        return [.born(inode, isDirectory: false), .links(inode, 1, changed: now)]
    }

    private mutating func apply(_ changes: [Change], removed: Inode? = nil) {
        if phase != .idle { return record(changes) }
        step { disk in
            var names: [Disk.NameChange] = []
            for case .name(let directory, let name, let inode) in changes {
                names.append(Disk.NameChange(directory: directory, name: name, inode: inode))
            }
            disk.change(names, removed: removed)
            for case .status(let inode, let status, _) in changes { disk.setStatus(inode, status) }
        }
    }

    /// A directory in which a name has changed.
    private func touched(_ directory: Inode, _ now: Int) -> Change {
        var status = status(directory)
        (status.modified, status.changed) = (now, now)
        return .status(directory, status, size: 0)
    }

    /// An inode that gets a name or loses one, or keeps as many elsewhere.
    private func relinked(_ inode: Inode, _ links: Int, _ now: Int) -> Change {
        var status = status(inode)
        status.changed = now
        status.links += links
        if isDirect(inode) && phase != .idle && !isDirectory(inode) {
            return .links(inode, status.links, changed: now)
        }
        return .status(inode, status, size: content(inode).size)
    }

    private mutating func didLoseName(_ inode: Inode) {
        if phase == .active, opens[inode] == nil, !isDirectory(inode), status(inode).links == 0 {
            dispose(ofGone: inode)
        }
    }

    private mutating func link(_ inode: Inode, _ directory: Inode, _ name: Name, _ now: Int) throws(Refusal) {
        if entry(directory, name) != nil { throw .exists }
        guard kind(inode) != nil else { throw .noEntry }
        if isDirectory(inode) { throw .notPermitted }
        if status(inode).links == 0 && !linkable.contains(inode) { throw .noEntry }
        let hasNoPlace = linkable.remove(inode) != nil && phase != .idle
        // Made without a name: now it gets its place in the store.
        if hasNoPlace { step { $0.link(inode, in: Disk.newFiles, inode) } }
        apply([.name(in: directory, name, inode), touched(directory, now), relinked(inode, 1, now)])
    }

    private func isAbove(_ inode: Inode, _ directory: Inode) -> Bool {
        if inode == directory { return true }
        return isDirectory(inode) && entries(inode).values.contains { isAbove($0, directory) }
    }

    private mutating func rename(
        _ directory: Inode, _ name: Name, _ newDirectory: Inode, _ newName: Name, _ kind: RenameKind, _ now: Int
    ) throws(Refusal) {
        guard let moved = entry(directory, name) else { throw .noEntry }
        let replaced = entry(newDirectory, newName)
        let isExchange = kind == .exchange
        if kind == .noReplace && replaced != nil { throw .exists }
        if isExchange && replaced == nil { throw .noEntry }
        if isDirectory(moved) && isAbove(moved, newDirectory) { throw .invalid }
        if let replaced, isDirectory(replaced), isAbove(replaced, directory) {
            throw isExchange ? .invalid : .notEmpty
        }
        if moved == replaced { return }
        var changes: [Change] = [.name(in: directory, name, isExchange ? replaced : nil)]
        var removed: Inode?
        if let replaced, !isExchange {
            if isDirectory(moved) != isDirectory(replaced) {
                throw isDirectory(moved) ? .notDirectory : .isDirectory
            }
            if isDirectory(replaced) {
                if !entries(replaced).isEmpty { throw .notEmpty }
                removed = replaced
            } else {
                changes.append(relinked(replaced, -1, now))
            }
        } else if let replaced {
            changes.append(relinked(replaced, 0, now))
        }
        changes += [.name(in: newDirectory, newName, moved), relinked(moved, 0, now), touched(directory, now)]
        if newDirectory != directory { changes.append(touched(newDirectory, now)) }
        if case .whiteout(let inode) = kind {
            make(inode, .whiteout, now)
            changes += born(inode, .whiteout, now) + [.name(in: directory, name, inode)]
        }
        if replaced != nil && !isExchange { flushLater(moved) }
        apply(changes, removed: removed)
        if let replaced, !isExchange { didLoseName(replaced) }
    }
}
