import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Snapshots of some users' files (`--user`, `--group`), and users who take them of root's mount (`-o user_snapshots`).
@Suite(.serialized, .enabled(if: Machine.canMount && Machine.isRoot, "\(Machine.needsMount), as root"))
struct UserSnapshotTests {
    private static let mine: UInt32 = 1000
    private static let theirs: UInt32 = 1001

    /// Calls `body` with a mount of homes/mine and homes/theirs, each with a file.
    private func with(
        mode: Machine.Mode = .preserve, options: [String] = [], _ body: (MountedSource) throws -> Void
    ) throws {
        try MountedSource.with(mode: mode, options: options) { mount throws in
            try succeed(["cp", Machine.binary, (mount.top / "fusesnap").string])
            try (mount.mountpoint / "homes").mkdir()
            for (name, user): (Path, UInt32) in [("mine", Self.mine), ("theirs", Self.theirs)] {
                let home = mount.mountpoint / "homes" / name
                try home.mkdir()
                try (home / "file").create(bytes(30_000))
                try home.chown(user: user, group: user)
                try (home / "file").chown(user: user, group: user)
            }
            try body(mount)
        }
    }

    private func control(
        _ mount: MountedSource, as user: UInt32, _ words: [String], after: [String] = []
    ) throws -> Finished {
        let drop = ["setpriv", "--reuid=\(user)", "--regid=\(user)", "--clear-groups"]
        return try run(
            drop + [(mount.top / "fusesnap").string] + words + [mount.mountpoint.string] + after, in: "/",
            environment: ["XDG_RUNTIME_DIR": ""])
    }

    @Test(
        "ctl start --user: only that user's files are shown and stored, and every report says so",
        arguments: Machine.Mode.available)
    func oneUser(_ mode: Machine.Mode) throws {
        try with(mode: mode) { mount throws in
            let homes = mount.mountpoint / "homes"
            let atCut = try TreeCapture(mount.mountpoint).limited { user, _ in user == Self.mine }
            let started = try mount.control("start", "--json", "--user", "\(Self.mine)")
            #expect(started.code == 0 && started.output.contains("\"users\" : [\n    1000\n  ]"), "\(started)")
            for round: UInt64 in 1...2 {
                try (homes / "theirs/file").write(bytes(30_000, seed: 5 + round), at: 0)
                try (homes / "theirs/file").truncate(9_000)
                try (homes / "theirs/new").create(bytes(50_000))
                try (homes / "theirs/new").unlink()
                try (homes / "theirs/file").chmod(0o600)
            }
            #expect(try mount.status().deltaBytes == 0)
            try (homes / "theirs/file").unlink()
            #expect(try mount.status().deltaBytes == 0)
            try (homes / "mine/file").write(bytes(10, seed: 9), at: 0)
            #expect(try mount.status().deltaBytes == 4_096)
            expect(try TreeCapture(mount.snapshot), equals: atCut)
            #expect(try mount.control("status").output.contains("files of user "))
            let changed = try mount.control("changed").output
            #expect(changed.contains("homes/mine/file") && !changed.contains("theirs/file"), "\(changed)")
            let stopped = try mount.control("stop", "--json")
            #expect(stopped.code == 0 && stopped.output.contains("\"users\" : [\n    1000\n  ]"), "\(stopped)")
            #expect(stopped.output.contains("\"changed_files\" : 1,"), "\(stopped)")
            // The next is of all again.
            try mount.start()
            #expect(try !mount.status().has("users"))
            #expect(try Set((mount.snapshot / "homes").entries()) == ["mine", "theirs"])
        }
    }

    private func expect(_ found: TreeCapture, equals wanted: TreeCapture) {
        #expect(wanted.differences(found) == [])
    }

    @Test("run --group with --user: files of either", arguments: Machine.Mode.available)
    func runBoth(_ mode: Machine.Mode) throws {
        try with(mode: mode) { mount throws in
            let words = [
                Machine.binary, "run", "--user", "root", "--group", "\(Self.theirs)", mount.mountpoint.string,
                "--",
                "find", mount.mountpoint.string, "-type", "f",
            ]
            #expect(try succeed(words) == "\(mount.mountpoint)/homes/theirs/file\n")
        }
    }

