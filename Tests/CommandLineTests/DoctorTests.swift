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

    /// A machine with something wrong: what makes it so, in a mount namespace of its own; how doctor is called; what it
    /// says, with the line that tells how to mend it.
    struct Fault: Sendable, CustomTestStringConvertible {
        let testDescription: String
        var setUp = ""
        var call: [String] = []
        var path: String?
        let code: Int32
        let verdict: String
        let part: String
        var advice: String?
    }

    private static let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--bounding-set=-all"]

    private static let faults = [
        Fault(
            testDescription: "no device", setUp: "mkdir dev; mount --bind dev /dev", code: 1, verdict: "PROBLEM",
            part: "/dev/fuse cannot be opened", advice: "modprobe fuse"),
        Fault(
            testDescription: "no privilege", call: ["setpriv", "--bounding-set=-sys_admin"], code: 1,
            verdict: "PROBLEM", part: "lacks CAP_SYS_ADMIN", advice: "--cap-add SYS_ADMIN"),
        Fault(
            testDescription: "no fusermount3, for a user", setUp: "mount --bind /dev/null $fusermount", call: user,
            code: 1, verdict: "PROBLEM", part: "fusermount3 is missing", advice: "apt install fuse3"),
        Fault(
            testDescription: "no fusermount3, for root", setUp: "mount --bind /dev/null $fusermount", code: 0,
            verdict: "note", part: "fusermount3 is missing", advice: "apt install fuse3"),
        Fault(
            testDescription: "fusermount3 without its bit",
            setUp: "cp $fusermount plain; chmod 755 plain; mount --bind plain $fusermount", call: user, code: 1,
            verdict: "PROBLEM", part: "is not set-user-id root", advice: "chmod u+s"),
        Fault(
            testDescription: "no user_allow_other", setUp: "echo '# user_allow_other' >etc/fuse.conf", call: user,
            code: 0, verdict: "note", part: "may not mount for others", advice: "user_allow_other"),
        Fault(
            testDescription: "user_allow_other", setUp: "echo user_allow_other >etc/fuse.conf", call: user,
            code: 0,
            verdict: "ok", part: "may mount for others"),
        Fault(
            testDescription: "AppArmor's rule, as Ubuntu has it", setUp: appArmor, call: user, path: "/opt",
            code: 1,
            verdict: "PROBLEM", part: "does not let ordinary users mount at /opt",
            advice: "/etc/apparmor.d/local/fusermount3"),
        Fault(
            testDescription: "AppArmor's rule, for root", setUp: appArmor, path: "/opt", code: 0, verdict: "note",
            part: "AppArmor lets ordinary users mount only at", advice: "apparmor_parser -r"),
        Fault(
            testDescription: "few descriptors", setUp: "ulimit -n 1000", call: user, code: 0, verdict: "warning",
            part: "only 1000 files open", advice: "LimitNOFILE="),
        Fault(
            testDescription: "little space", setUp: small, path: "small", code: 0, verdict: "warning",
            part: "KiB are free", advice: "--store DIR"),
        Fault(
            testDescription: "no clones", setUp: small, path: "small", code: 0, verdict: "note",
            part: "cannot be cloned on tmpfs"),
        Fault(
            testDescription: "read-only", setUp: small + "; mount -o remount,ro small", path: "small", code: 0,
            verdict: "warning", part: "read-only", advice: "--store DIR"),
        Fault(
            testDescription: "no watch", call: ["setpriv", "--bounding-set=-sys_admin"], path: ".", code: 1,
            verdict: "note", part: "changes past the mount are not seen", advice: "but through the mount"),
    ]

    private static let small = "mkdir small; mount -t tmpfs -o size=900k tmpfs small"
    private static let appArmor = """
        mount -t tmpfs tmpfs /sys/module; mkdir -p /sys/module/apparmor/parameters etc/apparmor.d
        echo Y >/sys/module/apparmor/parameters/enabled
        echo '  mount fstype=@{fuse_types} options=(nosuid,nodev,rw) -> @{HOME}/**/,' >etc/apparmor.d/fusermount3
        """

    @Test(
        "what a machine lacks is told, with how to mend it",
        .enabled(
            if: Machine.isRoot && Machine.has("unshare") && Machine.has("setpriv") && Machine.has("fusermount3"),
            "needs root, unshare, setpriv and fusermount3"), arguments: faults)
    func machine(_ fault: Fault) throws {
        try TemporaryDirectory.with { top in
            try top.chmod(0o755)
            let script = """
                set -e
                cp "$0" fusesnap; chmod 755 fusesnap
                mkdir etc; mount -t tmpfs tmpfs etc; cp -a /etc/. etc; mount --bind etc /etc
                fusermount=$(realpath "$(command -v fusermount3)")
                \(fault.setUp)
                exec "$@"
                """
            let doctor = ["./fusesnap", "doctor"] + (fault.path.map { [$0] } ?? [])
            let words = ["unshare", "--mount", "sh", "-c", script, Machine.binary] + fault.call + doctor
            let finished = try run(words, in: top, environment: ["XDG_RUNTIME_DIR": "/tmp"])
            #expect(finished.code == fault.code, "\(finished)")
            let lines = finished.output.split(separator: "\n")
            let found = try #require(lines.firstIndex { $0.contains(fault.part) }, "\(finished)")
            #expect(lines[found].hasPrefix(fault.verdict + " "), "\(finished)")
            if let advice = fault.advice {
                #expect(
                    lines[found + 1].hasPrefix("         -> ") && lines[found + 1].contains(advice), "\(finished)")
            }
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
