import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Snapshots whose daemon is killed, and what the next mount, `check` and `recover` make of them.
@Suite(.serialized, .enabled(if: Machine.canMount && geteuid() == 0, "needs root and /dev/fuse"))
struct TakenUpTests {
    /// A source that is mounted again and again.
    private final class Remounted {
        let source: Path
        let point: Path
        let mode: Machine.Mode
        var store: Path { source / ".fusesnap" }
        var snapshot: Path { point / ".snapshot" }

        init(_ top: Path, isOverItself: Bool, mode: Machine.Mode) throws {
            self.mode = mode
            source = top / "source"
            point = isOverItself ? source : top / "mnt"
            try source.mkdir()
            if !isOverItself { try point.mkdir() }
            try (source / "f").create(bytes(100_000, seed: 3))
            try (source / "gone").create(bytes(50_000, seed: 4))
            try (source / "d").mkdir()
            try (source / "d/e").symlink(to: "f")
        }

        /// What the mount says.
        @discardableResult
        func mount(_ options: String...) throws -> Finished {
            let finished = try run(
                [Machine.binary, "mount", "--mode", "\(mode)"] + options + [source.string, point.string],
                seconds: 60)
            if finished.code != 0 { throw TestFailure(finished.description) }
            return finished
        }

        func control(_ words: String...) throws -> Finished {
            try run([Machine.binary, "ctl"] + words + [point.string])
        }

        func status() throws -> MountStatus {
            MountStatus(json: try succeed([Machine.binary, "ctl", "status", "--json", point.string]))
        }

        /// Kills the daemon, and takes the dead mount away.
        func kill() throws {
            let daemon = try status().pid
            Glibc.kill(daemon, SIGKILL)
            try wait("the daemon's end") { !isRunning(daemon) }
            try succeed([Machine.binary, "unmount", point.string])
        }

        func unmount() throws { try succeed([Machine.binary, "unmount", "--force", point.string]) }

        func change() throws {
            try (point / "f").write([0, 0, 0], at: 5000)
            try (point / "f").append(bytes(10))
            try (point / "gone").unlink()
            try (point / "d/e").unlink()
            try (point / "d").rename(to: point / "moved")
            try (point / "new").create(bytes(9))
            try (point / "new").rename(to: point / "d")
        }

        func cleanUp() {
            do {
                if try isMounted(point) { try kill() }
            } catch {
                // Nothing is left of it, or the next test finds the mount table with it.
            }
        }
    }

    private func with(
        isOverItself: Bool = false, mode: Machine.Mode = .preserve, _ body: (Remounted) throws -> Void
    ) throws {
        try TemporaryDirectory.with { top in
            let remounted = try Remounted(top, isOverItself: isOverItself, mode: mode)
            defer { remounted.cleanUp() }
            try body(remounted)
        }
    }

