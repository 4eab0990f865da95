import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// `ctl status`, `list` and `metrics`.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct StatusTests {
    @Test("the summary names the state, the snapshot's place and the bound of the store")
    func summary() throws {
        try MountedSource.with(options: ["--max-delta", "1G"]) { mount in
            #expect(try mount.control("status").output.contains("idle: no snapshot is active"))
            try mount.start()
            let text = try mount.control("status").output
            for part in ["active: ", mount.snapshot.string, "0 bytes of 1.0 GiB (0 %)", " s ago)"] {
                #expect(text.contains(part), "\(part) in \(text)")
            }
        }
    }

    /// Follows the output of a command that goes on.
    private func lines(_ path: Path) throws -> [Substring] {
        path.exists ? String(decoding: try path.contents(), as: UTF8.self).split(separator: "\n") : []
    }

    private func watch(_ mount: MountedSource, _ words: String) throws -> Child {
        let script = "exec \"$0\" ctl status --watch --interval 0.1 \(words) \"$1\" >\"$2\""
        return try Child(
            ["sh", "-c", script, Machine.binary, mount.mountpoint.string, (mount.top / "output").string])
    }

    @Test("--watch writes plain lines where there is no terminal, with rates, and ends when the mount goes")
    func watchLines() throws {
        try MountedSource.with { mount in
            try (mount.mountpoint / "file").create(bytes(1 << 20))
            let child = try watch(mount, "")
            defer { child.signal(SIGKILL) }
            let output = mount.top / "output"
            try wait("a line of the idle mount") { try lines(output).contains { $0.hasSuffix("  idle") } }
            try mount.start()
            var at = 0
            try wait("a rate") {
                try (mount.mountpoint / "file").write(bytes(4096, seed: 3), at: at)
                at += 4096
                return try lines(output).contains {
                    $0.contains("  active  delta ") && $0.contains("iB/s)") && !$0.contains("\u{1b}")
                }
            }
            try mount.stop()
            try mount.unmount()
            let finished = try child.wait(seconds: 30)
            #expect(finished.code == 0, "\(finished)")
            #expect(try lines(output).last?.hasSuffix("is unmounted") == true)
        }
    }

    @Test("--watch --json writes a status a line, and Ctrl-C ends it with 0")
    func watchJSON() throws {
        try MountedSource.with { mount in
            let child = try watch(mount, "--json")
            defer { child.signal(SIGKILL) }
            let output = mount.top / "output"
            try wait("three lines") { try lines(output).count >= 3 }
            child.signal(SIGINT)
            let finished = try child.wait(seconds: 30)
            #expect(finished.code == 0 && finished.errors.isEmpty, "\(finished)")
            for line in try lines(output) {
                #expect(line.hasPrefix("{\"changed_areas\":0,") && line.hasSuffix("}"), "\(line)")
            }
        }
    }

    @Test("--watch draws over itself on a terminal", .enabled(if: Machine.has("script"), "needs script(1)"))
    func watchTerminal() throws {
        try MountedSource.with { mount in
            let command = "'\(Machine.binary)' ctl status --watch --interval 0.1 '\(mount.mountpoint)'"
            let output = mount.top / "typescript"
            let child = try Child(["script", "-q", "-f", "-e", "-c", command, output.string])
            defer { child.signal(SIGKILL) }
            try wait("the second drawing") {
                guard output.exists else { return false }
                return String(decoding: try output.contents(), as: UTF8.self).contains("\u{1b}[6A")
            }
            try mount.unmount()
            #expect(try child.wait(seconds: 30).code == 0)
        }
    }

    @Test(
        "--watch fits on any terminal: nothing wraps or scrolls, and what changes is seen",
        .enabled(if: Machine.has("tmux"), "needs tmux"), arguments: [(80, 24), (40, 24), (80, 6)])
    func watchSize(_ columns: Int, _ rows: Int) throws {
        try MountedSource.with { mount in
            try (mount.mountpoint / "file").create(bytes(1 << 20))
            try mount.start()
            let tmux = ["tmux", "-S", (mount.top / "tmux").string]
            let watch = [Machine.binary, "ctl", "status", "--watch", "--interval", "0.1", mount.mountpoint.string]
            try succeed(
                tmux + ["-f", "/dev/null", "new-session", "-d", "-x", "\(columns)", "-y", "\(rows)"] + watch)
            func screen() throws -> [Substring] {
                try succeed(tmux + ["capture-pane", "-p", "-S", "-"]).split(separator: "\n")
            }
            let label = rows < 10 ? "State:" : "Delta:"
            var at = 0
            try wait("the second drawing") {
                try (mount.mountpoint / "file").write(bytes(4096, seed: 3), at: at)
                at += 4096
                let changed = try screen().first { $0.hasPrefix(label) }
                return changed?.contains(rows < 10 ? "active" : "/s)") == true
            }
            let lines = try screen()
            #expect(lines.count < rows && lines.allSatisfy { $0.count <= columns }, "\(lines)")
            // Drawn over itself: no line is there twice.
            #expect(lines.filter { $0.hasPrefix("Mount point:") }.count == 1, "\(lines)")
            // It ends when the mount goes, and tmux with it.
            try mount.unmount()
            try wait("tmux") { try run(tmux + ["has-session"]).code != 0 }
        }
    }

    @Test("--interval without --watch, or out of bounds, is wrong usage", arguments: ["0", "-1", "nan", "1e9"])
    func interval(_ value: String) throws {
        for words in [["--watch", "--interval=\(value)"], ["--interval=1"]] {
            #expect(try run([Machine.binary, "ctl", "status"] + words + ["/"]).code == 64)
        }
    }

    @Test("list shows live mounts with their state, and dead ones as dead")
    func list() throws {
        try MountedSource.with { mount in
            try mount.start()
            try MountedSource.with { other in
                let text = try succeed([Machine.binary, "ctl", "list"])
                let line = text.split(separator: "\n").first {
                    $0.hasSuffix(" \(mount.mountpoint) of \(mount.source)")
                }
                #expect(line?.hasPrefix("active ") == true && line?.contains(" s  ") == true, "\(text)")
                // What is not a path has its place on the shortest line of a terminal.
                let mounts = text.split(separator: "\n").filter { $0.contains(" /") }
                let before = mounts.compactMap { $0.split(separator: "/").first?.count }
                #expect(before.allSatisfy { $0 < 60 }, "\(text)")
                kill(other.daemon, SIGKILL)
                try other.waitForEnd()
                let json = try succeed([Machine.binary, "ctl", "list", "--json"])
                let item = json.split(separator: "{").first { $0.contains("\"\(other.mountpoint)\"") } ?? ""
                #expect(item.contains("\"state\" : \"dead\""), "\(json)")
                #expect(json.contains("\"schema\" : 1"))
                guard Machine.isRoot else {
                    try succeed([Machine.binary, "unmount", other.mountpoint.string])
                    return
                }
                // Its mount gone too, it is a mount no more; its socket, which is left, is told apart.
                try succeed(["umount", "-l", other.mountpoint.string])
                let after = try succeed([Machine.binary, "ctl", "list", "--json"])
                #expect(!after.contains("\"\(other.mountpoint)\""), "\(after)")
                #expect(after.contains("\"stale_sockets\" : [\n"), "\(after)")
            }
        }
    }

    @Test("list finds a mount in another mount name space", .enabled(if: Machine.isRoot, "\(Machine.needsRoot)"))
    func listElsewhere() throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mnt"] { try (top / name).mkdir() }
            let script = "\"$0\" mount source mnt && cat fifo && \"$0\" unmount mnt"
            try (top / "fifo").mkfifo()
            let child = try Child(["unshare", "--mount", "sh", "-c", script, Machine.binary], in: top)
            // Opening the pipe for writing waits until the mount is there.
            let end = try (top / "fifo").open(O_WRONLY)
            let json = try succeed([Machine.binary, "ctl", "list", "--json"])
            let list = try succeed([Machine.binary, "ctl", "list"])
            try end.writeAll([10])
            #expect(list.contains("\(top)/mnt") && list.contains("(elsewhere)"), "\(list)")
            #expect(json.contains("\"visible\" : false"), "\(json)")
            _ = consume end
            #expect(try child.wait(seconds: 30).code == 0)
        }
    }

    @Test("metrics are OpenMetrics text, and a file of them is replaced at one stroke")
    func metrics() throws {
        try MountedSource.with(options: ["--max-delta", "1G", "-o", "fsname=a \"b\""]) { mount in
            try mount.start()
            let file = mount.top / "fusesnap.prom"
            try file.create(bytes(10))
            let old = try file.open(O_RDONLY)
            #expect(try succeed([Machine.binary, "ctl", "metrics", "--output", file.string]).isEmpty)
            #expect(try old.stat().size == 10, "who reads the old file reads on")
            #expect(try file.lstat().mode & 0o777 == 0o644)
            #expect(try mount.top.entries().filter { $0.string.contains(".tmp") }.isEmpty)
            let text = String(decoding: try file.contents(), as: UTF8.self)
            checkFormat(text)
            let label = "mountpoint=\"\(mount.mountpoint)\""
            let lines = text.split(separator: "\n").filter { $0.contains(label) }
            for part in ["up", "snapshot_active", "snapshot_exact"] {
                #expect(lines.contains { $0.hasPrefix("fusesnap_\(part){") && $0.hasSuffix(" 1") }, "\(text)")
            }
            #expect(lines.contains { $0.hasPrefix("fusesnap_delta_limit_bytes{") && $0.hasSuffix(" 1073741824") })
            let failed = try run([Machine.binary, "ctl", "metrics", "--output", "/nosuch/file"])
            #expect(failed.code == 1 && failed.errors.contains("/nosuch/file"), "\(failed)")
            if Machine.has("python3"), try run(["python3", "-c", "import prometheus_client"]).code == 0 {
                let parser =
                    "import sys; from prometheus_client.openmetrics.parser import text_string_to_metric_families as p;"
                    + "list(p(open(sys.argv[1]).read()))"
                try succeed(["python3", "-c", parser, file.string])
            }
        }
    }

    /// The rules of the format that these figures touch.
    private func checkFormat(_ text: String) {
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        #expect(lines.popLast() == "" && lines.popLast() == "# EOF")
        var family: Substring = ""
        var seen: Set<Substring> = []
        for line in lines {
            if line.hasPrefix("# ") {
                let words = line.split(separator: " ", maxSplits: 3)
                #expect(words.count == 4 && ["TYPE", "UNIT", "HELP"].contains(words[1]), "\(line)")
                if words[1] == "TYPE" {
                    family = words[2]
                    #expect(words[3] == "gauge")
                    #expect(seen.insert(family).inserted, "a family's lines stand together")
                }
                #expect(words[2] == family, "\(line)")
                if words[1] == "UNIT" { #expect(family.hasSuffix("_" + words[3]), "\(line)") }
            } else {
                #expect(line.hasPrefix(family + "{"), "\(line)")
                #expect(line.split(separator: " ").last.flatMap { Double($0) } != nil, "\(line)")
            }
        }
    }
}
