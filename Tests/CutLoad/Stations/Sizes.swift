import Glibc
import SystemPackage
import TestSupport

/// Writes a record, truncates in its midst, and grows the file by truncation: the size tells the operation.
struct Truncations: Station {
    let name = "truncate"
    private static let record = 8000
    private static let short = 5001
    private static func long(_ round: Int) -> Int { 200_000 + round }

    func prepare(_ root: Path) throws {
        let file = try (root / "data").open(O_WRONLY | O_CREAT)
        let buffer = Buffer(Self.record)
        buffer.fill(Stamp(0))
        try Lane.expect(Self.short, pwrite(file.raw, buffer.start, Self.short, 0))
        try file.truncate(Self.long(0))
    }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let file = try (actor.root / "data").open(O_WRONLY)
        let buffer = Buffer(Self.record)
        while actor.goesOn {
            let round = lane.begun / 3 + 1
            buffer.fill(Stamp(round))
            try lane.write(.pwrite, count: Self.record) { pwrite(file.raw, buffer.start, Self.record, 0) }
            try lane.operate(.ftruncate) { try file.truncate(Self.short) }
            try lane.operate(.ftruncate) { try file.truncate(Self.long(round)) }
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        let file = try (root / "data").open(O_RDONLY)
        let size = try file.stat().size
        let buffer = Buffer(3 * Self.record)
        let count = try buffer.read(file, at: 0)
        let stamp = buffer.stamp(at: 0)
        let round = stamp.number
        try buffer.expect(stamp, 0..<min(count, Self.short), "what was written first")
        if size == Self.short, count == Self.short, round > 0 { return [Found(3 * round - 1)] }
        guard count == buffer.count else { throw TestFailure("the size is \(size), and \(count) bytes are there") }
        try buffer.expectZeros(Self.record..<count, "what was grown")
        if size == Self.long(round) {
            try buffer.expectZeros(Self.short..<Self.record, "what was truncated before \(3 * round)")
            return [Found(3 * round)]
        }
        guard round > 0, size == Self.long(round - 1) else {
            throw TestFailure("the record is of round \(round), and the size \(size)")
        }
        try buffer.expect(stamp, 0..<Self.record, "the record")
        return [Found(3 * round - 2)]
    }
}

/// Writes a record, punches a hole into it, sets a range of it to zeros, and grows the file by allocation.
struct Allocations: Station {
    let name = "fallocate"
    private static let record = 20_000
    private static let hole = 3_001..<12_001
    private static let zeros = 13_003..<15_003
    private static func size(_ round: Int) -> Int { 30_000 + round }

    // <linux/falloc.h>
    private static let keepSize: Int32 = 1
    private static let punch: Int32 = 2 | keepSize
    private static let zero: Int32 = 16 | keepSize

    private static func change(_ file: File, _ step: Int, _ round: Int) throws(Errno) {
        switch step {
        case 1: try file.allocate(punch, at: hole.lowerBound, count: hole.count)
        case 2: try file.allocate(zero, at: zeros.lowerBound, count: zeros.count)
        default: try file.allocate(0, at: 0, count: size(round))
        }
    }

    func prepare(_ root: Path) throws {
        let file = try (root / "data").open(O_WRONLY | O_CREAT)
        let buffer = Buffer(Self.record)
        buffer.fill(Stamp(0))
        try Lane.expect(buffer.count, pwrite(file.raw, buffer.start, buffer.count, 0))
        for step in 1...3 { try Self.change(file, step, 0) }
    }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let file = try (actor.root / "data").open(O_WRONLY)
        let buffer = Buffer(Self.record)
        while actor.goesOn {
            let round = lane.begun / 4 + 1
            buffer.fill(Stamp(round))
            try lane.write(.pwrite, count: Self.record) { pwrite(file.raw, buffer.start, Self.record, 0) }
            for step in 1...3 { try lane.operate(.fallocate) { try Self.change(file, step, round) } }
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        let file = try (root / "data").open(O_RDONLY)
        let size = try file.stat().size
        let buffer = Buffer(Self.record)
        if try buffer.read(file, at: 0) != Self.record { throw TestFailure("only \(size) bytes are there") }
        let stamp = buffer.stamp(at: 0)
        let round = stamp.number
        let isPunched = buffer.stamp(at: Self.hole.lowerBound).word == 0
        let isZeroed = buffer.stamp(at: Self.zeros.lowerBound).word == 0
        let isGrown = size == Self.size(round)
        let steps = [isPunched, isZeroed, isGrown]
        let isKnownSize = isGrown || size == Self.size(round - 1)
        if !isKnownSize || steps.drop(while: { $0 }).contains(true) {
            throw TestFailure("round \(round): hole \(isPunched), zeros \(isZeroed), and the size is \(size)")
        }
        var at = 0
        for (range, isZero) in [(Self.hole, isPunched), (Self.zeros, isZeroed)] {
            try buffer.expect(stamp, at..<range.lowerBound, from: 0, "what surrounds the hole and the zeros")
            if isZero {
                try buffer.expectZeros(range, "a range set to zeros in round \(round)")
            } else {
                try buffer.expect(stamp, range, from: 0, "a range not yet set to zeros")
            }
            at = range.upperBound
        }
        try buffer.expect(stamp, at..<Self.record, from: 0, "what surrounds the hole and the zeros")
        // Round 1 begins with operation 1.
        return [Found(4 * (round - 1) + 1 + steps.prefix { $0 }.count)]
    }
}
