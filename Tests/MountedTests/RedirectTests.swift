import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// The live view while changes are redirected, where it could be told from an ordinary one. That it answers as a plain
/// directory does is for ConformanceTests, that each kind of change is merged and discarded exactly for the Change tests.
@Suite(
    .serialized,
    .enabled(if: Machine.canMount && Machine.Mode.available.contains(.redirect), "needs /dev/fuse and root"))
struct RedirectTests {
    private func with(_ body: (MountedSource) throws -> Void) throws {
        try MountedSource.with(mode: .redirect, body)
    }

    @Test("in a file system mounted below the source nothing is redirected, and its root stays where it is")
    func mountedBelow() throws {
        try MountedSource.with(
            mode: .redirect,
            prepare: { source in
                try (source / "below").mkdir()
                try succeed(["mount", "-t", "tmpfs", "tmpfs", (source / "below").string])
                try (source / "below/file").create(bytes(100))
                try (source / "d").mkdir()
            }
        ) { mount in
            let (below, real) = (mount.mountpoint / "below", mount.source / "below")
            try mount.start()
            try (below / "new").create(bytes(10))
            try (below / "dir").mkdir()
            try (below / "file").rename(to: below / "dir/moved")
            try (below / "dir/moved").link(to: below / "second")
            try (below / "new").unlink()
            try (below / "symlink").symlink(to: "target")
            try (below / "second").write([1], at: 0)
            let temporary = try below.open(O_RDWR | O_TMPFILE)
            try temporary.link(to: below / "named")
            let names: Set<Path> = ["dir", "second", "symlink", "named"]
            for root in [below, real] {
                #expect(try Set(root.entries()) == names)
                #expect(try (root / "dir/moved").contents().first == 1)
            }
            #expect(throws: Errno.resourceBusy) { try below.rmdir() }
            #expect(throws: Errno.resourceBusy) { try below.rename(to: mount.mountpoint / "other") }
            #expect(throws: Errno.resourceBusy) { try (mount.mountpoint / "d").rename(to: below) }
            #expect(throws: Errno.improperLink) { try (below / "second").link(to: mount.mountpoint / "x") }
            #expect(throws: Errno.improperLink) { try (below / "second").rename(to: mount.mountpoint / "x") }
            #expect(throws: Errno.improperLink) { try (mount.mountpoint / "d").rename(to: below / "x") }
            try mount.stop()
            #expect(try Set(below.entries()) == names)
        }
    }

    @Test("what is immutable on the source refuses every change, and the merge does not meet it")
    func immutable() throws {
        try with { mount in
            let (root, source) = (mount.mountpoint, mount.source)
            for name: Path in ["file", "other"] { try (root / name).create(bytes(100)) }
            for name: Path in ["d", "empty"] { try (root / name).mkdir() }
            try (root / "d/inside").create()
            let kept = [source / "file", source / "d", source / "empty"].map(\.string)
            try succeed(["chattr", "+i"] + kept)
            defer {
                do { try succeed(["chattr", "-i"] + kept) } catch { Issue.record("\(error)") }
            }
            try mount.start()
            let file = root / "file"
            let attempts: [(String, () throws -> Void)] = [
                ("truncate", { try file.truncate(1) }), ("chmod", { try file.chmod(0o600) }),
                ("times", { try file.setTimes(accessed: nil, modified: Timestamp(1)) }),
                ("rename", { try file.rename(to: root / "x") }), ("link", { try file.link(to: root / "x") }),
                ("over it", { try (root / "other").rename(to: file) }), ("unlink", { try file.unlink() }),
                ("setxattr", { try file.setAttribute("user.a", [1]) }), ("write", { try file.write([1], at: 0) }),
                ("create in it", { try (root / "d/new").create() }),
                ("unlink in it", { try (root / "d/inside").unlink() }),
                ("rename into it", { try (root / "other").rename(to: root / "d/x") }),
                ("rmdir", { try (root / "empty").rmdir() }), ("chmod of it", { try (root / "d").chmod(0o700) }),
            ]
            for (name, attempt) in attempts {
                #expect(throws: Errno.notPermitted, "\(name)", performing: attempt)
            }
            try (root / "d/inside").write([7], at: 0)
            try mount.stop()
            #expect(try (source / "d/inside").contents() == [7])
            #expect(try Set(root.entries()) == ["file", "other", "d", "empty"])
        }
    }

