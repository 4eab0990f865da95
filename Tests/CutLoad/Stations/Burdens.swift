import Glibc
import TestSupport

/// Holds many files open for writing, and writes a little to them. Not looked at in the snapshot: it is there to
/// measure by.
struct OpenFiles: Station {
    let name = "open-files"
    let count: Int

    private static let pauseMicroseconds: UInt32 = 2000
    private static let bytes = 100

    func prepare(_ root: Path) throws {
        for number in 0..<count { try (root / number).create() }
    }

    func work(_ actor: Actor) throws {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        limit.rlim_cur = limit.rlim_max
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        let lane = actor.lanes[0]
        let files = try (0..<count).map { number in
            try lane.perform(.open) { try (actor.root / number).open(O_WRONLY) }
        }
        let buffer = Buffer(Self.bytes)
        while actor.goesOn {
            let number = lane.next
            buffer.fill(Stamp(number))
            try lane.write(.pwrite, count: buffer.count) {
                pwrite(files[number % count].raw, buffer.start, buffer.count, number % 8192)
            }
            usleep(Self.pauseMicroseconds)
        }
    }

    func find(_ root: Path) throws -> [Found]? { nil }
}

/// Overwrites a big file, over and over, so that its pages are dirty. Not looked at in the snapshot.
struct DirtyData: Station {
    let name = "dirty"
    let bytes: Int

    private static let piece = 1 << 20
    /// A pass over the file takes this long at least, so that there is time for others.
    private static let passSecondsMin = 2.0
    private static let sleepMicroseconds: UInt32 = 20_000

    /// Operations in one pass.
    var pass: Int { max(1, bytes / Self.piece) }

    func prepare(_ root: Path) throws { try (root / "data").create() }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let file = try (actor.root / "data").open(O_WRONLY)
        let buffer = Buffer(min(Self.piece, bytes))
        var began = ContinuousClock.now
        while actor.goesOn {
            let place = lane.begun % pass
            if place == 0 {
                let end = began + .seconds(Self.passSecondsMin)
                while lane.begun > 0, ContinuousClock.now < end, actor.goesOn { usleep(Self.sleepMicroseconds) }
                began = .now
            }
            buffer.fill(Stamp(lane.next))
            try lane.write(.pwrite, count: buffer.count) {
                pwrite(file.raw, buffer.start, buffer.count, place * Self.piece)
            }
        }
    }

    func find(_ root: Path) throws -> [Found]? { nil }
}
