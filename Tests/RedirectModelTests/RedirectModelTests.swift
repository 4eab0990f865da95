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
    private static let shows: [(Mistake, Way, UInt64)] = [
        (.recordForEachArea, .kills, 5),
        (.recordBeforeData, .kills, 48),
        (.composeFromDeltaFile, .live, 58),
        (.truncateKeepsBlocks, .live, 733),
        (.markCoversWhatCameAfterTheFlush, .power, 22),
        (.markCoversAllData, .power, 446),
        (.markBeforePrimaryIsDurable, .power, 5),
        (.markBeforeNewFilesAreDurable, .power, 7),
        (.punchAtOnce, .power, 872),
        (.removeNewFileAtOnce, .power, 128),
        (.strayGoesBeforeMark, .crashes, 847),
        (.renameOverUnflushed, .power, 465),
        (.killForgetsFlushes, .crashes, 95),
        (.journalGoesOnAfterPowerCut, .power, 5),
        (.recoveredHeadKeepsBoot, .crashes, 7),
        (.mergeUncommitted, .power, 7),
        (.sealCountsUnmarked, .power, 48),
        (.markDoesNotWaitForSeal, .power, 33),
        (.mergeWithoutStaging, .live, 20),
        (.directoryTimesFirst, .live, 8),
        (.deltaGoesBeforeJournal, .kills, 10),
        (.journalGoesBeforeSync, .power, 7),
        (.writeToMergingLayer, .live, 16),
        (.discardBeforeRecord, .kills, 9),
    ]

    @Test("each rule that is left out is noticed, and only then", arguments: Mistake.allCases)
    func mistakes(mistake: Mistake) throws {
        let (_, way, seed) = try #require(Self.shows.first { $0.0 == mistake })
        var trial = way.trial(operations: 5)
        try Run(seed: seed, trial)()
        trial.mistake = mistake
        let error = #expect(throws: Failure.self) { try Run(seed: seed, trial)() }
        if let error { print("\(mistake): \(error)") }
    }
}