    @Test("a user or group that does not exist is wrong usage", arguments: ["--user", "--group"])
    func unknown(_ option: String) throws {
        try with { mount throws in
            for value in ["no-such-name", "-1", "4294967295", ""] {
                let finished = try mount.control("start", "\(option)=\(value)")
                #expect(finished.code == 64 && finished.errors.contains("there is no"), "\(finished)")
            }
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("of another's open file no write is frozen", arguments: Machine.Mode.available)
    func notFrozen(_ mode: Machine.Mode) throws {
        try with(mode: mode) { mount throws in
            let homes = mount.mountpoint / "homes"
            let (mine, theirs) = (
                try (homes / "mine/file").open(O_RDWR), try (homes / "theirs/file").open(O_RDWR)
            )
            let limited = try mount.control("start", "--json", "--user", "\(Self.mine)")
            #expect(limited.output.contains("\"files_frozen\" : 1,"), "\(limited)")
            try mount.stop()
            #expect(try mount.control("start", "--json").output.contains("\"files_frozen\" : 2,"))
            withExtendedLifetime((mine, theirs)) {}
        }
    }

    @Test(
        "-o user_snapshots: a user takes, sees and ends a snapshot of their own files, and nobody else's",
        arguments: Machine.Mode.available)
    func own(_ mode: Machine.Mode) throws {
        try with(mode: mode, options: ["-o", "user_snapshots"]) { mount throws in
            let atCut = try TreeCapture(mount.mountpoint).limited { user, _ in user == Self.mine }
            let started = try control(mount, as: Self.mine, ["ctl", "start", "--json"])
            #expect(started.code == 0 && started.output.contains("\"users\" : [\n    1000\n  ]"), "\(started)")
            expect(try TreeCapture(mount.snapshot), equals: atCut)
            // To another user it is as if there were none.
            for words in [["ctl", "status"], ["ctl", "stop"], ["ctl", "changed"]] {
                let refused = try control(mount, as: Self.theirs, words)
                #expect(refused.code == 1 && refused.errors.contains("no snapshot of user 1001"), "\(refused)")
            }
            #expect(try control(mount, as: Self.theirs, ["ctl", "start"]).code == 1)
            #expect(try control(mount, as: Self.theirs, ["unmount"]).code == 1)
            #expect(try control(mount, as: Self.mine, ["unmount"]).code == 1)
            for words in [["ctl", "status"], ["ctl", "changed"], ["ctl", "stop"]] {
                let finished = try control(mount, as: Self.mine, words)
                #expect(finished.code == 0, "\(finished)")
            }
            #expect(try control(mount, as: Self.mine, ["ctl", "stop"]).code == 1)
            // Root's is not theirs, of their files too; and root ends theirs.
            #expect(try mount.control("start", "--user", "\(Self.mine)").code == 0)
            for words in [["ctl", "status"], ["ctl", "stop"]] {
                #expect(try control(mount, as: Self.mine, words).code == 1)
            }
            try mount.stop()
            #expect(try control(mount, as: Self.theirs, ["ctl", "start", "--user", "\(Self.theirs)"]).code == 0)
            #expect(try mount.status().state == "active")
            try mount.stop()
        }
    }

    @Test("an ordinary user gets no more than their own files") func noMore() throws {
        try with(options: ["-o", "user_snapshots"]) { mount throws in
            for words in [
                ["--user", "\(Self.theirs)"], ["--user", "\(Self.mine)", "--user", "0"],
                ["--group", "\(Self.mine)"],
                ["--stall-max", "201"], ["--attempts", "26"], ["--lease", "\(getpid())"],
            ] {
                let refused = try control(mount, as: Self.mine, ["ctl", "start"] + words)
                #expect(refused.code == 1 && !refused.errors.isEmpty, "\(refused)")
            }
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("the mount's own hooks are not called for an ordinary user's start, and are for root's") func hooks()
        throws
    {
        try TemporaryDirectory.with { top in
            let (hook, called) = (top / "hook", top / "called")
            try hook.create(Array("#!/bin/sh\ntouch \(called)\n".utf8), mode: 0o755)
            try with(options: ["-o", "user_snapshots", "--hook", hook.string]) { mount throws in
                #expect(try control(mount, as: Self.mine, ["ctl", "start"]).code == 0)
                #expect(!called.exists)
                #expect(try control(mount, as: Self.mine, ["ctl", "stop"]).code == 0)
                try mount.start()
                #expect(called.exists)
            }
        }
    }

    @Test("run as an ordinary user on root's mount ends with the command") func ordinaryRun() throws {
        try with(options: ["-o", "user_snapshots"]) { mount throws in
            let script = "cat $FUSESNAP_SNAPSHOT/homes/mine/file | wc -c; ls $FUSESNAP_SNAPSHOT/homes"
            let finished = try control(
                mount, as: Self.mine, ["run", "--in-place=never"], after: ["--", "sh", "-c", script])
            #expect(finished.code == 0 && finished.output == "30000\nmine\n", "\(finished)")
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("without user_snapshots, and on a user's mount, there is nothing for other users") func notAdmitted()
        throws
    {
        try with { mount throws in
            let refused = try control(mount, as: Self.mine, ["ctl", "start"])
            #expect(refused.code == 1 && refused.errors.contains("user_snapshots"), "\(refused)")
            #expect(try mount.status().state == "idle")
        }
        try TemporaryDirectory.with { top in
            try succeed(["cp", Machine.binary, (top / "fusesnap").string])
            for name: Path in ["source", "mnt"] {
                try (top / name).mkdir()
                try (top / name).chown(user: Self.mine, group: Self.mine)
            }
            let finished = try run([
                "setpriv", "--reuid=\(Self.mine)", "--regid=\(Self.mine)", "--clear-groups",
                (top / "fusesnap").string, "mount", "-o", "user_snapshots", (top / "source").string,
                (top / "mnt").string,
            ])
            #expect(finished.code == 1 && finished.errors.contains("user_snapshots"), "\(finished)")
        }
    }

    @Test(
        "redirected: others' data are written where they are, also when they are the first to change, and are not thrown away",
        .enabled(if: Machine.Mode.available.contains(.redirect), "needs root and the default I/O policy"))
    func othersAreNotRedirected() throws {
        try with(mode: .redirect) { mount throws in
            let (live, source) = (mount.mountpoint / "homes/theirs/file", mount.source / "homes/theirs/file")
            let open = try live.open(O_RDWR)
            try #require(try mount.control("start", "--user", "\(Self.mine)").code == 0)
            try open.write([1, 2, 3], at: 0)
            try open.sync()
            try live.append(bytes(10_000, seed: 2))
            try live.setTimes(accessed: nil, modified: Timestamp(1_500_000_000, 7))
            #expect(try source.contents() == live.contents() && source.lstat().size == 40_000)
            #expect(try source.lstat().modified == Timestamp(1_500_000_000, 7))
            // From the first change of a name, or of the owner, on it is redirected.
            try live.rename(to: mount.mountpoint / "homes/theirs/moved")
            try open.write([4, 5, 6], at: 0)
            #expect(try source.contents().prefix(3) == [1, 2, 3])
            let moved = try (mount.mountpoint / "homes/theirs/moved").contents()
            #expect(moved.prefix(3) == [4, 5, 6] && moved.count == 40_000)
            let discarded = try mount.control("stop", "--discard")
            #expect(discarded.code == 1 && discarded.errors.contains("stop it without --discard"), "\(discarded)")
            #expect(try mount.status().state == "active")
            try mount.stop()
            #expect(try (mount.source / "homes/theirs/moved").contents() == moved)
        }
    }

    @Test(
        "redirected: a snapshot of some users' files goes on after a kill, and is of theirs alone",
        .enabled(if: Machine.Mode.available.contains(.redirect), "needs root and the default I/O policy"))
    func redirectedAndKilled() throws {
        try with(mode: .redirect, options: ["-o", "user_snapshots"]) { mount throws in
            let file = mount.mountpoint / "homes/mine/file"
            let atCut = try TreeCapture(mount.mountpoint).limited { user, _ in user == Self.mine }
            try #require(try mount.control("start", "--user", "\(Self.mine)").code == 0)
            try file.write([1], at: 0)
            try (mount.mountpoint / "homes/theirs/file").write([1], at: 0)
            try mount.killed { mount in
                expect(try TreeCapture(mount.snapshot), equals: atCut)
                let status = try mount.status()
                #expect(
                    status.state == "active" && status.has("users") && !status.has("inexact_reason"),
                    "\(status.json)")
                #expect(try mount.control("status").output.contains("files of user "))
                // Nor is it marked by who looks for others' files, which have changed.
                #expect(throws: Errno.noSuchFileOrDirectory) { try (mount.snapshot / "homes/theirs/file").lstat() }
                #expect(try !mount.status().has("inexact_reason"))
                try (mount.mountpoint / "homes/theirs/file").write([2], at: 0)
                #expect(try (mount.source / "homes/theirs/file").contents().first == 2)
                try mount.stop()
                // Whose it was it still is.
                try #require(try control(mount, as: Self.mine, ["ctl", "start"]).code == 0)
                try mount.killed { mount in
                    #expect(try control(mount, as: Self.theirs, ["ctl", "stop"]).code == 1)
                    #expect(try control(mount, as: Self.mine, ["ctl", "status"]).code == 0)
                    let stopped = try control(mount, as: Self.mine, ["ctl", "stop", "--json"])
                    #expect(stopped.code == 0 && stopped.output.contains("1000"), "\(stopped)")
                }
            }
        }
    }

    @Test(
        "redirected: one for a single pass is not exact any more after a kill",
        .enabled(if: Machine.Mode.available.contains(.redirect), "needs root and the default I/O policy"))
    func singlePassAndKilled() throws {
        try with(mode: .redirect) { mount throws in
            let file = mount.mountpoint / "homes/mine/file"
            try #require(try mount.control("start", "--single-pass").code == 0)
            let data = try (mount.snapshot / "homes/mine/file").contents()
            try file.write([3], at: 0)
            #expect(try (mount.source / "homes/mine/file").contents().first == 3 && data == bytes(30_000))
            try mount.killed { mount in
                #expect(try file.contents().first == 3)
                #expect(try mount.status().text("inexact_reason").contains("--single-pass"))
                // Nothing of it can be read, whether it has changed or not.
                #expect(throws: Errno.ioError) { try (mount.snapshot / "homes/mine/file").contents() }
                #expect(throws: Errno.ioError) { try (mount.snapshot / "homes/theirs/file").contents() }
                let kept = try run([Machine.binary, "recover", "--discard", mount.source.string])
                #expect(kept.code != 0, "it is mounted")
                #expect(try mount.control("stop").code == 3)
            }
        }
    }

    @Test(
        "a snapshot of some users' files, or for a single pass, does not outlive a daemon that is killed, and the mount says so",
        arguments: ["--user=root", "--single-pass"], [false, true])
    func killed(_ option: String, _ hasEnded: Bool) throws {
        try TemporaryDirectory.with { top in
            let (source, point) = (top / "source", top / "mnt")
            for directory in [source, point] { try directory.mkdir() }
            try (source / "file").create(bytes(30_000))
            let mount = [Machine.binary, "mount", "--mode", "preserve", source.string, point.string]
            func unmount() throws { try succeed([Machine.binary, "unmount", "--force", point.string]) }
            try succeed(mount)
            do {
                try succeed([Machine.binary, "ctl", "start", option, point.string])
                if option == "--single-pass" { _ = try (point / ".snapshot/file").contents() }
                try (point / "file").write(bytes(8_192, seed: 2), at: 4_096)
                if hasEnded { try succeed([Machine.binary, "ctl", "stop", point.string]) }
                let daemon = MountStatus(
                    json: try succeed([Machine.binary, "ctl", "status", "--json", point.string])
                ).pid
                kill(daemon, SIGKILL)
                try wait("the daemon's end") { !isRunning(daemon) }
                try unmount()
            } catch {
                try unmount()
                throw error
            }
            let wanted = option == "--single-pass" ? "(--single-pass)" : "(--user, --group)"
            let check = try run([Machine.binary, "check", (source / ".fusesnap").string])
            #expect(check.code == 0 && check.output.contains(wanted) != hasEnded, "\(check)")
            let again = try run(mount)
            do {
                #expect(again.code == 0 && again.errors.contains(wanted) != hasEnded, "\(again)")
                #expect(again.errors.contains("discarded the snapshot") != hasEnded, "\(again)")
                let status = MountStatus(
                    json: try succeed([Machine.binary, "ctl", "status", "--json", point.string]))
                #expect(status.state == "idle")
                var data = bytes(30_000)
                data.replaceSubrange(4_096..<12_288, with: bytes(8_192, seed: 2))
                #expect(try (point / "file").contents() == data)
                // The next is taken up as ever: nothing is left of the other.
                try succeed([Machine.binary, "ctl", "start", point.string])
                try succeed([Machine.binary, "ctl", "stop", point.string])
                try unmount()
            } catch {
                try unmount()
                throw error
            }
        }
    }

    @Test("ordinary users who hold all connections that they may have keep nobody else out") func connections()
        throws
    {
        try with(options: ["-o", "user_snapshots"]) { mount throws in
            var held: [File] = []
            try asUser(Self.mine) {
                // The daemon serves 16 clients at once.
                for _ in 0..<20 {
                    let descriptor = ts_connect(mount.controlSocket)
                    try #require(descriptor >= 0, "\(currentErrno)")
                    held.append(File(raw: descriptor))
                }
            }
            #expect(try mount.status().state == "idle")
            try mount.start()
            try mount.stop()
            withExtendedLifetime(held) {}
        }
    }
}

extension MountedSource {
    /// The control socket of root's mount, as Docs/Control.md says.
    fileprivate var controlSocket: String {
        let hash = mountpoint.bytes.reduce(0xcbf2_9ce4_8422_2325 as UInt64) {
            ($0 ^ UInt64($1)) &* 0x0100_0000_01b3
        }
        let digits = String(hash, radix: 16)
        return "/run/fusesnap/" + String(repeating: "0", count: 16 - digits.count) + digits + ".sock"
    }
}
