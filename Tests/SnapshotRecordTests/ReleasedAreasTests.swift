import SnapshotRecord
import TestSupport
import Testing

@Suite struct ReleasedAreasTests {
    @Test("agrees with a plain set, whatever order the blocks come in", arguments: seeds(20))
    func model(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let areas = ReleasedAreas()
        let keys = (0..<3).map { InodeKey(inode: $0, birth: 0) }
        var models = keys.map { _ in Set<UInt64>() }
        for _ in 0..<200 {
            let file = random.number(0...2)
            // Mostly on from where the last one ended, as a backup reads.
            let start = random.isTrue(oneIn: 3) ? UInt64(random.number(0...3_000)) : (models[file].max() ?? 0)
            let range = start..<start + UInt64(random.number(1...300))
            areas.note(range, of: keys[file])
            models[file].formUnion(range)
            #expect(areas.count == UInt64(models.map(\.count).reduce(0, +)), "seed \(seed)")
            let probe = UInt64(random.number(0...4_000))
            let (isReleased, end) = areas.run(of: keys[file], from: probe, limit: 4_001)
            #expect(isReleased == models[file].contains(probe), "seed \(seed)")
            let agrees = (probe..<end).allSatisfy { models[file].contains($0) == isReleased }
            #expect(agrees && (end == 4_001 || models[file].contains(end) != isReleased), "seed \(seed)")
        }
    }

    @Test("of a file that was not read nothing is released") func unknown() {
        let areas = ReleasedAreas()
        #expect(areas.run(of: InodeKey(inode: 1, birth: 2), from: 5, limit: 9) == (false, 9))
    }
}
