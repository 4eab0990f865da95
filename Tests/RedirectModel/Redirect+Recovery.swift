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
            recoverTop(number + 1)
            primaryIsDurable = sealIsDurable
            phase = .merging
            work = steps(of: layers[0])
        } else {
            // A layer above one that does not count holds nothing that anybody was promised.
            if disk.journals[number + 1] != nil { step { $0.removeJournal(number + 1) } }
            layers = [Layer.replay(bottom, number: number, all: isSameBoot)]
            if !isSameBoot { renew(number) }
            // Between two layers of a merge nothing tells that the snapshot is over but the number.
            phase = number == 1 ? .active : .merging
        }
        if mistake != .killForgetsFlushes {
            // What waits to be flushed before a mark was known to the daemon that is gone: so the next waits for all.
            for layer in layers where wasKilled(disk.journals[layer.number]) {
                flushBeforeMark(
                    layer.number, layer.inodesWithData.union(layer.born).intersection(disk.inodes.keys))
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

    private mutating func recoverTop(_ number: Int) {
        guard let journal = disk.journals[number], !journal.records.isEmpty else {
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
        let layer = top
        // The removal of what does not count is durable with it.
        let records: [JournalRecord] = [
            .change(layer.changes), .mark(through: 2, inodes: layer.inodesWithData),
        ]
        step { [mistake] in
            $0.replaceJournal(number, records, keepingBoot: mistake == .recoveredHeadKeepsBoot)
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
