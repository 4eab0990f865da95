/// The oracle: a plain tree in memory, to which every operation is applied directly.
package struct Ideal: Equatable, Sendable {
    package static let root: Inode = 1

    /// All that can be reached: by a name, or because it is open.
    package var nodes: [Inode: Node]
    package private(set) var opens: [Inode: Int] = [:]
    /// Made without a name, and not given one yet.
    private var linkable: Set<Inode> = []

    package init() {
        nodes = [Self.root: Node(kind: .directory, status: Status(mode: 0o755, links: 2))]
    }

    /// Goes on from what was found after a crash: nothing is open any more.
    package init(nodes: [Inode: Node]) {
        self.nodes = nodes
    }

    package mutating func apply(_ operation: Operation, now: Int) throws(Refusal) {
        switch operation {
        case .make(let inode, let kind, let directory, let name):
            if nodes[directory]?.entries[name] != nil { throw .exists }
            nodes[inode] = Node(kind: kind, status: Self.fresh(kind, now))
            enter(inode, in: directory, name, now)
        case .makeUnnamed(let inode):
            var status = Self.fresh(.file, now)
            status.links = 0
            nodes[inode] = Node(kind: .file, status: status)
            opens[inode] = 1
            linkable.insert(inode)
        case .link(let inode, let directory, let name):
            try link(inode, directory, name, now)
        case .unlink(let directory, let name):
            guard let inode = nodes[directory]?.entries[name] else { throw .noEntry }
            if nodes[inode]?.kind == .directory { throw .isDirectory }
            leave(inode, from: directory, name, now)
        case .removeDirectory(let directory, let name):
            guard let inode = nodes[directory]?.entries[name] else { throw .noEntry }
            if nodes[inode]?.kind != .directory { throw .notDirectory }
            if nodes[inode]?.entries.isEmpty == false { throw .notEmpty }
            leave(inode, from: directory, name, now)
        case .rename(let directory, let name, let newDirectory, let newName, let kind):
            try rename(directory, name, newDirectory, newName, kind, now)
        case .change(let inode, let change):
            if var content = nodes[inode]?.content {
                change.apply(to: &content)
                nodes[inode]?.content = content
            }
            nodes[inode]?.status.modified = now
            nodes[inode]?.status.changed = now
        case .set(let inode, let setting):
            guard var status = nodes[inode]?.status else { return }
            setting.apply(to: &status, now)
            nodes[inode]?.status = status
        case .open(let inode):
            opens[inode, default: 0] += 1
        case .close(let inode):
            opens[inode] = opens[inode] == 1 ? nil : (opens[inode] ?? 1) - 1
            forgetIfGone(inode)
        case .synchronize:
            break
        }
    }

    static func fresh(_ kind: Kind, _ now: Int) -> Status {
        Status(mode: 0o644, modified: now, changed: now, links: kind == .directory ? 2 : 1)
    }

    private mutating func touch(_ directory: Inode, _ now: Int) {
        nodes[directory]?.status.modified = now
        nodes[directory]?.status.changed = now
    }

    private func isDirectory(_ inode: Inode) -> Bool { nodes[inode]?.kind == .directory }

    private mutating func enter(_ inode: Inode, in directory: Inode, _ name: Name, _ now: Int) {
        nodes[directory]?.entries[name] = inode
        if isDirectory(inode) { nodes[directory]?.status.links += 1 }
        touch(directory, now)
    }

    private mutating func take(_ name: Name, from directory: Inode, _ now: Int) {
        guard let inode = nodes[directory]?.entries.removeValue(forKey: name) else { return }
        if isDirectory(inode) { nodes[directory]?.status.links -= 1 }
        touch(directory, now)
    }

    /// A name goes, and with it a link.
    private mutating func leave(_ inode: Inode, from directory: Inode, _ name: Name, _ now: Int) {
        take(name, from: directory, now)
        let links = isDirectory(inode) ? 2 : 1
        nodes[inode]?.status.links -= links
        nodes[inode]?.status.changed = now
        forgetIfGone(inode)
    }

    private mutating func forgetIfGone(_ inode: Inode) {
        if nodes[inode]?.status.links == 0, opens[inode] == nil { nodes[inode] = nil }
    }

    private mutating func link(_ inode: Inode, _ directory: Inode, _ name: Name, _ now: Int) throws(Refusal) {
        if nodes[directory]?.entries[name] != nil { throw .exists }
        guard let node = nodes[inode] else { throw .noEntry }
        if node.kind == .directory { throw .notPermitted }
        if node.status.links == 0 && !linkable.contains(inode) { throw .noEntry }
        linkable.remove(inode)
        nodes[inode]?.status.links += 1
        nodes[inode]?.status.changed = now
        enter(inode, in: directory, name, now)
    }

    /// Whether `inode` is `directory`, or above it.
    private func isAbove(_ inode: Inode, _ directory: Inode) -> Bool {
        if inode == directory { return true }
        guard isDirectory(inode), let children = nodes[inode]?.entries.values else { return false }
        return children.contains { isAbove($0, directory) }
    }

    private mutating func rename(
        _ directory: Inode, _ name: Name, _ newDirectory: Inode, _ newName: Name, _ kind: RenameKind, _ now: Int
    ) throws(Refusal) {
        guard let moved = nodes[directory]?.entries[name] else { throw .noEntry }
        let replaced = nodes[newDirectory]?.entries[newName]
        if kind == .noReplace && replaced != nil { throw .exists }
        if kind == .exchange && replaced == nil { throw .noEntry }
        if isAbove(moved, newDirectory) && isDirectory(moved) { throw .invalid }
        if let replaced, isDirectory(replaced), isAbove(replaced, directory) {
            throw kind == .exchange ? .invalid : .notEmpty
        }
        if moved == replaced { return }
        if let replaced, kind != .exchange {
            if isDirectory(moved) && !isDirectory(replaced) { throw .notDirectory }
            if !isDirectory(moved) && isDirectory(replaced) { throw .isDirectory }
            if nodes[replaced]?.entries.isEmpty == false { throw .notEmpty }
        }
        take(name, from: directory, now)
        if let replaced {
            if kind == .exchange {
                take(newName, from: newDirectory, now)
                nodes[replaced]?.status.changed = now
                enter(replaced, in: directory, name, now)
            } else {
                leave(replaced, from: newDirectory, newName, now)
            }
        }
        enter(moved, in: newDirectory, newName, now)
        nodes[moved]?.status.changed = now
        if case .whiteout(let inode) = kind {
            nodes[inode] = Node(kind: .whiteout, status: Self.fresh(.whiteout, now))
            enter(inode, in: directory, name, now)
        }
    }
}

extension Setting {
    func apply(to status: inout Status, _ now: Int) {
        switch self {
        case .mode(let mode): status.mode = mode
        case .owner(let owner): status.owner = owner
        case .modified(let time): status.modified = time
        case .extended(let value): status.extended = value
        }
        status.changed = now
    }
}
