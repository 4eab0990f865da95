import Glibc
import SystemPackage
import TestSupport
import Testing

private let exchange: Int32 = 2
private let whiteout: Int32 = 4

@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct NamespaceChangeTests {
    @Test("a snapshot keeps the names at the cut", arguments: changes, Variant.available)
    func keepsNames(_ change: Change, _ variant: Variant) throws {
        try verify(change, variant)
    }

    private static let changes =
        Kind.available.flatMap(ofEveryKind) + Kind.available.flatMap(remaking) + exchanges + directories + links
        + unlinkedFiles

    private static func ofEveryKind(_ kind: Kind) -> [Change] {
        let base = [
            Change("removal of a \(kind)") { root in
                try kind.make(root / "it")
                return { try kind.remove(root / "it") }
            },
            Change("making a \(kind)") { root in { try kind.make(root / "it") } },
            Change("making and removing a \(kind)") { root in
                {
                    try kind.make(root / "it")
                    try kind.remove(root / "it")
                }
            },
            Change("rename of a \(kind)") { root in
                try kind.make(root / "it")
                return { try (root / "it").rename(to: root / "moved") }
            },
            Change("rename of a \(kind) there and back") { root in
                try kind.make(root / "it")
                return {
                    try (root / "it").rename(to: root / "moved")
                    try (root / "moved").rename(to: root / "it")
                }
            },
            Change("rename of a \(kind) into another directory, which then goes") { root in
                try (root / "d").mkdir()
                try kind.make(root / "it")
                return {
                    try (root / "it").rename(to: root / "d/moved")
                    try kind.remove(root / "d/moved")
                    try (root / "d").rmdir()
                }
            },
            Change("rename of a \(kind) over another") { root in
                try kind.make(root / "it")
                try kind.make(root / "other", seed: 2)
                return { try (root / "it").rename(to: root / "other") }
            },
            Change("rename of a new \(kind) over an old one, twice") { root in
                try kind.make(root / "it")
                return {
                    for seed: UInt64 in 2...3 {
                        try kind.make(root / "next", seed: seed)
                        try (root / "next").rename(to: root / "it")
                    }
                }
            },
        ]
        if kind == .directory { return base }
        return base + [
            Change("removal of one of two names of a \(kind)") { root in
                try kind.make(root / "it")
                try (root / "it").link(to: root / "second")
                return { try (root / "it").unlink() }
            },
            Change("removal of both names of a \(kind)") { root in
                try kind.make(root / "it")
                try (root / "it").link(to: root / "second")
                return {
                    try (root / "it").unlink()
                    try (root / "second").unlink()
                }
            },
            Change("a further name of a \(kind)") { root in
                try kind.make(root / "it")
                return { try (root / "it").link(to: root / "second") }
            },
            Change("a further name of a \(kind), whose first name then goes") { root in
                try kind.make(root / "it")
                return {
                    try (root / "it").link(to: root / "second")
                    try (root / "it").unlink()
                }
            },
            Change("rename of a \(kind) over one of two names of another") { root in
                try kind.make(root / "it")
                try kind.make(root / "other", seed: 2)
                try (root / "other").link(to: root / "second")
                return { try (root / "it").rename(to: root / "other") }
            },
        ]
    }

    /// A name that is removed and made again as every kind.
    private static func remaking(_ kind: Kind) -> [Change] {
        Kind.available.map { next in
            Change("a \(kind) removed, a \(next) made in its place") { root in
                try kind.make(root / "it")
                return {
                    try kind.remove(root / "it")
                    try next.make(root / "it", seed: 2)
                }
            }
        }
    }

    private static let exchanges: [Change] =
        Kind.available.flatMap { first in
            [Kind.file, .directory, .symlink].map { second in
                Change("a \(first) exchanged with a \(second), in another directory") { root in
                    try (root / "d").mkdir()
                    try first.make(root / "it")
                    try second.make(root / "d/other", seed: 2)
                    return { try (root / "it").rename(to: root / "d/other", flags: exchange) }
                }
            }
        } + [
            Change("three directories rotated by exchanges, with files changed in them") { root in
                for name: Path in ["a", "b", "c"] {
                    try (root / name).mkdir()
                    try (root / name / "file").create(bytes(5_000, seed: UInt64(name.bytes[0])))
                }
                return {
                    try (root / "a").rename(to: root / "b", flags: exchange)
                    try (root / "b").rename(to: root / "c", flags: exchange)
                    try (root / "a/file").write(bytes(10, seed: 2), at: 100)
                    try (root / "b/file").unlink()
                    try (root / "c/new").create()
                }
            },
            Change("a directory exchanged with a file below another") { root in
                for name: Path in ["a", "a/b", "z"] { try (root / name).mkdir() }
                try (root / "a/b/file").create(bytes(100))
                try (root / "z/file").create(bytes(200, seed: 2))
                return {
                    try (root / "a").rename(to: root / "z/file", flags: exchange)
                    try (root / "z/file/b/file").write([9], at: 0)
                    try (root / "a").write([9], at: 0)
                }
            },
        ]
        + (Machine.isRoot
            ? [
                Change("rename that leaves a whiteout") { root in
                    try (root / "it").create(bytes(100))
                    return { try (root / "it").rename(to: root / "moved", flags: whiteout) }
                }
            ] : [])

    /// A tree of three levels with files of every kind.
    private static func populate(_ root: Path) throws {
        for name: Path in ["a", "a/b", "a/b/c", "z"] { try (root / name).mkdir() }
        for kind in Kind.available { try kind.make(root / "a/b" / Path("\(kind)")) }
        try (root / "a/b/c/leaf").create(bytes(9_000))
        try (root / "z/file").create(bytes(100))
    }

    private static func ofTree(_ name: String, _ body: @escaping @Sendable (Path) throws -> Void) -> Change {
        Change(name) { root in
            try populate(root)
            return { try body(root) }
        }
    }

    private static let directories: [Change] = [
        ofTree("rename of a directory above files that then change") { root in
            try (root / "a").rename(to: root / "z/moved")
            try (root / "z/moved/b/c/leaf").write(bytes(10, seed: 2), at: 4_090)
            try (root / "z/moved/b/file").unlink()
            try (root / "z/moved/b/c/new").create()
        },
        Change("rename of a directory above a file that is open") { root in
            try populate(root)
            let leaf = try (root / "a/b/c/leaf").open(O_RDWR)
            return {
                try leaf.write(bytes(10, seed: 2), at: 0)
                try (root / "a").rename(to: root / "renamed")
                try leaf.write(bytes(10, seed: 3), at: 8_000)
                try (root / "renamed/b").rename(to: root / "z/b")
                try leaf.truncate(100)
            }
        },
        ofTree("a directory turned inside out") { root in
            try (root / "a/b/c").rename(to: root / "c")
            try (root / "a").rename(to: root / "c/a")
            try (root / "c").rename(to: root / "z/c")
        },
        Change("a chain of directories turned upside down, each a child of what was its child") { root in
            let names: [Path] = ["1", "2", "3", "4", "5"]
            try (root / names.joined()).makeAll()
            try (root / names.joined() / "file").create(bytes(5_000))
            return {
                for depth in stride(from: 4, through: 1, by: -1) {
                    let from = root / names[...depth].joined()
                    let to =
                        depth == 4 ? root / "5" : root / names[(depth + 1)...].reversed().joined() / names[depth]
                    try from.rename(to: to)
                }
                try (root / "1").rename(to: root / "5/4/3/2/1")
                try (root / "5").rename(to: root / "1")
                try (root / "1/file").write(bytes(10, seed: 2), at: 4_000)
                try (root / "1/4/3/new").create()
            }
        },
        Change("a cycle of three directories, and a file among them in a deep move of a moved directory") { root in
            for name: Path in ["a", "b", "c"] {
                for sub: Path in ["", "/in", "/in/deep"] { try (root / Path(name.bytes + sub.bytes)).mkdir() }
                try (root / name / "file").create(bytes(5_000, seed: UInt64(name.bytes[0])))
                try (root / name / "in/deep/leaf").create(bytes(10, seed: UInt64(name.bytes[0])))
            }
            return {
                try (root / "a").rename(to: root / "b", flags: exchange)
                try (root / "b").rename(to: root / "c", flags: exchange)
                try (root / "a/in").rename(to: root / "b/file", flags: exchange)
                try (root / "c/in/deep").rename(to: root / "deep")
                try (root / "c/in").rename(to: root / "deep/in")
                try (root / "c").rename(to: root / "deep/in/c")
                try (root / "deep/in/c/new").create(bytes(10))
                try (root / "deep/leaf").write([1], at: 0)
                try (root / "a").rename(to: root / "deep/a")
                try (root / "b").rename(to: root / "a")
            }
        },
        ofTree("a directory moved, another made in its place") { root in
            try (root / "a/b").rename(to: root / "z/b")
            try (root / "a/b").mkdir()
            try (root / "a/b/file").create(bytes(10, seed: 2))
        },
        ofTree("rename of a directory over an empty one of the snapshot") { root in
            try (root / "empty").mkdir()
            try (root / "z/file").unlink()
            try (root / "a").rename(to: root / "z")
            try (root / "z").rename(to: root / "empty")
        },
        ofTree("a whole tree removed") { removeTree($0 / "a") },
        ofTree("a whole tree removed and made again") { root in
            removeTree(root / "a")
            removeTree(root / "z")
            try populate(root)
            try (root / "a/b/c/leaf").write([1, 2, 3], at: 0)
        },
        ofTree("everything moved out of a directory that is then removed") { root in
            try (root / "a/b/c").rename(to: root / "c")
            for kind in Kind.available { try (root / "a/b" / Path("\(kind)")).rename(to: root / Path("\(kind)")) }
            try (root / "a/b").rmdir()
            try (root / "a").rmdir()
        },
        ofTree("mkdir with a tree in it, moved into an old directory") { root in
            try (root / "new").mkdir()
            try (root / "new/sub").mkdir()
            try (root / "new/sub/file").create(bytes(100))
            try (root / "new").rename(to: root / "a/b/new")
        },
        ofTree("an old file moved into a new directory that is moved into an old one") { root in
            try (root / "new").mkdir()
            try (root / "a/b/c/leaf").rename(to: root / "new/leaf")
            try (root / "new").rename(to: root / "a/new")
            try (root / "a/new/leaf").write([1], at: 5_000)
        },
        Change("a directory of 2,000 entries half emptied and filled with others") { root in
            try (root / "d").mkdir()
            for number in 0..<2_000 { try (root / "d" / Path("old-\(number)")).create() }
            return {
                for number in stride(from: 0, to: 2_000, by: 2) {
                    try (root / "d" / Path("old-\(number)")).unlink()
                }
                for number in 0..<1_000 { try (root / "d" / Path("new-\(number)")).mkfifo() }
            }
        },
        Change("names that are not UTF-8, of 255 bytes") { root in
            let name = Path((0..<255).map { UInt8(0x80 + $0 % 0x80) })
            try (root / name).create(bytes(100))
            return {
                try (root / name).write([1], at: 0)
                try (root / name).rename(to: root / Path(name.bytes.reversed()))
            }
        },
    ]

    private static let links: [Change] = [
        Change("links between old and new inodes") { root in
            try (root / "d").mkdir()
            for name: Path in ["a", "x"] { try (root / name).create(bytes(9_000, seed: UInt64(name.bytes[0]))) }
            try (root / "a").link(to: root / "b")
            try (root / "a").link(to: root / "d/c")
            try (root / "x").link(to: root / "y")
            return {
                try (root / "new").create(bytes(9_000, seed: 2))
                try (root / "new").link(to: root / "d/new")
                try (root / "nd").mkdir()
                try (root / "new").link(to: root / "nd/new")
                try (root / "a").link(to: root / "nd/a")
                try (root / "new").rename(to: root / "a")
                try (root / "b").unlink()
                try (root / "x").rename(to: root / "nd/new", flags: exchange)
                try (root / "y").write([1], at: 0)
                try (root / "y").link(to: root / "nd/y")
                try (root / "x").unlink()
                try (root / "d/c").link(to: root / "b")
            }
        },
        Change("a group of hard links split") { root in
            try (root / "d").mkdir()
            try (root / "a").create(bytes(5_000))
            for name: Path in ["b", "c", "d/e"] { try (root / "a").link(to: root / name) }
            return {
                try (root / "b").unlink()
                try (root / "b").create(bytes(5_000))
                try (root / "new").create(bytes(10, seed: 2))
                try (root / "new").rename(to: root / "d/e")
                try (root / "c").write([1], at: 0)
            }
        },
        Change("two groups of hard links exchange a member") { root in
            for name: Path in ["a", "x"] {
                try (root / name).create(bytes(100, seed: UInt64(name.bytes[0])))
                try (root / name).link(to: root / Path(name.bytes + name.bytes))
            }
            return {
                try (root / "aa").rename(to: root / "xx", flags: exchange)
                try (root / "a").write([1], at: 0)
            }
        },
        Change("a group whose names go one by one, while it is written") { root in
            try (root / "a").create(bytes(5_000))
            for name: Path in ["b", "c"] { try (root / "a").link(to: root / name) }
            let file = try (root / "a").open(O_RDWR)
            return {
                for name: Path in ["b", "a", "c"] {
                    try file.write(bytes(10, seed: 2), at: 4_090)
                    try (root / name).unlink()
                }
                try file.truncate(10)
            }
        },
    ]

    private static func ofOpenFile(_ name: String, _ body: @escaping @Sendable (Path, File) throws -> Void)
        -> Change
    {
        Change(name) { root in
            try (root / "file").create(bytes(19_000))
            let file = try (root / "file").open(O_RDWR)
            return { try body(root, file) }
        }
    }

    private static let unlinkedFiles: [Change] = [
        ofOpenFile("unlink while open, then write") { root, file in
            try (root / "file").unlink()
            try file.writeAll(bytes(9_000, seed: 2), at: 4_000)
            #expect(try file.stat().links == 0)
        },
        ofOpenFile("write, unlink while open, then truncate and write") { root, file in
            try file.writeAll(bytes(10, seed: 2), at: 100)
            try (root / "file").unlink()
            try file.truncate(5_000)
            try file.writeAll(bytes(10, seed: 3), at: 18_000)
        },
        ofOpenFile("rename over a file that is open, then write to it") { root, file in
            try (root / "next").create(bytes(100, seed: 2))
            try (root / "next").rename(to: root / "file")
            try file.writeAll(bytes(100, seed: 3), at: 50)
            #expect(try (root / "file").contents() == bytes(100, seed: 2))
        },
        ofOpenFile("unlink while mapped, then store and sync") { root, file in
            let mapping = try file.map(19_000)
            try (root / "file").unlink()
            try mapping.write(bytes(100, seed: 2), at: 5_000)
            try mapping.sync()
        },
        ofOpenFile("unlink while open, and a new file of that name") { root, file in
            try (root / "file").unlink()
            try (root / "file").create(bytes(19_000, seed: 2))
            try file.writeAll([1], at: 0)
            try (root / "file").write([2], at: 10_000)
        },
        Change("a file made without a name before the cut gets one") { root in
            let file = try root.open(O_RDWR | O_TMPFILE)
            try file.writeAll(bytes(5_000))
            return {
                try file.link(to: root / "named")
                try file.writeAll(bytes(10, seed: 2), at: 0)
            }
        },
        Change("a file made without a name after the cut gets one") { root in
            {
                let file = try root.open(O_RDWR | O_TMPFILE)
                try file.writeAll(bytes(5_000))
                try file.link(to: root / "named")
            }
        },
        ofOpenFile("the usual way to save a file: temporary, fsync, rename") { root, _ in
            let next = try (root / "file.tmp").open(O_WRONLY | O_CREAT | O_EXCL)
            try next.writeAll(bytes(12_000, seed: 2))
            try next.sync()
            try (root / "file.tmp").rename(to: root / "file")
        },
    ]
}

extension Sequence<Path> {
    /// One path of these names.
    fileprivate func joined() -> Path { Path(Array(map(\.bytes).joined(separator: [UInt8(ascii: "/")]))) }
}

extension Path {
    /// Makes the directory, and those above that are missing.
    fileprivate func makeAll() throws {
        try succeed(["mkdir", "-p", string])
    }
}
