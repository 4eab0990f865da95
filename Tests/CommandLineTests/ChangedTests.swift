import Glibc
import SystemPackage
import TestSupport
import Testing

/// `ctl changed` tells every kind of change.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct ChangedTests {
    /// What the list says of one change: `kinds path-at-cut path`, without what is not there.
    private func list(_ mount: MountedSource, code: Int32 = 0) throws -> [String] {
        let finished = try mount.control("changed", "-0")
        #expect(finished.code == code, "\(finished)")
        var fields = finished.output.split(separator: "\0", omittingEmptySubsequences: false)
        #expect(fields.popLast() == "" && fields.count % 3 == 0)
        return stride(from: 0, to: fields.count, by: 3).map { at in
            "\(fields[at]) \(fields[at + 1]) > \(fields[at + 2])"
        }
    }

    /// The JSON list's line for a path as at the cut, or now.
    private func json(_ mount: MountedSource, _ path: String) throws -> String {
        let finished = try mount.control("changed", "--json")
        #expect(finished.code == 0, "\(finished)")
        #expect(finished.output.hasPrefix("{\"exact\":true,\"schema\":1,\"started\":\"2"))
        let lines = finished.output.split(separator: "\n").filter { $0.contains("\"path_at_cut\":\"\(path)\"") }
        #expect(lines.count == 1, "\(finished.output)")
        return lines.first.map(String.init) ?? ""
    }

    private static let variants: [(name: String, mode: Machine.Mode, options: [String], overItself: Bool)] = [
        ("beside the source", Machine.mode, [], false), ("over itself", Machine.mode, [], true),
        ("without file handles", .preserve, ["-o", "no_file_handles"], false),
        ("redirected", Machine.isRoot ? .redirect : Machine.mode, [], false),
    ]

    private static func isRedirected(_ variant: Int) -> Bool { variants[variant].mode == .redirect }

    private func with(
        _ variant: Int, prepare: (Path) throws -> Void, _ body: (MountedSource, Path) throws -> Void
    ) throws {
        let (_, mode, options, overItself) = Self.variants[variant]
        try MountedSource.with(mode: mode, options: options, overItself: overItself, prepare: prepare) { mount in
            try waitForClockTick()
            try mount.start()
            try body(mount, mount.mountpoint)
        }
    }

    @Test("nothing changed: nothing is listed", arguments: variants.indices)
    func nothing(_ variant: Int) throws {
        try with(variant, prepare: { try ($0 / "file").create(bytes(100)) }) { mount, live in
            _ = try (live / "file").contents()
            #expect(try list(mount) == [])
        }
    }

    @Test(
        "names: created, removed, renamed, linked, in directories that move and are new",
        arguments: variants.indices)
    func names(_ variant: Int) throws {
        let prepare: (Path) throws -> Void = { source in
            for name: Path in ["d", "gone", "old", "away"] { try (source / name).mkdir() }
            for name: Path in ["f", "d/a", "d/b", "gone/x", "old/in", "one", "two", "away/back", "h1"] {
                try (source / name).create(bytes(5000))
            }
            try (source / "h1").link(to: source / "h2")
            try (source / "s").symlink(to: "f")
            try (source / "empty").create()
        }
        try with(variant, prepare: prepare) { mount, live in
            try (live / "d/a").rename(to: live / "d/a2")
            try (live / "d/b").unlink()
            try (live / "gone/x").unlink()
            try (live / "gone").rmdir()
            try (live / "old").rename(to: live / "new")
            try (live / "one").rename(to: live / "two", flags: 2)  // RENAME_EXCHANGE
            try (live / "made").mkdir()
            try (live / "made/below").mkdir()
            try (live / "made/below/file").create(bytes(7))
            try (live / "f").rename(to: live / "made/f")
            try (live / "s").link(to: live / "s2")
            try (live / "h1").unlink()
            try (live / "empty").unlink()
            // What ends as it began is no change.
            try (live / "passing").create()
            try (live / "passing").unlink()
            try (live / "away/back").rename(to: live / "away/forth")
            try (live / "away/forth").rename(to: live / "away/back")
            let expected = [
                "entries . > .", "entries d > d", "renamed d/a > d/a2", "removed d/b > ", "removed empty > ",
                "renamed f > made/f", "removed gone > ", "removed gone/x > ", "removed h1 > ", "renamed old > new",
                "renamed one > two", "linked s > s2", "renamed two > one", "created  > made",
                "created  > made/below",
                "created  > made/below/file",
            ]
            // The times of what only moved there and back have changed.
            let found = try list(mount).filter { !$0.contains("away") }
            #expect(Set(found) == Set(expected) && found.count == expected.count, "\(found)")
            let root = try json(mount, ".")
            #expect(root.contains("\"entries\":10"), "\(root)")
            #expect(try json(mount, "d/b").contains("\"bytes\":5000"))
        }
    }

    @Test("a file replaced by a rename over it is removed, and the other created", arguments: variants.indices)
    func replaced(_ variant: Int) throws {
        try with(variant, prepare: { try ($0 / "file").create(bytes(100)) }) { mount, live in
            try (live / ".file.new").create(bytes(200))
            try (live / ".file.new").rename(to: live / "file")
            #expect(Set(try list(mount)) == ["entries . > .", "removed file > ", "created  > file"])
        }
    }

    @Test(
        "data: merged ranges in areas, what was cut off and what was appended", arguments: variants.indices)
    func data(_ variant: Int) throws {
        let prepare: (Path) throws -> Void = { source in
            try (source / "d").mkdir()
            for name: Path in ["d/file", "cut", "grown", "tail"] { try (source / name).create(bytes(40_000)) }
        }
        try with(variant, prepare: prepare) { mount, live in
            if Machine.preservesWholeFiles { return }
            // Two writes that touch, one apart, and the last, partial block.
            for at in [4095, 8192, 20_000, 39_990] { try (live / "d/file").write(bytes(10, seed: 5), at: at) }
            try (live / "cut").truncate(10_000)
            // The kernel may gather writes; what it has not written out is not told.
            for (name, at, count) in [("grown", 40_000, 6), ("tail", 36_900, 20_000)] {
                let file = try (live / Path(name)).open(O_RDWR)
                try file.writeAll(bytes(count, seed: 6), at: at)
                try file.sync()
            }
            try (live / "d").rename(to: live / "e")
            let file = try json(mount, "d/file")
            #expect(file.contains("\"path\":\"e/file\""))
            #expect(
                file.contains(
                    "\"ranges\":[{\"length\":12288,\"offset\":0},{\"length\":4096,\"offset\":16384},"
                        + "{\"length\":3136,\"offset\":36864}]"), "\(file)")
            #expect(file.contains("\"bytes\":19520,") && file.contains("\"kinds\":[\"data\"]"))
            #expect(try json(mount, "cut").contains("[{\"length\":31808,\"offset\":8192}]"))
            // Gathered writes come by whole pages, and redirected ones take the block that they begin in along.
            let isWhole = Machine.kernelOwnsTimes || Self.isRedirected(variant)
            let grown = isWhole ? (at: 36864, count: 3142) : (at: 40_000, count: 6)
            #expect(
                try json(mount, "grown").contains("[{\"length\":\(grown.count),\"offset\":\(grown.at)}]"))
            #expect(try json(mount, "tail").contains("[{\"length\":20036,\"offset\":36864}]"))
        }
    }

    @Test("attributes: which of them differ, in what was renamed too", arguments: variants.indices)
    func attributes(_ variant: Int) throws {
        let prepare: (Path) throws -> Void = { source in
            for name: Path in ["mode", "time", "same", "moved", "extended", "replaced"] {
                try (source / name).create(bytes(10))
            }
            try (source / "d").mkdir()
            try (source / "replaced").setAttribute("user.a", bytes(10))
        }
        try with(variant, prepare: prepare) { mount, live in
            try (live / "mode").chmod(0o600)
            try (live / "d").chmod(0o700)
            try (live / "time").setTimes(accessed: nil, modified: Timestamp(1, 0))
            try (live / "same").chmod(0o600)
            try (live / "same").chmod(0o644)
            try (live / "moved").chmod(0o600)
            try (live / "moved").rename(to: live / "here")
            try (live / "extended").setAttribute("user.a", bytes(10))
            try (live / "replaced").setAttribute("user.a", bytes(10, seed: 2))
            for (path, name) in [
                ("mode", "mode"), ("d", "mode"), ("time", "mtime"), ("same", "ctime"), ("extended", "xattrs"),
                ("replaced", "xattrs"),
            ] {
                let line = try json(mount, path)
                #expect(
                    line.contains("\"attributes\":[\"\(name)\"]") && line.contains("\"kinds\":[\"attributes\"]"))
            }
            let moved = try json(mount, "moved")
            #expect(moved.contains("\"kinds\":[\"renamed\",\"attributes\"]"), "\(moved)")
            #expect(moved.contains("\"attributes\":[\"mode\"]") && moved.contains("\"path\":\"here\""))
        }
    }

    @Test("a name that is not UTF-8 is told whole")
    func odd() throws {
        try with(0, prepare: { _ in }) { mount, live in
            try (live / Path([0x61, 0xff])).create(bytes(1))
            let text = try mount.control("changed", "--json").output
            #expect(text.contains("\"path_base64\":\"Yf8=\""), "\(text)")
        }
    }

    @Test("a hundred thousand changed areas come through")
    func many() throws {
        let count = 100_000
        try with(
            0,
            prepare: {
                try ($0 / "file").create()
                try ($0 / "file").truncate(count * 8192)
            }
        ) { mount, live in
            if Machine.preservesWholeFiles { return }
            let file = try (live / "file").open(O_RDWR)
            for index in 0..<count { try file.write([1], at: index * 8192) }
            let line = try json(mount, "file")
            #expect(line.split(separator: "{\"length\":4096,").count == count + 1)
            #expect(line.contains("\"bytes\":\(count * 4096),"))
        }
    }

    @Test("the list can be had while changes go on", arguments: variants.indices)
    func beside(_ variant: Int) throws {
        let prepare: (Path) throws -> Void = { source in
            for index in 0..<100 { try (source / Path("f\(index)")).create(bytes(5000)) }
        }
        try with(variant, prepare: prepare) { mount, live in
            let isOver = Flag()
            let writer = try Worker {
                var round = 0
                while !isOver.isSet {
                    let name = Path("f\(round % 100)")
                    try (live / name).write(bytes(10), at: 100)
                    try (live / name).rename(to: live / "moving")
                    try (live / "made").mkdir()
                    try (live / "moving").rename(to: live / "made/f")
                    try (live / "made/f").rename(to: live / name)
                    try (live / "made").rmdir()
                    round += 1
                }
            }
            for _ in 0..<20 { _ = try list(mount) }
            isOver.set()
            try writer.join()
            let data = try list(mount).filter { $0.hasPrefix("data f") }
            #expect(!data.isEmpty && data.count <= 100)
        }
    }

    @Test("without a snapshot, or in both forms at once, it says so")
    func misuse() throws {
        try MountedSource.with { mount in
            let idle = try mount.control("changed")
            #expect(idle.code == 1 && idle.errors.contains("no snapshot is active"), "\(idle)")
            #expect(try mount.control("changed", "--json", "-0").code == 64)
        }
    }

    @Test("of a snapshot that was given up no list is told: exit code 3")
    func overflowed() throws {
        try MountedSource.with(options: ["--max-delta", "1K"]) { mount in
            try (mount.mountpoint / "file").create(bytes(100_000))
            try mount.start()
            try (mount.mountpoint / "file").write(bytes(50_000, seed: 2), at: 0)
            let finished = try mount.control("changed")
            #expect(finished.code == 3 && finished.errors.contains("given up"), "\(finished)")
            #expect(try mount.control("stop").code == 3)
        }
    }

    @Test(
        "what was changed past the mount is told as such", .enabled(if: Machine.isRoot, "\(Machine.needsRoot)"),
        arguments: [Machine.Mode.preserve, .redirect])
    func pastMount(_ mode: Machine.Mode) throws {
        try MountedSource.with(mode: mode, options: []) { mount in
            try (mount.mountpoint / "file").create(bytes(100))
            try mount.start()
            guard try mount.control("status", "--json").output.contains("\"source_watched\" : true") else {
                return
            }
            try (mount.source / "file").write(bytes(10, seed: 2), at: 0)
            try wait("the watch") {
                try mount.control("status", "--json").output.contains("inexact_reason")
            }
            #expect(try list(mount, code: 3) == ["past_mount file > file"])
            #expect(try mount.control("stop").code == 3)
        }
    }
}
