import Glibc
import SystemPackage
import TestSupport
import Testing

extension MountedSource {
    /// `fusesnap run` on this mount.
    func runCommand(_ options: [String] = [], _ command: [String], in directory: Path? = nil) throws -> Finished {
        try run(runWords(options, command), in: directory)
    }

    func runWords(_ options: [String], _ command: [String]) -> [String] {
        [Machine.binary, "run"] + options + [mountpoint.string, "--"] + command
    }

    /// A fifo beside the mount, by which a command tells that it has come so far, and another by which it is let go on.
    func makeFifos() throws -> (said: Path, goOn: Path) {
        let (said, goOn) = (top / "said", top / "go-on")
        if !said.exists { try said.mkfifo() }
        if !goOn.exists { try goOn.mkfifo() }
        return (said, goOn)
    }
}

/// Waits until a process writes a line to a fifo; what it wrote.
func heard(_ fifo: Path) throws -> String {
    // Open for writing too, so that neither the opening nor the end of another writer matters.
    let file = try fifo.open(O_RDWR)
    var line: [UInt8] = []
    while line.last != UInt8(ascii: "\n") {
        var entry = pollfd(fd: file.raw, events: Int16(POLLIN), revents: 0)
        if poll(&entry, 1, 30_000) <= 0 { throw TestFailure("nothing is written to \(fifo)") }
        var byte: UInt8 = 0
        try check(read(file.raw, &byte, 1))
        line.append(byte)
    }
    return String(decoding: line, as: UTF8.self)
}

/// Lets a process go on that reads from a fifo.
func tell(_ fifo: Path) throws {
    var file: File?
    try wait("a reader of \(fifo)") {
        do throws(Errno) {
            file = try fifo.open(O_WRONLY | O_NONBLOCK)
        } catch .noSuchAddressOrDevice {
            return false
        }
        return true
    }
    try file?.writeAll(Array("go\n".utf8))
}

