import Glibc
import LinuxSystem
import SourceWatch
import SystemPackage
import TestSupport
import Testing

/// A way to hold something of the source. In the script `a[0]` is the source, which has a directory with a file in
/// it.
struct Way: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let script: String
    var use: Holder.Use?
    var path: Path = ""

    static let all = [
        Way(
            testDescription: "a file open for reading and writing",
            script: "file = os.open(a[0] + '/dir/file', os.O_RDWR)", use: .descriptor, path: "dir/file"),
        Way(
            testDescription: "a file open for appending",
            script: "file = os.open(a[0] + '/dir/file', os.O_WRONLY | os.O_APPEND)", use: .descriptor,
            path: "dir/file"),
        Way(
            testDescription: "a directory", script: "file = os.open(a[0] + '/dir', os.O_RDONLY)", use: .directory,
            path: "dir"),
        Way(
            testDescription: "the source itself, as a path", script: "file = os.open(a[0], os.O_PATH)",
            use: .directory),
        Way(
            testDescription: "a shared mapping whose descriptor is closed",
            script: "map(a[0] + '/dir/file', os.O_RDWR, 3, 1)", use: .mapping, path: "dir/file"),
        Way(
            testDescription: "a shared mapping that is not writable yet",
            script: "map(a[0] + '/dir/file', os.O_RDWR, 1, 1)", use: .mapping, path: "dir/file"),
        Way(
            testDescription: "a working directory", script: "os.chdir(a[0] + '/dir')", use: .workingDirectory,
            path: "dir"),
        Way(testDescription: "a root directory", script: "os.chroot(a[0])", use: .rootDirectory),
        Way(
            testDescription: "a working directory of one thread",
            script: """
                def other():
                    must(libc.unshare(0x200))
                    os.chdir(a[0] + '/dir')
                    moved.set()
                    threading.Event().wait()
                moved = threading.Event()
                threading.Thread(target=other, daemon=True).start()
                moved.wait()
                """, use: .workingDirectory, path: "dir"),
        Way(
            testDescription: "a descriptor of one thread",
            script: """
                def other():
                    must(libc.unshare(0x400))
                    os.open(a[0] + '/dir/file', os.O_WRONLY)
                    opened.set()
                    threading.Event().wait()
                opened = threading.Event()
                threading.Thread(target=other, daemon=True).start()
                opened.wait()
                """, use: .descriptor, path: "dir/file"),
        Way(
            testDescription: "a mapping of a process whose first thread has ended",
            script: """
                def other():
                    map(a[0] + '/dir/file', os.O_RDWR, 3, 1)
                    while open('/proc/self/stat').read().rsplit(')')[1].split()[0] != 'Z': pass
                    os.write(ready, b'x')
                    threading.Event().wait()
                main = threading.current_thread()
                threading.Thread(target=other).start()
                libc.pthread_exit(None)
                """, use: .mapping, path: "dir/file"),
        Way(testDescription: "a file open for reading", script: "file = os.open(a[0] + '/dir/file', os.O_RDONLY)"),
        Way(testDescription: "the path of a file", script: "file = os.open(a[0] + '/dir/file', os.O_PATH)"),
        Way(
            testDescription: "a shared mapping of a file open for reading",
            script: "map(a[0] + '/dir/file', os.O_RDONLY, 1, 1)"),
        Way(testDescription: "a private mapping", script: "map(a[0] + '/dir/file', os.O_RDWR, 3, 2)"),
        Way(
            testDescription: "a fifo open for writing",
            script: "os.mkfifo(a[0] + '/fifo'); file = os.open(a[0] + '/fifo', os.O_RDWR)"),
        Way(
            testDescription: "a socket of a name in it",
            script: "s = socket.socket(socket.AF_UNIX); s.bind(a[0] + '/socket'); s.listen()"),
    ]
}

private let isAble = Machine.isRoot && Machine.has("python3") && Machine.has("unshare")
private let needs: Comment = "needs root, python3 and unshare"

