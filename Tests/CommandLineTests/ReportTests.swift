import Glibc
import SystemPackage
import TestSupport
import Testing

/// What `ctl stop --json` and `run --report` say of a snapshot.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct ReportTests {
    private func report(_ mount: MountedSource) throws -> MountStatus {
        MountStatus(json: String(decoding: try (mount.top / "report").contents(), as: UTF8.self))
    }

    @Test("ctl stop --json counts what changed, and tells when the cut was, to the nanosecond")
    func stop() throws {
        try MountedSource.with { mount in
            for name: Path in ["changed", "removed", "touched", "left"] {
                try (mount.mountpoint / name).create(bytes(20_000))
            }
            let before = Int(time(nil))
            try mount.start()
            try (mount.mountpoint / "changed").write(bytes(100), at: 0)
            try (mount.mountpoint / "removed").unlink()
            try (mount.mountpoint / "touched").chmod(0o600)
            try (mount.mountpoint / "made").create(bytes(50_000))
            try (mount.mountpoint / "directory").mkdir()
            _ = try (mount.snapshot / "left").contents()
            let finished = try mount.control("stop", "--json")
            let json = MountStatus(json: finished.output)
            #expect(finished.code == 0 && json.number("schema") == 1, "\(finished)")
            #expect(json.text("level") == "crash" && json.text("mode") == "preserve")
            #expect(
                json.text("mountpoint") == mount.mountpoint.string && json.text("source") == mount.source.string)
            #expect(json.number("changed_files") == 3 && json.number("created_files") == 2, "\(finished)")
            if !Machine.preservesWholeFiles {
                #expect(json.number("changed_bytes") == 4096 + 20_000, "\(finished)")
                #expect(json.number("delta_peak_bytes") >= 20_000)
            }
            #expect(json.number("snapshot_bytes_read") == 20_000)
            #expect(json.number("attempts") == 1 && json.number("gate_microseconds") >= 0)
            #expect(json.number("stall_microseconds") >= json.number("gate_microseconds"))
            let cut = json.text("cut")
            let dated = try succeed(["date", "-u", "-d", cut, "+%s %N"]).split { $0 == " " || $0 == "\n" }
            #expect(cut.utf8.count == "2026-11-23T03:00:00.123456789Z".utf8.count && cut.hasSuffix("Z"))
            #expect(try #require(Int(dated[0])) - before <= 5 && Int(dated[0]) ?? 0 >= before)
            #expect(json.text("ended") > cut)
        }
    }

    @Test("an overflowed snapshot tells its peak, although the space was given back") func peak() throws {
        try MountedSource.with(options: ["--max-delta", "64K"]) { mount in
            try (mount.mountpoint / "file").create(bytes(1 << 20))
            try mount.start()
            for block in 0..<64 { try (mount.mountpoint / "file").write(bytes(100, seed: 7), at: block * 4096) }
            let finished = try mount.control("stop", "--json")
            let json = MountStatus(json: finished.output)
            #expect(finished.code == 3 && json.text("reason") != "", "\(finished)")
            if !Machine.preservesWholeFiles { #expect(json.number("delta_peak_bytes") >= 65_536, "\(finished)") }
        }
    }

    @Test("run --report: mode 0600, the snapshot's fields and the command's") func run() throws {
        try MountedSource.with { mount in
            let options = ["--report", (mount.top / "report").string]
            try (mount.top / "report").create(Array("of yesterday".utf8), mode: 0o644)
            let finished = try mount.runCommand(options, ["sh", "-c", "exit 4"])
            #expect(finished.code == 4, "\(finished)")
            let json = try report(mount)
            #expect(json.number("schema") == 1 && json.text("level") == "crash", "\(json.json)")
            #expect(json.number("command_exit_code") == 4 && json.number("exit_code") == 4)
            #expect(json.json.contains("\"exact\" : true") && json.json.contains("\"in_place\" : true"))
            #expect(json.json.contains("\"exit 4\""))
            #expect(json.text("cut") < json.text("command_started"))
            #expect(json.text("command_started") < json.text("command_ended"))
            #expect(json.text("command_ended") < json.text("ended"))
            #expect(try (mount.top / "report").stat().mode & 0o7777 == 0o600)
            #expect(try mount.top.entries().filter { $0.bytes.starts(with: Array("report".utf8)) } == ["report"])
            let killed = try mount.runCommand(options, ["sh", "-c", "kill -TERM $$"])
            #expect(killed.code == 128 + SIGTERM)
            #expect(try report(mount).number("command_signal") == Int(SIGTERM))
            #expect(try !report(mount).has("command_exit_code"))
        }
    }

    @Test("hooks that succeed make the level `application`; the report has each call") func hooks() throws {
        try MountedSource.with { mount in
            let hook = mount.top / "hook"
            try hook.create(Array("#!/bin/sh\nexit 0\n".utf8), mode: 0o755)
            let options = ["--report", (mount.top / "report").string, "--hook", hook.string]
            #expect(try mount.runCommand(options, ["true"]).code == 0)
            let json = try report(mount).json
            #expect(json.contains("\"level\" : \"application\""), "\(json)")
            let actions = json.split(separator: "\n").filter { $0.contains("\"action\"") }
            #expect(actions.count == 2 && actions[0].contains("freeze") && actions[1].contains("thaw"), "\(json)")
            #expect(json.contains("\"duration_microseconds\"") && json.contains("\"outcome\" : \"succeeded\""))
        }
    }

    @Test("where no snapshot was had, or not to its end, the report says so: yesterday's does not stay")
    func failures() throws {
        try MountedSource.with { mount in
            let options = ["--report", (mount.top / "report").string]
            try (mount.top / "report").create(Array("{\"exact\" : true}".utf8))
            try mount.start()
            #expect(try mount.runCommand(options, ["true"]).code == 125)
            var json = try report(mount)
            #expect(json.json.contains("\"exact\" : false") && json.number("exit_code") == 125, "\(json.json)")
            #expect(json.json.contains("active already") && !json.has("command_started"))
            try mount.stop()
            let stop = [Machine.binary, "ctl", "stop", mount.mountpoint.string]
            #expect(try mount.runCommand(options, stop).code == 125)
            json = try report(mount)
            #expect(
                json.json.contains("\"exact\" : false") && json.number("command_exit_code") == 0, "\(json.json)")
            #expect(json.has("cut"))
            // Nothing is mounted there, as after a boot at which the mount failed.
            let words = ["run"] + options + [mount.top.string, "--", "true"]
            #expect(try TestSupport.run([Machine.binary] + words).code == 125)
            json = try report(mount)
            #expect(json.json.contains("not a fusesnap mount") && !json.has("cut"), "\(json.json)")
            #expect(json.text("mountpoint") == mount.top.string)
        }
    }

    @Test("a report that cannot be written: told before anything starts; where it shows at the end only, 125")
    func cannotWrite() throws {
        try MountedSource.with { mount in
            for path in [mount.top, mount.top / "none/report", Path("/proc/report")] {
                let finished = try mount.runCommand(["--report", path.string], ["touch", "\(mount.top)/ran"])
                #expect(finished.code == 125 && finished.errors.contains(path.string), "\(finished)")
            }
            #expect(!(mount.top / "ran").exists)
            try (mount.top / "there").mkdir()
            let options = ["--report", (mount.top / "there/report").string]
            for (code, expected) in [(0, 125), (6, 6)] as [(Int, Int32)] {
                let script = "rmdir \(mount.top)/there; exit \(code)"
                let finished = try mount.runCommand(options, ["sh", "-c", script])
                #expect(finished.code == expected && finished.errors.contains("there/report"), "\(finished)")
                #expect(try mount.status().state == "idle")
                try (mount.top / "there").mkdir()
            }
        }
    }
}
