import Glibc
import LinuxSystem
import SnapshotCore
import SnapshotRecord
import SystemPackage
import TestSupport
import Testing

/// Snapshots of one user's files.
@Suite(.enabled(if: Machine.isRoot, "needs root, to give files to users")) struct ScopeTests {
    private static let mine: UInt32 = 1000
    private static let theirs: UInt32 = 1001

    /// Calls `body` with a snapshot of `mine`'s files, of a tree with `mine`, `theirs`, `deep/er/mine`, `foreign/theirs`,
    /// and `empty`, whose directories are root's.
    private func with(
        scope: SnapshotScope = SnapshotScope(users: [mine]), usesHandles: Bool = true,
        _ body: (SnapshotUnderTest) throws -> Void
    ) throws {
        try SnapshotUnderTest.with(usesHandles: usesHandles, scope: scope) { top in
            for path: Path in ["deep", "deep/er", "foreign", "foreign/more", "empty"] { try (top / path).mkdir() }
            for (path, user): (Path, UInt32) in [
                ("mine", Self.mine), ("theirs", Self.theirs), ("deep/er/mine", Self.mine),
                ("foreign/theirs", Self.theirs), ("foreign/more/theirs", Self.theirs),
            ] {
                try (top / path).create(bytes(10_000))
                try (top / path).chown(user: user, group: user)
            }
        } _: { snapshot throws in
            try body(snapshot)
        }
    }

    @Test("only the users' files, and directories that lead to some, are listed; every directory can be looked up")
    func listing() throws {
        try with { snapshot throws in
            #expect(try snapshot.names() == ["mine", "deep"])
            #expect(try snapshot.entry("theirs") == nil)
            #expect(try snapshot.entry("mine") != nil && snapshot.entry("foreign") != nil)
        }
    }

    @Test("by group") func group() throws {
        try with(scope: SnapshotScope(users: [], groups: [Self.theirs])) { snapshot throws in
            #expect(try snapshot.names() == ["theirs", "foreign"])
        }
    }

    @Test("without file handles every directory is listed, and only the users' files") func noHandles() throws {
        try with(usesHandles: false) { snapshot throws in
            #expect(try snapshot.names() == ["mine", "deep", "foreign", "empty"])
        }
    }

    @Test("others' changes are not stored, nor recorded") func others() throws {
        try with { snapshot throws in
            let preserve = snapshot.preserve
            #expect(preserve.willChangeData(of: try snapshot.target("theirs", O_RDWR), 0..<10_000))
            preserve.willChangeAttributes(of: try snapshot.target("theirs"))
            #expect(preserve.store.storedBytes == 0 && preserve.map.changedAreas == 0)
            try snapshot.unlink("theirs")
            #expect(preserve.store.storedBytes == 0)
            // The directory's times are those of the cut, and that is all that is recorded.
            #expect(preserve.map.changedAreas == 1)
            #expect(try snapshot.names() == ["mine", "deep"])
            #expect(preserve.willChangeData(of: try snapshot.target("mine", O_RDWR), 0..<10_000))
            #expect(preserve.store.storedBytes == 10_000)
            #expect(preserve.changes.files == 1)
        }
    }

    private func give(_ snapshot: SnapshotUnderTest, _ path: Path, to user: UInt32) throws {
        snapshot.preserve.willChangeOwner(of: try snapshot.target(path))
        try (snapshot.top / path).chown(user: user)
    }

    @Test("the owner at the cut decides: files given away stay, and files received do not come") func givenAway()
        throws
    {
        try with { snapshot throws in
            try give(snapshot, "mine", to: Self.theirs)
            try give(snapshot, "theirs", to: Self.mine)
            #expect(try snapshot.names() == ["mine", "deep"])
            let file = try #require(try snapshot.entry("mine"))
            #expect(try snapshot.status(file).user == Self.mine)
            // Each is preserved as before.
            #expect(snapshot.preserve.willChangeData(of: try snapshot.target("theirs", O_RDWR), 0..<10_000))
            #expect(snapshot.preserve.store.storedBytes == 0)
            #expect(snapshot.preserve.willChangeData(of: try snapshot.target("mine", O_RDWR), 0..<10_000))
            try (snapshot.top / "mine").truncate(0)
            #expect(try snapshot.data(file) == bytes(10_000))
            #expect(snapshot.preserve.changes.files == 1)
        }
    }

    @Test("a file made after the cut does not come by being given to the user") func born() throws {
        try with { snapshot throws in
            try (snapshot.top / "new").create()
            try (snapshot.top / "new").chown(user: Self.theirs)
            snapshot.preserve.didMake(try FileStatus(of: snapshot.target("new").descriptor))
            try give(snapshot, "new", to: Self.mine)
            #expect(try snapshot.names() == ["mine", "deep"] && snapshot.entry("new") == nil)
        }
    }

    @Test("a file replaced by somebody else's, or that replaces one, keeps its name in the snapshot")
    func replaced() throws {
        for (old, new, wanted) in [("mine", "theirs", ["mine"]), ("theirs", "mine", ["mine"])] {
            try with { snapshot throws in
                let move = Preserve.Move(
                    try snapshot.target(Path(old)), replacing: try snapshot.target(Path(new)), flags: 0,
                    ancestors: [])
                try old.withCString { old in
                    try new.withCString { new in
                        while try !snapshot.preserve.rename(move, from: snapshot.root, old, to: snapshot.root, new)
                        {}
                    }
                }
                #expect(try snapshot.names() == Set(wanted + ["deep"]), "\(old) over \(new)")
                let file = try #require(try snapshot.entry("mine"))
                #expect(try snapshot.data(file) == bytes(10_000))
            }
        }
    }

    @Test("a directory leads to the user's files from wherever it is moved, and to none that come into it")
    func moved() throws {
        try with { snapshot throws in
            let move = Preserve.Move(try snapshot.target("deep"), replacing: nil, flags: 0, ancestors: [])
            while try !snapshot.preserve.rename(
                move, from: snapshot.root, "deep", to: snapshot.target("empty"), "x")
            {}
            #expect(try snapshot.names() == ["mine", "deep"])
            let file = Preserve.Move(try snapshot.target("mine"), replacing: nil, flags: 0, ancestors: [])
            while try !snapshot.preserve.rename(
                file, from: snapshot.root, "mine", to: snapshot.target("foreign"), "x")
            {}
            #expect(try snapshot.names() == ["mine", "deep"])
        }
    }

    @Test("a maker that is none of the users makes nothing that is shown") func makers() throws {
        try with(scope: SnapshotScope(users: [Self.mine], groups: [7])) { snapshot throws in
            let root = snapshot.root
            #expect(!snapshot.preserve.concernsMaker(user: Self.theirs, group: 8, in: root))
            #expect(snapshot.preserve.concernsMaker(user: Self.mine, group: 8, in: root))
            #expect(snapshot.preserve.concernsMaker(user: Self.theirs, group: 7, in: root))
            try (snapshot.top / "empty").chown(group: 7)
            #expect(snapshot.preserve.concernsMaker(user: Self.theirs, group: 8, in: try snapshot.target("empty")))
        }
    }

    @Test("a tree deeper than any path is searched for the user's files") func deepTree() throws {
        try SnapshotUnderTest.with(scope: SnapshotScope(users: [Self.mine])) { top in
            for name in ["with", "without"] {
                var at = try (top.string + "/" + name).withCString {
                    mkdir($0, 0o755)
                    return try Descriptor.open(at: .workingDirectory, $0, O_RDONLY | O_DIRECTORY)
                }
                for _ in 0..<3_000 {
                    mkdirat(at.raw, "d", 0o755)
                    at = try Descriptor.open(at: at, "d", O_RDONLY | O_DIRECTORY)
                }
                if name == "without" { continue }
                _ = try Descriptor.open(at: at, "file", O_CREAT | O_RDWR, mode: 0o600)
                fchownat(at.raw, "file", Self.mine, Self.mine, 0)
            }
        } _: { snapshot throws in
            #expect(try snapshot.names() == ["with"])
            try succeed(["rm", "-rf", (snapshot.top / "with").string, (snapshot.top / "without").string])
        }
    }
}
