import Glibc
import SystemPackage
import TestSupport
import Testing

/// Where what a verb tells goes: standard output that takes nothing or is closed, and files that are none.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct OutputTests {
    /// The program with a redirection of the shell.
    private func run(_ words: [String], _ redirection: String, in directory: Path? = nil) throws -> Finished {
        try TestSupport.run(
            ["sh", "-c", "exec \"$0\" \"$@\" \(redirection)", Machine.binary] + words, in: directory)
    }

    @Test(
        "what cannot be written to standard output is a failure that says so, and no start is left without its report"
    )
    func fullOutput() throws {
        try MountedSource.with { mount in
            let point = mount.mountpoint.string
            for words in [["ctl", "status", point], ["ctl", "list"], ["ctl", "metrics"], ["doctor"]] {
                for json in words.contains("metrics") ? [[]] : [[], ["--json"]] {
                    let finished = try run(words + json, ">/dev/full")
                    #expect(finished.code == 1 && finished.errors.contains("No space left"), "\(finished)")
                }
            }
            for json in [[], ["--json"]] {
                let started = try run(["ctl", "start"] + json + [point], ">/dev/full")
                #expect(started.code == 1 && started.errors.contains("has been ended again"), "\(started)")
                #expect(try mount.status().state == "idle")
                try mount.start()
                let stopped = try run(["ctl", "stop"] + json + [point], ">/dev/full")
                #expect(
                    stopped.code == 1 && stopped.errors.contains("has ended, but its report is lost"), "\(stopped)"
                )
                #expect(try mount.status().state == "idle")
            }
        }
    }

    @Test("that a snapshot was not exact is told although its report cannot be written")
    func fullOutputInexact() throws {
        try MountedSource.with(options: ["--max-delta", "64K"]) { mount in
            try (mount.mountpoint / "file").create(bytes(1 << 20))
            try mount.start()
            try (mount.mountpoint / "file").write(bytes(1 << 20, seed: 2), at: 0)
            let stopped = try run(["ctl", "stop", "--json", mount.mountpoint.string], ">/dev/full")
            #expect(stopped.code == 3 && stopped.errors.contains("not exact"), "\(stopped)")
        }
    }

    @Test("with standard input, output and error closed, no file gets their numbers")
    func closed() throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mnt"] { try (top / name).mkdir() }
            try (top / "source/file").create(bytes(100))
            let closed = "<&- >&- 2>&-"
            #expect(try run(["mount", "source", "mnt"], closed, in: top).code == 0)
            #expect(try (top / "mnt/file").contents() == bytes(100))
            for words in [["start", "mnt"], ["status", "mnt"], ["list"], ["stop", "--json", "mnt"]] {
                #expect(try run(["ctl"] + words, closed, in: top).code == 0, "\(words)")
            }
            // Only its descriptors: a number that the program's own file had would be seen in its stead.
            let script = "ls -l /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 >here 2>&1"
            #expect(try run(["run", "mnt", "--", "sh", "-c", script], closed, in: top).code == 0)
            let links = String(decoding: try (top / "here").contents(), as: UTF8.self).split(separator: "\n")
            #expect(links.count == 3 && links.first?.hasSuffix("/dev/null") == true, "\(links)")
            #expect(try run(["unmount", "mnt"], closed, in: top).code == 0)
            #expect(try (top / "source/file").contents() == bytes(100))
        }
    }

    /// What writes a document to the file that follows.
    private func documents(_ mount: MountedSource) -> [(words: [String], after: [String], part: String)] {
        [
            (["run", "--report"], [mount.mountpoint.string, "--", "true"], "\"exact\" : true"),
            (["ctl", "metrics", "--output"], [], "# EOF"),
        ]
    }

    @Test("a report or figures for a device, a pipe or a link go there: no file takes its place")
    func noFiles() throws {
        try MountedSource.with { mount in
            for (words, after, part) in documents(mount) {
                let (fifo, link, target) = (mount.top / "fifo", mount.top / "link", mount.top / "target")
                try fifo.mkfifo()
                // Nobody reads it: that is told before anything starts.
                let unread = try run(words + [fifo.string] + after, "")
                #expect(unread.code == (after.isEmpty ? 1 : 125), "\(unread)")
                #expect(unread.errors.contains("nobody reads"), "\(unread)")
                let reader = try Child(["cat", fifo.string])
                // Opening it for writing waits until the reader has it.
                let end = try fifo.open(O_WRONLY)
                #expect(try run(words + [fifo.string] + after, "").code == 0)
                _ = consume end
                #expect(try reader.wait(seconds: 30).output.contains(part))
                #expect(try fifo.lstat().kind == .fifo)
                try target.create(Array("old".utf8))
                try link.symlink(to: "target")
                #expect(try run(words + [link.string] + after, "").code == 0)
                #expect(try link.readlink() == "target")
                #expect(String(decoding: try target.contents(), as: UTF8.self).contains(part))
                let output = try run(words + ["/dev/stdout"] + after, "")
                #expect(output.code == 0 && output.output.contains(part), "\(output)")
                // Also where it is a file: what is in it already stays.
                let appended = try run(words + ["/dev/stdout"] + after, ">>target", in: mount.top)
                let text = String(decoding: try target.contents(), as: UTF8.self)
                #expect(appended.code == 0 && text.components(part) == 3, "\(text)")
                for path in [fifo, link, target] { try path.unlink() }
            }
        }
    }

    @Test("root's report to a device leaves the device", .enabled(if: Machine.isRoot, "\(Machine.needsRoot)"))
    func device() throws {
        try MountedSource.with { mount in
            for (words, after, _) in documents(mount) {
                for (name, minor, code) in [("null", 3, 0), ("full", 7, after.isEmpty ? 1 : 125)]
                    as [(Path, UInt64, Int)]
                {
                    let device = mount.top / name
                    try device.mknod(mode: S_IFCHR | 0o666, device: 1 << 8 | minor)
                    let finished = try run(words + [device.string] + after, "")
                    #expect(finished.code == code, "\(finished)")
                    #expect(try device.lstat().kind == .characterDevice)
                    try device.unlink()
                }
            }
        }
    }
}

extension String {
    /// How many parts there are around a text.
    fileprivate func components(_ separator: String) -> Int {
        split(separator: separator, omittingEmptySubsequences: false).count
    }
}
