/// One bounded step of a merge. Each looks at what is there, and does what is left to do: so all of them may be done
/// again from the first, after a crash at any.
enum MergeStep: Sendable {
    /// Takes away what a name stands for in the primary, where the layer says otherwise.
    case take(Inode, Name)
    /// Makes what was taken away durable, before anything is put: a power cut that lost one move and kept another could
    /// leave two directories in each other.
    case settle
    /// Gives an inode the name that the layer says.
    case put(Inode, Name, Inode)
    /// Removes what is left of an inode in the store.
    case clear(Inode)
    case size(Inode)
    case page(Inode, Int)
    case status(Inode)
}

// Start, stop, merge, discard.
extension Redirect {
    package mutating func start() {
        precondition(phase == .idle, "one snapshot at a time")
        let number = disk.lastLayer + 1
        step { $0.beginJournal(number) }
        layers = [Layer(number)]
        primaryIsDurable = false
        phase = .active
    }

    /// Seals the top layer; inside the gate. From here on the snapshot is over.
    package mutating func seal() {
        precondition(layers.count == 1, "one layer is merged at a time")
        let number = top.number
        step { $0.append(.sealed, to: number) }
        let next = disk.lastLayer + 1
        step { $0.beginJournal(next) }
        layers.append(Layer(next))
        sealIsDurable = false
        phase = .merging
        work = steps(of: layers[0])
    }

    func steps(of layer: Layer) -> [MergeStep] {
        var takes: [MergeStep] = []
        var puts: [MergeStep] = []
        var data: [MergeStep] = []
        var files: [MergeStep] = []
        var directories: [MergeStep] = []
        for (inode, record) in layer.records.sorted(by: { $0.key < $1.key }) {
            for (name, entry) in record.entries.sorted(by: { $0.key < $1.key }) {
                takes.append(.take(inode, name))
                if let entry { puts.append(.put(inode, name, entry)) }
            }
            guard record.status != nil else { continue }
            let pages = record.data.union(record.holes)
            if !record.entries.isEmpty || layer.bornDirectories.contains(inode) {
                directories.append(.status(inode))
            } else {
                data.append(.size(inode))
                data += pages.sorted().map { .page(inode, $0) }
                files.append(.status(inode))
            }
        }
        let gone = layer.records.filter { ($0.value.links ?? $0.value.status?.links) == 0 }.keys
        let concerned = layer.named.union(layer.born).union(layer.bornDirectories).union(gone)
        let clears = concerned.sorted().map { MergeStep.clear($0) }
        if mistake == .directoryTimesFirst { return directories + takes + puts + clears + data + files }
        let settled: [MergeStep] = mistake == .putBeforeTakesAreDurable ? [] : [.settle]
        return takes + settled + puts + clears + data + files + directories
    }

    /// One bounded step of the merge; false where the layer is merged.
    package mutating func mergeStep() -> Bool {
        guard layers.count == 2 else { return false }
        if !sealIsDurable {
            makeSealDurable()
            return true
        }
        if work.isEmpty {
            if let left = disk.inodes[Disk.staging]?.entries.keys.min() {
                // A directory that was removed, and is empty by now; maybe left by a merge that was interrupted.
                clear(left, layers[0])
                return true
            }
            finishLayer()
            return false
        }
        perform(work.removeFirst())
        return true
    }

    private mutating func perform(_ merge: MergeStep) {
        let layer = layers[0]
        switch merge {
        case .take(let directory, let name): take(directory, name, layer)
        case .settle: step { $0.synchronizeAll() }
        case .put(let directory, let name, let inode): put(directory, name, inode)
        case .clear(let inode): clear(inode, layer)
        case .size(let inode):
            guard let size = layer.records[inode]?.size, disk.inodes[inode]?.kind == .file else { return }
            step { $0.setSize(inode, size) }
        case .page(let inode, let page):
            guard disk.inodes[inode] != nil, let record = layer.records[inode],
                page < Content.pageCount(record.size)
            else { return }
            let delta = Self.deltaFile(layer.number, inode)
            let version = record.data.contains(page) ? disk.inodes[delta]?.content.pages[page] : nil
            step { $0.setPage(inode, page, version) }
        case .status(let inode):
            guard disk.inodes[inode] != nil, let status = layer.records[inode]?.status else { return }
            step { $0.setStatus(inode, status) }
        }
    }

