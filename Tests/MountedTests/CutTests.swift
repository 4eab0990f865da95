import Glibc
import SystemPackage
import TestSupport
import Testing

/// The cut is linearizable: a token goes round a ring of writers, each of which takes the next step only when the one
/// before it has finished. So a snapshot may hold step n of one and n - 1 of those after it, and nothing else.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct CutTests {
    private static let snapshots = 25

    /// A way to store a number, and to find it again in a tree.
    private struct Station: Sendable {
        let name: String
        let store: @Sendable (Path, Int) throws -> Void
        let find: @Sendable (Path) throws -> Int
    }

    /// Every station has a directory of its own, in which number 0 is stored before the first snapshot.
    private static let stations: [Station] = [
        Station(
            name: "overwriting three blocks",
            store: { root, number in
                try (root / "file").open(O_WRONLY | O_CREAT).write(digits(number, times: repeats), at: 7)
            },
            find: { root in try same(Array((root / "file").contents().dropFirst(7))) }),
        Station(
            name: "appending",
            store: { root, number in
                try (root / "log").open(O_WRONLY | O_CREAT | O_APPEND).write(digits(number, times: 1))
            },
            find: { root in
                let log = try (root / "log").contents()
                for at in stride(from: 0, to: log.count, by: width) where try value(log[at...]) != at / width {
                    throw TestFailure("the log has a gap at \(at)")
                }
                return log.count / width - 1
            }),
        Station(
            name: "renaming a new file over the old",
            store: { root, number in
                try (root / "next").create(digits(number, times: 1))
                try (root / "next").rename(to: root / "published")
            },
            find: { root in try value((root / "published").contents()[...]) }),
        Station(
            name: "truncating",
            store: { root, number in try (root / "file").open(O_WRONLY | O_CREAT).truncate(number) },
            find: { root in try (root / "file").lstat().size }),
        Station(
            name: "setting an attribute",
            store: { root, number in try root.setAttribute("user.number", digits(number, times: 1)) },
            find: { root in try value(root.attribute("user.number")[...]) }),
        Station(
            name: "setting a time",
            store: { root, number in try root.setTimes(accessed: nil, modified: Timestamp(Int64(number))) },
            find: { root in Int(try root.lstat().modified.seconds) }),
        Station(
            name: "making directories and removing the one before",
            store: { root, number in
                try (root / Path("\(number)")).mkdir()
                if number > 0 { try (root / Path("\(number - 1)")).rmdir() }
            },
            find: { root in
                let numbers = try root.entries().compactMap { Int($0.description) }
                guard let most = numbers.max(), numbers.count <= 2 else { throw TestFailure("\(numbers)") }
                return most
            }),
        Station(
            name: "linking and unlinking",
            store: { root, number in
                if number == 0 { return try (root / "0").create() }
                try (root / Path("\(number - 1)")).link(to: root / Path("\(number)"))
                try (root / Path("\(number - 1)")).unlink()
            },
            find: { root in
                guard let most = try root.entries().compactMap({ Int($0.description) }).max() else {
                    throw TestFailure("no name is left")
                }
                return most
            }),
    ]

    // Divides a page, so that no append crosses an edge.
    private static let width = 16
    // More than two blocks of one number.
    private static let repeats = 700

    private static func digits(_ number: Int, times: Int) -> [UInt8] {
        let text = String(number)
        let one = Array((String(repeating: "0", count: width - text.count) + text).utf8)
        return (0..<times).flatMap { _ in one }
    }

    private static func value(_ data: ArraySlice<UInt8>) throws -> Int {
        guard let number = Int(String(decoding: data.prefix(width), as: UTF8.self)) else {
            throw TestFailure("torn: \(data.prefix(width))")
        }
        return number
    }

    /// The number that `data` repeats.
    private static func same(_ data: [UInt8]) throws -> Int {
        let number = try value(data[...])
        guard data == digits(number, times: repeats) else {
            throw TestFailure("a write is in in part: first \(number)")
        }
        return number
    }

    @Test("what a snapshot holds of a ring of writers is what was there at one instant")
    func ring() throws {
        try MountedSource.with { mount in
            let live = mount.mountpoint
            let roots = Self.stations.indices.map { Path("station-\($0)") }
            for (root, station) in zip(roots, Self.stations) {
                try (live / root).mkdir()
                try station.store(live / root, 0)
            }
            let (isOver, turns) = (Flag(), Counter())
            let writers = try Self.stations.enumerated().map { index, station in
                try Worker {
                    while let number = Self.turn(of: index, turns, isOver) {
                        do {
                            try station.store(live / roots[index], number)
                        } catch {
                            isOver.set()
                            throw TestFailure("\(station.name), number \(number): \(error)")
                        }
                        turns.increment()
                    }
                }
            }
            do {
                for number in 1...Self.snapshots {
                    try checkOneCut(mount, roots, turns, "snapshot \(number)")
                }
            } catch {
                isOver.set()
                for writer in writers { try writer.join() }
                throw error
            }
            isOver.set()
            for writer in writers { try writer.join() }
        }
    }

    /// Waits for a station's next turn: the number to store, nil at the end.
    private static func turn(of index: Int, _ turns: Counter, _ isOver: Flag) -> Int? {
        while !isOver.isSet {
            let now = turns.current
            if now % stations.count == index { return now / stations.count + 1 }
            sched_yield()
        }
        return nil
    }

    private func checkOneCut(_ mount: MountedSource, _ roots: [Path], _ turns: Counter, _ what: String) throws {
        let progress = turns.current
        try wait("the writers to go on") { turns.current > progress + roots.count }
        let finished = turns.current
        try mount.start()
        let begun = turns.current + 1
        let found = try zip(roots, Self.stations).map { root, station in
            do {
                return try station.find(mount.snapshot / root)
            } catch {
                throw TestFailure("\(what), \(station.name): \(error)")
            }
        }
        // Steps done, were the ring stopped here: every station as far as the next or one step ahead of it.
        for (index, (here, next)) in zip(found, found.dropFirst() + [found[0]]).enumerated() {
            let ahead = index == found.count - 1 ? next - here : here - next
            #expect((0...1).contains(ahead), "\(what): \(found): \(Self.stations[index].name) and what follows it")
        }
        let total = found.reduce(0, +)
        #expect(total >= finished, "\(what): \(finished) steps had finished before the start, \(total) are in")
        #expect(total <= begun, "\(what): \(begun) steps had begun when the start returned, \(total) are in")
        try mount.stop()
    }
}