    @Test("times come out as the source's file system keeps them, however far away")
    func times() throws {
        try with { mount in
            let twin = mount.top / "twin"
            for path in [twin, mount.mountpoint / "file"] { try path.create() }
            try mount.start()
            for seconds: Int64 in [
                1 << 31, 1 << 32, 15_032_385_535, 15_032_385_536, 1 << 40, -1, -1 << 31, -1 << 31 - 5, -1 << 40,
            ] {
                for path in [twin, mount.mountpoint / "file"] {
                    try path.setTimes(accessed: Timestamp(seconds, 7), modified: Timestamp(seconds, 8))
                }
                let (expected, found) = (try twin.lstat(), try (mount.mountpoint / "file").lstat())
                #expect(found.modified == expected.modified, "\(seconds)")
                #expect(found.accessed == expected.accessed, "\(seconds)")
            }
            try mount.stop()
            #expect(try (mount.source / "file").lstat().modified == twin.lstat().modified)
        }
    }

    @Test(
        "a file without a name gets one: made before the start, named then; made and named before the stop, or after it"
    )
    func withoutName() throws {
        try with { mount in
            let root = mount.mountpoint
            func make(_ seed: UInt64) throws -> File {
                let file = try root.open(O_RDWR | O_TMPFILE, mode: 0o640)
                try file.writeAll(bytes(9_000, seed: seed))
                return file
            }
            let early = try make(1)
            try mount.start()
            try early.link(to: root / "early")
            let (before, after, never) = (try make(2), try make(3), try make(4))
            try before.link(to: root / "before")
            try after.sync()
            let again = try make(5)
            try again.link(to: root / "gone")
            try (root / "gone").unlink()
            #expect(throws: Errno.noSuchFileOrDirectory) { try again.link(to: root / "again") }
            let exclusive = try root.open(O_RDWR | O_TMPFILE | O_EXCL)
            #expect(throws: Errno.noSuchFileOrDirectory) { try exclusive.link(to: root / "exclusive") }
            try mount.stop()
            try after.link(to: root / "after")
            for (name, seed): (Path, UInt64) in [("early", 1), ("before", 2), ("after", 3)] {
                for path in [root / name, mount.source / name] {
                    #expect(try path.contents() == bytes(9_000, seed: seed), "\(path)")
                    #expect(try path.lstat().links == 1)
                    #expect(try path.lstat().permissions == 0o640)
                }
            }
            for (file, seed): (File, UInt64) in [(never, 4), (again, 5)] {
                #expect(try file.read(9_000, at: 0) == bytes(9_000, seed: seed))
                try file.write([9], at: 0)
                #expect(try file.stat().links == 0)
            }
            #expect(try Set(mount.source.entries()).subtracting([".fusesnap"]) == ["early", "before", "after"])
        }
    }

    @Test("files that are unlinked while open go on across start, merge and the next start")
    func unlinked() throws {
        try with { mount in
            let root = mount.mountpoint
            for name: Path in ["a", "b", "c", "over"] { try (root / name).create(bytes(10_000, seed: 1)) }
            var model = [bytes(10_000), bytes(10_000), bytes(10_000), bytes(100, seed: 2)]
            let a = try (root / "a").open(O_RDWR)
            try (root / "a").unlink()
            let (b, c) = (try (root / "b").open(O_RDWR), try (root / "c").open(O_RDWR))
            let mapping = try b.map(10_000)
            try mount.start()
            try (root / "b").unlink()
            try (root / "over").rename(to: root / "c")
            try (root / "new").create(bytes(100, seed: 2))
            let new = try (root / "new").open(O_RDWR)
            try (root / "new").unlink()
            let files = [a, b, c, new]
            func change(_ seed: UInt8) throws {
                for (index, file) in files.enumerated() {
                    try file.write([seed], at: 5)
                    model[index][5] = seed
                }
                try mapping.write([seed], at: 7_000)
                model[1][7_000] = seed
            }
            func expectAll(_ when: String) throws {
                for (file, data) in zip(files, model) {
                    #expect(try file.read(20_000, at: 0) == data, "\(when)")
                    #expect(try file.stat().links == 0, "\(when)")
                }
                #expect(try mapping.read(10_000, at: 0) == model[1], "\(when)")
            }
            try change(1)
            try expectAll("redirected")
            for file in files { try file.sync() }
            try mount.stop()
            try expectAll("merged")
            try change(2)
            try expectAll("changed after that")
            try mount.start()
            try expectAll("redirected again")
            try change(3)
            try mount.stop()
            try expectAll("merged again")
            #expect(try Set(mount.source.entries()).subtracting([".fusesnap"]) == ["c"])
        }
    }

    // MARK: Listings

    private static let old = Set((0..<900).map { Path("old-\($0)") })
    private static let new = Set((0..<300).map { Path("new-\($0)") })

    /// A directory of which a third of the names has gone and another third has been replaced, and new ones have come.
    private func change(_ directory: Path) throws -> Set<Path> {
        for name in Self.new { try (directory / name).create() }
        for number in stride(from: 0, to: 900, by: 3) {
            try (directory / Path("old-\(number)")).unlink()
            try (directory / "next").create()
            try (directory / "next").rename(to: directory / Path("old-\(number + 1)"))
        }
        return Self.old.union(Self.new).subtracting(stride(from: 0, to: 900, by: 3).map { Path("old-\($0)") })
    }

