import CTestSupport
import Glibc
import TestSupport

/// Fills pages through a mapping, then calls msync(MS_SYNC): both together are the operation, which counts only when
/// msync has returned. Until then the snapshot may hold any part of it.
struct Mapped: Station {
    let name = "mmap"
    let isBestEffort = true

    private static let bytes = 5 * 4096

    func prepare(_ root: Path) throws {
        let buffer = Buffer(Self.bytes)
        buffer.fill(Stamp(0))
        let file = try (root / "data").open(O_WRONLY | O_CREAT)
        try Lane.expect(buffer.count, pwrite(file.raw, buffer.start, buffer.count, 0))
    }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let file = try (actor.root / "data").open(O_RDWR)
        let protection = PROT_READ | PROT_WRITE
        guard let start = mmap(nil, Self.bytes, protection, MAP_SHARED, file.raw, 0), start != MAP_FAILED else {
            throw CallFailure(description: "mmap: \(currentErrno)")
        }
        defer { munmap(start, Self.bytes) }
        while actor.goesOn {
            let number = lane.next
            try lane.operate(.msync) {
                ts_fill_word(start, Self.bytes, Stamp(number).word)
                try check(msync(start, Self.bytes, MS_SYNC))
            }
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        let buffer = Buffer(Self.bytes)
        let count = try buffer.read((root / "data").open(O_RDONLY), at: 0)
        if count != Self.bytes { throw TestFailure("\(count) of \(Self.bytes) bytes are there") }
        let stamps = stride(from: 0, to: Self.bytes, by: 8).map { buffer.stamp(at: $0) }
        if let strange = stamps.first(where: { $0.lane != 0 }) { throw TestFailure("a page holds \(strange)") }
        let numbers = stamps.map(\.number)
        return [Found(numbers.min() ?? 0, most: numbers.max(), content: ts_hash(0, buffer.start, Self.bytes))]
    }
}
