import CTestSupport
import Glibc
import TestSupport

/// Appends records, and begins a new file now and then: making it and removing the one before are operations too.
struct AppendLog: Station {
    let name: String
    let size: Int
    let recordsPerFile: Int

    // A cycle of operations on file f: make it, remove f - 1, append all records. At first file 0 has been made.
    private var cycle: Int { recordsPerFile + 2 }

    func prepare(_ root: Path) throws { try (root / 0).create() }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let record = Buffer(size)
        var file = try (actor.root / 0).open(O_WRONLY | O_APPEND)
        while actor.goesOn {
            let number = lane.next
            let (index, place) = (number + 2).quotientAndRemainder(dividingBy: cycle)
            switch place {
            case 1:
                try lane.operate(.openCreating) {
                    file = try (actor.root / index).open(O_WRONLY | O_CREAT | O_EXCL | O_APPEND)
                }
            case 2: try lane.operate(.unlink) { try (actor.root / (index - 1)).unlink() }
            default:
                record.fill(Stamp(number))
                try lane.write(.write, count: size) { Glibc.write(file.raw, record.start, size) }
            }
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        let files = try numbers(in: root)
        guard let index = files.first, files.count == 1 || files == [index, index + 1] else {
            throw TestFailure("the files \(files) are there")
        }
        let records = try check(root / index, index)
        let isFull = records == recordsPerFile
        if files.count == 1 { return [Found(index * cycle + records)] }
        guard isFull, try check(root / (index + 1), index + 1) == 0 else {
            throw TestFailure("file \(index + 1) is there, with \(records) of \(recordsPerFile) records before it")
        }
        return [Found((index + 1) * cycle - 1)]
    }

    /// How many records a file holds; throws unless they are right and whole.
    private func check(_ path: Path, _ index: Int) throws -> Int {
        let file = try path.open(O_RDONLY)
        let bytes = try file.stat().size
        let buffer = Buffer(bytes)
        if try buffer.read(file, at: 0) != bytes { throw TestFailure("\(path) is shorter than its size \(bytes)") }
        let count = bytes / size
        for record in 0..<count {
            let range = record * size..<(record + 1) * size
            try buffer.expect(Stamp(index * cycle + record + 1), range, "record \(record) of file \(index)")
        }
        if bytes % size != 0 {
            throw TestFailure(
                "file \(index) ends with \(bytes % size) of \(size) bytes of operation \(index * cycle + count + 1)"
            )
        }
        return count
    }
}

/// Two processes append to the same file. Each goes on to the next file after so many records of its own.
struct SharedAppend: Station {
    let name = "append-shared"
    let actors = 2
    var lanes: [String] { ["append-shared[0]", "append-shared[1]"] }

    // Crosses a page's edge most of the time.
    private static let size = 3001
    private static let perFile = 300

    func prepare(_ root: Path) throws { try (root / 0).create() }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[actor.index]
        let record = Buffer(Self.size)
        var file = try (actor.root / 0).open(O_WRONLY | O_APPEND)
        while actor.goesOn {
            let (index, place) = (lane.next - 1).quotientAndRemainder(dividingBy: Self.perFile)
            if place == 0, index > 0 {
                awaitOther(actor, index)
                // Whichever comes first makes it, so it is no operation of either.
                file = try lane.perform(.openCreating) {
                    try (actor.root / index).open(O_WRONLY | O_CREAT | O_APPEND)
                }
                try removeOld(actor, lane, below: index)
            }
            record.fill(Stamp(lane: actor.index, lane.next))
            try lane.write(.write, count: Self.size) { Glibc.write(file.raw, record.start, Self.size) }
        }
    }

    /// Keeps the lanes together, so that there are few files.
    private func awaitOther(_ actor: Actor, _ index: Int) {
        let other = actor.lanes[1 - actor.index]
        while other.finished / Self.perFile + 1 < index, actor.goesOn { usleep(1000) }
    }

    /// Removes files that neither lane needs any more.
    private func removeOld(_ actor: Actor, _ lane: Lane, below index: Int) throws {
        if actor.index != 0 { return }
        let passed = (actor.lanes.map(\.finished).min() ?? 0) / Self.perFile
        for old in try numbers(in: actor.root) where old + 2 < passed {
            try lane.perform(.unlink) { try (actor.root / old).unlink() }
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        let files = try numbers(in: root)
        guard let first = files.first, files == Array(first..<first + files.count) else {
            throw TestFailure("the files \(files) are there")
        }
        var last = [first * Self.perFile, first * Self.perFile]
        for index in files {
            let file = try (root / index).open(O_RDONLY)
            let bytes = try file.stat().size
            let buffer = Buffer(bytes)
            if try buffer.read(file, at: 0) != bytes {
                throw TestFailure("file \(index) is shorter than its size")
            }
            for at in stride(from: 0, to: bytes, by: Self.size) {
                try take(buffer, at, index, &last)
            }
        }
        return last.map { Found($0) }
    }

    private func take(_ buffer: Buffer, _ at: Int, _ index: Int, _ last: inout [Int]) throws {
        let what = "file \(index), record at \(at)"
        guard at + Self.size <= buffer.count else {
            throw TestFailure("\(what): ends after \(buffer.count - at) of \(Self.size) bytes")
        }
        let stamp = buffer.stamp(at: at)
        try buffer.expect(stamp, at..<at + Self.size, what)
        guard last.indices.contains(stamp.lane), stamp.number == last[stamp.lane] + 1,
            (stamp.number - 1) / Self.perFile == index
        else { throw TestFailure("\(what): \(stamp), and the lanes' last ones are \(last)") }
        last[stamp.lane] = stamp.number
    }
}
