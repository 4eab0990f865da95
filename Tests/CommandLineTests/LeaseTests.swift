import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Snapshots that end by themselves.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct LeaseTests {
    private func expectEnded(
        _ mount: MountedSource, saying part: String, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        try wait("the end of the snapshot") { try mount.status().state == "idle" }
        let finished = try mount.control("stop")
        #expect(
            finished.code == 1 && finished.errors.contains(part), "\(finished)", sourceLocation: sourceLocation)
        #expect(!mount.snapshot.exists, sourceLocation: sourceLocation)
    }

    @Test("--lease: the snapshot ends with the process, also where that is killed", arguments: [SIGTERM, SIGKILL])
    func process(_ signal: Int32) throws {
        try MountedSource.with { mount in
            let holder = try Child(["sleep", "1000"])
            let started = try mount.control("start", "--lease", "\(holder.pid)")
            #expect(started.code == 0, "\(started)")
            let status = try mount.status()
            #expect(status.state == "active" && status.number("process") == holder.pid, "\(status.json)")
            #expect(status.text("command") == "sleep" && !status.has("connection") && !status.has("expires"))
            let text = try mount.control("status").output
            #expect(text.contains("ends with process \(holder.pid) (sleep)\n"), "\(text)")
            holder.signal(signal)
            // It is not reaped yet: a zombie holds nothing.
            try expectEnded(mount, saying: "process \(holder.pid) (sleep), which held it, has ended")
            _ = try holder.wait()
        }
    }

    @Test("--ttl: the snapshot ends when its time is over, and not before") func time() throws {
        try MountedSource.with { mount in
            let began = ContinuousClock.now
            let started = try mount.control("start", "--ttl", "2s")
            #expect(started.code == 0, "\(started)")
            try expectEnded(mount, saying: "its time is over (2 s)")
            #expect(ContinuousClock.now - began >= .seconds(2))
        }
    }

    @Test("the status tells until when a snapshot is kept, and which `run` holds it; nothing once that has ended")
    func status() throws {
        try MountedSource.with { mount in
            #expect(try mount.control("start", "--ttl", "2h").code == 0)
            let timed = try mount.status()
            let until = try succeed(["date", "-u", "-d", timed.text("expires"), "+%s"])
            let since = try succeed(["date", "-u", "-d", timed.text("started"), "+%s"])
            let seconds = try #require(Int(until.dropLast())) - #require(Int(since.dropLast()))
            #expect((7199...7201).contains(seconds) && !timed.has("process"), "\(timed.json)")
            let text = try mount.control("status").output
            #expect(text.contains("ends at \(timed.text("expires")) (in 1 h 59 min)"), "\(text)")
            try mount.stop()
            #expect(try !mount.status().has("lease"))
            let (said, goOn) = try mount.makeFifos()
            let child = try Child(mount.runWords([], ["sh", "-c", "echo > \(said); read line < \(goOn)"]))
            _ = try heard(said)
            let held = try mount.status()
            #expect(held.number("process") == child.pid && held.json.contains("\"connection\" : true"), "\(held)")
            #expect(try mount.control("status").output.contains("ends with process \(child.pid) (fusesnap)\n"))
            // Whoever wants another is told that a backup is reading this one.
            for options in [[], ["--hook", "/bin/true"]] {
                let other = try mount.runCommand(options, ["true"])
                #expect(other.code == 125, "\(other)")
                #expect(other.errors.contains("ends with process \(child.pid) (fusesnap): wait"), "\(other)")
            }
            try tell(goOn)
            #expect(try child.wait(seconds: 30).code == 0)
            try mount.start()
            #expect(try !mount.status().has("lease"), "of the snapshot before")
            try mount.stop()
        }
    }

    @Test("the end of a lease says so in the log") func log() throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mnt"] { try (top / name).mkdir() }
            let point = (top / "mnt").string
            let daemon = try Child([Machine.binary, "mount", "--foreground", (top / "source").string, point])
            try wait("the mount") { try isMounted(top / "mnt") }
            let holder = try Child(["sleep", "1000"])
            try wait("the daemon") {
                try run([Machine.binary, "ctl", "start", "--lease", "\(holder.pid)", point]).code == 0
            }
            holder.signal(SIGKILL)
            _ = try holder.wait()
            try wait("the end of the snapshot") {
                try succeed([Machine.binary, "ctl", "status", "--json", point]).contains("\"idle\"")
            }
            daemon.signal(SIGTERM)
            let finished = try daemon.wait(seconds: 20)
            #expect(
                finished.code == 0 && finished.errors.contains("warning: \(point): the snapshot of "),
                "\(finished)")
            #expect(finished.errors.contains("has been ended: process \(holder.pid)"), "\(finished)")
        }
    }

    @Test("a snapshot that was stopped in time takes its lease along: the next one is not ended by it")
    func stoppedInTime() throws {
        try MountedSource.with { mount in
            let holder = try Child(["sleep", "1000"])
            _ = try mount.control("start", "--lease", "\(holder.pid)", "--ttl", "1s")
            try mount.stop()
            let began = ContinuousClock.now
            try mount.start()
            holder.signal(SIGKILL)
            _ = try holder.wait()
            try wait("the time of the first lease") { ContinuousClock.now - began > .milliseconds(1200) }
            #expect(try mount.status().state == "active")
            try mount.stop()
        }
    }

    /// The answer to a request to this mount's daemon.
    private func ask(_ mount: MountedSource, _ request: String) throws -> String {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in mount.mountpoint.bytes { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        let digits = String(hash, radix: 16)
        let name = String(repeating: "0", count: 16 - digits.count) + digits + ".sock"
        let directory = Machine.isRoot ? "/run" : environmentValue("XDG_RUNTIME_DIR") ?? "/run/user/\(getuid())"
        var answer = [UInt8](repeating: 0, count: 65_536)
        let line = Array((request + "\n").utf8)
        let count = try check(ts_talk("\(directory)/fusesnap/\(name)", line, line.count, &answer, answer.count))
        return String(decoding: answer[..<Int(count)], as: UTF8.self)
    }

    @Test("a process that got the number of the one that was meant does not hold a snapshot")
    func numberUsedAgain() throws {
        try MountedSource.with { mount in
            let holder = try Child(["sleep", "1000"])
            func request(_ start: String) -> String {
                "{\"protocol\":1,\"command\":\"start\",\"options\":"
                    + "{\"lease_process\":\(holder.pid),\"lease_process_start\":\(start)}}"
            }
            let other = try ask(mount, request("1"))
            #expect(other.contains("\"error\"") && other.contains("another"), "\(other)")
            #expect(try mount.status().state == "idle")
            let stat = String(decoding: try Path("/proc/\(holder.pid)/stat").contents(), as: UTF8.self)
            let own = try ask(mount, request(String(stat.split(separator: " ")[21])))
            #expect(own.contains("\"result\""), "\(own)")
            holder.signal(SIGKILL)
            _ = try holder.wait()
            try expectEnded(mount, saying: "process \(holder.pid) (sleep), which held it, has ended")
        }
    }

    @Test("a lease on a process that is dead, or no process: a clear message, and no snapshot, and no hook is run")
    func deadProcess() throws {
        try MountedSource.with { mount in
            let dead = try Child(["true"])
            _ = try dead.wait()
            let zombie = try Child(["true"])
            try wait("a zombie") {
                String(decoding: try Path("/proc/\(zombie.pid)/stat").contents(), as: UTF8.self).contains(") Z")
            }
            let hook = mount.top / "hook"
            try hook.create(Array("#!/bin/sh\ntouch \(mount.top)/ran\n".utf8), mode: 0o755)
            for number in [dead.pid, zombie.pid] {
                let finished = try mount.control("start", "--hook", hook.string, "--lease", "\(number)")
                #expect(finished.code == 1, "\(finished)")
                #expect(finished.errors.contains("process \(number)") && finished.errors.contains("ended"))
            }
            _ = try zombie.wait()
            for words in [
                ["--lease", "0"], ["--lease=-1"], ["--lease", "x"], ["--ttl", "0"], ["--ttl", "soon"],
            ] {
                let finished = try run([Machine.binary, "ctl", "start"] + words + [mount.mountpoint.string])
                #expect(finished.code == 64, "\(finished)")
            }
            #expect(!(mount.top / "ran").exists)
            #expect(try mount.status().state == "idle")
        }
    }
}
