import RedirectModel
import TestSupport
import Testing

@Suite struct RedirectModelTests {
    @discardableResult
    private func run(_ number: UInt64, _ trial: Trial) throws -> Tally {
        var tally = Tally()
        for seed in seeds(rounds(number)) {
            let run = Run(seed: seed, trial)
            try run()
            tally += run.tally
        }
        print(tally)
        return tally
    }

    @Test("the live view is what applications did, until all is merged or discarded; the primary does not change before")
    func live() throws {
        try run(4000, Trial())
    }

    @Test("killed after every step: all is there, and merges")
    func kills() throws {
        var trial = Trial()
        trial.kills = true
        try run(150, trial)
    }

    @Test("the power cut after every step: what was synced is there, and nothing that never was")
    func powerCuts() throws {
        var trial = Trial()
        trial.powerCuts = 2
        try run(150, trial)
    }

    @Test("after a crash it goes on, to the next crash")
    func crashes() throws {
        var trial = Trial()
        trial.crashesOneIn = 4
        trial.powerCuts = 1
        trial.operations = 20
        try run(150, trial)
    }
}
