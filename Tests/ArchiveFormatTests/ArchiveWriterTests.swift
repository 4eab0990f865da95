import ArchiveFormat
import CTestSupport
import Glibc
import LinuxSystem
import SystemPackage
import TestSupport
import Testing

/// What is written is what GNU tar and bsdtar restore.
@Suite(.serialized) struct ArchiveWriterTests {
    struct Reader: Sendable, CustomTestStringConvertible {
        let name: String
        let words: [String]
        var testDescription: String { name }

        func restore(_ archive: Path, to target: Path) throws {
            try target.mkdir()
            let finished = try run(words + ["-C", target.string, "-f", archive.string])
            // A warning would tell of something that is not understood.
            #expect(finished.code == 0 && finished.errors.isEmpty, "\(finished)")
        }
    }

    private static let readers = [
        Reader(
            name: "GNU tar",
            words: [
                "tar", "--warning=no-unknown-keyword", "--warning=no-timestamp", "--xattrs", "--xattrs-include=*",
                "--acls", "--numeric-owner", "-x", "-p",
            ]),
        Reader(name: "bsdtar", words: ["bsdtar", "--numeric-owner", "-x", "-p"]),
    ].filter { Machine.has($0.words[0]) }

    /// A tree with all that an archive can hold.
    private func fill(_ top: Path) throws {
        try (top / "d").mkdir(mode: 0o750)
        try (top / "empty").create()
        try (top / "d/file").create(bytes(300_001))
        try (top / "d/file").setAttribute("user.a", [0, 1, 255, 10, 61])
        try (top / "d/file").setAttribute("user.empty", [])
        try (top / "d/file").link(to: top / "linked")
        try (top / "link").symlink(to: "d/file")
        try (top / Path([0xff, 0xfe, 32, 0xe4])).create(bytes(10))
        try (top / Path(String(repeating: "n", count: 255))).create(bytes(20))
        let deep = (0..<3).reduce(top) { path, _ in path / Path(String(repeating: "p", count: 200)) }
        try succeed(["mkdir", "-p", deep.string])
        try (deep / "file").symlink(to: Path(String(repeating: "t", count: 300)))
        try (top / "fifo").mkfifo()
        for (name, ranges, size) in [
            ("sparse", [8_192..<12_288, 1 << 20..<(1 << 20) + 4_096], 1_052_672), ("tail", [0..<4_096], 5 << 20),
            ("head", [1 << 20..<(1 << 20) + 8_192], (1 << 20) + 8_192), ("hole", [], 3 << 20),
        ] as [(Path, [Range<Int>], Int)] {
            let file = try (top / name).open(O_RDWR | O_CREAT)
            for range in ranges {
                try file.writeAll(bytes(range.count, seed: UInt64(range.lowerBound + 1)), at: range.lowerBound)
            }
            try file.truncate(size)
            try file.sync()
        }
        if Machine.isRoot {
            try (top / "device").mknod(mode: S_IFCHR | 0o640, device: ts_makedev(1, 3))
            try (top / "d/file").chown(user: 12_345, group: 3_000_000)
            try (top / "d/file").chmod(0o4755)
            if Machine.has("setfacl") {
                try succeed(["setfacl", "-m", "u:1000:rx,g:77:w,d:u:1001:r", (top / "d").string])
                try succeed(["setfacl", "-m", "u:2147483647:r", (top / "empty").string])
            }
        }
        for (path, seconds, nanoseconds): (Path, Int64, Int64) in [
            ("d/file", 1_234_567_890, 123_456_789), ("empty", -5, 0), ("d", 1, 999_999_999), ("sparse", 0, 0),
            (".", 1_700_000_000, 7),
        ] { try (top / path).setTimes(accessed: nil, modified: TestSupport.Timestamp(seconds, nanoseconds)) }
    }

    /// Archives a tree, in the order of its names.
    private func archive(_ top: Path, to path: Path) throws {
        let output = try path.string.withCString {
            try Descriptor.open(at: .workingDirectory, $0, O_RDWR | O_CREAT, mode: 0o600)
        }
        var writer = try ArchiveWriter(to: output)
        var names: [UInt64: [UInt8]] = [:]
        try add(top, ".", &writer, &names)
        try writer.finish()
    }

