import Glibc
import SystemPackage
import TestSupport
import Testing

/// `ctl start --single-pass`: what a backup has read of a file is not kept any more.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct SinglePassTests {
    private static let fileCount = 12
    private static let fileBytes = 700_000

    private func start(_ mount: MountedSource) throws {
        let started = try mount.control("start", "--single-pass")
        if started.code != 0 { throw TestFailure(started.description) }
    }

    private func fill(_ live: Path) throws {
        try (live / "d").mkdir()
        for number in 0..<Self.fileCount {
            try file(live, number).create(bytes(Self.fileBytes, seed: UInt64(number + 1)))
            try (live / "d" / Path("small\(number)")).create(bytes(number * 500, seed: 77))
        }
        try (live / "d/small5").link(to: live / "linked")
        try (live / "d/hole").create(bytes(5_000))
        try (live / "d/hole").truncate(1 << 20)
        // rsync takes a directory's time for right when the second is.
        try (live / "d").setTimes(accessed: nil, modified: Timestamp(1_600_000_000, 123_456_789))
    }

    private func file(_ live: Path, _ number: Int) -> Path { live / "d" / Path("file\(number)") }

    /// Programs that read each file once, and how they copy a directory, and restore it to another.
    struct Program: Sendable, CustomTestStringConvertible {
        let name: String
        let script: String
        var testDescription: String { name }
    }

    private static let programs = [
        Program(name: "cp", script: "cp -a $FROM/. $TO"),
        Program(
            name: "tar", script: "tar --format=posix -C $FROM -cf $TOP/archive . && tar -C $TO -xpf $TOP/archive"),
        Program(name: "rsync", script: "rsync -aHAX $FROM/ $TO"),
        Program(
            name: "restic",
            script: """
                export RESTIC_REPOSITORY=$TOP/repository RESTIC_PASSWORD=x RESTIC_CACHE_DIR=$TOP/cache
                restic -q init && cd $FROM && restic -q backup . && cd $TOP && restic -q restore latest --target $TO
                """),
        Program(
            name: "borg",
            script: """
                export BORG_REPO=$TOP/repository BORG_BASE_DIR=$TOP BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes
                borg init --encryption=none && cd $FROM && borg create ::a . && cd $TO && borg extract ::a
                """),
    ]

    @Test(
        "a program that reads once gets all of the cut while files are written, and then nothing is stored any more",
        arguments: programs.filter { Machine.has($0.name) }, Machine.Mode.available)
    func program(_ program: Program, _ mode: Machine.Mode) throws {
        try MountedSource.with(mode: mode) { mount in
            let live = mount.mountpoint
            try fill(live)
            let atCut = try TreeCapture(live)
            try start(mount)
            let isOver = Flag()
            let writer = try Worker {
                var random = SeededGenerator(seed: 1)
                while !isOver.isSet {
                    let file = file(live, random.number(0...Self.fileCount - 1))
                    try file.write(random.data(9_000), at: random.number(0...Self.fileBytes - 9_000))
                    try (live / "temporary").create(random.data(100))
                    try (live / "temporary").rename(to: live / "d" / Path("small\(random.number(6...11))"))
                }
            }
            let target = mount.top / "copy"
            try target.mkdir()
            let environment = ["FROM": mount.snapshot.string, "TO": target.string, "TOP": mount.top.string]
            let result = Result { try succeed(["sh", "-ec", program.script], environment: environment) }
            isOver.set()
            try writer.join()
            _ = try result.get()
            let copied = try TreeCapture(target)
            // What the root's own time is after a restoration is the program's affair.
            let wrong = atCut.differences(copied, ignoring: [.ctime, .ranges]).filter { !$0.hasPrefix(".: mtime") }
            #expect(wrong == [], "the copy of \(program.name)")
            let status = try mount.status()
            #expect(status.number("released_bytes") > Self.fileCount * Self.fileBytes, "\(status.json)")
            for number in 0..<Self.fileCount {
                try file(live, number).write(bytes(Self.fileBytes, seed: 99), at: 0)
                try file(live, number).unlink()
            }
            if mode == .redirect {
                // It gives space back once what stands for it is durable, and leaves what lies behind the last whole block of a
                // file to the merge.
                try wait("the space") { try mount.status().deltaBytes <= Self.fileCount * 4_096 }
            } else {
                #expect(try mount.status().deltaBytes == 0)
            }
            // Names and attributes are those of the cut until the end.
            #expect(try file(mount.snapshot, 3).lstat().size == Self.fileBytes)
            #expect(try Set((mount.snapshot / "d").entries()).count == 2 * Self.fileCount + 1)
            #expect(throws: Errno.ioError) { try hash(of: file(mount.snapshot, 3)) }
            let stopped = try mount.control("stop")
            #expect(stopped.code == 3 && stopped.errors.contains("again"), "\(stopped)")
        }
    }

    @Test(
        "a backup that reads each file once ends with 0, one that reads again what has changed does not",
        arguments: Machine.Mode.available)
    func once(_ mode: Machine.Mode) throws {
        try MountedSource.with(mode: mode) { mount in
            try fill(mount.mountpoint)
            func back(_ script: String) throws -> Finished {
                try run([
                    Machine.binary, "run", "--single-pass", "--in-place=never", "--report",
                    (mount.top / "report").string, mount.mountpoint.string, "--", "sh", "-ec", script,
                ])
            }
            let (live, snapshot) = (mount.mountpoint, "$FUSESNAP_SNAPSHOT")
            let overwrite = "dd if=/dev/zero of=\(live)/d/file1 bs=4096 count=9 conv=notrunc status=none"
            let once = try back(
                "cat \(snapshot)/d/file1 >/dev/null; \(overwrite); cat \(snapshot)/d/file2 >/dev/null")
            #expect(once.code == 0, "\(once)")
            let report = MountStatus(json: String(decoding: try (mount.top / "report").contents(), as: UTF8.self))
            #expect(report.number("released_bytes") >= 2 * Self.fileBytes, "\(report.json)")
            // What has not changed may be read again.
            let unchanged = try back("cat \(snapshot)/d/file2 \(snapshot)/d/file2 >/dev/null; \(overwrite)")
            #expect(unchanged.code == 0, "\(unchanged)")
            // The command does not mind, the snapshot does.
            let twice = try back(
                "cat \(snapshot)/d/file1 >/dev/null; \(overwrite); cat \(snapshot)/d/file1 || true")
            #expect(twice.code == 125 && twice.errors.contains("again"), "\(twice)")
            #expect(try !mount.status().has("released_bytes"))
        }
    }

    @Test(
        "what the kernel reads ahead, for a mapping or for splice is not taken for read",
        arguments: Machine.Mode.available)
    func kernelsOwn(_ mode: Machine.Mode) throws {
        try MountedSource.with(mode: mode) { mount in
            let live = mount.mountpoint
            try fill(live)
            try start(mount)
            let original = bytes(Self.fileBytes, seed: 1)
            // A little at the begin of the file: reading ahead would fetch more.
            let opened = try file(mount.snapshot, 0).open(O_RDONLY)
            #expect(try opened.read(4_096) == Array(original[..<4_096]))
            let privately = try file(mount.snapshot, 1).open(O_RDONLY).map(
                Self.fileBytes, protection: PROT_READ, flags: MAP_PRIVATE)
            _ = try privately.read(Self.fileBytes, at: 0)
            let publicly = try file(mount.snapshot, 2).open(O_RDONLY).map(
                Self.fileBytes, protection: PROT_READ, flags: MAP_SHARED)
            _ = try publicly.read(Self.fileBytes, at: 0)
            let source = try file(mount.snapshot, 3).open(O_RDONLY)
            let sink = try (mount.top / "sink").open(O_RDWR | O_CREAT)
            #expect(try sink.copyAll(from: source, count: Self.fileBytes) == Self.fileBytes)
            #expect(try mount.status().number("released_bytes") == 4_096)
            for number in 0..<4 { try file(live, number).write(bytes(Self.fileBytes, seed: 99), at: 0) }
            #expect(try opened.read(Self.fileBytes, at: 4_096) == Array(original[4_096...]))
            for number in 1..<4 {
                let data = try file(mount.snapshot, number).contents()
                #expect(data == bytes(Self.fileBytes, seed: UInt64(number + 1)), "file\(number)")
            }
            #expect(try sink.read(Self.fileBytes, at: 0) == bytes(Self.fileBytes, seed: 4))
            try mount.stop()
        }
    }

    @Test(
        "a file with several names is kept, since programs read it once a name", arguments: Machine.Mode.available)
    func links(_ mode: Machine.Mode) throws {
        try MountedSource.with(mode: mode) { mount in
            try fill(mount.mountpoint)
            try start(mount)
            let data = try (mount.snapshot / "linked").contents()
            try (mount.mountpoint / "linked").write(bytes(2_500, seed: 9), at: 0)
            #expect(try (mount.snapshot / "d/small5").contents() == data)
            try mount.stop()
        }
    }

    @Test(
        "readers and writers at once: a reader gets the cut or an error, never other data", arguments: seeds(3),
        Machine.Mode.available)
    func race(_ seed: UInt64, _ mode: Machine.Mode) throws {
        try MountedSource.with(mode: mode) { mount in
            let live = mount.mountpoint
            try (live / "file").create(bytes(2 << 20, seed: 1))
            try start(mount)
            let isOver = Flag()
            let writers = try (0..<2).map { number in
                try Worker {
                    var random = SeededGenerator(seed: seed * 10 + UInt64(number))
                    let file = try (live / "file").open(O_RDWR)
                    while !isOver.isSet {
                        let (offset, count) = (random.number(0...(2 << 20) - 1), random.number(1...30_000))
                        switch random.number(0...9) {
                        case 0: try file.allocate(0x3, at: offset, count: count)
                        case 1: try file.allocate(at: offset, count: count)
                        default: try file.writeAll(random.data(count), at: offset)
                        }
                    }
                }
            }
            let original = bytes(2 << 20, seed: 1)
            let readers = try (0..<3).map { number in
                try Worker {
                    var random = SeededGenerator(seed: seed * 100 + UInt64(number))
                    let file = try (mount.snapshot / "file").open(O_RDONLY)
                    var failures = 0
                    for _ in 0..<300 {
                        let (offset, count) = (random.number(0...(2 << 20) - 1), random.number(1...100_000))
                        do throws(Errno) {
                            let data = try file.read(count, at: offset)
                            let wanted = Array(original[offset..<min(offset + count, 2 << 20)])
                            if data != wanted { failures += 1 }
                        } catch {
                            if error != .ioError { failures += 1 }
                        }
                    }
                    if failures > 0 { throw TestFailure("seed \(seed): \(failures) wrong reads") }
                }
            }
            let results = readers.map { reader in Result { try reader.join() } }
            isOver.set()
            for writer in writers { try writer.join() }
            for result in results { try result.get() }
            #expect(try mount.status().state == "active")
            _ = try mount.control("stop")
        }
    }
}

extension File {
    /// sendfile(2) until all is copied.
    fileprivate func copyAll(from source: File, count: Int) throws -> Int {
        var done = 0
        while done < count {
            let more = sendfile(raw, source.raw, nil, count - done)
            if more < 0 { throw TestFailure("sendfile: \(currentErrno)") }
            if more == 0 { break }
            done += more
        }
        return done
    }
}