    @Test("a listing that start, merge or discard overtakes meets each name once that was there all the time")
    func listingsOvertaken() throws {
        try MountedSource.with(
            mode: .redirect,
            prepare: { source in
                try (source / "d").mkdir()
                for name in Self.old { try (source / "d" / name).create() }
            }
        ) { mount in
            let directory = mount.mountpoint / "d"
            func list(_ expected: Set<Path>, _ what: String, _ overtake: () throws -> Void) throws {
                let open = try directory.open(O_RDONLY | O_DIRECTORY)
                var names: [Path] = []
                while names.count < 100 { names += try open.nextEntries(room: 4096).map(\.name) }
                try overtake()
                while true {
                    let more = try open.nextEntries(room: 4096)
                    if more.isEmpty { break }
                    names += more.map(\.name)
                }
                names.removeAll { $0 == "." || $0 == ".." }
                #expect(names.count == expected.count && Set(names) == expected, "\(what)")
            }
            try list(Self.old, "start", mount.start)
            let changed = try change(directory)
            try list(changed, "merge", mount.stop)
            try list(changed, "nothing") {}
            try list(changed, "another start", mount.start)
            for number in 0..<300 {
                try (directory / Path("new-\(number)")).rename(to: directory / Path("n\(number)"))
            }
            for number in 0..<300 {
                try (directory / Path("n\(number)")).rename(to: directory / Path("new-\(number)"))
            }
            try list(changed, "discard", mount.discard)
        }
    }

    @Test(
        "listings are whole wherever they stop for want of room, and go on from any position in another descriptor"
    )
    func listingPositions() throws {
        try with { mount in
            let directories = (0..<25).map { mount.mountpoint / Path("d\($0)") }
            for (number, directory) in directories.enumerated() {
                try directory.mkdir()
                for entry in 0..<(100 + number) { try (directory / Path("old-name-\(entry)")).create() }
            }
            try mount.start()
            for (number, directory) in directories.enumerated() {
                for entry in 0..<5 {
                    try (directory / Path("new-\(entry)")).create()
                    try (directory / Path("old-name-\(entry)")).unlink()
                }
                var (names, position): ([Path], Int) = ([], 0)
                while true {
                    let open = try directory.open(O_RDONLY | O_DIRECTORY)
                    _ = try open.seek(position, SEEK_SET)
                    let entries = try open.nextEntries(room: 4096)
                    guard let last = entries.last else { break }
                    names += entries.map(\.name).filter { $0 != "." && $0 != ".." }
                    position = Int(last.next)
                }
                #expect(names.count == 100 + number && Set(names).count == names.count, "\(directory)")
                let open = try directory.open(O_RDONLY | O_DIRECTORY)
                var inOne: [Path] = []
                while true {
                    let entries = try open.nextEntries(room: 4096)
                    if entries.isEmpty { break }
                    inOne += entries.map(\.name).filter { $0 != "." && $0 != ".." }
                }
                #expect(inOne.count == names.count && Set(inOne) == Set(names), "\(directory)")
            }
        }
    }

    // MARK: Space as applications see it

    @Test("the blocks that a file takes are sane for du and tar while it is redirected, and after")
    func blocks() throws {
        try with { mount in
            let root = mount.mountpoint
            try (root / "file").create(bytes(100_000))
            try (root / "empty").create()
            try (root / "sparse").create(bytes(100_000))
            try mount.start()
            let before = try (root / "file").lstat().blocks
            try (root / "file").write(bytes(100_000, seed: 2), at: 0)
            #expect(try (root / "file").lstat().blocks == before)
            try (root / "empty").write([1], at: 0)
            try (root / "sparse").truncate(0)
            try (root / "sparse").truncate(1 << 30)
            try (root / "sparse").write([1], at: 1 << 29)
            try (root / "new").create(bytes(50_000))
            func expectSane(_ when: String) throws {
                #expect(
                    try (root / "empty").lstat().blocks > 0, "to tar, a file without blocks is one without data")
                #expect(try (root / "sparse").lstat().blocks < 1_000, "\(when)")
                #expect(try (root / "sparse").open(O_RDONLY).dataRanges() == [1 << 29..<(1 << 29 + 4_096)])
                try (root / "out").mkdir()
                try succeed([
                    "sh", "-c", "tar -C \"$0\" -cSf - file empty sparse new | tar -C \"$0/out\" -xf -",
                    root.string,
                ])
                for name: Path in ["file", "empty", "sparse", "new"] {
                    #expect(try hash(of: root / "out" / name) == hash(of: root / name), "\(when): \(name)")
                }
                removeTree(root / "out")
            }
            try expectSane("redirected")
            try mount.stop()
            try expectSane("merged")
        }
    }
}
