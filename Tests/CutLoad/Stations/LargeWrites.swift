import Glibc
import TestSupport

/// Overwrites most of a file with writes of several megabytes, each of another size at another odd offset.
struct LargeWrites: Station {
    let name = "large"
    /// Where all writes overlap, and what they stay within.
    private static let common = 4096..<(3 << 20)
    private static let all = 0..<(5 << 20)
    private static let sizes = 16

    /// One of 16 ranges, the same again every 16th time.
    private func range(_ number: Int) -> Range<Int> {
        if number == 0 { return Self.all }
        let step = number * 7 % Self.sizes
        return (1 + step * 251)..<(Self.common.upperBound + 17 + step * 131_063)
    }

    func prepare(_ root: Path) throws {
        let buffer = Buffer(Self.all.count)
        buffer.fill(Stamp(0))
        let file = try (root / "data").open(O_WRONLY | O_CREAT)
        try Lane.expect(buffer.count, pwrite(file.raw, buffer.start, buffer.count, 0))
    }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let buffer = Buffer(Self.all.count)
        let file = try (actor.root / "data").open(O_WRONLY)
        while actor.goesOn {
            let range = range(lane.next)
            buffer.fill(Stamp(lane.next), 0..<range.count)
            try lane.write(.pwrite, count: range.count) {
                pwrite(file.raw, buffer.start, range.count, range.lowerBound)
            }
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        let buffer = Buffer(Self.all.count)
        let count = try buffer.read((root / "data").open(O_RDONLY), at: 0)
        if count != Self.all.count { throw TestFailure("\(count) of \(Self.all.count) bytes are there") }
        let last = try lastOperation(buffer)
        // What later writes left of earlier ones, at both ends.
        var seen = range(last)
        try check(buffer, seen, of: last, last)
        for number in (0..<last).reversed() {
            if seen == Self.all { break }
            // Older ones of the same range are covered by it.
            let range = number + Self.sizes < last ? range(0) : range(number)
            let writer = number + Self.sizes < last ? 0 : number
            try check(buffer, range.lowerBound..<max(range.lowerBound, seen.lowerBound), of: writer, last)
            try check(buffer, min(range.upperBound, seen.upperBound)..<range.upperBound, of: writer, last)
            seen = min(seen.lowerBound, range.lowerBound)..<max(seen.upperBound, range.upperBound)
        }
        return [Found(last)]
    }

    /// The stamp in what all writes have in common, where stamps begin at any of 8 places. Read at a wrong place, a
    /// stamp may look like another, of a greater number: the lane's byte is among those of the number then.
    private func lastOperation(_ buffer: Buffer) throws -> Int {
        let candidates = (0..<8).map { Self.common.lowerBound + $0 }.filter { at in
            let stamp = buffer.stamp(at: at)
            return stamp.lane == 0 && (at - range(stamp.number).lowerBound) % 8 == 0
        }
        guard let number = candidates.map({ buffer.stamp(at: $0).number }).min() else {
            throw TestFailure("torn at \(Self.common.lowerBound)")
        }
        return number
    }

    private func check(_ buffer: Buffer, _ piece: Range<Int>, of number: Int, _ last: Int) throws {
        if piece.isEmpty { return }
        let what = "\(piece), which operation \(number) wrote last before \(last)"
        try buffer.expect(Stamp(number), piece, from: range(number).lowerBound, what)
    }
}
