import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// The program's verbs on a mount that is there.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct MountCommandTests {
    private func refuse(
        _ words: [String], saying part: String, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let finished = try run([Machine.binary] + words, seconds: 30)
        #expect(finished.code == 1, "\(finished)", sourceLocation: sourceLocation)
        #expect(finished.errors.contains(part), "\(finished)", sourceLocation: sourceLocation)
    }

    @Test("a mount point that is a mount already is refused, as is a source inside a mount")
    func mountedAlready() throws {
        try MountedSource.with { mount in
            try (mount.top / "other").mkdir()
            try (mount.mountpoint / "d").mkdir()
            let (other, point) = ((mount.top / "other").string, mount.mountpoint.string)
            try refuse(["mount", other, point], saying: point)
            try refuse(["mount", point, other], saying: point)
            try refuse(["mount", point + "/d", other], saying: point)
            #expect(!(mount.top / "other/.fusesnap").exists)
        }
    }

    @Test("a store in use by another daemon is refused, and one of another source")
    func storeInUse() throws {
        try TemporaryDirectory.with { store in
            let place = (store / "store").string
            try MountedSource.with(options: ["--store", place]) { mount in
                for name: Path in ["other", "mnt2"] { try (mount.top / name).mkdir() }
                let words = ["mount", "--store", place, (mount.top / "other").string, (mount.top / "mnt2").string]
                try refuse(words, saying: place)
                #expect(try !isMounted(mount.top / "mnt2"))
                #expect(try (mount.top / "other").entries() == [])
                try mount.start()
            }
        }
    }

    @Test(
        "mounts over two directories of one file system, also where inodes may not be opened by handle",
        .enabled(if: Machine.isRoot && Machine.has("setpriv"), "needs root and setpriv"))
    func siblings() throws {
        try TemporaryDirectory.with { top in
            // As in a container without that capability.
            let limited = ["setpriv", "--bounding-set=-dac_read_search", "--inh-caps=-dac_read_search"]
            for name in ["a", "b"] {
                try (top / Path(name)).mkdir()
                try succeed(limited + [Machine.binary, "mount", (top / Path(name)).string])
            }
            // Whoever is in it is told all the same.
            try (top / "c").mkdir()
            let inside = try run(
                ["sh", "-c", "cd c && exec \"$0\" \"$@\""] + limited + [
                    "sh", "-c", "\"$0\" mount \(top)/c; echo $?", Machine.binary,
                ],
                in: top)
            #expect(inside.output == "1\n" && inside.errors.contains("working directory"), "\(inside)")
            for name in ["a", "b"] { try succeed([Machine.binary, "unmount", (top / Path(name)).string]) }
        }
    }

    @Test(
        "the daemon in the background has a session of its own, without a terminal, and the root as its directory")
    func session() throws {
        try MountedSource.with { mount in
            let stat = String(decoding: try Path("/proc/\(mount.daemon)/stat").contents(), as: UTF8.self)
            let fields = try #require(stat.split(separator: ")").last).split(separator: " ")
            #expect(fields[2] == "\(mount.daemon)" && fields[3] == "\(mount.daemon)", "group and session: \(stat)")
            #expect(fields[4] == "0", "terminal: \(stat)")
            #expect(try Path("/proc/\(mount.daemon)/cwd").readlink() == "/")
        }
    }

    @Test("unmount of a busy mount fails, says so, and all goes on")
    func busy() throws {
        try MountedSource.with { mount in
            try (mount.mountpoint / "file").create(bytes(100))
            do {
                let open = try (mount.mountpoint / "file").open(O_RDWR)
                let finished = try run([Machine.binary, "unmount", mount.mountpoint.string], seconds: 30)
                #expect(finished.code == 1, "\(finished)")
                #expect(
                    finished.errors.lowercased().contains("busy") || finished.errors.contains("in use"),
                    "\(finished)")
                #expect(try isMounted(mount.mountpoint))
                try open.write([1], at: 0)
                try mount.start()
                try mount.stop()
            }
            try mount.unmount()
        }
    }

    @Test(
        "a mount point left out means the source itself; a relative path, `..` and a link lead to the same mount")
    func overItself() throws {
        try TemporaryDirectory.with { top in
            try (top / "source").mkdir()
            try (top / "source/file").create(bytes(100))
            try (top / "link").symlink(to: "source")
            try succeed([Machine.binary, "mount", "source"], in: top)
            #expect(try isMounted(top / "source"))
            #expect(try (top / "source/file").contents() == bytes(100))
            for path in ["source", "./source/../source/", "link"] {
                #expect(
                    try succeed([Machine.binary, "ctl", "status", "--json", path], in: top).contains("\"idle\""))
            }
            try succeed([Machine.binary, "unmount", "link"], in: top)
            #expect(try !isMounted(top / "source"))
        }
    }

    @Test("--foreground stays until SIGTERM, then exits with 0")
    func foreground() throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mnt"] { try (top / name).mkdir() }
            let point = top / "mnt"
            let child = try Child([Machine.binary, "mount", "--foreground", (top / "source").string, point.string])
            try wait("the mount") { try isMounted(point) }
            try (point / "file").create(bytes(10))
            #expect(try daemon(of: point) == child.pid)
            child.signal(SIGTERM)
            #expect(try child.wait(seconds: 20).code == 0)
            #expect(try !isMounted(point))
            #expect(try (top / "source/file").contents() == bytes(10))
        }
    }

    @Test("-o ro, fsname and snapshot_dir do what they say")
    func options() throws {
        let options = ["-o", "fsname=my name,ro", "-o", "snapshot_dir=.frozen"]
        try MountedSource.with(options: options, prepare: { try ($0 / ".snapshot").create() }) { mount in
            #expect(throws: Errno.readOnlyFileSystem) { try (mount.mountpoint / "new").create() }
            #expect(try (mount.mountpoint / ".snapshot").lstat().kind == .regular)
            try mount.start()
            #expect(try (mount.mountpoint / ".frozen/.snapshot").lstat().kind == .regular)
            let table = String(decoding: try Path("/proc/self/mounts").contents(), as: UTF8.self)
            #expect(table.contains("my\\040name \(mount.mountpoint) fuse.fusesnap ro,"))
        }
    }

    /// Whether somebody listens: a daemon that was killed leaves its socket behind.
    private func talk(_ socket: Path, _ message: [UInt8]) throws -> Bool {
        var answer = [UInt8](repeating: 0, count: 65_536)
        let count = socket.string.withCString { ts_talk($0, message, message.count, &answer, answer.count) }
        if count < 0, currentErrno == .connectionRefused { return false }
        try check(count)
        return true
    }

    @Test("nonsense on the control socket is refused, and others go on being served")
    func hostileBytes() throws {
        try MountedSource.with { mount in
            let directory =
                Machine.isRoot ? "/run" : environmentValue("XDG_RUNTIME_DIR") ?? "/run/user/\(getuid())"
            let place = Path(directory) / "fusesnap"
            let sockets = try place.entries().map { place / $0 }.filter { try $0.lstat().kind == .socket }
            let messages: [[UInt8]] = [
                [], [0], Array("\n\n\n".utf8), Array("{".utf8), Array("{}\n".utf8), Array("[1,2]\n".utf8),
                Array("{\"protocol\":999,\"command\":\"start\"}\n".utf8),
                Array("{\"command\":\"explode\"}\n".utf8),
                Array(String(repeating: "[", count: 100_000).utf8) + [10], bytes(1 << 20), [0xff, 0xfe, 10],
            ]
            let answered = try sockets.filter { socket in
                try messages.allSatisfy { message in try talk(socket, message) }
            }
            #expect(!answered.isEmpty)
            #expect(try mount.status().state == "idle")
            try mount.start()
            try mount.stop()
        }
    }
}

/// The process that serves a mount, as soon as it answers.
private func daemon(of mountpoint: Path) throws -> Int32 {
    var json = ""
    try wait("the daemon's answer") {
        let finished = try run([Machine.binary, "ctl", "status", "--json", mountpoint.string])
        json = finished.output
        return finished.code == 0
    }
    return MountStatus(json: json).pid
}
