import Glibc
import TestSupport

/// The usual save: makes a new file in one directory, writes it, and renames it over the old one in another.
struct Saves: Station {
    let name = "save"
    private static let size = 9001

    private static func new(_ root: Path) -> Path { root / "new" / "file" }
    private static func saved(_ root: Path) -> Path { root / "saved" / "file" }

    func prepare(_ root: Path) throws {
        try (root / "new").mkdir()
        try (root / "saved").mkdir()
        let buffer = Buffer(Self.size)
        buffer.fill(Stamp(0))
        let file = try Self.saved(root).open(O_WRONLY | O_CREAT)
        try Lane.expect(buffer.count, pwrite(file.raw, buffer.start, buffer.count, 0))
    }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let (new, saved) = (Self.new(actor.root), Self.saved(actor.root))
        let buffer = Buffer(Self.size)
        while actor.goesOn {
            buffer.fill(Stamp(lane.begun / 3 + 1))
            var file: File?
            try lane.operate(.openCreating) { file = try new.open(O_WRONLY | O_CREAT | O_EXCL) }
            try lane.write(.write, count: Self.size) { Glibc.write(file?.raw ?? -1, buffer.start, Self.size) }
            file = nil
            try lane.operate(.rename) { try new.rename(to: saved) }
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        let old = try Self.number(Self.saved(root), "what was saved") ?? 0
        guard Self.new(root).exists else { return [Found(3 * old)] }
        guard let new = try Self.number(Self.new(root), "the new file") else { return [Found(3 * old + 1)] }
        if new != old + 1 { throw TestFailure("the new file is number \(new), that saved before is \(old)") }
        return [Found(3 * old + 2)]
    }

    /// What a whole file is filled with; nil where it is empty.
    private static func number(_ path: Path, _ what: String) throws -> Int? {
        try Rewrites.number(path, size, what)
    }
}

/// Truncates and rewrites two files in turn: opening with O_TRUNC is an operation, and the write is another.
struct Rewrites: Station {
    let name = "rewrite"
    private static let size = 3001

    func prepare(_ root: Path) throws {
        let buffer = Buffer(Self.size)
        buffer.fill(Stamp(0))
        for index in 0...1 {
            let file = try (root / index).open(O_WRONLY | O_CREAT)
            try Lane.expect(buffer.count, pwrite(file.raw, buffer.start, buffer.count, 0))
        }
    }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let buffer = Buffer(Self.size)
        while actor.goesOn {
            let round = lane.begun / 2 + 1
            buffer.fill(Stamp(round))
            var file: File?
            try lane.operate(.openTruncating) {
                file = try (actor.root / (round % 2)).open(O_WRONLY | O_TRUNC)
            }
            try lane.write(.write, count: Self.size) { Glibc.write(file?.raw ?? -1, buffer.start, Self.size) }
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        let held = try (0...1).map { try Self.number(root / $0, Self.size, "file \($0)") }
        guard let round = held.compactMap({ $0 }).max() else { throw TestFailure("both files are empty") }
        let other = held[(round + 1) % 2]
        if held[round % 2] != round { throw TestFailure("the files hold \(held)") }
        // The other one is the older, or has been truncated for the next round.
        guard let other else { return [Found(2 * round + 1)] }
        if other != max(0, round - 1) { throw TestFailure("the files hold \(held)") }
        return [Found(2 * round)]
    }

    /// What a whole file is filled with; nil where it is empty.
    static func number(_ path: Path, _ size: Int, _ what: String) throws -> Int? {
        let buffer = Buffer(size + 1)
        let count = try buffer.read(path.open(O_RDONLY), at: 0)
        if count == 0 { return nil }
        if count != size { throw TestFailure("\(what) is torn: \(count) of \(size) bytes") }
        let stamp = buffer.stamp(at: 0)
        try buffer.expect(stamp, 0..<size, what)
        return stamp.number
    }
}

/// Makes a symbolic link and renames it over the one before.
struct Symlinks: Station {
    let name = "symlink"

    func prepare(_ root: Path) throws { try (root / "current").symlink(to: "0") }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let (next, current) = (actor.root / "next", actor.root / "current")
        while actor.goesOn {
            try lane.operate(.symlink) { try next.symlink(to: Path("\(lane.begun / 2 + 1)")) }
            try lane.operate(.rename) { try next.rename(to: current) }
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        let current = try Self.number(root / "current")
        guard (root / "next").exists else { return [Found(2 * current)] }
        let next = try Self.number(root / "next")
        if next != current + 1 { throw TestFailure("next is \(next), current \(current)") }
        return [Found(2 * current + 1)]
    }

    private static func number(_ path: Path) throws -> Int {
        guard let number = Int(try path.readlink().string) else { throw TestFailure("\(path): a strange target") }
        return number
    }
}
