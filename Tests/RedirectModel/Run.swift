internal import TestSupport

/// What is tried at each step of a run.
package struct Trial: Sendable {
    /// How many operations a snapshot gets.
    package var operations = 12
    /// The process is killed after each step, and what recovery finds compared.
    package var kills = false
    /// How often the power is cut after each step.
    package var powerCuts = 0
    /// One in so many recoveries is interrupted itself, at each of its steps and of the merge that follows.
    package var interruptsOneIn = 8
    /// One in so many operations is followed by a crash, after which the run goes on.
    package var crashesOneIn = 0
    package var mistake: Mistake?

    package init() {}
}

/// What runs did.
package struct Tally: Sendable {
    package var runs = 0
    package var operations = 0
    package var steps = 0
    package var crashes = 0
    package var crashesInRecovery = 0

    package init() {}

    package static func += (sum: inout Tally, more: Tally) {
        sum.runs += more.runs
        sum.operations += more.operations
        sum.steps += more.steps
        sum.crashes += more.crashes
        sum.crashesInRecovery += more.crashesInRecovery
    }
}

/// A difference between the model and the ideal tree.
package struct Failure: Error, CustomStringConvertible {
    package let description: String
}

/// A sequence of operations that follows from a seed, through start and stop or discard, on the model and on the ideal
/// tree.
package final class Run {
    private let trial: Trial
    private let seed: UInt64
    private var generator: OperationGenerator
    private var dice: SeededGenerator
    private var model: Redirect
    private var ideal = Ideal()
    private var oracle = Oracle()
    private var cut: [Inode: Node] = [:]
    private var now = 1
    private var log: [String] = []
    private var failure: String?
    package private(set) var tally = Tally()
    /// Whether the names from before the start are durable, so that power cuts can be judged.
    private var isDurableBelow = false
    private var hasBegunMerge = false
    private var isDiscarding = false
    /// Whether a power cut has lost a last layer of which nothing was synced: there is no snapshot any more.
    private var wasEndedByCrash = false
    /// Whether a snapshot has begun.
    private var isWatched = false

    package init(seed: UInt64, _ trial: Trial) {
        self.seed = seed
        self.trial = trial
        generator = OperationGenerator(seed: seed)
        dice = SeededGenerator(seed: seed ^ 0x5eed)
        model = Redirect(disk: Disk())
        model.mistake = trial.mistake
    }

    /// Runs it; throws at the first difference.
    package func callAsFunction() throws(Failure) {
        tally.runs = 1
        for _ in 0..<dice.number(2...12) { try operate() }
        cut = reachable(model.live())
        oracle.old = Set(cut.keys)
        oracle.states = [Oracle.State(ideal.nodes)]
        log.append("start")
        isWatched = true
        watch()
        model.start()
        let count = dice.number(1...trial.operations)
        for _ in 0..<count {
            try operate()
            try crashNow()
        }
        if dice.isTrue(oneIn: 5) && model.phase == .active { try discard() } else { try merge() }
        try check()
    }

    private func fail(_ what: String) -> Failure {
        Failure(
            description: "seed \(seed), \(log.count) operations: \(what)\n" + log.joined(separator: "\n"))
    }

    private func raise() throws(Failure) {
        if let failure { throw fail(failure) }
    }

    // MARK: Operations

    private func operate(mayCommit: Bool = true) throws(Failure) {
        var operation = generator.next(ideal, now: now)
        if !mayCommit, case .synchronize = operation { operation = .open(Disk.root) }
        if case .open(Disk.root) = operation { return }
        now += 1
        tally.operations += 1
        log.append("\(operation)")
        var next = ideal
        var expected: Refusal?
        do throws(Refusal) { try next.apply(operation, now: now) } catch { expected = error }
        note(operation, next)
        let begun = oracle.states.count - 2
        let before = ideal
        ideal = next
        if case .synchronize = operation, mayCommit, model.phase != .idle, dice.isTrue(oneIn: 2) {
            model.meanwhile = { [self] model in operateMeanwhile(&model) }
        }
        var refused: Refusal?
        do throws(Refusal) { try model.perform(operation, now: now) } catch { refused = error }
        model.meanwhile = nil
        try raise()
        if refused != expected {
            throw fail("refused with \(String(describing: refused)), not \(String(describing: expected))")
        }
        if refused != nil && next != before { throw fail("the ideal tree changed though it refused") }
        if model.phase != .idle { didEnd(operation, begun) }
        try check()
    }

    /// The operation is under way from now on.
    private func note(_ operation: Operation, _ next: Ideal) {
        guard isWatched else { return }
        oracle.states.append(Oracle.State(next.nodes))
        if case .rename(let directory, let name, let newDirectory, let newName, let kind) = operation,
            kind != .exchange, next != ideal, ideal.nodes[newDirectory]?.entries[newName] != nil,
            let moved = ideal.nodes[directory]?.entries[name], next.nodes[newDirectory]?.entries[newName] == moved
        {
            oracle.replacements.append((moved, oracle.states.count - 1))
        }
    }

    private func didEnd(_ operation: Operation, _ begun: Int) {
        if case .synchronize(let inode) = operation {
            oracle.oldest = max(oracle.oldest, begun)
            oracle.synced[inode] = begun
            isDurableBelow = true
        }
    }

    /// What another application does while a commit waits.
    private func operateMeanwhile(_ model: inout Redirect) {
        let operation = generator.next(ideal, now: now)
        switch operation {
        case .synchronize, .makeUnnamed, .open, .close: return
        default: break
        }
        now += 1
        var next = ideal
        var expected: Refusal?
        do throws(Refusal) { try next.apply(operation, now: now) } catch { expected = error }
        log.append("  meanwhile \(operation)")
        note(operation, next)
        ideal = next
        var refused: Refusal?
        do throws(Refusal) { try model.perform(operation, now: now) } catch { refused = error }
        if refused != expected { failure = failure ?? "meanwhile refused with \(String(describing: refused))" }
    }

    // MARK: Ends

    private func merge() throws(Failure) {
        hasBegunMerge = true
        log.append("stop")
        model.commit(model.top.inodesWithData)
        try raise()
        isDurableBelow = true
        var passes = 0
        while model.phase != .idle {
            if model.layers.count == 1 {
                if model.phase == .merging && model.isMerged {
                    log.append("idle")
                    model.becomeIdle()
                    break
                }
                passes += 1
                if passes < 3 { try operateSome() }
                // A power cut may have lost the last layer, of which nothing was synced.
                if model.phase == .idle { break }
                log.append("seal")
                model.seal()
                if passes < 3 { try operateSome() }
                // Or it may have brought back what was before the seal.
                if model.layers.count < 2 { continue }
            }
            while model.mergeStep() {
                try raise()
                if passes < 3 && !wasEndedByCrash && dice.isTrue(oneIn: 3) {
                    try operate()
                    try crashNow()
                }
                try check()
            }
            try raise()
        }
        try raise()
        if wasEndedByCrash { return }
        // All is durable once the merge is over.
        var disk = model.disk
        disk.cutPower(&dice)
        let recovered = Redirect.recovered(disk, mistake: trial.mistake)
        if let problem = Self.difference(
            recovered.live(), reachable(ideal.nodes), comparesChanged: false)
        {
            throw fail("after the merge, power cut: \(problem)")
        }
    }

    private func operateSome() throws(Failure) {
        for _ in 0..<dice.number(0...2) {
            try operate()
            try crashNow()
        }
    }

    private func discard() throws(Failure) {
        log.append("discard")
        isDiscarding = true
        model.discard()
        try raise()
        if reachable(model.live()) != cut { throw fail("discarded, but not the tree of the cut") }
        ideal = Ideal(nodes: cut)
        oracle.states = [Oracle.State(cut)]
        oracle.synced = [:]
    }

    // MARK: Checks

    private func check() throws(Failure) {
        try raise()
        let live = model.live()
        let wanted = ideal.nodes
        if let problem = Self.difference(live, wanted, comparesChanged: !hasBegunMerge) {
            throw fail("live: \(problem)")
        }
        if model.phase == .active, let inode = changedPrimary(model.disk) {
            throw fail("inode \(inode) of the primary has changed")
        }
    }

    private static func difference(
        _ found: [Inode: Node], _ wanted: [Inode: Node], comparesChanged: Bool
    ) -> String? {
        for inode in Set(found.keys).union(wanted.keys).sorted() {
            guard var node = found[inode] else { return "inode \(inode) is missing" }
            guard let other = wanted[inode] else { return "inode \(inode) is too many: \(node)" }
            if !comparesChanged { node.status.changed = other.status.changed }
            if node != other { return "inode \(inode) is\n\(node), not\n\(other)" }
        }
        return nil
    }

    /// An inode of the cut that is not as it was, in the primary.
    private func changedPrimary(_ disk: borrowing Disk) -> Inode? {
        for (inode, node) in cut {
            guard let present = disk.inodes[inode], present.entries == node.entries,
                present.content == node.content
            else { return inode }
            var status = present.status
            status.links = node.status.links
            if status != node.status { return inode }
        }
        return nil
    }

    // MARK: Crashes

    private func watch() {
        model.observe = { [self] disk in didStep(disk) }
    }

    private func didStep(_ disk: borrowing Disk) {
        tally.steps += 1
        guard failure == nil else { return }
        if trial.kills {
            var killed = copy disk
            killed.kill()
            crash(killed, "killed", isCut: false)
        }
        guard isDurableBelow else { return }
        for _ in 0..<trial.powerCuts {
            var dark = copy disk
            dark.cutPower(&dice)
            crash(dark, "power cut", isCut: true)
        }
    }

    private func expected(isCut: Bool) -> Oracle {
        var oracle = oracle
        if !isCut {
            oracle.oldest = max(0, oracle.states.count - 2)
            oracle.synced = Dictionary(
                uniqueKeysWithValues: oracle.states[oracle.states.count - 1].all.keys.map { ($0, oracle.oldest) })
            if let before = oracle.states.dropLast().last {
                for inode in before.all.keys { oracle.synced[inode] = oracle.oldest }
            }
        }
        return oracle
    }

    private func problem(_ model: Redirect, _ oracle: Oracle) -> String? {
        let live = model.live()
        if isDiscarding, reachable(live) == cut { return nil }
        if model.phase == .active, let inode = changedPrimary(model.disk) {
            return "inode \(inode) of the primary has changed"
        }
        return oracle.problem(live, comparesChanged: false)
    }

    private func crash(_ disk: Disk, _ what: String, isCut: Bool) {
        guard failure == nil else { return }
        tally.crashes += 1
        let oracle = expected(isCut: isCut)
        let interrupts = dice.isTrue(oneIn: trial.interruptsOneIn)
        var inner: [Disk] = []
        var recovered = Redirect.recovered(disk, mistake: trial.mistake) { disk in
            if interrupts { inner.append(copy disk) }
        }
        if let problem = problem(recovered, oracle) {
            failure = "\(what) after step \(tally.steps): \(problem)"
            return
        }
        let found = recovered.live()
        guard interrupts || dice.isTrue(oneIn: 4) else { return }
        recovered.mergeToEnd()
        if let problem = Self.difference(recovered.live(), found, comparesChanged: false) {
            failure = "\(what) after step \(tally.steps), then merged: \(problem)"
            return
        }
        for disk in inner { crashAgain(disk, found, what, isCut ? nil : oracle) }
    }

    /// A crash in the recovery from a crash, or in the merge behind it. `oracle` is set where what a kill left is not
    /// durable yet.
    private func crashAgain(_ disk: Disk, _ found: [Inode: Node], _ what: String, _ oracle: Oracle?) {
        guard failure == nil else { return }
        tally.crashesInRecovery += 1
        var killed = disk
        killed.kill()
        let again = Redirect.recovered(killed, mistake: trial.mistake)
        if let problem = Self.difference(again.live(), found, comparesChanged: false) {
            failure = "\(what) after step \(tally.steps), recovery killed: \(problem)"
            return
        }
        if oracle != nil { return }
        var dark = disk
        dark.cutPower(&dice)
        let third = Redirect.recovered(dark, mistake: trial.mistake)
        if let problem = Self.difference(third.live(), found, comparesChanged: false) {
            failure = "\(what) after step \(tally.steps), power cut in recovery: \(problem)"
        }
    }

    /// Now and then the run itself crashes, and goes on with what recovery found.
    private func crashNow() throws(Failure) {
        guard trial.crashesOneIn > 0, dice.isTrue(oneIn: trial.crashesOneIn), model.phase != .idle else { return }
        let isCut = isDurableBelow && dice.isTrue(oneIn: 2)
        log.append(isCut ? "power cut" : "killed")
        var disk = model.disk
        if isCut { disk.cutPower(&dice) } else { disk.kill() }
        model = Redirect.recovered(disk, mistake: trial.mistake)
        if let problem = problem(model, expected(isCut: isCut)) { throw fail(problem) }
        ideal = Ideal(nodes: reachable(model.live()))
        if isCut {
            oracle.states = []
            oracle.oldest = 0
            oracle.synced = [:]
            oracle.replacements = []
        }
        oracle.states.append(Oracle.State(ideal.nodes))
        if model.phase == .merging { hasBegunMerge = true }
        // Of what is changed while idle nothing is promised here.
        if model.phase == .idle { wasEndedByCrash = true } else { watch() }
    }
}
