import Glibc
import SystemPackage
import TestSupport
import Testing

@Suite(.serialized) struct ListingTests {
    @Test("10,000 entries are listed exactly once while others come and go", arguments: Setting.available)
    func changingWhileListed(_ setting: Setting) throws {
        try setting.run { place in
            let directory = place / "big"
            try directory.mkdir()
            let steady = Set((0..<10_000).map { Path("steady-\($0)") })
            for name in steady { try (directory / name).create() }
            for number in 0..<200 { try (directory / Path("old-\(number)")).create() }
            try place.cut()
            let isOver = Flag()
            let churn = try Worker {
                var round = 0
                while !isOver.isSet {
                    let name = Path("new-\(round % 500)-\(String(repeating: "x", count: round % 100))")
                    try (directory / name).create()
                    if round < 200 { try (directory / Path("old-\(round)")).unlink() }
                    if round % 3 == 0 { try (directory / name).rename(to: directory / "renamed") }
                    if round % 3 != 0 { try (directory / name).unlink() }
                    round += 1
                }
            }
            for _ in 0..<4 {
                let listed = try slowly(directory)
                let seen = listed.filter { steady.contains($0) }
                #expect(seen.count == 10_000)
                #expect(Set(seen).count == 10_000)
            }
            isOver.set()
            try churn.join()
        }
    }

    /// Lists in small pieces, so that much changes between them.
    private func slowly(_ directory: Path) throws -> [Path] {
        let open = try directory.open(O_RDONLY | O_DIRECTORY)
        var names: [Path] = []
        while true {
            let more = try open.nextEntries(room: 1024)
            if more.isEmpty { return names }
            names += more.map(\.name)
        }
    }

    @Test("a listing goes on from any offset it gave, and again after rewinding", arguments: Setting.available)
    func seeking(_ setting: Setting) throws {
        try setting.run { place in
            for number in 0..<500 { try (place / Path("file-\(number)")).create() }
            try place.cut()
            let open = try place.root.open(O_RDONLY | O_DIRECTORY)
            var all: [File.Entry] = []
            while case let more = try open.nextEntries(room: 2048), !more.isEmpty { all += more }
            #expect(all.count == 502)
            for index in [0, 1, 100, 333, 500] {
                _ = try open.seek(Int(all[index].next), SEEK_SET)
                let rest = try open.entries()
                let expected = all[(index + 1)...].map(\.name).filter { $0 != "." && $0 != ".." }
                #expect(rest == expected, "after entry \(index)")
            }
            _ = try open.seek(0, SEEK_SET)
            #expect(try Set(open.entries()).count == 500)
        }
    }

    @Test("rewinding shows what was made meanwhile", arguments: Setting.available)
    func rewinding(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "a").create()
            try place.cut()
            let open = try place.root.open(O_RDONLY | O_DIRECTORY)
            #expect(try open.entries() == ["a"])
            try (place / "b").create()
            try (place / "a").unlink()
            _ = try open.seek(0, SEEK_SET)
            #expect(try open.entries() == ["b"])
        }
    }

    @Test("removing entries as they are listed leaves none behind", arguments: Setting.available)
    func removingWhileListing(_ setting: Setting) throws {
        try setting.run { place in
            let directory = place / "d"
            try directory.mkdir()
            for number in 0..<2000 { try (directory / Path("\(number)")).create() }
            try place.cut()
            let open = try directory.open(O_RDONLY | O_DIRECTORY)
            while case let more = try open.nextEntries(room: 1024), !more.isEmpty {
                for entry in more where entry.name != "." && entry.name != ".." {
                    try (directory / entry.name).unlink()
                }
            }
            try directory.rmdir()
        }
    }

    @Test("every listing has `.` and `..` once, with their inode numbers", arguments: Setting.available)
    func dots(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "d").mkdir()
            let listed = try (place / "d").open(O_RDONLY | O_DIRECTORY).nextEntries()
            #expect(Set(listed.map(\.name)) == [".", ".."])
            let inode = try (place / "d").lstat().inode
            #expect(listed.first { $0.name == "." }?.inode == inode)
        }
    }
}