    @Test(
        "the snapshot goes on: exact, since when it was, and it ends as any", arguments: [false, true],
        Machine.Mode.allCases)
    func goesOn(isOverItself: Bool, _ mode: Machine.Mode) throws {
        try with(isOverItself: isOverItself, mode: mode) { source in
            try source.mount()
            let frozen = try TreeCapture(source.point)
            #expect(try source.control("start").code == 0)
            let started = try source.status().text("started")
            for _ in 0..<2 {
                if !(source.point / "moved").exists { try source.change() }
                let live = try TreeCapture(source.point)
                try source.kill()
                let checked = try run([Machine.binary, "check", source.store.string])
                #expect(
                    checked.code == 0 && checked.output.contains("the next mount goes on with it"), "\(checked)")
                let said = try source.mount()
                #expect(said.errors.contains("took up the snapshot"), "\(said)")
                #expect(try frozen.differences(TreeCapture(source.snapshot)).isEmpty)
                #expect(try live.differences(TreeCapture(source.point)).isEmpty)
                let status = try source.status()
                #expect(status.state == "active" && status.text("started") == started, "\(status)")
            }
            try (source.point / "f").write(bytes(90_000, seed: 9), at: 0)
            #expect(try frozen.differences(TreeCapture(source.snapshot)).isEmpty)
            #expect(try source.control("start").code == 1)
            let stopped = try source.control("stop")
            #expect(stopped.code == 0, "\(stopped)")
            #expect(!source.snapshot.exists)
            try source.unmount()
            #expect(!source.store.exists)
        }
    }

    @Test("a snapshot that was given up is not taken up") func overflowed() throws {
        try with { source in
            try source.mount("--max-delta", "8K")
            #expect(try source.control("start").code == 0)
            try (source.point / "f").write(bytes(60_000, seed: 9), at: 0)
            try wait("that it is given up") { try source.status().state == "overflowed" }
            try source.kill()
            let said = try source.mount()
            #expect(!said.errors.contains("took up"), "\(said)")
            #expect(try source.status().state == "idle" && !source.snapshot.exists)
            try source.unmount()
        }
    }

    @Test("what is not exact stays so, and says why", arguments: Machine.Mode.allCases)
    func inexact(_ mode: Machine.Mode) throws {
        try with(mode: mode) { source in
            try source.mount()
            #expect(try source.control("start").code == 0)
            try (source.source / "f").write([1], at: 0)
            try wait("that it is noticed") { try source.status().has("inexact_reason") }
            let reason = try source.status().text("inexact_reason")
            try source.kill()
            try source.mount()
            #expect(try source.status().text("inexact_reason") == reason)
            #expect(throws: Errno.ioError) { try (source.snapshot / "f").contents() }
            #expect(try source.control("stop").code == 3)
            try source.unmount()
        }
    }

    @Test(
        "what is changed or made in the source while no daemon is there reads EIO and is told",
        arguments: Machine.Mode.allCases)
    func absence(_ mode: Machine.Mode) throws {
        for change: (Path) throws -> Void in [
            { try ($0 / "f").write([1], at: 0) }, { try ($0 / "f").chmod(0o600) },
            { try ($0 / "other").create(bytes(1)) }, { try ($0 / "gone").unlink() },
        ] {
            try with(mode: mode) { source in
                try source.mount()
                #expect(try source.control("start").code == 0)
                try (source.point / "d/late").create(bytes(1))
                try source.kill()
                try waitForClockTick()
                try change(source.source)
                try source.mount()
                #expect(throws: (any Error).self) { try TreeCapture(source.snapshot) }
                #expect(try source.status().has("inexact_reason"))
                // And so says the next daemon.
                try source.kill()
                try source.mount()
                #expect(try source.status().has("inexact_reason"))
                #expect(try source.control("stop").code == 3)
                try source.unmount()
            }
        }
    }

    // MARK: Who holds it

    @Test("a lease goes on with its process, and ends with it") func leaseGoesOn() throws {
        try with { source in
            let holder = try Child(["sleep", "1000"])
            try source.mount()
            #expect(try source.control("start", "--lease", "\(holder.pid)", "--ttl", "1h").code == 0)
            let expires = try source.status().text("expires")
            try source.kill()
            try source.mount()
            let status = try source.status()
            #expect(status.number("process") == holder.pid && status.text("command") == "sleep", "\(status)")
            #expect(status.text("expires").prefix(16) == expires.prefix(16), "\(status)")
            #expect(source.snapshot.exists)
            holder.signal(SIGKILL)
            _ = try holder.wait()
            try wait("its end") { try source.status().state == "idle" }
            let stop = try source.control("stop")
            #expect(stop.errors.contains("process \(holder.pid) (sleep), which held it, has ended"), "\(stop)")
            try source.unmount()
        }
    }

    @Test("a lease whose process has ended meanwhile, and a time that is over, end the snapshot")
    func leaseIsOver() throws {
        try with { source in
            let holder = try Child(["sleep", "1000"])
            try source.mount()
            #expect(try source.control("start", "--lease", "\(holder.pid)").code == 0)
            try source.kill()
            holder.signal(SIGKILL)
            _ = try holder.wait()
            try source.mount()
            try wait("its end") { try source.status().state == "idle" }
            #expect(try source.control("stop").errors.contains("process \(holder.pid), which held it, has ended"))
            #expect(try source.control("start", "--ttl", "1s").code == 0)
            try source.kill()
            let end = ContinuousClock.now + .seconds(2)
            try wait("the time") { ContinuousClock.now > end }
            try source.mount()
            try wait("its end") { try source.status().state == "idle" }
            #expect(try source.control("stop").errors.contains("its time is over"))
            try source.unmount()
        }
    }

    @Test("one of `run` ends: its command has the old mount", arguments: ["preserve", "redirect"])
    func runIsOver(mode: String) throws {
        try with { source in
            try source.mount("--mode", mode)
            let child = try Child([
                Machine.binary, "run", source.point.string, "--", "sh", "-c",
                "echo > \(source.point).said; exec sleep 1000",
            ])
            let said = Path("\(source.point).said")
            try wait("the command") { said.exists }
            try (source.point / "f").write([7], at: 0)
            try source.kill()
            try source.mount("--mode", mode)
            try wait("its end") { try source.status().state == "idle" }
            #expect(try source.control("stop").errors.contains("the command that held it"))
            #expect(try (source.source / "f").contents().first == 7)
            child.signal(SIGTERM)
            #expect(try child.wait(seconds: 30).code != 0)
            try source.unmount()
        }
    }

    // MARK: What cannot go on

    @Test("another mode, and a source without file handles: it is discarded, and why is said")
    func discarded() throws {
        for (options, words) in [
            (["--mode", "redirect"], "this mount redirects"), (["-o", "no_file_handles"], "without file handles"),
        ] {
            try with { source in
                try source.mount()
                #expect(try source.control("start").code == 0)
                try source.change()
                let live = try TreeCapture(source.point)
                try source.kill()
                let said = try run(
                    [Machine.binary, "mount"] + options + [source.source.string, source.point.string])
                #expect(said.code == 0 && said.errors.contains("discarded the snapshot"), "\(said)")
                #expect(said.errors.contains(words), "\(said)")
                #expect(try live.differences(TreeCapture(source.point)).isEmpty)
                #expect(!source.snapshot.exists)
                try source.unmount()
            }
        }
    }

    @Test("a damaged journal: check names the place, the next mount discards the snapshot and serves the source")
    func damaged() throws {
        try with { source in
            try source.mount()
            #expect(try source.control("start").code == 0)
            try source.change()
            let live = try TreeCapture(source.point)
            let busy = try run([Machine.binary, "check", source.store.string])
            #expect(busy.code == 1 && busy.errors.contains("in use"), "\(busy)")
            try source.kill()
            let journal = source.store / "snapshot/journal"
            let bytes = try journal.contents()
            try journal.write([bytes[200] ^ 4], at: 200)
            let checked = try run([Machine.binary, "check", source.store.string])
            #expect(checked.code == 1 && checked.output.contains("\(journal) is damaged at byte "), "\(checked)")
            #expect(checked.output.contains("the live files are not affected"), "\(checked)")
            let said = try source.mount()
            #expect(
                said.errors.contains("discarded") && said.errors.contains("\(journal) is damaged at byte"),
                "\(said)")
            #expect(try live.differences(TreeCapture(source.point)).isEmpty)
            try source.unmount()
        }
    }

    @Test("check refuses what is no store, and names what is missing") func check() throws {
        try with { source in
            let none = try run([Machine.binary, "check", source.source.string])
            #expect(none.code == 1 && none.errors.contains("not a fusesnap store"), "\(none)")
            #expect(try run([Machine.binary, "check", (source.source / "x").string]).code == 1)
            #expect(try run([Machine.binary, "check", ""]).code == 64)
            try source.mount()
            #expect(try source.control("start").code == 0)
            try source.change()
            try source.kill()
            let graveyard = source.store / "graveyard"
            let grave = graveyard / (try #require(try graveyard.entries().first))
            try (source.store / "snapshot/x").create()
            try grave.rename(to: source.source / "aside")
            let checked = try run([Machine.binary, "check", source.store.string])
            #expect(checked.code == 1 && checked.output.contains("\(grave): it is missing"), "\(checked)")
            #expect(checked.output.contains("snapshot/x belongs to nothing"), "\(checked)")
            try (source.source / "aside").rename(to: grave)
            #expect(try run([Machine.binary, "check", source.store.string]).code == 0)
        }
    }

    // MARK: recover

    private func recover(_ source: Remounted, _ words: String...) throws -> Finished {
        try run([Machine.binary, "recover"] + words + [source.source.string])
    }

    @Test("recover leaves a snapshot in preserve that can go on, and discards it where that is asked for")
    func recoverPreserve() throws {
        try with { source in
            #expect(try recover(source).output.contains("nothing to recover"))
            #expect(!source.store.exists, "no trace")
            try source.mount()
            let frozen = try TreeCapture(source.point)
            #expect(try source.control("start").code == 0)
            try source.change()
            #expect(try recover(source).code == 1, "in use")
            try source.kill()
            let kept = try recover(source)
            #expect(kept.code == 0 && kept.output.contains("the next mount goes on with it"), "\(kept)")
            try source.mount()
            #expect(try frozen.differences(TreeCapture(source.snapshot)).isEmpty)
            let live = try TreeCapture(source.point)
            try source.kill()
            // Whatever state it is in.
            try (source.store / "snapshot/journal").truncate(50)
            let discarded = try recover(source, "--discard")
            #expect(discarded.code == 0 && discarded.output.contains("discarded the snapshot"), "\(discarded)")
            #expect(!source.store.exists)
            #expect(try live.differences(TreeCapture(source.source)).isEmpty)
        }
    }

    @Test("recover merges what was redirected, or throws it away") func recoverRedirect() throws {
        for discards in [false, true] {
            try with { source in
                try source.mount("--mode", "redirect")
                let frozen = try TreeCapture(source.point)
                #expect(try source.control("start").code == 0)
                try source.change()
                let live = try TreeCapture(source.point)
                try source.kill()
                let checked = try run([Machine.binary, "check", source.store.string])
                #expect(checked.code == 0 && checked.output.contains("active snapshot"), "\(checked)")
                let finished = discards ? try recover(source, "--discard") : try recover(source)
                #expect(finished.code == 0, "\(finished)")
                #expect(finished.output.contains(discards ? "threw away what" : "merged what"), "\(finished)")
                #expect(!source.store.exists)
                let after = try TreeCapture(source.source)
                #expect((discards ? frozen : live).differences(after, ignoring: [.ctime]).isEmpty)
            }
        }
    }
}
