import Glibc
import LinuxSystem
import SourceWatch
import SystemPackage
import TestSupport
import Testing
import Synchronization

/// What a watch has told.
private final class Told: Sendable {
    private let changes = Mutex<[ForeignChange]>([])

    func add(_ change: ForeignChange) { changes.withLock { $0.append(change) } }

    var all: [ForeignChange] { changes.withLock { $0 } }

    /// Lets all go that was told so far.
    func take() -> [ForeignChange] {
        changes.withLock { changes in
            defer { changes = [] }
            return changes
        }
    }
}

/// A change by another process. In the script `$1` is the source, which has a directory with a file in it.
struct Change: Sendable, CustomTestStringConvertible {
    let script: String
    let kinds: ForeignChange.Kinds
    var paths: Set<String> = ["/dir/file"]

    var testDescription: String { script }

    static let all = [
        Change(script: "printf x >> $1/dir/file", kinds: .data),
        Change(script: ": > $1/dir/file", kinds: .data),
        Change(script: "truncate -s 3 $1/dir/file", kinds: .data),
        Change(script: "fallocate -l 100000 $1/dir/file", kinds: .data),
        Change(script: "dd if=/dev/zero of=$1/dir/file bs=4096 count=1 conv=notrunc oflag=direct", kinds: .data),
        Change(script: "exec 5<>$1/dir/file; rm $1/dir/file; printf x >&5", kinds: [.data, .entry]),
        Change(script: "chmod 600 $1/dir/file", kinds: .attributes),
        Change(script: "chown 1:1 $1/dir/file", kinds: .attributes),
        Change(script: "touch -d 2001-01-01 $1/dir/file", kinds: .attributes),
        Change(
            script: "python3 -c 'import os, sys; os.setxattr(sys.argv[1], \"user.a\", b\"b\")' $1/dir/file",
            kinds: .attributes),
        Change(script: "chmod 700 $1/dir", kinds: .attributes, paths: ["/dir"]),
        Change(script: "chmod 700 $1", kinds: .attributes, paths: [""]),
        Change(script: "mkdir $1/dir/new", kinds: .entry, paths: ["/dir/new"]),
        Change(script: "ln -s x $1/dir/new", kinds: .entry, paths: ["/dir/new"]),
        Change(script: "mkfifo $1/new", kinds: .entry, paths: ["/new"]),
        Change(script: "ln $1/dir/file $1/new", kinds: [.entry, .attributes], paths: ["/new"]),
        Change(script: "mv $1/dir/file $1/new", kinds: .entry, paths: ["/dir/file", "/new"]),
        Change(script: "mv $1/dir/file $1/../outside", kinds: .entry),
        Change(script: "mv $1/dir $1/../outside", kinds: .entry, paths: ["/dir"]),
        Change(script: "rm -r $1/dir", kinds: .entry, paths: ["/dir"]),
        Change(script: "unshare -mpf sh -c \"printf x >> $1/dir/file\"", kinds: .data),
        Change(
            script: "mount -t tmpfs none $1/../outside-fs && mkdir $1/../outside-fs/bound && "
                + "mount --bind $1 $1/../outside-fs/bound && printf x >> $1/../outside-fs/bound/dir/file",
            kinds: .data),
    ]
}

