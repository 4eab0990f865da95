import Glibc
import SystemPackage
import TestSupport
import Testing

/// A user without privileges mounts through fusermount3; the tests are root's, to be able to become one.
@Suite(
    .serialized,
    .enabled(
        if: Machine.isRoot && Machine.usersMayMount && Machine.has("setpriv"),
        "needs root, /dev/fuse with mode 0666, fusermount3 and setpriv"))
struct OrdinaryUserTests {
    private static let user: UInt32 = 1000

    /// A command as a user, with a runtime directory of the user's own.
    private struct Person {
        let user: UInt32
        let runtime: Path
        let binary: Path

        func run(_ words: String...) throws -> Finished { try run(words) }

        func run(_ words: [String]) throws -> Finished {
            let drop = ["setpriv", "--reuid=\(user)", "--regid=\(user)", "--clear-groups"]
            let environment = ["XDG_RUNTIME_DIR": runtime.string, "HOME": runtime.string]
            return try TestSupport.run(drop + [binary.string] + words, in: "/", environment: environment)
        }

        func succeed(_ words: String...) throws {
            let finished = try run(words)
            if finished.code != 0 { throw TestFailure(finished.description) }
        }
    }

    /// Calls `body` with a directory that has source/ and mnt/ of the user, and the program where the user can run it.
    private func with(_ body: (_ top: Path, _ mine: Person, _ theirs: Person) throws -> Void) throws {
        try TemporaryDirectory.with { top in
            try succeed(["cp", Machine.binary, (top / "fusesnap").string])
            try (top / "fusesnap").chmod(0o755)
            for name: Path in ["source", "mnt", "run", "run2"] {
                try (top / name).mkdir(mode: 0o700)
                try (top / name).chown(user: Self.user, group: Self.user)
            }
            try (top / "run2").chown(user: 1001, group: 1001)
            let mine = Person(user: Self.user, runtime: top / "run", binary: top / "fusesnap")
            let theirs = Person(user: 1001, runtime: top / "run2", binary: top / "fusesnap")
            try body(top, mine, theirs)
        }
    }

    @Test("a user mounts, takes a snapshot, reads it, stops and unmounts")
    func mainJob() throws {
        try with { top, mine, _ in
            let (source, point) = ((top / "source").string, (top / "mnt").string)
            try mine.succeed("mount", source, point)
            #expect(try isMounted(top / "mnt"))
            try asUser(Self.user) {
                try (top / "mnt/file").create(bytes(20_000))
                try (top / "mnt/d").mkdir()
            }
            try mine.succeed("ctl", "start", point)
            try asUser(Self.user) {
                let atCut = try TreeCapture(top / "mnt")
                try (top / "mnt/file").write(bytes(100, seed: 2), at: 5_000)
                try (top / "mnt/d").rename(to: top / "mnt/e")
                try (top / "mnt/new").create()
                #expect(atCut.differences(try TreeCapture(top / "mnt/.snapshot")) == [])
                try (top / "mnt/file").unlink()
                #expect(atCut.differences(try TreeCapture(top / "mnt/.snapshot")) == [])
            }
            let changed = try mine.run("ctl", "changed", "-0", point).output.split(separator: "\0")
            #expect(Set(changed) == ["removed", "file", "renamed", "d", "e", "created", "new", "entries", "."])
            try mine.succeed("ctl", "stop", point)
            try mine.succeed("unmount", point)
            #expect(try !isMounted(top / "mnt"))
            #expect(try Set((top / "source").entries()).isSuperset(of: ["e", "new"]))
        }
    }

    @Test("files that their owner may not read, with attributes: the snapshot stays exact when they change and go")
    func unreadableFiles() throws {
        try with { top, mine, _ in
            let (source, point) = ((top / "source").string, (top / "mnt").string)
            let (live, snapshot) = (top / "mnt", top / "mnt/.snapshot")
            try mine.succeed("mount", source, point)
            let names: [Path] = ["removed", "changed", "left", "more"]
            try asUser(Self.user) {
                for name in names {
                    try (live / name).create(bytes(5_000))
                    try (live / name).setAttribute("user.a", bytes(10))
                    try (live / name).chmod(0o000)
                }
            }
            try mine.succeed("ctl", "start", point)
            try asUser(Self.user) {
                try (live / "removed").unlink()
                try (live / "changed").chmod(0o600)
                try (live / "changed").setAttribute("user.a", bytes(20))
                try (live / "more").chmod(0o600)
                try (live / "more").setAttribute("user.b", bytes(20))
                for name in names {
                    let status = try (snapshot / name).lstat()
                    #expect(status.permissions == 0 && status.size == 5_000)
                    #expect(try (snapshot / name).attributeNames() == ["user.a"])
                    #expect(throws: Errno.permissionDenied) { try (snapshot / name).attribute("user.a") }
                    #expect(throws: Errno.permissionDenied) { try (snapshot / name).open(O_RDONLY) }
                }
            }
            // What could not be read at the cut is not told to have changed; a name that is new is.
            let listed = try mine.run("ctl", "changed", "--json", point).output.split(separator: "\n")
            let lines = ["changed", "more"].map { name in
                listed.first { $0.contains("\"path\":\"\(name)\"") } ?? "\(name) is not listed"
            }
            #expect(lines[0].contains("\"attributes\":[\"mode\"]"), "\(lines)")
            #expect(lines[1].contains("\"attributes\":[\"mode\",\"xattrs\"]"), "\(lines)")
            try mine.succeed("ctl", "stop", point)
            try mine.succeed("unmount", point)
        }
    }

