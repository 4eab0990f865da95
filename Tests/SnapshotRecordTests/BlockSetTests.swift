import SnapshotRecord
import TestSupport
import Testing

@Suite struct BlockSetTests {
    @Test("agrees with a plain set under random insertions and removals", arguments: seeds(20))
    func model(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        var set = BlockSet()
        var model: Set<UInt64> = []
        let limit: UInt64 = 5000
        for _ in 0..<60 {
            let length = random.pick([1, 1, 3, 511, 512, 513, 1500])
            let start = UInt64(random.number(0...4500))
            let range = start..<min(start + UInt64(length), limit)
            if random.number(0...2) > 0 {
                set.insert(range)
                model.formUnion(range)
            } else {
                set.remove(range)
                model.subtract(range)
            }
            #expect(Set(set.runs.joined()) == model, "seed \(seed)")
            #expect(set.runs.allSatisfy { !$0.isEmpty }, "seed \(seed)")
            #expect(set.count == UInt64(model.count), "seed \(seed)")
            let probe = UInt64(random.number(0...4999))
            #expect(set.contains(probe) == model.contains(probe), "seed \(seed)")
            expectRuns(set, model, limit, seed)
            let part = probe..<min(probe + 700, limit)
            #expect(Set(set.runs(in: part).joined()) == model.intersection(part), "seed \(seed)")
        }
        set.remove(0..<limit)
        #expect(set.isEmpty && set.run(from: 0, limit: limit) == (false, limit))
    }

    /// Walks the runs, which must cover everything, alternate, and agree with the model.
    private func expectRuns(_ set: BlockSet, _ model: Set<UInt64>, _ limit: UInt64, _ seed: UInt64) {
        var at: UInt64 = 0
        var last: Bool?
        while at < limit {
            let (isPresent, end) = set.run(from: at, limit: limit)
            #expect(end > at && end <= limit, "seed \(seed)")
            #expect(last != isPresent, "seed \(seed): two runs of a kind beside each other")
            #expect((at..<end).allSatisfy { model.contains($0) == isPresent }, "seed \(seed)")
            last = isPresent
            at = max(end, at + 1)
        }
    }

    @Test("a long run is one range, whatever order it came in")
    func longRun() {
        var set = BlockSet()
        let size: UInt64 = 1 << 28  // a file of 1 TiB
        set.insert(size / 2..<size)
        set.insert(0..<size / 2)
        #expect(set.count == size)
        let (isPresent, end) = set.run(from: 0, limit: size + 1)
        #expect(isPresent)
        #expect(end == size)
    }

    @Test("blocks far apart are found, and what lies between is one run")
    func farApart() {
        var set = BlockSet()
        let far: UInt64 = 1 << 31
        set.insert(3..<4)
        set.insert(far..<far + 2000)
        #expect(set.run(from: 4, limit: 1 << 32) == (false, far))
        #expect(set.run(from: far, limit: 1 << 32) == (true, far + 2000))
        #expect(set.run(from: far + 2000, limit: 1 << 32) == (false, 1 << 32))
    }

    @Test("removing from a run as long as the largest file costs no more than a short one, and counts right")
    func removals() {
        var set = BlockSet()
        let end = UInt64(1) << 51
        set.insert(0..<end)
        set.remove(1000..<1001)
        #expect(set.runs == [0..<1000, 1001..<end])
        set.remove(513..<end - 5)
        #expect(set.runs == [0..<513, end - 5..<end])
        #expect(set.count == 518)
        set.remove(0..<end)
        #expect(set.isEmpty)
        #expect(set.run(from: 0, limit: end) == (false, end))
    }

    @Test("an empty set has nothing, up to the limit")
    func empty() {
        let (isPresent, end) = BlockSet().run(from: 7, limit: 1 << 40)
        #expect(!isPresent)
        #expect(end == 1 << 40)
    }

    @Test("runs as long as the largest file cost no more than short ones, and count right")
    func enormous() {
        var set = BlockSet()
        let end = UInt64(1) << 51
        set.insert(700..<800)
        set.insert(5_000..<9_000)
        set.insert(UInt64(1) << 40..<UInt64(1) << 40 + 3)
        #expect(set.run(from: 9_000, limit: end) == (false, UInt64(1) << 40))
        set.insert(600..<end - 7)
        #expect(set.count == end - 7 - 600)
        #expect(set.run(from: 600, limit: end) == (true, end - 7))
        #expect(set.run(from: end - 7, limit: end) == (false, end))
        set.insert(0..<end)
        #expect(set.count == end)
        #expect(set.run(from: 0, limit: end) == (true, end))
        set.remove(1_000..<end - 1_000)
        #expect(set.count == 2_000 && set.run(from: 1_000, limit: end) == (false, end - 1_000))
        #expect(set.run(from: end - 1_000, limit: end) == (true, end))
    }
}
