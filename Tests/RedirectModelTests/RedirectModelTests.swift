import RedirectModel
import TestSupport
import Testing

/// How a run is tried.
private enum Way: String {
    case live, kills, power, crashes

    func trial(operations: Int) -> Trial {
        var trial = Trial()
        trial.operations = operations
        switch self {
        case .live: break
        case .kills: trial.kills = true
        case .power: trial.powerCuts = 2
        case .crashes:
            trial.crashesOneIn = 4
            trial.powerCuts = 1
        }
        return trial
    }
}

/// FUSESNAP_TEST_SEED replays one seed, FUSESNAP_TEST_ROUNDS makes a campaign of so many.
@Suite struct RedirectModelTests {
    /// Short sequences first: the first that fails is easy to read.
    private func run(_ way: Way, _ number: UInt64) throws {
        var tally = Tally()
        for operations in [3, 8, 20] {
            for seed in seeds(rounds(number)) {
                let run = Run(seed: seed, way.trial(operations: operations))
                do {
                    try run()
                } catch {
                    Issue.record("\(way), \(operations) operations: \(error)")
                    return
                }
                tally += run.tally
            }
        }
        print("\(way): \(tally)")
    }

    @Test("the live view is what applications did, until all is merged or discarded; the primary stays till then")
    func live() throws {
        try run(.live, 1000)
    }

    @Test("killed after every step, of a merge and of recovery too: all is there, and merges")
    func kills() throws {
        try run(.kills, 300)
    }

    @Test("the power cut after every step: what was synced is there, and nothing that never was")
    func powerCuts() throws {
        try run(.power, 300)
    }

    @Test("after a crash it goes on, to the next one")
    func crashes() throws {
        try run(.crashes, 300)
    }

    /// For each rule a sequence that shows what it is for.
    private static let shows: [(Mistake, Way, seed: UInt64, operations: Int)] = [
        (.recordForEachArea, .kills, 5, 5),
        (.recordBeforeData, .kills, 28, 5),
        (.composeFromDeltaFile, .live, 58, 5),
        (.truncateKeepsBlocks, .live, 618, 5),
        (.markCoversWhatCameAfterTheFlush, .power, 22, 5),
        (.markCoversAllData, .crashes, 60, 5),
        (.markBeforePrimaryIsDurable, .power, 5, 5),
        (.markBeforeNewFilesAreDurable, .power, 7, 5),
        (.punchAtOnce, .crashes, 335, 5),
        (.removeNewFileAtOnce, .power, 704, 5),
        (.strayGoesBeforeMark, .crashes, 128, 5),
        (.renameOverUnflushed, .power, 10, 5),
        (.journalGoesOnAfterPowerCut, .power, 5, 5),
        (.tailsStay, .crashes, 3849, 20),
        (.recoveredHeadKeepsBoot, .crashes, 7, 5),
        (.mergeUncommitted, .power, 7, 5),
        (.sealCountsUnmarked, .power, 48, 5),
        (.markDoesNotWaitForSeal, .power, 53, 5),
        (.mergeWithoutStaging, .live, 20, 5),
        (.putBeforeTakesAreDurable, .crashes, 321, 20),
        (.directoryTimesFirst, .live, 8, 5),
        (.deltaGoesBeforeJournal, .kills, 10, 5),
        (.journalGoesBeforeSync, .power, 7, 5),
        (.writeToMergingLayer, .live, 45, 5),
        (.discardBeforeRecord, .kills, 9, 5),
        (.killForgetsFlushes, .crashes, 3519, 10),
        (.clearGoesBeforeMark, .power, 2344, 20),
    ]

    @Test("each rule that is left out is noticed, and only then", arguments: Mistake.allCases)
    func mistakes(mistake: Mistake) throws {
        let (_, way, seed, operations) = try #require(Self.shows.first { $0.0 == mistake })
        var trial = way.trial(operations: operations)
        try Run(seed: seed, trial)()
        trial.mistake = mistake
        let error = #expect(throws: Failure.self) { try Run(seed: seed, trial)() }
        if let error { print("\(mistake): \(error)") }
    }
}