@Suite(.enabled(if: isAble, needs)) struct HolderTests {
    private static let privately = ["unshare", "-m", "--propagation", "private"]

    /// What a process holds of the source.
    private func held(by child: HoldingChild, _ source: Path) throws -> [Holder] {
        try holders(of: try openDirectory(source), except: []).holders.filter {
            $0.process == child.pid && $0.use != .mountNamespace
        }
    }

    private func namespaces(of child: HoldingChild, _ source: Path) throws -> [String] {
        try holders(of: try openDirectory(source), except: []).holders.filter {
            $0.process == child.pid && $0.use == .mountNamespace
        }.map(\.path)
    }

    private func ownMounts(_ source: Path) throws -> [String] {
        try holders(of: try openDirectory(source), except: []).holders.filter { $0.use == .mount }.map(\.path)
    }

    private func withSource(_ name: Path = "source", _ body: (_ top: Path, _ source: Path) throws -> Void) throws {
        try TemporaryDirectory.with { (top) throws in
            let source = top / name
            try source.mkdir()
            try (source / "dir").mkdir()
            try (source / "dir/file").create(bytes(5000))
            try body(top, source)
        }
    }

    @Test(
        "each way to hold something of the source is found, and what cannot change it is not", arguments: Way.all)
    func ways(way: Way) throws {
        try withSource { (top, source) throws in
            try HoldingChild.with(way.script, top: top, arguments: [source]) { (child) throws in
                let found = try held(by: child, source)
                guard let use = way.use else { return #expect(found.isEmpty) }
                let path = way.path == "" ? source : source / way.path
                #expect(found.count == 1)
                #expect(found.first?.use == use)
                #expect(found.first?.path == path.string)
                #expect(found.first?.command.hasPrefix("python") == true)
                let others = try holders(of: try openDirectory(source), except: [child.pid])
                #expect(!others.holders.contains { $0.process == child.pid })
            }
        }
    }

    @Test("what is beside the source is not in it, whatever its name begins with")
    func prefixes() throws {
        try withSource("a") { (top, source) throws in
            for name in [Path("ab"), "a (deleted)", "a\\040"] {
                try (top / name).mkdir()
                try (top / name / "file").create()
            }
            try (top / "a bound").mkdir()
            try bind(top / "ab", top / "a bound")
            let script = """
                for name in ['/ab', '/a (deleted)', '/a\\\\040', '/a bound']:
                    os.open(a[0] + name, os.O_RDONLY)
                    os.open(a[0] + name + '/file', os.O_RDWR)
                os.open(a[0], os.O_RDONLY)
                os.chdir(a[0])
                """
            try HoldingChild.with(script, top: top, arguments: [top]) { (child) throws in
                #expect(try held(by: child, source).isEmpty)
                #expect(
                    try held(by: child, top / "a bound").map(\.path).sorted()
                        == [
                            top / "a bound", top / "a bound/file",
                        ].map(\.string))
            }
        }
    }

    @Test("names with blanks, line breaks and backslashes are told as they are")
    func oddNames() throws {
        try withSource("a b\nc\\012d") { (top, source) throws in
            let name = "x y\nz\\134"
            try (source / Path(name)).create(bytes(4096))
            try (top / "other place\n").mkdir()
            try bind(source, top / "other place\n")
            let script = """
                file = os.open(a[0] + '/x y\\nz\\\\134', os.O_RDWR)
                map(a[0] + '/x y\\nz\\\\134', os.O_RDWR, 3, 1)
                """
            for way in [source, top / "other place\n"] {
                try HoldingChild.with(script, top: top, arguments: [way]) { (child) throws in
                    let found = try held(by: child, source)
                    #expect(Set(found.map(\.use)) == [.descriptor, .mapping])
                    #expect(Set(found.map(\.path)) == [(source / Path(name)).string])
                }
            }
            #expect(try ownMounts(source) == [(top / "other place\n").string])
        }
    }

    // MARK: Other mounts

    private func bind(_ what: Path, _ target: Path) throws {
        try succeed(["mount", "--bind", what.string, target.string])
        try succeed(["mount", "--make-private", target.string])
    }

    @Test("what is held by way of another mount is found")
    func bindMounts() throws {
        try withSource { (top, source) throws in
            for name in [Path("above"), "same", "part"] { try (top / name).mkdir() }
            try (top / "one").create()
            try bind(top, top / "above")
            try bind(source, top / "same")
            try bind(source / "dir", top / "part")
            try bind(source / "dir/file", top / "one")
            for path in [
                source / "dir/file", top / "above/source/dir/file", top / "same/dir/file", top / "part/file",
                top / "one",
            ] {
                let script = "file = os.open(a[0], os.O_RDWR); map(a[0], os.O_RDWR, 3, 1)"
                try HoldingChild.with(script, top: top, arguments: [path]) { (child) throws in
                    for name in [source, top / "above/source", top / "same"] {
                        let found = try held(by: child, name)
                        #expect(Set(found.map(\.use)) == [.descriptor, .mapping], "\(path) of \(name)")
                        #expect(Set(found.map(\.path)) == [(name / "dir/file").string])
                    }
                }
            }
            let ways = [top / "above/source", top / "same", top / "part", top / "one"]
            #expect(try Set(ownMounts(source)) == Set(ways.map(\.string)))
        }
    }

    @Test("what is held by way of a mount that was taken off lazily is found")
    func lazyUnmount() throws {
        try withSource { (top, source) throws in
            try (top / "other").mkdir()
            try (top / "beside").mkdir()
            try bind(top, top / "other")
            let script = """
                file = os.open(a[0] + '/source/dir/file', os.O_RDWR)
                beside = os.open(a[0] + '/beside', os.O_RDONLY)
                os.chdir(a[0] + '/source/dir')
                """
            try HoldingChild.with(script, top: top, arguments: [top / "other"]) { (child) throws in
                try succeed(["umount", "-l", (top / "other").string])
                let found = try held(by: child, source)
                #expect(Set(found.map(\.use)) == [.descriptor, .workingDirectory])
                #expect(
                    Set(found.map(\.path))
                        == [source / "dir/file", source / "dir"].map(\.string).reduce(into: []) { $0.insert($1) })
            }
        }
    }

    @Test("a mount inside the source is hidden by one over it")
    func mountInside() throws {
        try withSource { (top, source) throws in
            try (source / "inner").mkdir()
            try bind(source / "dir", source / "inner")
            #expect(try ownMounts(source).isEmpty)
        }
    }

    @Test("what is held in another mount namespace is found by where it is, not by its path")
    func otherNamespace() throws {
        try withSource { (top, source) throws in
            try (top / "elsewhere").mkdir()
            let script = """
                must(libc.mount((a[0] + '/source').encode(), (a[0] + '/elsewhere').encode(), None, 4096, None))
                must(libc.mount(b'none', (a[0] + '/source').encode(), b'tmpfs', 0, None))
                file = os.open(a[0] + '/elsewhere/dir/file', os.O_RDWR)
                map(a[0] + '/elsewhere/dir/file', os.O_RDWR, 3, 1)
                other = os.open(a[0] + '/source/other', os.O_RDWR | os.O_CREAT)
                os.chdir(a[0] + '/elsewhere')
                os.chroot(a[0] + '/elsewhere/dir')
                """
            try HoldingChild.with(script, prefix: Self.privately, top: top, arguments: [top]) { (child) throws in
                let found = try held(by: child, source).map { "\($0.use) \($0.path)" }
                #expect(
                    Set(found) == [
                        "descriptor \(source)/dir/file", "mapping \(source)/dir/file",
                        "workingDirectory \(source)",
                        "rootDirectory \(source)/dir",
                    ])
            }
        }
    }

    @Test("a mount namespace is a holder unless a mount over the source gets there")
    func propagation() throws {
        try TemporaryDirectory.with { (top) throws in
            try (top / "fs").mkdir()
            try succeed(["mount", "-t", "tmpfs", "none", (top / "fs").string])
            let source = top / "fs/source"
            try source.mkdir()
            try (source / "dir").mkdir()
            try (top / "part").mkdir()
            func found(_ propagation: String, _ script: String = "") throws -> [String] {
                let prefix = ["unshare", "-m", "--propagation", propagation]
                return try HoldingChild.with(script, prefix: prefix, top: top, arguments: [top]) {
                    #expect(try held(by: $0, source).isEmpty)
                    return try namespaces(of: $0, source)
                }
            }
            try succeed(["mount", "--make-private", (top / "fs").string])
            for propagation in ["private", "slave", "unchanged"] {
                #expect(try found(propagation) == [source.string])
            }
            try succeed(["mount", "--make-shared", (top / "fs").string])
            #expect(try found("private") == [source.string])
            #expect(try found("slave") == [])
            #expect(try found("unchanged") == [])
            let readOnly = "must(libc.mount(None, (a[0] + '/fs').encode(), None, 4096 | 32 | 1, None))"
            #expect(try found("private", readOnly) == [])
            let part =
                "must(libc.mount((a[0] + '/fs/source/dir').encode(), (a[0] + '/part').encode(), None, 4096, None))"
            #expect(try found("slave", part) == [(top / "part").string])
            // A slave of a slave.
            let deep = "must(libc.mount(None, b'/', None, (1 << 20) | 16384, None)); must(libc.unshare(0x20000)); "
            let slave = "must(libc.mount(None, b'/', None, (1 << 19) | 16384, None))"
            #expect(try found("slave", deep + slave) == [])
        }
    }

    @Test("a mount namespace that goes while the scan passes is no holder")
    func namespaceThatGoes() throws {
        try withSource { (top, source) throws in
            let privately = Self.privately.joined(separator: " ")
            let script = """
                for worker in 1 2 3 4; do for i in $(seq 200); do \(privately) true; done & done; wait; touch \(top)/over
                """
            let child = try Child(["sh", "-c", script])
            while try !top.entries().contains("over") {
                let found = try holders(of: try openDirectory(source), except: []).holders
                #expect(found.filter { $0.command == "" }.isEmpty)
            }
            #expect(try child.wait().code == 0)
        }
    }

    // MARK: Deleted files

    @Test("files without a name, and in removed directories, are found")
    func deleted() throws {
        try withSource { (top, source) throws in
            let script = """
                file = os.open(a[0] + '/dir/file', os.O_RDWR)
                os.mkdir(a[0] + '/gone')
                other = os.open(a[0] + '/gone/other', os.O_RDWR | os.O_CREAT)
                directory = os.open(a[0] + '/gone', os.O_RDONLY)
                unnamed = os.open(a[0], os.O_RDWR | os.O_TMPFILE)
                os.unlink(a[0] + '/dir/file'); os.unlink(a[0] + '/gone/other'); os.rmdir(a[0] + '/gone')
                """
            try HoldingChild.with(script, top: top, arguments: [source]) { (child) throws in
                let found = try held(by: child, source)
                #expect(found.filter { $0.use == .descriptor }.count == 3)
                #expect(found.filter { $0.use == .directory }.count == 1)
                #expect(found.contains { $0.path == (source / "dir/file (deleted)").string })
                #expect(found.contains { $0.path == (source / "gone (deleted)").string })
                #expect(found.allSatisfy { $0.path.hasSuffix(" (deleted)") })
            }
        }
    }

    // MARK: What cannot be looked at

    @Test(
        "an ordinary user sees their own processes, and the number of others",
        .enabled(if: Machine.has("setpriv"), "needs setpriv"))
    func ordinaryUser() throws {
        try withSource { (top, source) throws in
            let user: UInt32 = 65534
            try source.chown(user: user, group: user)
            try (source / "dir/file").chown(user: user, group: user)
            let prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            let script = "os.chdir(a[0]); map(a[0] + '/dir/file', os.O_RDWR, 3, 1)"
            try HoldingChild.with(script, prefix: prefix, top: top, arguments: [source]) { (child) throws in
                var scan = HolderScan()
                try asUser(user) { scan = try holders(of: try openDirectory(source), except: [getpid()]) }
                #expect(scan.unseen > 0)
                #expect(Set(scan.holders.map(\.process)) == [child.pid])
                #expect(Set(scan.holders.map(\.use)) == [.workingDirectory, .mapping])
            }
        }
    }

    @Test(
        "a FUSE mount that does not answer does not hold the scan up",
        .enabled(if: Machine.hasFuse, "needs /dev/fuse"))
    func hungFileSystem() throws {
        try withSource { (top, source) throws in
            try (top / "hung").mkdir()
            let mount = """
                device = os.open('/dev/fuse', os.O_RDWR)
                options = 'fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other' % device
                must(libc.mount(b'hung', a[0].encode(), b'fuse', 0, options.encode()))
                """
            try HoldingChild.with(mount, top: top, arguments: [top / "hung"]) { (_) throws in
                let hold = "hung = os.open(a[0], os.O_PATH); file = os.open(a[1] + '/dir/file', os.O_RDWR)"
                try HoldingChild.with(hold, top: top, arguments: [top / "hung", source]) { (child) throws in
                    let isOver = Flag()
                    let scan = try Worker { () throws in
                        #expect(try self.held(by: child, source).map(\.use) == [.descriptor])
                        isOver.set()
                    }
                    // Joined only once it is over: a scan that hangs ends with the mount's daemon.
                    try wait("the end of the scan") { isOver.isSet }
                    try scan.join()
                }
            }
        }
    }

    @Test("what is no directory, or not there, is refused")
    func refused() throws {
        try withSource { _, source in
            let file = try FileName((source / "dir/file").string).withCString { (name) throws(Errno) in
                try Descriptor.open(at: .workingDirectory, name, O_RDONLY)
            }
            #expect(throws: Errno.notDirectory) { try holders(of: file, except: []) }
        }
    }
}
