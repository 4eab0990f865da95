import Glibc
import TestSupport

/// Sets mode, time of modification and an extended attribute of one file in turn, each to the round's number.
struct Attributes: Station {
    let name = "attributes"
    private static let attribute = "user.round"

    /// Tells a round from the one before it.
    private static func mode(_ round: Int) -> mode_t { 0o600 | mode_t(round % 64) }
    private static func time(_ round: Int) -> Timestamp { Timestamp(Int64(round), Int64(round % 1_000_000_000)) }

    func prepare(_ root: Path) throws {
        let file = root / "file"
        try file.create()
        try file.chmod(Self.mode(0))
        try file.setTimes(accessed: nil, modified: Self.time(0))
        try file.setAttribute(Self.attribute, Array("0".utf8))
    }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let file = actor.root / "file"
        while actor.goesOn {
            let round = lane.begun / 3 + 1
            try lane.operate(.chmod) { try file.chmod(Self.mode(round)) }
            try lane.operate(.utimensat) { try file.setTimes(accessed: nil, modified: Self.time(round)) }
            try lane.operate(.setxattr) { try file.setAttribute(Self.attribute, Array("\(round)".utf8)) }
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        let file = root / "file"
        let text = String(decoding: try file.attribute(Self.attribute), as: UTF8.self)
        let status = try file.lstat()
        guard let round = Int(text) else { throw TestFailure("the attribute is '\(text)'") }
        func holds(_ modes: Int, _ times: Int) -> Bool {
            status.permissions == Self.mode(modes) && status.modified == Self.time(times)
        }
        if holds(round, round) { return [Found(3 * round)] }
        if holds(round + 1, round) { return [Found(3 * round + 1)] }
        if holds(round + 1, round + 1) { return [Found(3 * round + 2)] }
        throw TestFailure(
            "the attribute is of round \(round), the time is \(status.modified), the mode "
                + "\(String(status.permissions, radix: 8))")
    }
}
