/// What may be found after a crash.
///
/// `states` are what the ideal tree was after each operation, the last one maybe under way. After a power cut this is
/// checked:
/// 1. Names, kinds and link counts, and the attributes and sizes of directories and of inodes of the cut, are all those of
///    one state, not older than the last fsync of anything.
/// 2. The attributes and size of an inode that is newer than the cut are each of some state since its last fsync.
/// 3. Each block of data is of some state since the inode's last fsync, or since it replaced another by a rename that is
///    in; or it is a hole, where it did not exist in one of these states and did in a later one.
///
/// After a kill the same, with only the last operation that ended and the one under way as states: so all that
/// applications were told is there, and of the rest an operation is in or not, but for single blocks.
struct Oracle {
    struct State {
        /// What can be reached by a name.
        let tree: [Inode: Node]
        /// And what is open.
        let all: [Inode: Node]

        init(_ all: [Inode: Node]) {
            self.all = all
            tree = reachable(all)
        }
    }

    var states: [State] = []
    /// The oldest state that may be found.
    var oldest = 0
    /// The state at the last fsync of each inode.
    var synced: [Inode: Int] = [:]
    /// Replacements by rename: the inode, and the state that has it.
    var replacements: [(inode: Inode, state: Int)] = []
    /// The inodes of the cut.
    var old: Set<Inode> = []

    /// What is wrong with what was found; nil if nothing.
    func problem(_ found: [Inode: Node], comparesChanged: Bool) -> String? {
        var why = ""
        var candidates = Array(states.indices)
        candidates.removeAll { $0 < oldest }
        for state in candidates.reversed() {
            if let difference = difference(found, states[state].tree, comparesChanged) {
                why += "\n  \(state): \(difference)"
                continue
            }
            return found.sorted { $0.key < $1.key }.lazy.compactMap { inode, node in
                self.problem(inode, node, in: state)
            }.first
        }
        return "like none of states \(oldest)...\(states.count - 1): \(why)"
    }

    private func difference(_ found: [Inode: Node], _ state: [Inode: Node], _ comparesChanged: Bool) -> String? {
        if found.count != state.count {
            return "found \(found.keys.sorted()), not \(state.keys.sorted())"
        }
        for (inode, node) in found {
            guard let wanted = state[inode] else { return "inode \(inode) is not in the state" }
            if node.kind != wanted.kind || node.entries != wanted.entries {
                return "inode \(inode) is \(node.kind) \(node.entries), not \(wanted.kind) \(wanted.entries)"
            }
            if node.status.links != wanted.status.links {
                return "inode \(inode) has \(node.status.links) links, not \(wanted.status.links)"
            }
            guard node.kind == .directory || old.contains(inode) else { continue }
            var status = wanted.status
            if !comparesChanged { status.changed = node.status.changed }
            if node.status != status || node.content.size != wanted.content.size {
                return
                    "inode \(inode) has \(node.status) \(node.content.size), not \(status) \(wanted.content.size)"
            }
        }
        return nil
    }

    private func problem(_ inode: Inode, _ node: Node, in state: Int) -> String? {
        guard node.kind != .directory else { return nil }
        let replaced = replacements.last { $0.inode == inode && $0.state <= state }?.state ?? 0
        let since = max(synced[inode] ?? 0, replaced)
        let history = states[min(since, states.count - 1)...].map { $0.all[inode] }
        let known = history.compactMap { $0 }
        if !old.contains(inode) {
            let isKnown =
                known.contains { $0.status.mode == node.status.mode }
                && known.contains { $0.status.owner == node.status.owner }
                && known.contains { $0.status.extended == node.status.extended }
                && known.contains { $0.content.size == node.content.size }
            // An inode becomes durable with its first name: as it was made, and empty.
            let isFresh = node.status.mode == 0o644 && synced[inode] == nil
            if !isKnown && !isFresh { return "inode \(inode) has \(node.status) \(node.content.size)" }
        }
        for page in 0..<Content.pageCount(node.content.size) {
            let version = node.content.pages[page]
            if !isAllowed(version, page, node.content.size, history) {
                return "page \(page) of inode \(inode) is \(String(describing: version))"
                    + ", in states \(since)... it is \(history.map { $0?.content })"
            }
        }
        return nil
    }

    private func isAllowed(_ version: Page?, _ page: Int, _ size: Int, _ history: [Node?]) -> Bool {
        var wasAbsent = false
        for node in history {
            guard var content = node?.content, page < Content.pageCount(content.size) else {
                wasAbsent = true
                continue
            }
            if version == nil && wasAbsent { return true }
            if content.size > size { content.truncate(to: size) }
            if content.pages[page] == version { return true }
        }
        return false
    }
}

/// What can be reached from the root.
func reachable(_ nodes: [Inode: Node]) -> [Inode: Node] {
    var found: [Inode: Node] = [:]
    var waiting = [Disk.root]
    while let inode = waiting.popLast() {
        guard found[inode] == nil, let node = nodes[inode] else { continue }
        found[inode] = node
        waiting.append(contentsOf: node.entries.values)
    }
    return found
}