    private static let mayMakeNamespaces: Bool = {
        do {
            let words = [
                "setpriv", "--reuid=\(user)", "--regid=\(user)", "--clear-groups", "unshare", "-U", "-m", "true",
            ]
            return try TestSupport.run(words).code == 0
        } catch {
            return false
        }
    }()

    @Test(
        "run shows a user the snapshot at the mount point, as that user, by way of a user namespace",
        .enabled(if: mayMakeNamespaces, "users may not make user namespaces here"))
    func runInPlace() throws {
        try with { top, mine, _ in
            let point = (top / "mnt").string
            try mine.succeed("mount", (top / "source").string, point)
            try asUser(Self.user) { try (top / "mnt/file").create(Array("old".utf8)) }
            let script = "cat \(point)/file; id -u; stat -c %u \(point)/file; echo x > \(point)/new"
            let finished = try mine.run("run", "--in-place=always", point, "--", "sh", "-c", script)
            #expect(finished.output == "old\(Self.user)\n\(Self.user)\n", "\(finished)")
            #expect(finished.errors.contains("Read-only") && !finished.errors.contains("note:"), "\(finished)")
            let automatic = try mine.run("run", point, "--", "true")
            #expect(automatic.code == 0 && automatic.errors.contains("note: without root"), "\(automatic)")
            let never = try mine.run(
                "run", "--in-place=never", point, "--", "sh", "-c", "cat $FUSESNAP_SNAPSHOT/file")
            #expect(never.code == 0 && never.output == "old" && never.errors.isEmpty, "\(never)")
            // Root may not read another's mount, and does not get its rights.
            let root = try TestSupport.run(
                [Machine.binary, "run", point, "--", "true"], environment: ["XDG_RUNTIME_DIR": ""])
            #expect(root.code == 125, "\(root)")
            try mine.succeed("unmount", point)
        }
    }

    @Test(
        "where no namespace may be made, run says so and runs nothing; --in-place=never goes on",
        .enabled(if: Machine.has("unshare"), "needs unshare"))
    func noNamespace() throws {
        try with { top, mine, _ in
            let point = (top / "mnt").string
            try mine.succeed("mount", (top / "source").string, point)
            // Whoever has another root directory may make no user namespace.
            try (top / "root").mkdir()
            let script = """
                mount --rbind / \(top)/root && exec chroot \(top)/root \
                setpriv --reuid=\(Self.user) --regid=\(Self.user) --clear-groups "$0" "$@"
                """
            let confined = ["unshare", "--mount", "sh", "-c", script]
            let words = [(top / "fusesnap").string, "run", point, "--", "echo", "ran"]
            let environment = ["XDG_RUNTIME_DIR": (top / "run").string]
            let limited = try TestSupport.run(confined + words, environment: environment)
            #expect(limited.code == 125 && limited.output.isEmpty, "\(limited)")
            #expect(limited.errors.contains("no user namespace"), "\(limited)")
            #expect(limited.errors.contains("--in-place=never"), "\(limited)")
            let never = [words[0], "run", "--in-place=never", point, "--", "echo", "ran"]
            let goesOn = try TestSupport.run(confined + never, environment: environment)
            #expect(goesOn.code == 0 && goesOn.output == "ran\n", "\(goesOn)")
            try mine.succeed("unmount", point)
        }
    }

    @Test("another user may not control a mount, and root may")
    func control() throws {
        try with { top, _, theirs in
            // Root looks where a user's sockets are by default.
            let mine = Person(user: Self.user, runtime: "", binary: top / "fusesnap")
            let point = (top / "mnt").string
            try mine.succeed("mount", (top / "source").string, point)
            for words in [
                ["ctl", "start", point], ["ctl", "stop", point], ["ctl", "status", point], ["unmount", point],
            ] {
                let finished = try theirs.run(words)
                #expect(finished.code == 1 && !finished.errors.isEmpty, "\(finished)")
            }
            #expect(try isMounted(top / "mnt"))
            let started = try run([Machine.binary, "ctl", "start", point], environment: ["XDG_RUNTIME_DIR": ""])
            #expect(started.code == 0, "\(started)")
            try mine.succeed("ctl", "stop", point)
            try mine.succeed("unmount", point)
        }
    }

    @Test("root's mount is not a user's to control")
    func rootsMount() throws {
        try MountedSource.with { mount in
            try TemporaryDirectory.with { top in
                try succeed(["cp", Machine.binary, (top / "fusesnap").string])
                let person = Person(user: Self.user, runtime: top, binary: top / "fusesnap")
                for verb in ["start", "stop", "status", "changed"] {
                    let finished = try person.run("ctl", verb, mount.mountpoint.string)
                    #expect(finished.code == 1 && !finished.errors.isEmpty, "\(finished)")
                }
                // It is in the list, without its state, and in no figure.
                let list = try person.run("ctl", "list").output.split(separator: "\n")
                let line = list.first { $0.hasSuffix(" \(mount.mountpoint) of \(mount.source)") }
                #expect(line?.hasPrefix("denied ") == true, "\(list)")
                #expect(try !person.run("ctl", "metrics").output.contains("\"\(mount.mountpoint)\""))
                #expect(try person.run("unmount", mount.mountpoint.string).code == 1)
                #expect(try mount.status().state == "idle")
            }
        }
    }

    @Test("a source without permission is refused")
    func noPermission() throws {
        try with { top, mine, _ in
            try (top / "source").chown(user: 0, group: 0)
            let finished = try mine.run("mount", (top / "source").string, (top / "mnt").string)
            #expect(finished.code == 1 && finished.errors.contains((top / "source").string), "\(finished)")
            #expect(try !isMounted(top / "mnt"))
            #expect(try (top / "source").entries() == [])
        }
    }
}
