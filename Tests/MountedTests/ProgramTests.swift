import Glibc
import SystemPackage
import TestSupport
import Testing

/// Real programs work on the live view, and what backup programs take of the snapshot is exact.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct ProgramTests {
    @Test(
        "a copy of the snapshot of a SQLite database in WAL mode, written by two processes, is consistent",
        .enabled(if: Machine.has("sqlite3"), "needs sqlite3"))
    func sqlite() throws {
        try MountedSource.with { mount in
            let database = (mount.mountpoint / "app.db").string
            let create = """
                pragma journal_mode=wal; create table entry(id integer primary key, writer, number, body);
                create table total(writer primary key, count); insert into total values (1, 0), (2, 0);
                """
            try succeed(["sqlite3", database, create])
            let writers = try (1...2).map { writer in
                let script = mount.top / Path("script-\(writer)")
                try script.create(Array(Self.transactions(writer).utf8))
                return try Child(["sqlite3", "-cmd", ".timeout 30000", database], input: script)
            }
            var counts: [Int] = []
            for number in 0..<4 {
                try wait("the writers to go on") {
                    try Self.count(database) > (counts.last ?? 0)
                }
                try mount.start()
                let copy = (mount.top / Path("copy-\(number)")).string
                try succeed(["cp", "-a", mount.snapshot.string, copy])
                try mount.stop()
                #expect(try succeed(["sqlite3", copy + "/app.db", "pragma integrity_check"]) == "ok\n")
                let wrong = """
                    select count(*) from total where count != (select count(*) from entry where writer = total.writer)
                    """
                #expect(try succeed(["sqlite3", copy + "/app.db", wrong]) == "0\n")
                counts.append(try Self.count(copy + "/app.db"))
            }
            for writer in writers {
                let finished = try writer.wait()
                #expect(finished.code == 0, "\(finished)")
            }
            #expect(counts == counts.sorted())
            #expect(try Self.count(database) == 2 * Self.transactionCount)
            #expect(try succeed(["sqlite3", database, "pragma integrity_check"]) == "ok\n")
        }
    }

    private static let transactionCount = 1_500

    private static func transactions(_ writer: Int) -> String {
        (1...transactionCount).map { number in
            """
            begin immediate; insert into entry(writer, number, body) values (\(writer), \(number), randomblob(500));
            update total set count = count + 1 where writer = \(writer); commit;

            """
        }.joined()
    }

    private static func count(_ database: String) throws -> Int {
        let text = try succeed(["sqlite3", "-cmd", ".timeout 30000", database, "select count(*) from entry"])
        return Int(text.filter(\.isNumber)) ?? -1
    }

    @Test("git clones, commits, collects and checks on the mount", .enabled(if: Machine.has("git"), "needs git"))
    func git() throws {
        try MountedSource.with { mount in
            let live = mount.mountpoint
            let who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
            func git(_ directory: Path, _ words: String...) throws {
                try succeed(
                    ["git", "-C", directory.string] + who + words, environment: ["GIT_CONFIG_GLOBAL": "/dev/null"])
            }
            func commit(_ repository: Path, _ number: Int) throws {
                try (repository / Path("file-\(number)")).create(bytes(3_000, seed: UInt64(number)))
                try git(repository, "add", ".")
                try git(repository, "commit", "-q", "-m", "number \(number)")
            }
            let first = live / "first"
            try first.mkdir()
            try git(first, "init", "-q")
            for number in 0..<10 { try commit(first, number) }
            try git(live, "clone", "-q", "--no-local", "first", "second")
            let atCut = try TreeCapture(live)
            try mount.start()
            for number in 10..<20 { try commit(live / "second", number) }
            try git(first, "gc", "-q", "--aggressive", "--prune=now")
            try git(first, "pull", "-q", "../second", "main")
            try git(first, "fsck", "--strict")
            try git(live / "second", "fsck", "--strict")
            try expectSnapshot(mount, is: atCut, "after git's work")
            try succeed(["cp", "-a", (mount.snapshot / "first").string, (mount.top / "restored").string])
            try git(mount.top / "restored", "fsck", "--strict")
        }
    }

    @Test(
        "make and cc build on the mount, and build again what changed",
        .enabled(if: Machine.has("make") && Machine.has("cc"), "needs make and cc"))
    func build() throws {
        try MountedSource.with { mount in
            let live = mount.mountpoint
            let names = (0..<6).map { "part\($0)" }
            for name in names {
                try (live / Path(name + ".c")).create(Array("int \(name)(void) { return 1; }\n".utf8))
            }
            let main =
                names.map { "int \($0)(void);" }.joined() + "int main(void) { return "
                + names.map { $0 + "()" }.joined(separator: " + ") + "; }\n"
            try (live / "main.c").create(Array(main.utf8))
            let objects = (names + ["main"]).map { $0 + ".o" }.joined(separator: " ")
            try (live / "Makefile").create(Array("program: \(objects)\n\tcc -o $@ \(objects)\n".utf8))
            try succeed(["make", "-j2"], in: live)
            #expect(try run([(live / "program").string]).code == 6)
            let atCut = try TreeCapture(live)
            try mount.start()
            try waitForClockTick()
            try (live / "part0.c").open(O_WRONLY | O_TRUNC).writeAll(Array("int part0(void) { return 5; }\n".utf8))
            try succeed(["make", "-j2"], in: live)
            #expect(try run([(live / "program").string]).code == 10)
            #expect(try run([(mount.snapshot / "program").string]).code == 6)
            #expect(try succeed(["make"], in: live).contains("up to date"))
            try expectSnapshot(mount, is: atCut, "after the build")
        }
    }

    private static let backups = ["cp", "tar", "rsync"]

    @Test(
        "a backup of the snapshot while files are written is exact", arguments: backups.filter { Machine.has($0) })
    func backup(_ program: String) throws {
        try MountedSource.with { mount in
            let live = mount.mountpoint
            for number in 0..<8 {
                try (live / Path("d\(number)")).mkdir()
                for part in 0..<5 {
                    try (live / Path("d\(number)/f\(part)")).create(bytes(30_000, seed: UInt64(part)))
                }
            }
            for kind in Kind.available where kind != .socket { try kind.make(live / Path("\(kind)")) }
            try (live / "d0/f0").link(to: live / "linked")
            try (live / "d0/f1").setAttribute("user.a", bytes(50))
            try (live / "d0/f2").truncate(1 << 20)
            // rsync takes a directory's time for right when the second is.
            for name in try live.entries() + ["."] {
                try (live / name).setTimes(accessed: nil, modified: Timestamp(1_600_000_000, 123_456_789))
            }
            let atCut = try TreeCapture(live)
            try mount.start()
            let isOver = Flag()
            let writer = try Worker {
                var random = SeededGenerator(seed: 1)
                while !isOver.isSet {
                    let path = live / Path("d\(random.number(0...7))/f\(random.number(0...4))")
                    try path.write(random.data(10_000), at: random.number(0...25_000))
                    try (live / "temporary").create(random.data(100))
                    try (live / "temporary").rename(to: path)
                }
            }
            let target = mount.top / "backup"
            try target.mkdir()
            let result = Result { try Self.copy(program, mount.snapshot.string, target.string) }
            isOver.set()
            try writer.join()
            try result.get()
            let copied = try TreeCapture(target)
            expect(copied, equals: atCut, ignoring: [.ctime, .ranges], "the copy of \(program)")
            try expectSnapshot(mount, is: atCut, "after the backup")
        }
    }

    private static func copy(_ program: String, _ source: String, _ target: String) throws {
        switch program {
        case "cp": try succeed(["cp", "-a", source + "/.", target])
        case "rsync": try succeed(["rsync", "-aHAX", "--devices", "--specials", source + "/", target])
        default:
            let archive = target + ".tar"
            try succeed(["tar", "--xattrs", "--xattrs-include=*", "-C", source, "-cf", archive, "."])
            try succeed(["tar", "--xattrs", "--xattrs-include=*", "-C", target, "-xpf", archive])
        }
    }
}
