import Glibc
import SystemPackage
import TestSupport
import Testing

/// Hooks around the cut.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct HookTests {
    /// A hook that notes its calls in `log`, and then does what `body` says.
    private func makeHook(_ mount: MountedSource, _ path: Path, _ body: String = "") throws -> String {
        let script = "#!/bin/sh\necho \(path.name) $1 >> \(mount.top)/log\n\(body)\n"
        try (mount.top / path).create(Array(script.utf8), mode: 0o755)
        return (mount.top / path).string
    }

    /// What was called since the last look.
    private func calls(_ mount: MountedSource) throws -> [String] {
        let log = mount.top / "log"
        guard log.exists else { return [] }
        let text = String(decoding: try log.contents(), as: UTF8.self)
        try log.unlink()
        return text.split(separator: "\n").map(String.init)
    }

    private func start(_ mount: MountedSource, _ options: [String]) throws -> Finished {
        try run([Machine.binary, "ctl", "start"] + options + [mount.mountpoint.string])
    }

    @Test(
        "freeze before the cut in order, thaw after it in reverse: of ctl start, of run, and around those of mount"
    )
    func order() throws {
        try TemporaryDirectory.with { place in
            let own = place / "own"
            let script =
                "#!/bin/sh\necho own $1 $FUSESNAP_MOUNTPOINT >> \(place)/log; cp \(place)/log \(place)/$1\n"
            try own.create(Array(script.utf8), mode: 0o755)
            try MountedSource.with(options: ["--hook", own.string]) { mount in
                let inSnapshot =
                    "[ $1 = freeze ] && echo frozen > \(mount.mountpoint)/$1 || echo thawed >> \(mount.mountpoint)/freeze"
                let hooks = ["--hook", try makeHook(mount, "a", inSnapshot), "--hook", try makeHook(mount, "b")]
                #expect(try start(mount, hooks).code == 0)
                #expect(try calls(mount) == ["a freeze", "b freeze", "b thaw", "a thaw"])
                let ownCalls = String(decoding: try (place / "log").contents(), as: UTF8.self)
                #expect(ownCalls == "own freeze \(mount.mountpoint)\nown thaw \(mount.mountpoint)\n")
                #expect(try (mount.snapshot / "freeze").contents() == Array("frozen\n".utf8))
                #expect(try (mount.mountpoint / "freeze").contents() == Array("frozen\nthawed\n".utf8))
                let json = try mount.control("stop", "--json").output
                #expect(json.contains("\"level\" : \"application\""), "\(json)")
                let origins = json.split(separator: "\n").filter { $0.contains("\"origin\"") }.map {
                    $0.contains("mount") ? "mount" : "command"
                }
                #expect(origins == ["command", "command", "mount", "mount", "command", "command"])
                let finished = try mount.runCommand(hooks, ["cat", "\(mount.mountpoint)/freeze"])
                #expect(finished.code == 0 && finished.output == "frozen\n", "\(finished)")
                #expect(try calls(mount) == ["a freeze", "b freeze", "b thaw", "a thaw"])
            }
        }
    }

    @Test("a directory of hooks: by name, the named ones last, without what qemu-ga leaves out")
    func directory() throws {
        try MountedSource.with { mount in
            try (mount.top / "hooks.d").mkdir()
            let ignored = [
                "x~", "x.bak", "x.orig", "x.rpmnew", "x.rpmorig", "x.rpmsave", "x.sample", "x.dpkg-old",
                "x.dpkg-new",
                "x.dpkg-tmp", "x.dpkg-dist", "x.dpkg-bak", "x.dpkg-backup", "x.dpkg-remove", ".hidden",
            ]
            for name in ["20-b", "10-a", "30.sh", "40-plain"] + ignored {
                _ = try makeHook(mount, "hooks.d" / Path(name))
            }
            try (mount.top / "hooks.d/40-plain").chmod(0o644)
            try (mount.top / "hooks.d/50-directory").mkdir()
            let named = try makeHook(mount, "named")
            let options = ["--hooks-dir", (mount.top / "hooks.d").string, "--hook", named]
            #expect(try start(mount, options).code == 0)
            #expect(
                try calls(mount) == [
                    "10-a freeze", "20-b freeze", "30.sh freeze", "named freeze", "named thaw", "30.sh thaw",
                    "20-b thaw", "10-a thaw",
                ])
            try mount.stop()
        }
    }

    @Test(
        "/etc/fusesnap/hooks.d is root's; one that others may write to is refused",
        .enabled(if: Machine.isRoot && Machine.has("unshare"), "needs root and unshare"))
    func standardDirectory() throws {
        try MountedSource.with { mount in
            let etc = mount.top / "etc"
            try etc.mkdir()
            try (etc / "hooks.d").mkdir()
            let hook = try makeHook(mount, "etc/hooks.d/10-a")
            let script = """
                mount -t tmpfs none /mnt && cp -a /etc /mnt/ && rm -rf /mnt/etc/fusesnap && mkdir /mnt/etc/fusesnap \
                && mount --bind /mnt/etc /etc && mount --bind \(etc) /etc/fusesnap && exec "$0" "$@"
                """
            let words = [
                "unshare", "--mount", "sh", "-c", script, Machine.binary, "ctl", "start", mount.mountpoint.string,
            ]
            let finished = try run(words)
            #expect(finished.code == 0, "\(finished)")
            #expect(try calls(mount) == ["10-a freeze", "10-a thaw"])
            try mount.stop()
            for path in [Path(hook), etc / "hooks.d"] {
                try path.chmod(0o777)
                let refused = try run(words)
                #expect(refused.code == 1 && refused.errors.contains("writable"), "\(refused)")
                try path.chmod(0o755)
            }
            #expect(try calls(mount) == [])
            #expect(try mount.status().state == "idle")
        }
    }

    @Test(
        "a hook that fails: no snapshot, the hook's words, thaw of all that froze; --hook-failure=ignore goes on")
    func failure() throws {
        try MountedSource.with { mount in
            let failing = "[ $1 = thaw ] || { echo this went wrong >&2; exit 9; }"
            let hooks = [
                "--hook", try makeHook(mount, "a"), "--hook", try makeHook(mount, "bad", failing), "--hook",
                try makeHook(mount, "c"),
            ]
            let finished = try start(mount, hooks)
            #expect(finished.code == 1 && finished.errors.contains("this went wrong"), "\(finished)")
            #expect(finished.errors.contains("bad exited with 9 at freeze"), "\(finished)")
            #expect(try calls(mount) == ["a freeze", "bad freeze", "bad thaw", "a thaw"])
            #expect(try mount.status().state == "idle")
            let notRun = try mount.runCommand(hooks, ["echo", "ran"])
            #expect(notRun.code == 125 && notRun.output.isEmpty, "\(notRun)")
            _ = try calls(mount)
            let ignored = try start(mount, hooks + ["--hook-failure=ignore"])
            #expect(ignored.code == 0 && ignored.errors.contains("this went wrong"), "\(ignored)")
            #expect(try calls(mount).count == 6)
            #expect(try mount.control("stop", "--json").output.contains("\"level\" : \"crash\""))
        }
    }

    @Test("a thaw that fails: no snapshot either") func thawFailure() throws {
        try MountedSource.with { mount in
            let hooks = [
                "--hook", try makeHook(mount, "a"), "--hook", try makeHook(mount, "b", "[ $1 = freeze ]"),
            ]
            let finished = try mount.runCommand(hooks, ["echo", "ran"])
            #expect(finished.code == 125 && finished.errors.contains("exited with 1 at thaw"), "\(finished)")
            #expect(finished.output.isEmpty)
            #expect(try calls(mount) == ["a freeze", "b freeze", "b thaw", "a thaw"])
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("a hook of the mount that fails: the same, told to whoever starts") func mountHook() throws {
        try TemporaryDirectory.with { place in
            let own = place / "own"
            let script = "#!/bin/sh\necho $1 >> \(place)/log; echo wrong in the daemon; [ $1 = thaw ]\n"
            try own.create(Array(script.utf8), mode: 0o755)
            try MountedSource.with(options: ["--hook", own.string]) { mount in
                let finished = try start(mount, ["--hook", try makeHook(mount, "a")])
                #expect(finished.code == 1 && finished.errors.contains("wrong in the daemon"), "\(finished)")
                #expect(try (place / "log").contents() == Array("freeze\nthaw\n".utf8))
                #expect(try calls(mount) == ["a freeze", "a thaw"])
                #expect(try mount.status().state == "idle")
                #expect(try start(mount, ["--hook-failure=ignore"]).code == 0)
                try mount.stop()
            }
        }
    }

    @Test("a hook of the mount that hangs is killed by the daemon, in the time that the start allows")
    func mountHookHangs() throws {
        try TemporaryDirectory.with { place in
            let own = place / "own"
            let script = "#!/bin/sh\necho $1 >> \(place)/log; [ $1 = thaw ] || exec sleep 1000\n"
            try own.create(Array(script.utf8), mode: 0o755)
            try MountedSource.with(options: ["--hook", own.string]) { mount in
                let finished = try mount.runCommand(["--hook-timeout", "1"], ["echo", "ran"])
                #expect(finished.code == 125 && finished.errors.contains("did not end within 1 s"), "\(finished)")
                #expect(finished.output.isEmpty && mount.isAlive)
                #expect(try (place / "log").contents() == Array("freeze\nthaw\n".utf8))
            }
        }
    }

    @Test(
        "a daemon that is to end while its hook freezes an application has it thawed first, and begins no snapshot"
    )
    func daemonEnds() throws {
        try TemporaryDirectory.with { place in
            for name: Path in ["said", "go-on"] { try (place / name).mkfifo() }
            let own = place / "own"
            let script = """
                #!/bin/sh
                echo $1 >> \(place)/log
                [ $1 = thaw ] || { echo > \(place)/said; read line < \(place)/go-on; }
                """
            try own.create(Array((script + "\n").utf8), mode: 0o755)
            try MountedSource.with(options: ["--hook", own.string]) { mount in
                let child = try Child([Machine.binary, "ctl", "start", mount.mountpoint.string])
                _ = try heard(place / "said")
                kill(mount.daemon, SIGTERM)
                try wait("the end of the mount") { try !isMounted(mount.mountpoint) }
                try tell(place / "go-on")
                let finished = try child.wait(seconds: 30)
                #expect(finished.code == 1 && finished.output.isEmpty, "\(finished)")
                #expect(finished.errors.contains("the mount is being ended"), "\(finished)")
                try mount.waitForEnd()
                #expect(try (place / "log").contents() == Array("freeze\nthaw\n".utf8))
            }
        }
    }

    @Test("a hook that hangs is killed with all that it started") func hang() throws {
        try MountedSource.with { mount in
            let body =
                "[ $1 = thaw ] || { trap '' TERM; sleep 1000 & echo $! > \(mount.top)/child; wait; sleep 1000; }"
            let hooks = ["--hook", try makeHook(mount, "a", body), "--hook-timeout", "1"]
            let finished = try mount.runCommand(hooks, ["echo", "ran"])
            #expect(finished.code == 125 && finished.output.isEmpty, "\(finished)")
            #expect(finished.errors.contains("did not end within 1 s"), "\(finished)")
            #expect(try calls(mount) == ["a freeze", "a thaw"])
            let text = String(decoding: try (mount.top / "child").contents(), as: UTF8.self)
            let child = try #require(Int32(text.dropLast()))
            try wait("the end of the hook's child") { !isRunning(child) }
            #expect(try mount.status().state == "idle")
        }
    }

    @Test(
        "fusesnap is killed while hooks freeze: what froze thaws, in reverse, and the freeze that went on is ended",
        arguments: ["start", "run"])
    func killedAtFreeze(_ verb: String) throws {
        try MountedSource.with { mount in
            let (said, goOn) = try mount.makeFifos()
            // What is written to it stays until it is read.
            let kept = try said.open(O_RDWR)
            defer { _ = consume kept }
            let hangs =
                "[ $1 = thaw ] && echo > \(said) || { echo $$ > \(said); read line < \(goOn); echo late >> log; }"
            let hooks =
                ["--hook", try makeHook(mount, "a", "[ $1 = freeze ] || echo > \(said)")]
                + ["--hook", try makeHook(mount, "b", hangs)]
            let words =
                verb == "run"
                ? mount.runWords(hooks, ["echo", "ran"])
                : [Machine.binary, "ctl", "start"] + hooks + [mount.mountpoint.string]
            let child = try Child(words)
            let freezing = try #require(Int32(try heard(said).dropLast()))
            child.signal(SIGKILL)
            #expect(try child.wait(seconds: 30).code == 128 + SIGKILL)
            for _ in 0..<2 { _ = try heard(said) }
            #expect(try calls(mount) == ["a freeze", "b freeze", "b thaw", "a thaw"])
            #expect(!isRunning(freezing), "\(verb)")
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("fusesnap is killed while hooks thaw: the one that thaws goes on, and the others thaw too")
    func killedAtThaw() throws {
        try MountedSource.with { mount in
            let (said, goOn) = try mount.makeFifos()
            // What is written to it stays until it is read.
            let kept = try said.open(O_RDWR)
            defer { _ = consume kept }
            let slow =
                "[ $1 = freeze ] || { echo > \(said); read line < \(goOn); echo thawed >> \(mount.top)/log; }"
            let hooks =
                ["--hook", try makeHook(mount, "a", "[ $1 = freeze ] || echo > \(said)")]
                + ["--hook", try makeHook(mount, "b", slow)]
            let child = try Child(mount.runWords(hooks, ["echo", "ran"]))
            _ = try heard(said)
            child.signal(SIGKILL)
            #expect(try child.wait(seconds: 30).output.isEmpty)
            try tell(goOn)
            _ = try heard(said)
            #expect(try calls(mount) == ["a freeze", "b freeze", "b thaw", "thawed", "a thaw"])
            try wait("the end of the snapshot") { try mount.status().state == "idle" }
        }
    }

    @Test("a daemon that is killed while its hook freezes: it thaws all the same")
    func daemonKilled() throws {
        try TemporaryDirectory.with { place in
            try (place / "said").mkfifo()
            let kept = try (place / "said").open(O_RDWR)
            defer { _ = consume kept }
            let own = place / "own"
            let script =
                "#!/bin/sh\necho $1 >> \(place)/log\necho > \(place)/said\n[ $1 = thaw ] || exec sleep 1000\n"
            try own.create(Array(script.utf8), mode: 0o755)
            try MountedSource.with(options: ["--hook", own.string]) { mount in
                let child = try Child([Machine.binary, "ctl", "start", mount.mountpoint.string])
                _ = try heard(place / "said")
                kill(mount.daemon, SIGKILL)
                _ = try heard(place / "said")
                #expect(try (place / "log").contents() == Array("freeze\nthaw\n".utf8))
                #expect(try child.wait(seconds: 30).code == 1)
                try mount.waitForEnd()
                try succeed([Machine.binary, "unmount", mount.mountpoint.string])
            }
        }
    }

    @Test("nothing is left of a start with hooks but the snapshot: no process waits") func nothingLeft() throws {
        try MountedSource.with { mount in
            let mark = "FUSESNAP_TEST_MARK=\(mount.top)"
            func marked() throws -> [Path] {
                try Path("/proc").entries().filter { process in
                    guard Int32(process.string) != nil else { return false }
                    do {
                        let words = String(
                            decoding: try (Path("/proc") / process / "environ").contents(), as: UTF8.self)
                        return words.contains(mark)
                    } catch {
                        return false  // Gone, or another user's.
                    }
                }
            }
            let hooks = [
                "--hook", try makeHook(mount, "a", "tr '\\0' '\\n' </proc/self/environ >\(mount.top)/environment"),
            ]
            let words = ["env", mark, Machine.binary, "ctl", "start"] + hooks + [mount.mountpoint.string]
            #expect(try run(words).code == 0)
            #expect(String(decoding: try (mount.top / "environment").contents(), as: UTF8.self).contains(mark))
            #expect(try marked() == [])
            try mount.stop()
        }
    }

    @Test("a hook that prints megabytes, for ever, with no line breaks: the end of it is shown")
    func megabytes() throws {
        try MountedSource.with { mount in
            let much = "[ $1 = thaw ] || { head -c 50000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1; }"
            let finished = try start(mount, ["--hook", try makeHook(mount, "a", much)])
            #expect(finished.code == 1 && finished.errors.contains("the end"), "\(finished.errors.suffix(100))")
            #expect(finished.errors.utf8.count < 6000)
            let quiet = try start(mount, ["--hook", try makeHook(mount, "b", "head -c 50000000 /dev/zero")])
            #expect(quiet.code == 0 && quiet.errors.isEmpty)
            try mount.stop()
            let endless = ["--hook", try makeHook(mount, "c", "[ $1 = thaw ] || yes"), "--hook-timeout", "1"]
            let ended = try start(mount, endless)
            #expect(ended.code == 1 && ended.errors.contains("did not end within 1 s"))
            #expect(ended.errors.utf8.count < 12_000)
        }
    }

    @Test("a hook may leave a session behind that goes on until thaw") func session() throws {
        try MountedSource.with { mount in
            let (said, goOn) = try mount.makeFifos()
            let body = """
                if [ $1 = freeze ]; then (read line < \(goOn); echo ended > \(mount.top)/session; echo > \(said)) &
                else echo > \(goOn); read line < \(said); fi
                """
            let finished = try start(mount, ["--hook", try makeHook(mount, "a", body)])
            #expect(finished.code == 0, "\(finished)")
            #expect((mount.top / "session").exists)
            try mount.stop()
        }
    }

    @Test("Ctrl-C while a hook runs: it is ended, all thaws, there is no snapshot", arguments: ["start", "run"])
    func interrupted(_ verb: String) throws {
        try MountedSource.with { mount in
            let (said, _) = try mount.makeFifos()
            let hooks = ["--hook", try makeHook(mount, "a", "[ $1 = thaw ] || { echo > \(said); sleep 1000; }")]
            let words =
                verb == "run"
                ? mount.runWords(hooks, ["echo", "ran"])
                : [Machine.binary, "ctl", "start"] + hooks + [mount.mountpoint.string]
            let child = try Child(words)
            _ = try heard(said)
            child.signal(SIGINT)
            let finished = try child.wait(seconds: 30)
            #expect(finished.code == (verb == "run" ? 125 : 1) && finished.output.isEmpty, "\(finished)")
            #expect(try calls(mount) == ["a freeze", "a thaw"])
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("hooks that cannot be used are told before anything starts") func badHooks() throws {
        try MountedSource.with { mount in
            let good = try makeHook(mount, "good")
            let plain = mount.top / "plain"
            try plain.create(Array("#!/bin/sh\n".utf8))
            for (path, part) in [
                ((mount.top / "none").string, "No such file"), (mount.top.string, "not a file"),
                (plain.string, "not executable"),
            ] {
                let finished = try start(mount, ["--hook", good, "--hook", path])
                #expect(finished.code == 1 && finished.errors.contains(part), "\(finished)")
                let ran = try mount.runCommand(["--hook", good, "--hook", path], ["echo", "ran"])
                #expect(ran.code == 125 && ran.output.isEmpty && ran.errors.contains(part), "\(ran)")
                let other = [mount.source.string, (mount.top / "other").string]
                let mounted = try run([Machine.binary, "mount", "--hook", path] + other)
                #expect(mounted.code == 1, "\(mounted)")
            }
            let missing = try start(mount, ["--hooks-dir", (mount.top / "none").string])
            #expect(missing.code == 1 && missing.errors.contains("none"), "\(missing)")
            // No program behind `#!`: that shows when it is run.
            try plain.unlink()
            try plain.create(Array("#!/no/such/shell\n".utf8), mode: 0o755)
            let broken = try start(mount, ["--hook", good, "--hook", plain.string])
            #expect(broken.code == 1 && broken.errors.contains("could not be run"), "\(broken)")
            #expect(try calls(mount) == ["good freeze", "good thaw"])
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("where one is active already, no hook is run") func active() throws {
        try MountedSource.with { mount in
            try mount.start()
            let finished = try start(mount, ["--hook", try makeHook(mount, "a")])
            #expect(finished.code == 1 && finished.errors.contains("active already"), "\(finished)")
            #expect(try calls(mount) == [])
            try mount.stop()
        }
    }
}
