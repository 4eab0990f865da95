import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// `fusesnap export`: the snapshot, read without the mount while it changes, is what it was at the cut.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct ExportTests {
    /// How the snapshot is read, and where it goes.
    enum Way: String, CaseIterable, Sendable {
        case restored
        case archived
        /// Where the daemon alone finds what was moved.
        case throughMount

        func options(_ mode: Machine.Mode) -> [String]? {
            self != .throughMount ? [] : mode == .preserve ? ["-o", "no_file_handles"] : nil
        }
    }

    /// FIONREAD.
    private static let bytesWaiting: UInt = 0x541b

    /// What a copy cannot have: times of change, and the space that is allocated and not written.
    private static let vague: Set<Fact> = [.ctime, .ranges]

    private func export(_ mount: MountedSource, to place: Path, _ way: Way) throws {
        guard way == .archived else {
            try succeed([Machine.binary, "export", "--restore-to", place.string, mount.mountpoint.string])
            return
        }
        let archive = Path(place.string + ".tar")
        try succeed([Machine.binary, "export", "-o", archive.string, mount.mountpoint.string])
        try place.mkdir()
        try succeed([
            "tar", "--warning=no-unknown-keyword", "--warning=no-timestamp", "--xattrs", "--xattrs-include=*",
            "--acls", "--numeric-owner", "-C", place.string, "-xpf", archive.string,
        ])
        try archive.unlink()
    }

    @Test(
        "random changes go on while it is exported, and each export is the tree of the cut", arguments: seeds(2),
        [
            (Way.restored, Machine.Mode.preserve), (.archived, .preserve), (.throughMount, .preserve),
            (.restored, .redirect),
        ])
    func randomChanges(_ seed: UInt64, _ ways: (Way, Machine.Mode)) throws {
        let (way, mode) = ways
        guard Machine.Mode.available.contains(mode), let options = way.options(mode) else { return }
        try MountedSource.with(mode: mode, options: options) { mount in
            var generator = OperationGenerator(seed: seed)
            for _ in 0..<400 { _ = generator.next().result(under: mount.mountpoint) }
            let wholeAtCut = try TreeCapture(mount.mountpoint)
            let atCut = wholeAtCut.withoutSockets
            try mount.start()
            let isOver = Flag()
            let start = generator
            let changer = try Worker {
                var generator = start
                while !isOver.isSet { _ = generator.next().result(under: mount.mountpoint) }
            }
            defer { isOver.set() }
            for round in 1...4 {
                let place = mount.top / Path("copy\(round)")
                try export(mount, to: place, way)
                expect(
                    try TreeCapture(place), equals: atCut, ignoring: Self.vague,
                    "export \(round), \(way), \(mode), seed \(seed)")
                removeTree(place)
            }
            isOver.set()
            try changer.join()
            // Allocated space counts as data once it is read (Docs/Semantics.md).
            expect(
                try TreeCapture(mount.snapshot), equals: wholeAtCut, ignoring: [.ranges],
                ".snapshot afterwards, seed \(seed)")
            try mount.stop()
        }
    }

    @Test(
        "a file that is overwritten at random all the while is exported as it was",
        arguments: Machine.Mode.available)
    func overwritten(_ mode: Machine.Mode) throws {
        let blocks = 4_000
        try MountedSource.with(mode: mode) { mount in
            let file = mount.mountpoint / "data"
            try file.create(bytes(blocks * 4_096, seed: 7))
            let atCut = try hash(of: file)
            try mount.start()
            let isOver = Flag()
            let writer = try Worker {
                var random = SeededGenerator(seed: 9)
                let open = try file.open(O_RDWR)
                while !isOver.isSet {
                    let block = random.number(0...blocks - 1)
                    try open.writeAll(bytes(4_096, seed: random.next()), at: block * 4_096)
                }
            }
            defer { isOver.set() }
            for round in 1...6 {
                let place = mount.top / Path("copy\(round)")
                try export(mount, to: place, .restored)
                #expect(try hash(of: place / "data") == atCut, "export \(round)")
            }
            isOver.set()
            try writer.join()
            #expect(try hash(of: file) != atCut)
            try mount.stop()
        }
    }

    @Test(
        "with a meter on a terminal, whose thread lists the same directories, nothing is missing",
        .enabled(if: Machine.has("script"), "bsdutils is not installed"), arguments: seeds(3))
    func terminal(_ seed: UInt64) throws {
        try MountedSource.with { mount in
            for number in 0..<3_000 { try (mount.mountpoint / Path("name-\(seed)-\(number)")).create() }
            try mount.start()
            let place = mount.top / "copy"
            try succeed([
                "script", "-q", "-e", "-c",
                "'\(Machine.binary)' export --restore-to '\(place)' '\(mount.mountpoint)'", "/dev/null",
            ])
            #expect(try place.entries().count == 3_000)
            try mount.stop()
        }
    }

    @Test("where no journal is kept it is read through the mount", .enabled(if: Machine.isRoot, "needs root"))
    func unjournaled() throws {
        try MountedSource.with(mode: .preserve) { mount in
            let file = mount.mountpoint / "data"
            try file.create(bytes(100_000, seed: 3))
            let atCut = try TreeCapture(mount.mountpoint)
            try succeed([Machine.binary, "ctl", "start", "--single-pass", mount.mountpoint.string])
            try file.write(bytes(4_096, seed: 4), at: 8_192)
            try export(mount, to: mount.top / "copy", .restored)
            expect(try TreeCapture(mount.top / "copy"), equals: atCut, ignoring: Self.vague, "a single pass")
            try mount.stop()
        }
    }

    enum End: String, CaseIterable, Sendable { case stopped, killed }

    @Test(
        "a snapshot that ends meanwhile, or whose daemon is killed, is not exported as if it were whole",
        arguments: Machine.Mode.available, End.allCases)
    func ends(_ mode: Machine.Mode, _ end: End) throws {
        try MountedSource.with(mode: mode) { mount in
            for number in 0..<40 {
                try (mount.mountpoint / Path("file\(number)")).create(bytes(200_000, seed: UInt64(number)))
            }
            try mount.start()
            // Nobody reads what it writes, so that it waits in the middle.
            let pipe = mount.top / "pipe"
            try pipe.mkfifo()
            let reading = try pipe.open(O_RDONLY | O_NONBLOCK)
            let child = try Child([
                Machine.binary, "export", "-o", pipe.string, mount.mountpoint.string,
            ])
            try wait("the pipe is full") {
                var waiting: Int32 = 0
                return ts_ioctl(reading.raw, Self.bytesWaiting, &waiting) == 0 && waiting >= 65_536
            }
            if end == .stopped {
                try mount.stop()
                for number in 0..<40 {
                    try (mount.mountpoint / Path("file\(number)")).write(bytes(200_000, seed: 1_000), at: 0)
                }
            } else {
                kill(mount.daemon, SIGKILL)
            }
            let drain = try Worker { [reading] in
                while true {
                    do throws(Errno) {
                        if try reading.read(1 << 20).isEmpty { return }
                    } catch .resourceTemporarilyUnavailable {
                        usleep(1_000)
                    }
                }
            }
            let finished = try child.wait()
            try drain.join()
            #expect(finished.code == 3, "\(finished)")
            #expect(finished.errors.contains("no backup"), "\(finished)")
            guard end == .killed else { return }
            try mount.waitForEnd()
            try succeed([Machine.binary, "unmount", mount.mountpoint.string])
        }
    }

    @Test("what cannot be done is said, and no file is left behind")
    func refusals() throws {
        try MountedSource.with(mode: .preserve) { mount in
            try (mount.mountpoint / "a").create(bytes(10))
            let archive = mount.top / "archive.tar"
            let words = [Machine.binary, "export", "-o", archive.string, mount.mountpoint.string]
            let idle = try run(words)
            #expect(idle.code == 1 && idle.errors.contains("no snapshot is active"), "\(idle)")
            #expect(throws: Errno.noSuchFileOrDirectory) { try archive.lstat() }
            try mount.start()
            try (mount.top / "full").mkdir()
            try (mount.top / "full/x").create()
            let full = try run([
                Machine.binary, "export", "--restore-to", (mount.top / "full").string, mount.mountpoint.string,
            ])
            #expect(full.code == 1 && full.errors.contains("not empty"), "\(full)")
            let both = try run(words + ["--restore-to", "/nowhere"])
            #expect(both.code == 64, "\(both)")
            let plain = try run([Machine.binary, "export", "-o", archive.string, mount.top.string])
            #expect(plain.code == 1 && plain.errors.contains("not a fusesnap mount"), "\(plain)")
            #expect(throws: Errno.noSuchFileOrDirectory) { try archive.lstat() }
            let done = try run(words)
            #expect(done.code == 0 && done.output.isEmpty && done.errors.isEmpty, "\(done)")
            #expect(try archive.stat().permissions == 0o600)
            try mount.stop()
        }
    }

    @Test("the example of the library tells the largest files")
    func example() throws {
        try MountedSource.with(mode: .preserve) { mount in
            try (mount.mountpoint / "small").create(bytes(10))
            try (mount.mountpoint / "large").create(bytes(100_000))
            try mount.start()
            try (mount.mountpoint / "large").truncate(5)
            let output = try succeed([Machine.example, mount.mountpoint.string, "1"])
            #expect(output == "100000 bytes, 100000 of them data: large\n")
            try mount.stop()
        }
    }
}
