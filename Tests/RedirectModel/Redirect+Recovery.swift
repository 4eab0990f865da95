extension Redirect {
    /// What a mount does with what it finds, before anything is served. It may be interrupted at any step, and done
    /// again from the first.
    package static func recovered(
        _ disk: Disk, mistake: Mistake? = nil, observe: ((borrowing Disk) -> Void)? = nil
    ) -> Redirect {
        var model = Redirect(disk: disk)
        model.mistake = mistake
        model.observe = observe
        model.recover()
        return model
    }

    private mutating func recover() {
        let isDiscarded = disk.journals.values.contains { $0.records.contains(.discarded) }
        guard !isDiscarded, let number = disk.journals.keys.min(), let bottom = disk.journals[number],
            !bottom.records.isEmpty
        else { return finishDiscarding() }
        let isSameBoot = wasKilled(bottom)
        let seal = bottom.records.firstIndex(of: .sealed)
        if let seal, isSameBoot || mistake == .sealCountsUnmarked || isMarked(bottom, beyond: seal) {
            layers = [Layer.replay(bottom, number: number, all: true)]
            sealIsDurable = isMarked(bottom, beyond: seal)
            recoverTop(above: number)
            primaryIsDurable = sealIsDurable
            phase = .merging
            work = steps(of: layers[0])
        } else {
            // A layer above one that does not count holds nothing that anybody was promised.
            for above in disk.journals.keys.sorted() where above > number { step { $0.removeJournal(above) } }
            layers = [Layer.replay(bottom, number: number, all: isSameBoot)]
            if !isSameBoot { renew(number) }
            // Between two layers of a merge nothing tells that the snapshot is over but the number.
            phase = number == 1 ? .active : .merging
        }
        if mistake != .killForgetsFlushes {
            // What waits to be flushed before a mark was known to the daemon that is gone: so the next waits for all.
            // A new file of the layer below may have been renamed over another in this one.
            var born: Set<Inode> = []
            for layer in layers {
                born.formUnion(layer.born)
                guard wasKilled(disk.journals[layer.number]) else { continue }
                let inodes = layer.inodesWithData.union(born).intersection(disk.inodes.keys)
                flushBeforeMark(layer.number, inodes)
            }
        }
        removeStrays()
    }

    private func wasKilled(_ journal: JournalFile?) -> Bool {
        journal?.records.first == .head(boot: disk.boot)
    }

    private func isMarked(_ journal: JournalFile, beyond sequence: Int) -> Bool {
        journal.records.contains {
            if case .mark(let through, _) = $0 { through > sequence } else { false }
        }
    }

    private mutating func recoverTop(above lower: Int) {
        // One whose head was lost would hide the next one from a later recovery.
        for (number, journal) in disk.journals where number > lower && journal.records.isEmpty {
            step { $0.removeJournal(number) }
        }
        guard let number = disk.journals.keys.filter({ $0 > lower }).min(), let journal = disk.journals[number]
        else {
            let number = disk.lastLayer + 1
            step { $0.beginJournal(number) }
            layers.append(Layer(number))
            return
        }
        let isSameBoot = wasKilled(journal)
        layers.append(Layer.replay(journal, number: number, all: isSameBoot))
        if !isSameBoot { renew(number) }
    }

    /// Writes the top layer's journal anew with what counts, so that what did not count never will.
    private mutating func renew(_ number: Int) {
        if mistake == .journalGoesOnAfterPowerCut { return }
        if mistake != .tailsStay { zeroTails() }
        let layer = top
        // The removal of what does not count is durable with it.
        let records: [JournalRecord] = [
            .change(layer.changes), .mark(through: 2, inodes: layer.inodesWithData),
        ]
        step { [mistake] in
            $0.replaceJournal(number, records, keepingBoot: mistake == .recoveredHeadKeepsBoot)
        }
    }

    /// Where a size counts and the data that came with it do not, there may be something behind the end: it must not
    /// show when the file grows, since the size of then may count without the data again.
    private mutating func zeroTails() {
        let number = top.number
        for (inode, record) in top.records.sorted(by: { $0.key < $1.key })
        where record.status != nil && record.size % Page.halfCount != 0 {
            let page = record.size / Page.halfCount
            guard var version = storedContent(inode).pages[page], version.halves[1] != 0 else { continue }
            version.halves[1] = 0
            let delta = Self.deltaFile(number, inode)
            if disk.inodes[delta] == nil {
                step { $0.make(delta, .file, Status(), size: 1_000_000, in: Disk.deltaFiles, delta) }
                step { $0.synchronize(Disk.deltaFiles) }
            }
            step { [version] in $0.setPage(delta, page, version) }
            step { $0.synchronize(delta) }
            top.apply(.data(inode, [page]))
        }
    }

    /// Removes what the store has and no journal tells of.
    private mutating func removeStrays() {
        let named = layers.reduce(into: Set<Inode>()) { $0.formUnion($1.named) }
        let strays = disk.inodes[Disk.newFiles]?.entries.keys.filter { !named.contains($0) }.sorted() ?? []
        // After a kill the record that let go of one may not be durable yet.
        if !strays.isEmpty && mistake != .strayGoesBeforeMark { commit([]) }
        for name in strays {
            step { $0.unlink(in: Disk.newFiles, name) }
        }
        let numbers = Set(layers.map(\.number))
        for name in disk.inodes[Disk.deltaFiles]?.entries.keys.sorted() ?? []
        where !numbers.contains((name - 1_000_000) / 10_000) {
            step { $0.unlink(in: Disk.deltaFiles, name) }
        }
    }
}