    private mutating func take(_ directory: Inode, _ name: Name, _ layer: Layer) {
        guard let node = disk.inodes[directory], let present = node.entries[name] else { return }
        let wanted = layer.records[directory]?.entries[name] ?? nil
        if present == wanted { return }
        let isStaged = disk.inodes[Disk.staging]?.entries[present] != nil
        if mistake == .mergeWithoutStaging {
            if !layer.named.contains(present) { step { $0.unlink(in: directory, name) } }
            return
        }
        if !isStaged && (layer.named.contains(present) || isDirectory(present)) {
            step { $0.rename(directory, name, to: Disk.staging, present) }
        } else {
            step { $0.unlink(in: directory, name) }
        }
    }

    private mutating func put(_ directory: Inode, _ name: Name, _ inode: Inode) {
        if disk.inodes[directory] == nil || disk.inodes[directory]?.entries[name] == inode { return }
        let store = [Disk.staging, Disk.newFiles].first { disk.inodes[$0]?.entries[inode] != nil }
        let hasMore = work.contains {
            if case .put(_, _, inode) = $0 { true } else { false }
        }
        if let store, isDirectory(inode) || !hasMore {
            step { $0.rename(store, inode, to: directory, name) }
        } else if disk.inodes[inode] != nil {
            if mistake == .mergeWithoutStaging {
                for (other, node) in disk.inodes where !Disk.storeDirectories.contains(other) {
                    for (old, entry) in node.entries where entry == inode {
                        return step { $0.rename(other, old, to: directory, name) }
                    }
                }
            }
            step { $0.link(inode, in: directory, name) }
        }
    }

    private mutating func clear(_ inode: Inode, _ layer: Layer) {
        if disk.inodes[Disk.staging]?.entries[inode] != nil {
            step { $0.unlink(in: Disk.staging, inode) }
        }
        guard disk.inodes[Disk.newFiles]?.entries[inode] != nil else { return }
        // One of which the next layer says anything waits for that: it may be named there, or have been by a record that
        // is durable while the one that took the name away is not.
        if layer.named.contains(inode) || layers[1].records[inode] == nil
            || mistake == .clearGoesBeforeMark && !layers[1].named.contains(inode)
        {
            step { $0.unlink(in: Disk.newFiles, inode) }
        }
    }

    private mutating func finishLayer() {
        let number = layers[0].number
        if mistake == .journalGoesBeforeSync {
            step { $0.removeJournal(number) }
            step { $0.synchronizeAll() }
        } else {
            step { $0.synchronizeAll() }
            if mistake == .deltaGoesBeforeJournal { removeDeltaFiles(of: number) }
            step { $0.removeJournal(number) }
        }
        removeDeltaFiles(of: number)
        layers.removeFirst()
        sealIsDurable = false
        // What the top layer's marks rely on is durable.
        primaryIsDurable = true
    }

    mutating func removeDeltaFiles(of number: Int) {
        for name in disk.inodes[Disk.deltaFiles]?.entries.keys.sorted() ?? []
        where (name - 1_000_000) / 10_000 == number {
            step { $0.unlink(in: Disk.deltaFiles, name) }
        }
    }

    /// Whether nothing is left to merge: the last layer was merged, and nothing has changed since.
    package var isMerged: Bool { layers.count == 1 && top.isEmpty }

    /// Ends the merge; inside the gate.
    package mutating func becomeIdle() {
        precondition(isMerged, "nothing is left to merge")
        let number = top.number
        step { $0.removeJournal(number) }
        layers = []
        phase = .idle
    }

    /// Merges all that there is, with nothing in between.
    package mutating func mergeToEnd() {
        if phase == .idle { return }
        while true {
            if layers.count == 1 {
                if phase == .merging && isMerged { return becomeIdle() }
                seal()
            }
            while mergeStep() {}
        }
    }

    /// Throws the changes away.
    package mutating func discard() {
        precondition(phase == .active, "a merge that has begun goes on")
        let number = top.number
        if mistake == .discardBeforeRecord { clearStore() }
        step { $0.append(.discarded, to: number) }
        step { $0.synchronizeJournal(number) }
        finishDiscarding()
    }

    mutating func finishDiscarding() {
        layers = []
        phase = .idle
        (opens, linkable) = ([:], [])
        clearStore()
        // The store's directories are synced, then the journals go.
        for number in disk.journals.keys.sorted() { step { $0.removeJournal(number) } }
    }

    mutating func clearStore() {
        for directory in Disk.storeDirectories {
            for name in disk.inodes[directory]?.entries.keys.sorted() ?? [] {
                step { $0.unlink(in: directory, name) }
            }
        }
    }
}
