/// The file system that holds primary area and store, as the page cache shows it and as a power cut leaves it.
///
/// What survives a power cut of what was not synced:
/// - of each data page any version that it had since it was synced;
/// - of the attributes and sizes of an inode the changes up to some one of them;
/// - of changes of names any set in which each has those that it builds on: earlier ones of the same name, of an
///   inode concerned, and, before a directory's removal, of names in it. A rename is in whole or not at all;
/// - of a journal its synced records, and any number of those behind them.
///
/// fsync of a file makes its data and attributes durable, not its name; of a directory, the names in it. ext4 and XFS
/// keep more order than this.
package struct Disk: Sendable {
    package static let root = Ideal.root
    package static let staging: Inode = 2
    package static let newFiles: Inode = 3
    package static let deltaFiles: Inode = 4
    static let storeDirectories = [staging, newFiles, deltaFiles]

    struct NameChange: Sendable {
        let directory: Inode
        let name: Name
        let inode: Inode?
    }

    /// What is not durable yet, in the order in which it was done.
    private enum Pending: Sendable {
        case names([NameChange], concerned: Set<Inode>, removed: Inode?)
        case status(Inode, Status)
        case size(Inode, Int)
    }

    package private(set) var inodes: [Inode: Node]
    package private(set) var journals: [Int: JournalFile] = [:]
    package private(set) var boot = 0
    /// No layer's number is used twice, nor, so, the name of a delta file.
    private(set) var lastLayer = 0
    private var durable: [Inode: Node]
    /// Each inode as it was made: so it becomes durable with its first name.
    private var initial: [Inode: Node] = [:]
    private var pending: [Pending] = []
    /// The versions that pages had since they were synced.
    private var versions: [Inode: [Int: [Page?]]] = [:]

    package init() {
        let directory = Node(kind: .directory, status: Status(mode: 0o755))
        inodes = [:]
        for inode in [Self.root] + Self.storeDirectories { inodes[inode] = directory }
        durable = inodes
    }

    // MARK: Names

    mutating func make(
        _ inode: Inode, _ kind: Kind, _ status: Status, size: Int = 0, in directory: Inode?, _ name: Name
    ) {
        inodes[inode] = Node(kind: kind, status: status, content: Content(size: size))
        initial[inode] = inodes[inode]
        guard let directory else { return }
        change([NameChange(directory: directory, name: name, inode: inode)])
    }

    mutating func change(_ changes: [NameChange], removed: Inode? = nil) {
        var concerned: Set<Inode> = []
        for change in changes {
            if let old = inodes[change.directory]?.entries[change.name] { concerned.insert(old) }
            if let new = change.inode { concerned.insert(new) }
            inodes[change.directory]?.entries[change.name] = change.inode
            touch(change.directory)
        }
        pending.append(.names(changes, concerned: concerned, removed: removed))
    }

    mutating func link(_ inode: Inode, in directory: Inode, _ name: Name) {
        change([NameChange(directory: directory, name: name, inode: inode)])
    }

    mutating func unlink(in directory: Inode, _ name: Name) {
        let inode = inodes[directory]?.entries[name]
        let isDirectory = inode.flatMap { inodes[$0]?.kind } == .directory
        change([NameChange(directory: directory, name: name, inode: nil)], removed: isDirectory ? inode : nil)
    }

    mutating func rename(_ directory: Inode, _ name: Name, to newDirectory: Inode, _ newName: Name) {
        guard let inode = inodes[directory]?.entries[name] else { return }
        change([
            NameChange(directory: directory, name: name, inode: nil),
            NameChange(directory: newDirectory, name: newName, inode: inode),
        ])
    }

    /// What is changed gets the time of now: which nobody asked for, so it must be set right afterwards.
    private mutating func touch(_ inode: Inode) {
        inodes[inode]?.status.modified = -1
    }

    /// The names of an inode in the source.
    func linkCount(_ inode: Inode) -> Int {
        var count = 0
        for (directory, node) in inodes where !Self.storeDirectories.contains(directory) {
            for entry in node.entries.values where entry == inode { count += 1 }
        }
        return count
    }

    // MARK: Data and attributes

    mutating func setPage(_ inode: Inode, _ page: Int, _ version: Page?) {
        inodes[inode]?.content.pages[page] = version
        touch(inode)
        versions[inode, default: [:]][page, default: []].append(version)
    }

    mutating func setSize(_ inode: Inode, _ size: Int) {
        let last = size / Page.halfCount
        let before = inodes[inode]?.content.pages[last]
        inodes[inode]?.content.truncate(to: size)
        touch(inode)
        // Blocks behind the end go with the size. The rest of the last one is zeroed on its own.
        if let now = inodes[inode]?.content.pages[last], now != before {
            versions[inode, default: [:]][last, default: []].append(now)
        }
        pending.append(.size(inode, size))
    }

    mutating func setStatus(_ inode: Inode, _ status: Status) {
        inodes[inode]?.status = status
        pending.append(.status(inode, status))
    }

    // MARK: Syncing

    mutating func synchronize(_ inode: Inode) {
        guard let node = inodes[inode] else { return }
        if node.kind == .directory { return synchronizeNames(of: inode) }
        durable[inode] = node
        versions[inode] = nil
        pending.removeAll {
            switch $0 {
            case .status(inode, _), .size(inode, _): true
            default: false
            }
        }
    }

    private mutating func synchronizeNames(of directory: Inode) {
        var chosen: Set<Int> = []
        for index in pending.indices.reversed() {
            guard case .names(let changes, _, _) = pending[index] else { continue }
            let isIn =
                changes.contains { $0.directory == directory }
                || chosen.contains { builds($0, on: index) }
            if isIn { chosen.insert(index) }
        }
        for index in chosen.sorted() { settle(pending[index]) }
        pending = pending.indices.filter { !chosen.contains($0) }.map { pending[$0] }
    }

    /// Whether the later of two pending changes of names builds on the earlier.
    private func builds(_ later: Int, on earlier: Int) -> Bool {
        guard case .names(let changes, let concerned, let removed) = pending[later],
            case .names(let before, let concernedBefore, _) = pending[earlier]
        else { return false }
        if !concerned.isDisjoint(with: concernedBefore) { return true }
        for change in before {
            if change.directory == removed { return true }
            if changes.contains(where: { $0.directory == change.directory && $0.name == change.name }) {
                return true
            }
        }
        return false
    }

    private mutating func settle(_ change: Pending) {
        switch change {
        case .names(let changes, _, _):
            for change in changes {
                if let inode = change.inode, durable[inode] == nil { durable[inode] = initial[inode] }
                durable[change.directory]?.entries[change.name] = change.inode
            }
        case .status(let inode, let status):
            durable[inode]?.status = status
        case .size(let inode, let size):
            durable[inode]?.content.truncate(to: size)
        }
    }

    /// syncfs(2).
    mutating func synchronizeAll() {
        durable = inodes
        pending = []
        versions = [:]
    }

    // MARK: Journals

    mutating func beginJournal(_ number: Int) {
        lastLayer = max(lastLayer, number)
        journals[number] = JournalFile(records: [.head(boot: boot)])
    }

    mutating func append(_ record: JournalRecord, to number: Int) {
        journals[number]?.records.append(record)
    }

    mutating func synchronizeJournal(_ number: Int) {
        let count = journals[number]?.records.count ?? 0
        journals[number]?.durableCount = count
        journals[number]?.exists = true
    }

    /// A new file renamed over the old one, and all that synced.
    mutating func replaceJournal(_ number: Int, _ records: [JournalRecord], keepingBoot: Bool = false) {
        let head = keepingBoot ? journals[number]?.records.first ?? .head(boot: boot) : .head(boot: boot)
        journals[number] = JournalFile(
            records: [head] + records, durableCount: records.count + 1, exists: true)
    }

    /// Removed, and the directory synced.
    mutating func removeJournal(_ number: Int) {
        journals[number] = nil
    }

    // MARK: Crashes

    /// The daemon is killed: what it held open without a name is gone.
    package mutating func kill() {
        forgetUnreachable()
    }

    private mutating func forgetUnreachable() {
        var reached: Set<Inode> = []
        var waiting = [Self.root] + Self.storeDirectories
        while let inode = waiting.popLast() {
            guard reached.insert(inode).inserted, let node = inodes[inode] else { continue }
            waiting.append(contentsOf: node.entries.values)
        }
        inodes = inodes.filter { reached.contains($0.key) }
    }

    /// The power fails: `dice` says what of the unsynced survives.
    package mutating func cutPower(_ dice: inout some RandomNumberGenerator) {
        // Sometimes all is lost, sometimes all survives, else each may.
        let luck = Int.random(in: 0...4, using: &dice)
        func survives(_ dice: inout some RandomNumberGenerator) -> Bool {
            luck == 0 ? false : luck == 1 ? true : Bool.random(using: &dice)
        }
        var lost: Set<Int> = []
        var ended: Set<Inode> = []
        for index in pending.indices {
            switch pending[index] {
            case .names:
                if lost.contains(where: { builds(index, on: $0) }) || !survives(&dice) {
                    lost.insert(index)
                    continue
                }
            case .status(let inode, _), .size(let inode, _):
                if ended.contains(inode) { continue }
                if !survives(&dice) {
                    ended.insert(inode)
                    continue
                }
            }
            settle(pending[index])
        }
        for (inode, pages) in versions.sorted(by: { $0.key < $1.key }) where durable[inode] != nil {
            for (page, history) in pages.sorted(by: { $0.key < $1.key }) where survives(&dice) {
                let version = luck == 1 ? history.last ?? nil : history.randomElement(using: &dice) ?? nil
                durable[inode]?.content.pages[page] = version
            }
            if let size = durable[inode]?.content.size { durable[inode]?.content.truncate(to: size) }
        }
        for (number, journal) in journals.sorted(by: { $0.key < $1.key }) {
            if !journal.exists && !survives(&dice) {
                journals[number] = nil
                continue
            }
            var kept = max(journal.durableCount, 0)
            while kept < journal.records.count, survives(&dice) { kept += 1 }
            let records = Array(journal.records[..<kept])
            journals[number] = JournalFile(records: records, durableCount: kept, exists: true)
        }
        inodes = durable
        forgetUnreachable()
        durable = inodes
        pending = []
        versions = [:]
        initial = [:]
        boot += 1
    }
}
