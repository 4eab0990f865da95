import Glibc
import SystemPackage
import TestSupport

/// Makes numbered names in order and removes them in order: at any time those of one range are there, without gaps.
struct Names: Station {
    enum Kind {
        case file, directory
        /// To a file named `base`.
        case link
    }

    enum Pattern {
        /// One is made, then the oldest removed: always so many.
        case window(Int)
        /// So many are made, then as many removed.
        case rounds(Int)
    }

    let name: String
    let kind: Kind
    let pattern: Pattern

    private static let base = "base"

    /// The names that are there after an operation.
    private func range(after number: Int) -> Range<Int> {
        switch pattern {
        case .window(let width): return number / 2..<width + (number + 1) / 2
        case .rounds(let count):
            let (round, step) = number.quotientAndRemainder(dividingBy: 2 * count)
            let first = round * count
            return first + max(0, step - count)..<first + 1 + min(step, count)
        }
    }

    func prepare(_ root: Path) throws {
        if kind == .link { try (root / Path(Self.base)).create() }
        for number in range(after: 0) { try make(root, number) }
    }

    private func make(_ root: Path, _ number: Int) throws {
        switch kind {
        case .file: _ = try (root / number).open(O_WRONLY | O_CREAT | O_EXCL)
        case .directory: try (root / number).mkdir()
        case .link: try (root / Path(Self.base)).link(to: root / number)
        }
    }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let (making, removing): (Call, Call) =
            switch kind {
            case .file: (.openCreating, .unlink)
            case .directory: (.mkdir, .rmdir)
            case .link: (.link, .unlink)
            }
        while actor.goesOn {
            let (old, new) = (range(after: lane.next - 1), range(after: lane.next))
            if new.upperBound > old.upperBound {
                try lane.operate(making) { try make(actor.root, old.upperBound) }
            } else {
                try lane.operate(removing) {
                    let path = actor.root / old.lowerBound
                    if kind == .directory { try path.rmdir() } else { try path.unlink() }
                }
            }
        }
    }

    func find(_ root: Path) throws -> [Found]? {
        let there = try numbers(in: root, other: kind == .link ? Self.base : nil)
        guard let first = there.first, let end = there.last.map({ $0 + 1 }) else { throw TestFailure("no name") }
        if there.count != end - first {
            let missing = (first..<end).filter { !there.contains($0) }
            throw TestFailure("names from \(first) to \(end - 1) are there, but not \(missing)")
        }
        let last = first + end - range(after: 0).upperBound
        if last < 0 || range(after: last) != first..<end {
            throw TestFailure("names from \(first) to \(end - 1) are there, which no operation left so")
        }
        if kind == .link { try checkLinks(root, there) }
        return [Found(last)]
    }

    private func checkLinks(_ root: Path, _ names: [Int]) throws {
        let base = try (root / Path(Self.base)).lstat()
        if base.links != names.count + 1 {
            throw TestFailure("\(names.count + 1) names are there, and the link count is \(base.links)")
        }
        for name in names where try (root / name).lstat() != base {
            throw TestFailure("\(name) is another file than \(Self.base)")
        }
    }
}

/// Renames one name to the next number, back and forth between two directories.
struct Renames: Station {
    let name = "rename"

    static func path(_ root: Path, _ number: Int) -> Path { root / (number % 2 == 0 ? "even" : "odd") / number }

    func prepare(_ root: Path) throws { try Self.prepare(root) }

    static func prepare(_ root: Path) throws {
        try (root / "even").mkdir()
        try (root / "odd").mkdir()
        try path(root, 0).create()
    }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        while actor.goesOn {
            try lane.operate(.rename) { try Self.step(actor.root, lane.begun) }
        }
    }

    static func step(_ root: Path, _ number: Int) throws {
        try path(root, number - 1).rename(to: path(root, number))
    }

    func find(_ root: Path) throws -> [Found]? { [Found(try Self.find(root))] }

    static func find(_ root: Path) throws -> Int {
        let (even, odd) = (try numbers(in: root / "even"), try numbers(in: root / "odd"))
        guard let number = (even + odd).first, (even + odd).count == 1, path(root, number).exists else {
            throw TestFailure("a renamed file should be there once: even has \(even), odd \(odd)")
        }
        return number
    }
}
