import Glibc
import TestSupport

/// Where records lie: each lane has so many slots of its own, and writes them in turn.
struct Records: Sendable {
    var lanes = 1
    var slots = 1
    let size: Int
    /// From the beginning of one slot to that of the next.
    let stride: Int
    /// Where the first one begins.
    let first: Int
    var hasFilePerSlot = false

    private func index(_ lane: Int, _ slot: Int) -> Int { lane * slots + slot }

    func file(_ root: Path, _ lane: Int, _ slot: Int) -> Path {
        hasFilePerSlot ? root / index(lane, slot) : root / "data"
    }

    func offset(_ lane: Int, _ slot: Int) -> Int {
        first + (hasFilePerSlot ? 0 : index(lane, slot) * stride)
    }

    /// The slot of an operation.
    func slot(_ number: Int) -> Int { number % slots }

    /// The last operation up to `number` that wrote the slot; 0 where none did.
    private func writer(of slot: Int, upTo number: Int) -> Int {
        max(0, number - ((number - slot) % slots + slots) % slots)
    }

    func prepare(_ root: Path) throws {
        let buffer = Buffer(size)
        for lane in 0..<lanes {
            buffer.fill(Stamp(lane: lane, 0))
            for slot in 0..<slots {
                let file = try file(root, lane, slot).open(O_WRONLY | O_CREAT)
                try Lane.expect(size, pwrite(file.raw, buffer.start, size, offset(lane, slot)))
            }
        }
    }

    func find(_ root: Path) throws -> [Found] {
        let buffer = Buffer(size)
        var file = hasFilePerSlot ? nil : try file(root, 0, 0).open(O_RDONLY)
        return try (0..<lanes).map { lane in
            var held: [Int] = []
            for slot in 0..<slots {
                if hasFilePerSlot { file = try self.file(root, lane, slot).open(O_RDONLY) }
                if let file { held.append(try number(in: file, buffer, lane, slot)) }
            }
            let last = held.max() ?? 0
            for (slot, number) in held.enumerated() where number != writer(of: slot, upTo: last) {
                throw TestFailure(
                    "lane \(lane): operation \(last) is in, and \(writer(of: slot, upTo: last)) before it is not: "
                        + "slot \(slot) at \(offset(lane, slot)) holds \(number)")
            }
            return Found(last)
        }
    }

    private func number(in file: File, _ buffer: Buffer, _ lane: Int, _ slot: Int) throws -> Int {
        let what = "the record of lane \(lane), slot \(slot) at \(offset(lane, slot))"
        let count = try buffer.read(file, at: offset(lane, slot))
        if count != size { throw TestFailure("\(what) ends after \(count) of \(size) bytes") }
        let stamp = buffer.stamp(at: 0)
        try buffer.expect(stamp, 0..<size, what)
        if stamp.lane != lane { throw TestFailure("\(what) holds \(stamp)") }
        return stamp.number
    }
}
