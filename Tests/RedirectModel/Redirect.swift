/// The model of the first embodiment (Figure 3) at the level of the steps that the program takes: each change of the
/// disk is one step, and the process may die or the power fail after any.
///
/// The delta is a stack of layers. A snapshot has one. `stop` seals it, puts a new one on top for what applications
/// change from then on, and merges the sealed one, which nothing changes any more, into the primary; then the next,
/// until the top one is empty at an instant. The live view is the stack over the primary, at every moment.
///
/// Invariants:
/// 1. The primary does not change before the merge begins.
/// 2. The live view is what applications did, whatever part of a layer has been merged: the layer masks it.
/// 3. What a durable record stands for is durable, and is not destroyed before the record that lets go of it is durable.
/// 4. Only a layer all of which is durable is merged, and it stays until the primary is durable.
package struct Redirect {
    package enum Phase: Sendable { case idle, active, merging }

    /// What is to be destroyed once the journal is durable that far.
    private enum Disposal: Sendable {
        case punch(Inode, Set<Int>)
        case removeNewFile(Inode)
    }

    package internal(set) var disk: Disk
    package internal(set) var phase = Phase.idle
    package var mistake: Mistake?
    /// Called after each step, with the disk as it then is.
    package var observe: ((borrowing Disk) -> Void)?
    /// Called while a commit waits for data to be synced: what applications do meanwhile.
    package var meanwhile: ((inout Redirect) -> Void)?

    /// The lowest first.
    var layers: [Layer] = []
    /// The names and data of the primary from before the start are durable.
    var primaryIsDurable = false
    /// The sealed layer, below the top one, is durable.
    var sealIsDurable = false
    var work: [MergeStep] = []
    var opens: [Inode: Int] = [:]
    var linkable: Set<Inode> = []
    private var disposals: [(layer: Int, sequence: Int, what: Disposal)] = []
    /// Files that took another's place by a rename, to be flushed before the mark that commits it.
    private var unflushed: [(layer: Int, sequence: Int, inode: Inode)] = []

    package init(disk: Disk) { self.disk = disk }

    mutating func step(_ body: (inout Disk) -> Void) {
        body(&disk)
        observe?(disk)
    }

    var top: Layer {
        get { layers[layers.count - 1] }
        set { layers[layers.count - 1] = newValue }
    }

    // MARK: The live view

    func entry(_ directory: Inode, _ name: Name) -> Inode? {
        for layer in layers.reversed() {
            if let entry = layer.records[directory]?.entries[name] { return entry }
        }
        return disk.inodes[directory]?.entries[name]
    }

    func entries(_ directory: Inode) -> [Name: Inode] {
        var entries = disk.inodes[directory]?.entries ?? [:]
        for layer in layers {
            guard let changed = layer.records[directory]?.entries else { continue }
            for (name, entry) in changed { entries[name] = entry }
        }
        return entries
    }

    func kind(_ inode: Inode) -> Kind? { disk.inodes[inode]?.kind }
    func isDirectory(_ inode: Inode) -> Bool { kind(inode) == .directory }

    /// Whether an inode's data and attributes are those of its real file, in the store or merged already.
    func isDirect(_ inode: Inode) -> Bool {
        phase == .idle || layers.contains { $0.born.contains(inode) }
    }

    func status(_ inode: Inode) -> Status {
        var status = disk.inodes[inode]?.status ?? Status()
        status.links = 0
        var links: Int?
        for layer in layers {
            guard let record = layer.records[inode] else { continue }
            if let own = record.status { (status, links) = (own, own.links) }
            if let own = record.links {
                links = own
                status.changed = max(status.changed, record.changed)
            }
        }
        if isDirectory(inode) {
            status.links = 2 + entries(inode).values.filter { isDirectory($0) }.count
        } else {
            status.links = links ?? disk.linkCount(inode)
        }
        return status
    }

    func content(_ inode: Inode) -> Content {
        var content = storedContent(inode)
        content.truncate(to: content.size)
        return content
    }

    /// With what may lie behind the size.
    func storedContent(_ inode: Inode) -> Content {
        var content = disk.inodes[inode]?.content ?? Content()
        for layer in layers {
            guard let record = layer.records[inode], record.status != nil else { continue }
            for page in record.holes { content.pages[page] = nil }
            for page in record.data {
                content.pages[page] = disk.inodes[Self.deltaFile(layer.number, inode)]?.content.pages[page]
            }
            content.size = record.size
        }
        return content
    }

    /// All that can be reached.
    package func live() -> [Inode: Node] {
        var nodes: [Inode: Node] = [:]
        var waiting = [Disk.root] + opens.keys
        while let inode = waiting.popLast() {
            guard nodes[inode] == nil, let kind = kind(inode) else { continue }
            let entries = kind == .directory ? entries(inode) : [:]
            nodes[inode] = Node(kind: kind, status: status(inode), content: content(inode), entries: entries)
            waiting.append(contentsOf: entries.values)
            // A name of what is not there: found by whoever compares.
            for entry in entries.values where disk.inodes[entry] == nil {
                nodes[entry] = Node(kind: .device(-1), status: Status())
            }
        }
        return nodes
    }

    static func deltaFile(_ layer: Int, _ inode: Inode) -> Inode { 1_000_000 + layer * 10_000 + inode }

    // MARK: Changes

    /// One operation of an application.
    package mutating func perform(_ operation: Operation, now: Int) throws(Refusal) {
        switch operation {
        case .make, .makeUnnamed, .link, .unlink, .removeDirectory, .rename:
            try performNaming(operation, now)
        case .change(let inode, let change):
            self.change(inode, change, now)
        case .set(let inode, let setting):
            var status = status(inode)
            setting.apply(to: &status, now)
            setStatus(inode, status)
        case .open(let inode):
            opens[inode, default: 0] += 1
        case .close(let inode):
            opens[inode] = opens[inode] == 1 ? nil : (opens[inode] ?? 1) - 1
            if opens[inode] == nil && phase == .active && status(inode).links == 0 && !isDirectory(inode) {
                dispose(ofGone: inode)
            }
        case .synchronize(let inode):
            if phase == .idle { step { $0.synchronize(inode) } } else { commit([inode]) }
        }
    }

    private mutating func setStatus(_ inode: Inode, _ status: Status) {
        if isDirect(inode) {
            step { $0.setStatus(inode, status) }
        } else {
            record([.status(inode, status, size: content(inode).size)])
        }
    }

    /// Writes the record of an operation, and notes it in the map: with this the operation is done.
    mutating func record(_ changes: [Change]) {
        if mistake == .recordForEachArea {
            for change in changes {
                step { [number = top.number] in $0.append(.change([change]), to: number) }
                top.apply(change)
            }
            return
        }
        step { [number = top.number] in $0.append(.change(changes), to: number) }
        for change in changes { top.apply(change) }
    }

    private var nextSequence: Int { disk.journals[top.number]?.records.count ?? 0 }

    // MARK: Data

    private mutating func change(_ inode: Inode, _ change: DataChange, _ now: Int) {
        var new = content(inode)
        let pages = change.pages(of: new)
        change.apply(to: &new)
        var status = status(inode)
        (status.modified, status.changed) = (now, now)
        if isDirect(inode) {
            for page in pages where page < Content.pageCount(new.size) {
                step { $0.setPage(inode, page, new.pages[page]) }
            }
            step {
                if $0.inodes[inode]?.content.size != new.size || change.isTruncation {
                    $0.setSize(inode, new.size)
                }
                $0.setStatus(inode, status)
            }
            return
        }
        if mistake == .writeToMergingLayer, layers.count == 2 {
            return redirect(inode, pages, change, new, status, layers[0].number)
        }
        redirect(inode, pages, change, new, status, top.number)
    }

    private mutating func redirect(
        _ inode: Inode, _ pages: Range<Int>, _ change: DataChange, _ new: Content, _ status: Status,
        _ layer: Int
    ) {
        let delta = Self.deltaFile(layer, inode)
        let stored = Set(pages.filter { new.pages[$0] != nil })
        let known = layers.last { $0.number == layer }?.records[inode]
        var changes: [Change] = []
        let added = stored.subtracting(known?.data ?? [])
        if !added.isEmpty { changes.append(.data(inode, added)) }
        var holes = Set(pages).subtracting(stored)
        if mistake == .truncateKeepsBlocks {
            holes = holes.filter { $0 < Content.pageCount(new.size) }
        }
        if !holes.isEmpty { changes.append(.holes(inode, holes)) }
        changes.append(.status(inode, status, size: new.size))
        func store(_ model: inout Redirect) {
            if model.disk.inodes[delta] == nil, !stored.isEmpty {
                model.step {
                    $0.make(delta, .file, Status(), size: 1_000_000, in: Disk.deltaFiles, delta)
                }
            }
            for page in stored.sorted() {
                var version = new.pages[page]
                if model.mistake == .composeFromDeltaFile, case .write(let at, let count, _) = change {
                    let stored = model.disk.inodes[delta]?.content.pages[page] ?? Page()
                    for half in 0..<Page.halfCount
                    where !(at..<at + count).contains(page * Page.halfCount + half) {
                        version?.halves[half] = stored.halves[half]
                    }
                }
                model.step { $0.setPage(delta, page, version) }
            }
        }
        if mistake == .recordBeforeData {
            record(changes)
            store(&self)
        } else {
            store(&self)
            if layer == top.number {
                record(changes)
            } else {
                step { $0.append(.change(changes), to: layer) }
                for change in changes { layers[0].apply(change) }
            }
        }
        let punched = holes.filter { disk.inodes[delta]?.content.pages[$0] != nil }
        if !punched.isEmpty { dispose(.punch(inode, punched)) }
    }

    // MARK: Giving space back

    private mutating func dispose(_ disposal: Disposal) {
        let isEarly =
            switch disposal {
            case .punch: mistake == .punchAtOnce
            case .removeNewFile: mistake == .removeNewFileAtOnce
            }
        if isEarly { return destroy(disposal) }
        disposals.append((top.number, nextSequence - 1, disposal))
    }

    /// Of an inode that has no name and is not open.
    mutating func dispose(ofGone inode: Inode) {
        if top.born.contains(inode), layers.count == 1 { dispose(.removeNewFile(inode)) }
    }

    private mutating func destroy(_ disposal: Disposal) {
        switch disposal {
        case .punch(let inode, let pages):
            let stillHoles = pages.subtracting(top.records[inode]?.data ?? [])
            let delta = Self.deltaFile(top.number, inode)
            for page in stillHoles.sorted() { step { $0.setPage(delta, page, nil) } }
        case .removeNewFile(let inode):
            guard disk.inodes[Disk.newFiles]?.entries[inode] != nil, opens[inode] == nil,
                status(inode).links == 0
            else { return }
            step { $0.unlink(in: Disk.newFiles, inode) }
        }
    }

    /// `inode` took the place of another: it is flushed before the mark that commits this.
    mutating func flushLater(_ inode: Inode) {
        if mistake == .renameOverUnflushed || phase == .idle || isDirectory(inode) { return }
        unflushed.append((top.number, nextSequence, inode))
    }

    mutating func flushBeforeMark(_ layer: Int, _ inodes: Set<Inode>) {
        unflushed += inodes.map { (layer, -1, $0) }
    }

    // MARK: Durability

    /// Makes durable what applications have done so far: all names and attributes, and the data of `inodes`.
    mutating func commit(_ inodes: Set<Inode>) {
        let layer = top.number
        var through = nextSequence
        waitForWhatLiesBelow()
        let taken = unflushed.filter { $0.layer == layer && $0.sequence < through }
        let flushed = inodes.union(taken.map(\.inode))
        flush(flushed, layer)
        if let work = meanwhile {
            meanwhile = nil
            work(&self)
        }
        // The layer may have been sealed meanwhile: that waits for the data by itself.
        if mistake == .markCoversWhatCameAfterTheFlush { through = nextSequence }
        var covered = flushed
        if mistake == .markCoversAllData { covered.formUnion(top.inodesWithData) }
        step { [covered, through] in $0.append(.mark(through: through, inodes: covered), to: layer) }
        step { $0.synchronizeJournal(layer) }
        unflushed.removeAll { $0.layer == layer && $0.sequence < through }
        let due = disposals.filter { $0.layer == layer && $0.sequence < through }
        disposals.removeAll { $0.layer == layer && $0.sequence < through }
        for disposal in due { destroy(disposal.what) }
    }

    private mutating func flush(_ inodes: Set<Inode>, _ layer: Int) {
        for inode in inodes.sorted() {
            if isDirect(inode) && !isDirectory(inode) {
                step { $0.synchronize(inode) }
            } else if disk.inodes[Self.deltaFile(layer, inode)] != nil {
                step { $0.synchronize(Self.deltaFile(layer, inode)) }
            }
        }
        step { $0.synchronize(Disk.deltaFiles) }
        if mistake != .markBeforeNewFilesAreDurable { step { $0.synchronize(Disk.newFiles) } }
    }

    /// A mark must not count before what its layer lies on is durable: the primary as it was at the start, or the sealed
    /// layer.
    private mutating func waitForWhatLiesBelow() {
        if layers.count == 1, !primaryIsDurable {
            if mistake != .markBeforePrimaryIsDurable { step { $0.synchronizeAll() } }
            primaryIsDurable = true
        }
        if layers.count == 2, !sealIsDurable, mistake != .markDoesNotWaitForSeal { makeSealDurable() }
    }

    mutating func makeSealDurable() {
        guard layers.count == 2, !sealIsDurable else { return }
        let layer = layers[0]
        let taken = unflushed.filter { $0.layer == layer.number }.map(\.inode)
        let all = layer.inodesWithData.union(taken)
        if !primaryIsDurable {
            step { $0.synchronizeAll() }
            primaryIsDurable = true
        }
        if mistake != .mergeUncommitted {
            flush(all, layer.number)
            let through = disk.journals[layer.number]?.records.count ?? 0
            step { $0.append(.mark(through: through, inodes: all), to: layer.number) }
            step { $0.synchronizeJournal(layer.number) }
        }
        unflushed.removeAll { $0.layer == layer.number }
        disposals.removeAll { $0.layer == layer.number }
        sealIsDurable = true
    }
}

extension DataChange {
    var isTruncation: Bool {
        if case .truncate = self { return true }
        return false
    }
}