    private func add(
        _ path: Path, _ name: Path, _ writer: inout ArchiveWriter, _ names: inout [UInt64: [UInt8]]
    ) throws {
        let inode = try path.withCString { (string) throws(Errno) in
            try Descriptor.open(at: .workingDirectory, string, O_PATH | O_NOFOLLOW)
        }
        let status = try FileStatus(of: inode)
        var member = ArchiveMember(
            path: name.bytes, status: status, extended: try allExtendedAttributes(inode), content: .none)
        if status.isSymbolicLink { member.content = .symbolicLink(try readLink(inode)) }
        guard status.isRegular else {
            try writer.begin(member)
            if !status.isDirectory { return }
            for entry in try path.entries().sorted(by: { $0.string < $1.string }) {
                try add(path / entry, name / entry, &writer, &names)
            }
            return
        }
        if let first = names[status.inode] {
            member.content = .hardLink(first)
            return try writer.begin(member)
        }
        names[status.inode] = name.bytes
        let file = try path.open(O_RDONLY)
        let ranges = try file.dataRanges()
        member.content = .data(ranges.map { Int64($0.lowerBound)..<Int64($0.upperBound) })
        try writer.begin(member)
        for range in ranges {
            for at in stride(from: range.lowerBound, to: range.upperBound, by: 100_000) {
                let data = try file.read(min(100_000, range.upperBound - at), at: at)
                try data.withUnsafeBytes { try writer.write($0, at: Int64(at)) }
            }
        }
    }

    @Test("all of a tree comes back: data, holes, links, attributes, ACLs, times", arguments: readers)
    func roundTrip(_ reader: Reader) throws {
        try TemporaryDirectory.with { top in
            try (top / "tree").mkdir()
            try fill(top / "tree")
            try archive(top / "tree", to: top / "archive")
            try reader.restore(top / "archive", to: top / "restored")
            let (expected, found) = (try TreeCapture(top / "tree"), try TreeCapture(top / "restored"))
            // bsdtar leaves the time of the directory that it was told to go to.
            let wrong = expected.differences(found, ignoring: [.ctime]).filter { !$0.hasPrefix(".: mtime") }
            #expect(wrong == [])
            // Holes are not in it.
            #expect(try (top / "archive").lstat().size < 400_000)
        }
    }

    @Test("a hole of a terabyte costs next to nothing, and is one again", arguments: readers)
    func hugeHole(_ reader: Reader) throws {
        try TemporaryDirectory.with { top in
            try (top / "tree").mkdir()
            let file = try (top / "tree/file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(5_000), at: 1 << 40)
            try file.truncate((1 << 40) + 100_000)
            try file.sync()
            try archive(top / "tree", to: top / "archive")
            #expect(try (top / "archive").lstat().size < 100_000)
            try reader.restore(top / "archive", to: top / "restored")
            let restored = try (top / "restored/file").open(O_RDONLY)
            #expect(try restored.stat().size == (1 << 40) + 100_000 && restored.stat().blocks < 1_000)
            #expect(try restored.read(5_000, at: 1 << 40) == bytes(5_000))
        }
    }

    @Test("what cannot be written, or is no tar's, is an error in words") func failures() throws {
        try TemporaryDirectory.with { top in
            try (top / "file").create(bytes(3 << 20))
            let full = try Descriptor.open(at: .workingDirectory, "/dev/full", O_WRONLY)
            #expect(throws: ArchiveError.self) {
                var writer = try ArchiveWriter(to: full)
                var names: [UInt64: [UInt8]] = [:]
                try add(top / "file", "file", &writer, &names)
                try writer.finish()
            }
            try (top / "socket").makeSocket()
            let output = try Descriptor.open(at: .workingDirectory, "/dev/null", O_WRONLY)
            #expect(throws: ArchiveError.self) {
                var writer = try ArchiveWriter(to: output)
                var names: [UInt64: [UInt8]] = [:]
                try add(top / "socket", "socket", &writer, &names)
            }
        }
    }

    @Test(
        "an ACL that an archive cannot hold is an error, and not left out",
        .enabled(if: Machine.isRoot && Machine.has("setfacl"), "needs root and setfacl"))
    func largeNumbers() throws {
        try TemporaryDirectory.with { top in
            try (top / "tree").mkdir()
            try succeed(["setfacl", "-m", "u:4000000000:r", (top / "tree").string])
            #expect(throws: ArchiveError.self) { try archive(top / "tree", to: top / "archive") }
        }
    }

    @Test("an archive that was not finished is not taken for a whole one", arguments: readers)
    func unfinished(_ reader: Reader) throws {
        try TemporaryDirectory.with { top in
            try (top / "file").create(bytes(3 << 20))
            let output = try (top / "archive").string.withCString {
                try Descriptor.open(at: .workingDirectory, $0, O_RDWR | O_CREAT, mode: 0o600)
            }
            func begin() throws {
                var writer = try ArchiveWriter(to: output)
                var member = ArchiveMember(
                    path: Array("file".utf8), status: try FileStatus(of: output), extended: ExtendedAttributes(),
                    content: .data([0..<5 << 20]))
                member.status.size = 5 << 20
                try writer.begin(member)
                try bytes(3 << 20).withUnsafeBytes { try writer.write($0, at: 0) }
            }
            try begin()
            try (top / "restored").mkdir()
            let finished = try run(
                reader.words + ["-C", (top / "restored").string, "-f", (top / "archive").string])
            #expect(finished.code != 0, "\(finished)")
        }
    }
}
