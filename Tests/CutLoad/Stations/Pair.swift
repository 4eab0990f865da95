import Glibc
import TestSupport

/// Three processes take turns: the first writes a record, the second one in a file of another directory, the third
/// renames; then the first goes on.
struct Pair: Station {
    let name = "pair"
    let actors = 3
    var lanes: [String] { ["pair[write]", "pair[note]", "pair[rename]"] }

    private static let data = Records(size: 5003, stride: 0, first: 2777)
    private static let note = Records(size: 40, stride: 0, first: 4081)

    func prepare(_ root: Path) throws {
        for (directory, records) in [("data", Self.data), ("notes", Self.note)] {
            try (root / Path(directory)).mkdir()
            try records.prepare(root / Path(directory))
        }
        try (root / "names").mkdir()
        try Renames.prepare(root / "names")
    }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[actor.index]
        let records = actor.index == 0 ? Self.data : Self.note
        let directory = actor.root / (actor.index == 0 ? "data" : "notes")
        let file = try records.file(directory, 0, 0).open(O_WRONLY)
        let buffer = Buffer(records.size)
        while actor.goesOn, actor.lanes[0].awaitTurn(of: actor.index, actors) {
            if actor.index == 2 {
                try lane.operate(.rename) { try Renames.step(actor.root / "names", lane.begun) }
            } else {
                buffer.fill(Stamp(lane.next))
                try lane.write(.pwrite, count: buffer.count) {
                    pwrite(file.raw, buffer.start, buffer.count, records.first)
                }
            }
            actor.lanes[0].passTurn()
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        try Self.data.find(root / "data") + Self.note.find(root / "notes") + [Found(Renames.find(root / "names"))]
    }
}
