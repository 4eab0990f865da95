import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// What `.snapshot` is, apart from being exact.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct SnapshotTests {
    /// A tree with every kind of file in a directory.
    private static func populate(_ root: Path) throws {
        try (root / "d").mkdir()
        for kind in Kind.available { try kind.make(root / "d" / Path("\(kind)")) }
        try (root / "d/file").link(to: root / "second")
        try (root / "d/file").setAttribute("user.a", bytes(10))
    }

    @Test("`.snapshot` exists only while a snapshot is active, and is never listed")
    func hidden() throws {
        try MountedSource.with { mount in
            func isListed() throws -> Bool { try mount.mountpoint.entries().contains { $0 == ".snapshot" } }
            #expect(throws: Errno.noSuchFileOrDirectory) { try mount.snapshot.lstat() }
            #expect(throws: Errno.noSuchFileOrDirectory) { try mount.snapshot.entries() }
            try mount.start()
            #expect(try mount.snapshot.lstat().kind == .directory)
            #expect(try mount.snapshot.entries() == [])
            #expect(try !isListed())
            #expect(throws: Errno.noSuchFileOrDirectory) { try (mount.snapshot / ".snapshot").lstat() }
            try mount.stop()
            #expect(throws: Errno.noSuchFileOrDirectory) { try mount.snapshot.lstat() }
            #expect(try !isListed())
        }
    }

    @Test("the store is not seen in the mount nor in the snapshot")
    func storeIsHidden() throws {
        try MountedSource.with { mount in
            try (mount.mountpoint / "file").create(bytes(5_000))
            try mount.start()
            try (mount.mountpoint / "file").unlink()
            for root in [mount.mountpoint, mount.snapshot] {
                #expect(try !root.entries().contains { $0 == ".fusesnap" })
                #expect(throws: Errno.noSuchFileOrDirectory) { try (root / ".fusesnap").lstat() }
            }
        }
    }

    @Test("listings that are opened at different times, and read by turns, show each name once")
    func listingsMixed() throws {
        let names = Set((0..<5000).map { Path("name-\($0)") })
        try MountedSource.with(prepare: { source in
            try (source / "d").mkdir()
            for name in names { try (source / "d" / name).create() }
        }) { mount in
            try mount.start()
            for round in 0..<5 {
                let first = try (mount.snapshot / "d").open(O_RDONLY | O_DIRECTORY)
                var seen: [Path] = []
                while seen.count < 1500 { seen += try first.nextEntries(room: 4096).map(\.name) }
                // In the primary they get other places.
                for number in 0..<500 {
                    let name = mount.mountpoint / "d" / Path("name-\(number * 10 + round)")
                    try name.rename(to: mount.mountpoint / "d" / "moved")
                    try (mount.mountpoint / "d" / "moved").rename(to: name)
                }
                // What the kernel has of the first listing it uses for the second.
                let second = try (mount.snapshot / "d").entries()
                #expect(second.count == names.count && Set(second) == names)
                while true {
                    let more = try first.nextEntries(room: 4096)
                    if more.isEmpty { break }
                    seen += more.map(\.name)
                }
                seen.removeAll { $0 == "." || $0 == ".." }
                #expect(seen.count == names.count && Set(seen) == names)
            }
        }
    }

    @Test("every change in the snapshot is EROFS")
    func readOnly() throws {
        try MountedSource.with(prepare: Self.populate) { mount in
            try mount.start()
            let (root, file) = (mount.snapshot, mount.snapshot / "d/file")
            let attempts: [(String, () throws -> Void)] = [
                ("create", { try (root / "new").create() }),
                ("create in a directory", { try (root / "d/new").create() }),
                ("O_TMPFILE", { _ = try root.open(O_RDWR | O_TMPFILE) }),
                ("mkdir", { try (root / "new").mkdir() }), ("symlink", { try (root / "new").symlink(to: "x") }),
                ("mkfifo", { try (root / "new").mkfifo() }), ("link", { try file.link(to: root / "new") }),
                ("unlink", { try file.unlink() }), ("rmdir", { try (root / "d/directory").rmdir() }),
                ("rename", { try file.rename(to: root / "new") }),
                ("exchange", { try file.rename(to: root / "d/symlink", flags: 2) }),
                ("chmod", { try file.chmod(0o600) }), ("chmod of the root", { try root.chmod(0o700) }),
                ("utimensat", { try file.setTimes(accessed: .now, modified: .now) }),
                ("truncate", { try file.truncate(0) }),
                ("open for writing", { _ = try file.open(O_WRONLY) }),
                ("open for reading and writing", { _ = try file.open(O_RDWR) }),
                ("O_TRUNC", { _ = try file.open(O_RDONLY | O_TRUNC) }),
                ("setxattr", { try file.setAttribute("user.b", [1]) }),
                ("removexattr", { try file.removeAttribute("user.a") }),
            ]
            for (name, attempt) in attempts {
                #expect(throws: Errno.readOnlyFileSystem, "\(name)", performing: attempt)
            }
            if Machine.isRoot {
                #expect(throws: Errno.readOnlyFileSystem) { try file.chown(user: 1) }
                #expect(throws: Errno.readOnlyFileSystem) { try (root / "new").mknod(mode: S_IFCHR, device: 259) }
            }
        }
    }

    @Test("names cannot be moved or linked between the live view and the snapshot, nor `.snapshot` itself changed")
    func noWayIn() throws {
        try MountedSource.with(prepare: Self.populate) { mount in
            try mount.start()
            let before = try TreeCapture(mount.mountpoint)
            let attempts: [() throws -> Void] = [
                { try (mount.mountpoint / "second").rename(to: mount.snapshot / "x") },
                { try (mount.snapshot / "second").rename(to: mount.mountpoint / "x") },
                { try (mount.snapshot / "second").link(to: mount.mountpoint / "x") },
                { try (mount.mountpoint / "second").link(to: mount.snapshot / "x") },
                { try mount.snapshot.rmdir() }, { try mount.snapshot.unlink() },
                { try mount.snapshot.rename(to: mount.mountpoint / "x") },
                { try (mount.mountpoint / "d").rename(to: mount.snapshot) },
                { try mount.snapshot.mkdir() }, { try mount.snapshot.create() },
            ]
            for attempt in attempts { #expect(throws: Errno.self, performing: attempt) }
            try expectSnapshot(mount, is: before, "after the attempts")
            expect(try TreeCapture(mount.mountpoint), equals: before, "live view after the attempts")
        }
    }

    @Test("inode numbers are the source's with one high bit flipped, the same in the next snapshot")
    func inodes() throws {
        try MountedSource.with(prepare: Self.populate) { mount in
            let source = try TreeCapture(mount.source).inodes
            var masks: Set<UInt64> = []
            for _ in 1...2 {
                try mount.start()
                let numbers = try TreeCapture(mount.snapshot).inodes
                #expect(Set(numbers.keys) == Set(source.keys))
                for (path, number) in numbers { masks.insert(number ^ (source[path] ?? number)) }
                for entry in try (mount.snapshot / "d").open(O_RDONLY | O_DIRECTORY).nextEntries()
                where entry.name != ".." {
                    let path = entry.name == "." ? Path("d") : "d" / entry.name
                    #expect(entry.inode == numbers[path], "listed \(path)")
                }
                try (mount.mountpoint / "d/file").write([1], at: 0)
                #expect(try (mount.snapshot / "d/file").lstat().inode == numbers["d/file"])
                try mount.stop()
            }
            let mask = try #require(masks.first)
            #expect(masks.count == 1 && mask.nonzeroBitCount == 1 && mask >= 1 << 32, "\(masks)")
        }
    }

    @Test("preserving an original and reading the snapshot leave the source's atime as it is")
    func accessTimes() throws {
        try MountedSource.with { mount in
            let live = mount.mountpoint
            for name: Path in ["written", "read"] { try (live / name).create(bytes(50_000)) }
            try (live / "d").mkdir()
            for name: Path in ["written", "read", "d"] {
                try (live / name).setTimes(accessed: Timestamp(100, 1), modified: Timestamp(200))
            }
            try mount.start()
            try (live / "written").write(bytes(10), at: 5_000)
            #expect(try (mount.source / "written").lstat().accessed == Timestamp(100, 1))
            _ = try TreeCapture(mount.snapshot)
            _ = try (mount.snapshot / "read").open(O_RDONLY).map(50_000, protection: PROT_READ).read(50_000, at: 0)
            for name: Path in ["read", "d"] {
                #expect(try (mount.source / name).lstat().accessed == Timestamp(100, 1), "\(name)")
                #expect(try (mount.snapshot / name).lstat().accessed == Timestamp(100, 1), "\(name)")
            }
        }
    }

    @Test("descriptors and mappings open in the snapshot give errors after the stop, never other data")
    func afterStop() throws {
        try MountedSource.with { mount in
            let file = mount.mountpoint / "file"
            try file.create(bytes(1 << 20))
            try (mount.mountpoint / "d").mkdir()
            try (mount.mountpoint / "d/inside").create()
            try mount.start()
            let open = try (mount.snapshot / "file").open(O_RDONLY)
            let directory = try (mount.snapshot / "d").open(O_RDONLY | O_DIRECTORY)
            let mapping = try open.map(1 << 20, protection: PROT_READ)
            #expect(try open.read(4_096, at: 0) == bytes(4_096))
            try mount.stop()
            try file.write(bytes(1 << 20, seed: 2), at: 0)
            let original = bytes(1 << 20)
            for offset in stride(from: 0, to: 1 << 20, by: 65_536) {
                let expected = Array(original[offset..<(offset + 4_096)])
                expectErrorOrNothingElse("read at \(offset)", expected) { () throws(Errno) in
                    try open.read(4_096, at: offset)
                }
                expectErrorOrNothingElse("mapping at \(offset)", expected) { () throws(Errno) in
                    try mapping.read(4_096, at: offset)
                }
            }
            #expect(throws: Errno.self) { try open.read(4_096, at: 700_000) }
            #expect(throws: Errno.self) { try (Path("/proc/self/fd/\(directory.raw)") / "inside").lstat() }
            try mount.start()
            #expect(throws: Errno.self, "a new snapshot does not revive it") { try open.read(4_096, at: 900_000) }
        }
    }

    /// What was in the page cache may still be read: it is what the snapshot held.
    private func expectErrorOrNothingElse(
        _ what: String, _ expected: [UInt8], _ body: () throws(Errno) -> [UInt8]
    ) {
        do throws(Errno) {
            let found = try body()
            #expect(found == expected, "\(what): other data")
        } catch {
            #expect(
                [.ioError, .staleNFSFileHandle, .badAddress, .noSuchFileOrDirectory].contains(error), "\(what)")
        }
    }

    @Test("readers of the snapshot see the same bytes while writers change the live files")
    func stableUnderWriters() throws {
        try MountedSource.with { mount in
            let (live, snapshot) = (mount.mountpoint, mount.snapshot)
            let names = (0..<4).map { Path("file-\($0)") }
            for (number, name) in names.enumerated() {
                try (live / name).create(bytes(600_000, seed: UInt64(number)))
            }
            let expected = try names.map { try hash(of: live / $0) }
            try mount.start()
            let isOver = Flag()
            let writers = try names.enumerated().map { number, name in
                try Worker {
                    var random = SeededGenerator(seed: UInt64(number))
                    let file = try (live / name).open(O_RDWR)
                    while !isOver.isSet {
                        try file.writeAll(random.data(random.number(1...20_000)), at: random.number(0...599_999))
                        if random.isTrue(oneIn: 20) { try file.truncate(random.number(0...600_000)) }
                        if random.isTrue(oneIn: 30) {
                            try file.allocate(
                                0x3, at: random.number(0...500_000), count: random.number(1...100_000))
                        }
                    }
                }
            }
            var found: [[UInt64]] = []
            for round in 0..<25 {
                for name in names where round % 3 == 0 { try (snapshot / name).dropPages() }
                found.append(try names.map { try hash(of: snapshot / $0) })
            }
            isOver.set()
            for writer in writers { try writer.join() }
            for (round, hashes) in found.enumerated() { #expect(hashes == expected, "round \(round)") }
        }
    }

    @Test("numbers of inodes that are used again do not confuse the snapshot")
    func inodeReuse() throws {
        try MountedSource.with { mount in
            let live = mount.mountpoint
            for number in 0..<100 { try (live / Path("old-\(number)")).create(bytes(3_000, seed: UInt64(number))) }
            let atCut = try TreeCapture(live)
            try mount.start()
            for number in 0..<100 { try (live / Path("old-\(number)")).unlink() }
            for round in 0..<5 {
                for number in 0..<200 {
                    try (live / Path("new-\(number)")).create(bytes(2_000, seed: UInt64(round)))
                }
                for number in 0..<200 { try (live / Path("new-\(number)")).unlink() }
            }
            for number in 0..<100 { try (live / Path("old-\(number)")).mkdir() }
            try expectSnapshot(mount, is: atCut, "after inodes were made and removed")
        }
    }

    @Test("a second start fails and leaves the first alone; a stop without a start fails")
    func misuse() throws {
        try MountedSource.with(prepare: Self.populate) { mount in
            let early = try mount.control("stop")
            #expect(early.code == 1 && early.errors.contains(mount.mountpoint.string), "\(early)")
            try mount.start()
            let atCut = try TreeCapture(mount.snapshot)
            try (mount.mountpoint / "second").write([1], at: 0)
            let second = try mount.control("start")
            #expect(second.code == 1 && second.errors.contains("active"), "\(second)")
            try expectSnapshot(mount, is: atCut, "after the second start")
            try mount.stop()
            #expect(try mount.control("stop").code == 1)
        }
    }

    @Test("50 snapshots one after the other are each exact, and leave nothing")
    func manySnapshots() throws {
        try MountedSource.with(prepare: Self.populate) { mount in
            let file = mount.mountpoint / "d/file"
            for number in 1...50 {
                let atCut = try TreeCapture(mount.mountpoint)
                try mount.start()
                try file.write(bytes(100, seed: UInt64(number)), at: number * 150)
                try (mount.mountpoint / "second").rename(to: mount.mountpoint / "third")
                try (mount.mountpoint / "third").rename(to: mount.mountpoint / "second")
                try expectSnapshot(mount, is: atCut, "number \(number)")
                try mount.stop()
            }
            #expect(try mount.status().deltaBytes == 0)
        }
    }

    @Test("status tells the state, and how much is stored: the second write to a block stores nothing")
    func status() throws {
        try MountedSource.with { mount in
            let file = mount.mountpoint / "file"
            try file.create(bytes(1 << 20))
            var status = try mount.status()
            for field in [
                "pid", "version", "source", "mountpoint", "mode", "state", "started", "delta_bytes",
                "changed_areas",
                "snapshot_bytes_read",
            ] { #expect(status.has(field), "\(field)") }
            #expect(status.state == "idle" && status.text("source") == mount.source.string)
            try mount.start()
            #expect(try mount.status().state == "active")
            try file.write(bytes(10), at: 0)
            status = try mount.status()
            if !Machine.preservesWholeFiles {
                #expect((4_096...16_384).contains(status.deltaBytes), "\(status.json)")
            }
            #expect(status.changedAreas >= 1)
            try file.write(bytes(3_000, seed: 2), at: 100)
            #expect(try mount.status().deltaBytes == status.deltaBytes)
            _ = try hash(of: mount.snapshot / "file")
            #expect(try mount.status().number("snapshot_bytes_read") >= 1 << 20)
        }
    }

    @Test("appends and new files store nothing of their own")
    func freeChanges() throws {
        try MountedSource.with { mount in
            let file = mount.mountpoint / "log"
            try file.create(bytes(8_192))
            try mount.start()
            for _ in 0..<10 { try file.append(bytes(100_000)) }
            for number in 0..<10 { try (mount.mountpoint / Path("new-\(number)")).create(bytes(100_000)) }
            #expect(try mount.status().deltaBytes <= 16_384)
        }
    }

    @Test(
        "a file system mounted below the source works live, and is an empty directory in the snapshot",
        .enabled(if: Machine.isRoot, "\(Machine.needsRoot)"))
    func mountBelow() throws {
        try MountedSource.with { source in
            try (source / "below").mkdir()
            try (source / "file").create([1])
            try succeed(["mount", "-t", "tmpfs", "none", (source / "below").string])
        } _: { mount in
            defer { umount2((mount.source / "below").string, Int32(MNT_DETACH)) }
            let live = mount.mountpoint / "below"
            try (live / "made").create(bytes(5_000))
            try (live / "dir").mkdir()
            try mount.start()
            try (live / "made").rename(to: live / "dir/moved")
            #expect(try (live / "dir/moved").contents() == bytes(5_000))
            #expect(Set(try live.entries()) == ["dir"])
            #expect(try mount.snapshot.entries().contains("below"))
            #expect(try (mount.snapshot / "below").entries().isEmpty)
            #expect(try (mount.snapshot / "file").contents() == [1])
            try (live / "dir/moved").unlink()
            try mount.stop()
        }
    }

    @Test(
        "what changes the source past the mount marks the snapshot; what is concerned reads EIO, and the rest goes on",
        .enabled(if: Machine.isRoot, "\(Machine.needsRoot)"))
    func changedPastTheMount() throws {
        try MountedSource.with { mount in
            try (mount.mountpoint / "changed").create(bytes(10_000))
            try (mount.mountpoint / "kept").create(bytes(10_000, seed: 2))
            try mount.start()
            try (mount.source / "changed").write([1], at: 5_000)
            try wait("the snapshot to be marked") { try mount.status().has("inexact_reason") }
            #expect(try mount.status().text("inexact_reason").contains("changed"))
            #expect(throws: Errno.ioError) { try (mount.snapshot / "changed").contents() }
            #expect(try (mount.snapshot / "kept").contents() == bytes(10_000, seed: 2))
            #expect(try mount.control("stop").code == 3)
            // What was changed before the start counts for nothing.
            try (mount.source / "changed").write([2], at: 5_000)
            try mount.start()
            try mount.stop()
        }
    }

    @Test(
        "a source that is in use past the mount is mounted over only with --force",
        .enabled(if: Machine.isRoot, "\(Machine.needsRoot)"))
    func sourceInUse() throws {
        try TemporaryDirectory.with { top in
            let source = top / "source"
            try source.mkdir()
            try (source / "held").create([1])
            let held = try (source / "held").open(O_WRONLY)
            let refused = try run([Machine.binary, "mount", source.string])
            #expect(refused.code == 1)
            #expect(refused.errors.contains((source / "held").string), "\(refused)")
            #expect(refused.errors.contains("\(getpid())"), "\(refused)")
            #expect(try !isMounted(source))
            try succeed([Machine.binary, "mount", "--force", source.string])
            try succeed([Machine.binary, "ctl", "start", source.string])
            try held.writeAll([2], at: 0)
            try wait("the write to be noticed") {
                try succeed([Machine.binary, "ctl", "status", "--json", source.string]).contains("inexact_reason")
            }
            #expect(throws: Errno.ioError) { try (source / ".snapshot/held").contents() }
            #expect(try run([Machine.binary, "ctl", "stop", source.string]).code == 3)
            try succeed([Machine.binary, "unmount", source.string])
        }
    }
}

extension Path {
    /// Asks the kernel to forget the pages it has of the file.
    fileprivate func dropPages() throws(Errno) {
        let file = try open(O_RDONLY)
        let result = posix_fadvise(file.raw, 0, 0, POSIX_FADV_DONTNEED)
        if result != 0 { throw Errno(rawValue: result) }
    }
}