@Suite(.enabled(if: Machine.isRoot && Machine.has("python3"), "needs root and python3")) struct ChangeWatchTests {
    private struct Setting {
        let top: Path
        let source: Path
        let watch: ChangeWatch
        let told: Told

        /// What has been told of a script's changes: it is run by another process.
        func changes(by script: String) throws -> [ForeignChange] {
            try succeed(["sh", "-ec", script, "sh", source.string])
            watch.catchUp()
            return told.take()
        }

        func paths(_ changes: [ForeignChange]) -> Set<String> {
            Set(changes.map { String($0.path.dropFirst(source.string.count)) })
        }
    }

    private func with(
        queue: ChangeWatch.Queue = .unlimited, ownProcess: Int32 = getpid(),
        report: (@Sendable (ForeignChange) -> Void)? = nil, _ body: (Setting) throws -> Void
    ) throws {
        try TemporaryDirectory.with { (top) throws in
            let source = top / "source"
            try source.mkdir()
            try (source / "dir").mkdir()
            try (source / "dir/file").create(bytes(5000))
            try (top / "outside-fs").mkdir()
            let told = Told()
            let watch = try ChangeWatch(
                source: try PrivateMount(of: try openDirectory(source)), ownProcess: ownProcess, queue: queue,
                report: report ?? { told.add($0) })
            defer { watch.stop() }
            try watch.begin()
            try body(Setting(top: top, source: source, watch: watch, told: told))
        }
    }

    @Test("each kind of change by another process is told", arguments: Change.all)
    func kinds(change: Change) throws {
        try with { (setting) throws in
            let told = try setting.changes(by: change.script)
            #expect(
                told.reduce(into: ForeignChange.Kinds()) { $0.formUnion($1.kinds) }.isSuperset(of: change.kinds))
            #expect(!told.contains { $0.kinds.contains(.lost) || $0.process == getpid() })
            #expect(setting.paths(told).isSuperset(of: change.paths))
        }
    }

    @Test("a change is told with its process, directory, name and object")
    func details() throws {
        try with { (setting) throws in
            let directory = try FileHandle(of: try openDirectory(setting.source / "dir"))
            let child = try Child(["sh", "-c", ": > $1/dir/new", "sh", setting.source.string])
            let pid = child.pid
            #expect(try child.wait().code == 0)
            setting.watch.catchUp()
            let change = try #require(setting.told.all.first)
            #expect(change.kinds == .entry)
            #expect(change.isCertain)
            #expect(change.process == pid)
            #expect(change.directory == directory)
            #expect(change.name == FileName("new"))
            let file = try change.object?.open(mount: setting.watch.source.directory, O_RDONLY)
            #expect(try file.map { try FileStatus(of: $0).inode } == (setting.source / "dir/new").stat().inode)
            #expect(change.path == (setting.source / "dir/new").string)
        }
    }

    @Test("the watching process's own changes are not told, by whichever thread")
    func ownChanges() throws {
        try with { (setting) throws in
            let source = setting.source
            let change = { @Sendable in
                try (source / "dir/file").write(bytes(100), at: 0)
                try (source / "dir/file").chmod(0o600)
                try (source / "new").create()
                try (source / "new").rename(to: source / "dir/other")
                try (source / "dir/other").unlink()
            }
            try change()
            try Worker(change).join()
            setting.watch.catchUp()
            #expect(setting.told.all.isEmpty)
        }
    }

    @Test("changes outside the source are not told, those of removed directories neither")
    func outside() throws {
        try with { (setting) throws in
            let script = """
                mkdir $1/../sourcebc $1/../outside; printf x > $1/../sourcebc/file; chmod 700 $1/..
                mkdir -p $1/../outside/a/b/c; printf x > $1/../outside/a/b/c/file
                exec 5>$1/../outside/open 6<$1/../outside/a; ln $1/../outside/open $1/../outside/second
                rm -r $1/../outside; printf x >&5
                python3 -c 'import os; os.fchmod(5, 0o600); os.fchmod(6, 0o700)'
                """
            #expect(try setting.changes(by: script).isEmpty)
        }
    }

    @Test("a mapping's stores are not seen, as the documentation says")
    func mappings() throws {
        try with { (setting) throws in
            let script = """
                python3 -c '
                import mmap, sys
                with open(sys.argv[1], "r+b") as file: map = mmap.mmap(file.fileno(), 4096); map[0] = 33; map.flush()
                ' $1/dir/file
                """
            #expect(try setting.changes(by: script).isEmpty)
        }
    }

    @Test("what is written by way of the watch's own mount is no event; what else is done there is")
    func quietSource() throws {
        try with(ownProcess: 1) { (setting) throws in
            func write(_ directory: Descriptor) throws {
                let file = try Descriptor.open(at: directory, "dir/file", O_WRONLY)
                var byte: UInt8 = 1
                #expect(pwrite(file.raw, &byte, 1, 0) == 1)
                setting.watch.catchUp()
            }
            let quiet = setting.watch.source.directory
            try write(quiet)
            #expect(setting.told.all.isEmpty)
            try write(try openDirectory(setting.source))
            #expect(setting.told.take().map(\.kinds) == [.data])
            try LinuxSystem.truncate(try Descriptor.open(at: quiet, "dir/file", O_WRONLY), to: 1)
            setting.watch.catchUp()
            #expect(setting.told.take().map(\.kinds) == [.data])
            try LinuxSystem.makeDirectory(at: quiet, "new", mode: 0o755)
            setting.watch.catchUp()
            #expect(setting.told.take().map(\.kinds) == [.entry])
        }
    }

    @Test(
        "a file that is written by its handle, while its name is not known, may be in the source",
        .enabled(
            if: Machine.has("mkfs.ext4") && Path("/dev/loop-control").exists, "needs mkfs.ext4 and loop devices"))
    func unnamedFile() throws {
        try TemporaryDirectory.with { (top) throws in
            let (image, disk) = (top / "image", top / "disk")
            try image.create()
            try image.truncate(16 << 20)
            try disk.mkdir()
            try succeed(["mkfs.ext4", "-q", image.string])
            let mount = ["mount", "-o", "loop", image.string, disk.string]
            try succeed(mount)
            for name in [Path("source"), "outside"] { try (disk / name).mkdir() }
            try (disk / "source/file").create(bytes(10))
            let handle = try FileHandle(of: try openPath(disk / "source/file"))
            // A new mount knows no names.
            try succeed(["umount", disk.string])
            try succeed(mount)
            let told = Told()
            let watch = try ChangeWatch(
                source: try PrivateMount(of: try openDirectory(disk / "source")), ownProcess: 1
            ) { told.add($0) }
            defer { watch.stop() }
            try watch.begin()
            do {
                let file = try handle.open(mount: try openDirectory(disk), O_WRONLY)
                var byte: UInt8 = 1
                #expect(pwrite(file.raw, &byte, 1, 0) == 1)
            }
            watch.catchUp()
            let change = try #require(told.all.first)
            #expect(change.kinds == .data)
            #expect(change.object == handle)
            #expect(change.directory == nil)
            #expect(!change.isCertain)
        }
    }

    // MARK: Directories that are moved

    @Test(
        "a directory that is moved into the source, or out of it, is known to be there", arguments: [false, true])
    func movedDirectories(byItself: Bool) throws {
        try with { (setting) throws in
            func move(_ from: Path, _ to: Path) throws -> [ForeignChange] {
                if byItself {
                    try from.rename(to: to)
                    return try setting.changes(by: ":")
                }
                return try setting.changes(by: "mv \(from.string) \(to.string)")
            }
            let (inside, outside) = (setting.source / "moved", setting.top / "moved")
            #expect(try setting.changes(by: "mkdir -p \(outside.string)/deep").isEmpty)
            #expect(try setting.changes(by: "printf x > \(outside.string)/deep/file").isEmpty)
            #expect(setting.paths(try move(outside, inside)) == (byItself ? [] : ["/moved"]))
            let told = try setting.changes(by: "printf x >> $1/moved/deep/file")
            #expect(setting.paths(told) == ["/moved/deep/file"])
            #expect(setting.paths(try move(inside, outside)) == (byItself ? [] : ["/moved"]))
            #expect(try setting.changes(by: "printf x >> \(outside.string)/deep/file").isEmpty)
        }
    }

    @Test("a source that is moved, and one seen by way of another mount, is watched on")
    func movedSource() throws {
        try with { (setting) throws in
            #expect(try setting.changes(by: "mv $1 $1-new; mv $1-new $1; mkdir $1/../bound").isEmpty)
            #expect(
                setting.paths(
                    try setting.changes(by: "mount --bind $1 $1/../bound; printf x >> $1/../bound/dir/file"))
                    == ["/dir/file"])
        }
    }

    // MARK: The queue, the end, errors

    @Test("an overflow of the queue is told")
    func overflow() throws {
        let (told, isFull, hasBegun) = (Told(), Flag(), Flag())
        let report = { @Sendable (change: ForeignChange) in
            told.add(change)
            hasBegun.set()
            while !isFull.isSet { usleep(1000) }
        }
        try with(queue: .limited, report: report) { (setting) throws in
            defer { isFull.set() }
            let text = String(
                decoding: try Path("/proc/sys/fs/fanotify/max_queued_events").contents(), as: UTF8.self)
            let limit = try #require(Int(text.dropLast()))
            try #require(limit < 1_000_000, "max_queued_events is too large for this test")
            try succeed(["sh", "-c", ": > $1/first", "sh", setting.source.string])
            try wait("the first change") { hasBegun.isSet }
            for number in 0..<(limit + 10) { try (setting.source / Path("\(number)")).create() }
            isFull.set()
            setting.watch.catchUp()
            #expect(told.all.contains { $0.kinds == .lost })
            #expect(told.all.allSatisfy { $0.kinds == .lost || $0.path.hasSuffix("/first") })
        }
    }

    @Test("after the end nothing is told, and nothing is waited for")
    func end() throws {
        try with { (setting) throws in
            setting.watch.stop()
            #expect(try setting.changes(by: "printf x >> $1/dir/file").isEmpty)
            setting.watch.stop()
            setting.watch.catchUp()
        }
    }

    @Test("a watch that is dropped ends, and gives its descriptors back")
    func dropped() throws {
        try TemporaryDirectory.with { (top) throws in
            func groups() throws -> Int {
                try Path("/proc/self/fd").entries().count { name in
                    do throws(Errno) {
                        return try (Path("/proc/self/fd") / name).readlink() == "anon_inode:[fanotify]"
                    } catch { return false }
                }
            }
            let before = try groups()
            var watch: ChangeWatch? = try ChangeWatch(
                source: try PrivateMount(of: try openDirectory(top)), ownProcess: 1
            ) { _ in }
            #expect(watch != nil)
            watch = nil
            // Other tests run meanwhile.
            try wait("the end of the watch") { try groups() <= before }
        }
    }

    @Test("where there is no watching, the error says so")
    func errors() throws {
        #expect(throws: Errno.self) {
            try ChangeWatch(source: try PrivateMount(of: try openDirectory("/proc")), ownProcess: 1) { _ in }
        }
        try TemporaryDirectory.with { (top) throws in
            var failure: Errno?
            try asUser(65534) {
                do throws(Errno) {
                    _ = try ChangeWatch(source: try PrivateMount(of: try openDirectory(top)), ownProcess: 1) { _ in
                    }
                } catch {
                    failure = error
                }
            }
            #expect(failure == .notPermitted)
        }
    }
}