@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct RunTests {
    @Test("the command sees the snapshot at the mount point, others the live view, and it ends with the command")
    func inPlace() throws {
        try MountedSource.with { mount in
            try (mount.mountpoint / "file").create(Array("old".utf8))
            try (mount.mountpoint / "d").mkdir()
            let (said, goOn) = try mount.makeFifos()
            let script = """
                echo $FUSESNAP_SNAPSHOT > \(said); read line < \(goOn)
                cat \(mount.mountpoint)/file; ls -a \(mount.mountpoint); echo changed > \(mount.mountpoint)/file
                """
            let child = try Child(mount.runWords([], ["sh", "-c", script]))
            #expect(try heard(said) == mount.mountpoint.string + "\n")
            #expect(try mount.status().state == "active")
            try (mount.mountpoint / "file").write(Array("new".utf8), at: 0)
            try (mount.mountpoint / "d").rmdir()
            try tell(goOn)
            let finished = try child.wait(seconds: 30)
            #expect(finished.output == "old.\n..\nd\nfile\n", "\(finished)")
            #expect(finished.errors.contains("Read-only"), "\(finished)")
            #expect(finished.code != 0)
            #expect(try mount.status().state == "idle")
            #expect(try (mount.mountpoint / "file").contents() == Array("new".utf8))
        }
    }

    @Test("a working directory in the mount leads to the snapshot's") func workingDirectory() throws {
        try MountedSource.with(options: ["--force"], overItself: true, prepare: { try ($0 / "d").mkdir() }) {
            mount in
            try (mount.mountpoint / "d/file").create(Array("old".utf8))
            let script = "echo new > \(mount.top)/elsewhere; pwd; cat file; echo x > file"
            let finished = try mount.runCommand([], ["sh", "-c", script], in: mount.mountpoint / "d")
            #expect(finished.output == "\(mount.mountpoint)/d\nold", "\(finished)")
            #expect(finished.errors.contains("Read-only"), "\(finished)")
        }
    }

    @Test("--in-place=never: FUSESNAP_SNAPSHOT names the directory, the mount point is live") func notInPlace()
        throws
    {
        try MountedSource.with { mount in
            try (mount.mountpoint / "file").create(Array("old".utf8))
            let script = """
                printf new > $FUSESNAP_MOUNTPOINT/file; cat $FUSESNAP_SNAPSHOT/file $FUSESNAP_MOUNTPOINT/file
                echo; echo $FUSESNAP_STARTED $FUSESNAP_SNAPSHOT
                """
            let finished = try mount.runCommand(["--in-place=never"], ["sh", "-c", script])
            let words = finished.output.split { $0 == "\n" || $0 == " " }
            #expect(finished.code == 0 && words.first == "oldnew", "\(finished)")
            #expect(words.last.map(String.init) == mount.snapshot.string)
            #expect(words.count == 3 && words[1].hasSuffix("Z") && words[1].contains("T"))
        }
    }

    @Test(
        "the exit code is the command's, 128 and the signal's number, or 126 and 127 as env has them",
        arguments: [
            (["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -SEGV $$"], 139),
            (["sh", "-c", "kill -KILL $$"], 137), (["no-such-command"], 127), (["/no/such/command"], 127),
            (["/etc/passwd"], 126), (["/"], 126),
        ])
    func exitCodes(_ command: [String], _ code: Int) throws {
        try MountedSource.with { mount in
            let finished = try mount.runCommand([], command)
            #expect(finished.code == Int32(code), "\(finished)")
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("arguments go to the command byte for byte, after `--` only") func arguments() throws {
        try MountedSource.with { mount in
            let finished = try mount.runCommand([], ["printf", "%s|", "-x", "--", "-oa", "", "a b"])
            #expect(finished.code == 0 && finished.output == "-x|--|-oa||a b|", "\(finished)")
        }
    }

    @Test(
        "signals to fusesnap are passed on, and the snapshot ends", arguments: [SIGTERM, SIGINT, SIGHUP, SIGQUIT])
    func signals(_ number: Int32) throws {
        try MountedSource.with { mount in
            let (said, goOn) = try mount.makeFifos()
            let names = [SIGTERM: "TERM", SIGINT: "INT", SIGHUP: "HUP", SIGQUIT: "QUIT"]
            let name = try #require(names[number])
            let script = "trap 'echo got it; exit 3' \(name); echo > \(said); read line < \(goOn)"
            let child = try Child(mount.runWords([], ["sh", "-c", script]))
            _ = try heard(said)
            child.signal(number)
            let finished = try child.wait(seconds: 30)
            #expect(finished.code == 3 && finished.output == "got it\n", "\(finished)")
            #expect(try mount.status().state == "idle")
        }
    }

    @Test(
        "Ctrl-C reaches the command once: from the terminal, not from fusesnap too",
        .enabled(if: Machine.has("python3")))
    func interrupt() throws {
        try MountedSource.with { mount in
            let (said, goOn) = try mount.makeFifos()
            let script = """
                import os, pty, sys
                pid, terminal = pty.fork()
                if pid == 0: os.execv(sys.argv[1], sys.argv[1:])
                open("\(said)").read()
                os.write(terminal, b"\\x03")
                open("\(said)").read()
                open("\(goOn)", "w").write("go\\n")
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                """
            // In a language where a signal interrupts nothing half-way.
            let command = """
                import signal, sys
                count = 0
                def note(*_):
                    global count
                    count += 1
                    if count == 1: open("\(said)", "w").write("x")
                signal.signal(signal.SIGINT, note)
                open("\(said)", "w").write("x")
                open("\(goOn)").read()
                sys.exit(10 + count)
                """
            let words = ["python3", "-c", script] + mount.runWords([], ["python3", "-c", command])
            let finished = try run(words, seconds: 30)
            #expect(finished.output == "11\n", "\(finished)")
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("the terminal closes: the command gets SIGHUP, the snapshot ends", .enabled(if: Machine.has("python3")))
    func terminal() throws {
        try MountedSource.with { mount in
            let (said, goOn) = try mount.makeFifos()
            let script = """
                import os, pty, sys
                pid, terminal = pty.fork()
                if pid == 0: os.execv(sys.argv[1], sys.argv[1:])
                open("\(said)").read()
                os.close(terminal)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                """
            let command = ["sh", "-c", "echo > \(said); read line < \(goOn)"]
            let finished = try run(["python3", "-c", script] + mount.runWords([], command), seconds: 30)
            #expect(finished.output == "\(128 + SIGHUP)\n", "\(finished)")
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("fusesnap is killed: the snapshot ends, and whoever still reads it gets ESTALE, also of the next one")
    func killed() throws {
        try MountedSource.with { mount in
            try (mount.mountpoint / "file").create(Array("old".utf8))
            let (said, goOn) = try mount.makeFifos()
            let look =
                "read line < \(goOn); cat \(mount.mountpoint)/file > \(mount.top)/result 2>&1; echo > \(said)"
            let child = try Child(mount.runWords([], ["sh", "-c", "echo $$ > \(said); \(look); \(look)"]))
            let orphan = try #require(Int32(try heard(said).dropLast()))
            defer { kill(orphan, SIGKILL) }
            child.signal(SIGKILL)
            #expect(try child.wait(seconds: 30).code == 128 + SIGKILL)
            try wait("the end of the snapshot") { try mount.status().state == "idle" }
            let stopped = try mount.control("stop")
            #expect(stopped.code == 1 && stopped.errors.contains("has gone without stopping it"), "\(stopped)")
            for isNext in [false, true] {
                if isNext { try mount.start() }
                try tell(goOn)
                _ = try heard(said)
                let result = String(decoding: try (mount.top / "result").contents(), as: UTF8.self)
                #expect(result.contains("Stale"), "\(isNext): \(result)")
            }
            try mount.stop()
            // Until then its namespace keeps the mount.
            try wait("the orphan's end") { !isRunning(orphan) }
        }
    }

    @Test("somebody else ends the snapshot, or it becomes inexact: 125 although the command succeeded")
    func notToItsEnd() throws {
        try MountedSource.with { mount in
            let stop = [Machine.binary, "ctl", "stop", mount.mountpoint.string]
            let ended = try mount.runCommand([], stop)
            #expect(ended.code == 125 && ended.errors.contains("did not last"), "\(ended)")
            // It must not end another's.
            let start =
                "\(Machine.binary) ctl stop \(mount.mountpoint) && \(Machine.binary) ctl start \(mount.mountpoint)"
            let another = try mount.runCommand([], ["sh", "-c", start])
            #expect(another.code == 125, "\(another)")
            #expect(try mount.status().state == "active")
            let refused = try mount.runCommand([], ["true"])
            #expect(refused.code == 125 && refused.errors.contains("active already"), "\(refused)")
            try mount.stop()
        }
    }

    @Test("a snapshot that overflows: 125 although the command succeeded, the command's own code otherwise")
    func overflow() throws {
        try MountedSource.with(options: ["--max-delta", "64K"]) { mount in
            try (mount.mountpoint / "file").create(bytes(1 << 20))
            let (said, goOn) = try mount.makeFifos()
            for (code, expected) in [(0, 125), (5, 5)] as [(Int, Int32)] {
                let script = "echo > \(said); read line < \(goOn); exit \(code)"
                let child = try Child(mount.runWords([], ["sh", "-c", script]))
                _ = try heard(said)
                try (mount.mountpoint / "file").write(bytes(1 << 20, seed: UInt64(code + 2)), at: 0)
                try tell(goOn)
                let finished = try child.wait(seconds: 30)
                #expect(finished.code == expected && finished.errors.contains("not exact"), "\(finished)")
            }
        }
    }

    @Test("a daemon that dies meanwhile: 125") func daemonDies() throws {
        try MountedSource.with { mount in
            let finished = try mount.runCommand([], ["sh", "-c", "kill -9 \(mount.daemon)"])
            #expect(finished.code == 125 && finished.errors.contains("did not last"), "\(finished)")
        }
    }

    @Test("a working directory that the snapshot does not have, or no mount: 125, and nothing is run")
    func refusals() throws {
        try MountedSource.with { mount in
            // After the cut, before the command.
            let hook = mount.top / "hook"
            let script = "#!/bin/sh\n[ $1 = freeze ] || mv \(mount.mountpoint)/d \(mount.mountpoint)/e\n"
            try hook.create(Array(script.utf8), mode: 0o755)
            try (mount.mountpoint / "d").mkdir()
            let options = ["--hook", hook.string]
            let finished = try mount.runCommand(options, ["echo", "ran"], in: mount.mountpoint / "d")
            #expect(finished.code == 125 && finished.output.isEmpty, "\(finished)")
            #expect(
                finished.errors.contains("\(mount.mountpoint)/e, which the snapshot does not show"), "\(finished)")
            let none = try run([Machine.binary, "run", (mount.top / "none").string, "--", "echo", "ran"])
            #expect(none.code == 125 && none.output.isEmpty && none.errors.contains("none"), "\(none)")
        }
    }

    @Test(
        "no command, or an option that makes no sense: 64, and no snapshot",
        arguments: [
            ["mnt"], ["mnt", "--"], ["mnt", "true"], ["--in-place=sometimes", "mnt", "--", "true"],
            ["--hook-timeout=0", "mnt", "--", "true"], ["--hook-failure=maybe", "mnt", "--", "true"],
            ["--report=", "mnt", "--", "true"], ["--stall-max=0", "mnt", "--", "true"],
        ])
    func usage(_ words: [String]) throws {
        try MountedSource.with { mount in
            let finished = try run([Machine.binary, "run"] + words, in: mount.top)
            #expect(finished.code == 64 && !finished.errors.isEmpty, "\(finished)")
            #expect(try mount.status().state == "idle")
        }
    }
}
