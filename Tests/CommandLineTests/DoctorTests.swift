import Glibc
import SystemPackage
import TestSupport
import Testing

/// `doctor` on directories with one thing wrong each. What it says of the machine depends on that.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct DoctorTests {
    private func check(
        _ directory: Path, code: Int32, _ verdict: String, _ part: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let finished = try run([Machine.binary, "doctor", directory.string])
        #expect(finished.code == code, "\(finished)", sourceLocation: sourceLocation)
        let line = finished.output.split(separator: "\n").first { $0.contains(part) } ?? ""
        #expect(line.hasPrefix(verdict + " "), "\(finished)", sourceLocation: sourceLocation)
    }

    @Test("a machine that can mount is well, as is a plain directory, in which nothing is changed")
    func healthy() throws {
        let machine = try run([Machine.binary, "doctor"])
        #expect(machine.code == 0, "\(machine)")
        #expect(machine.output.contains("/dev/fuse can be opened"))
        try TemporaryDirectory.with { top in
            let before = try top.lstat()
            for part in ["is a directory", "free"] { try check(top, code: 0, "ok      ", part) }
            let json = try succeed([Machine.binary, "doctor", "--json", top.string])
            #expect(json.contains("\"healthy\" : true") && json.contains("\"schema\" : 1"), "\(json)")
            #expect(json.contains("\"check\" : \"file_handles\""), "\(json)")
            #expect(try top.entries() == [])
            #expect(try top.lstat().modified == before.modified)
        }
    }

    @Test("what stands in the way of a mount is a problem")
    func problems() throws {
        try TemporaryDirectory.with { top in
            try check(top / "nosuch", code: 1, "PROBLEM", "nosuch cannot be looked up")
            try (top / "file").create()
            try check(top / "file", code: 1, "PROBLEM", "cannot be opened as a directory")
            for name: Path in ["a", "b"] { try (top / name).mkdir() }
            try (top / "a/.snapshot").mkdir()
            try check(top / "a", code: 1, "PROBLEM", "an entry named .snapshot")
            try (top / "b/.fusesnap").mkdir()
            try check(top / "b", code: 1, "PROBLEM", "is there and no store")
        }
        #expect(try run([Machine.binary, "doctor", ""]).code == 64)
    }

    @Test(
        "a mount is well while its daemon answers; its source is in use; a dead one is a problem, as is a directory in it"
    )
    func mounts() throws {
        try MountedSource.with { mount in
            try (mount.mountpoint / "d").mkdir()
            try check(mount.mountpoint, code: 0, "ok      ", "its daemon answers: it is idle")
            try check(mount.mountpoint / "d", code: 1, "PROBLEM", "lies in the fusesnap mount")
            try check(mount.source, code: 1, "PROBLEM", "its store is in use")
            try mount.start()
            kill(mount.daemon, SIGKILL)
            try mount.waitForEnd()
            try check(mount.mountpoint, code: 1, "PROBLEM", "is a fusesnap mount, and")
            try succeed([Machine.binary, "unmount", mount.mountpoint.string])
            try check(mount.source, code: 0, "warning", "left its store with a snapshot")
        }
    }

    @Test(
        "who uses a directory is named, and file systems below it",
        .enabled(if: Machine.isRoot, "\(Machine.needsRoot)"))
    func use() throws {
        try TemporaryDirectory.with { top in
            try (top / "file").create()
            try (top / "fifo").mkfifo()
            let child = try Child(["sh", "-c", "exec 9<>file; exec cat fifo"], in: top)
            // Opening the pipe for writing waits until the other has all it opens.
            let end = try (top / "fifo").open(O_WRONLY)
            try check(top, code: 0, "warning", "process \(child.pid) ")
            _ = consume end
            #expect(try child.wait().code == 0)
            try (top / "below").mkdir()
            try succeed(["mount", "-t", "tmpfs", "tmpfs", (top / "below").string])
            try check(top, code: 0, "warning", "are not in snapshots: \(top)/below")
            try check(top / "below", code: 0, "ok      ", "of type tmpfs")
        }
    }
}
