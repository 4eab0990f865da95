import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Every call that takes a path, on every path that it must refuse, and on every kind of file: what pjdfstest asks.
@Suite(.serialized) struct PathErrorTests {
    private static let long = Path(repeatElement(UInt8(ascii: "n"), count: 256))
    private static let paths: [(Path, Errno)] = [
        ("none/x", .noSuchFileOrDirectory), ("file/x", .notDirectory), ("file/", .notDirectory),
        ("fifo/x", .notDirectory), ("dangling/x", .noSuchFileOrDirectory),
        ("loop/x", .tooManySymbolicLinkLevels), (long, .fileNameTooLong), (long / "x", .fileNameTooLong),
        ("d" / long, .fileNameTooLong), (tooLong, .fileNameTooLong), ("", .noSuchFileOrDirectory),
    ]
    /// 4,096 bytes, the closing NUL byte not counted.
    private static let tooLong = Path(Array(repeating: Array("d/".utf8), count: 2048).joined())

    @Test("what leads nowhere is refused by each call, errno for errno", arguments: Setting.available)
    func nowhere(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try make(place)
            try place.cut()
            for (path, _) in Self.paths {
                let path = path == "" ? path : place / path
                for (name, call) in PathCalls.all {
                    transcript.note("\(name) of \(path.suffix)") { try call(path) }
                }
                transcript.note("link from \(path.suffix)") { try path.link(to: place / "made") }
                transcript.note("link to \(path.suffix)") { try (place / "file").link(to: path) }
                for flags: Int32 in [0, 1, 2] {
                    transcript.note("rename \(flags) from \(path.suffix)") {
                        try path.rename(to: place / "made", flags: flags)
                    }
                    transcript.note("rename \(flags) to \(path.suffix)") {
                        try (place / "file").rename(to: path, flags: flags)
                    }
                }
            }
            transcript.state("left", try place.root.entries().sorted { "\($0)" < "\($1)" })
        }
    }

    @Test("the errors are those of POSIX", arguments: Setting.available)
    func names(_ setting: Setting) throws {
        try setting.run { place in
            try make(place)
            try place.cut()
            for (path, expected) in Self.paths where !path.bytes.isEmpty && path.bytes.last != UInt8(ascii: "/") {
                let path = place / path
                for (_, call) in PathCalls.ofFiles + PathCalls.ofNewNames {
                    #expect(throws: expected) { try call(path) }
                }
                #expect(throws: expected) { try path.unlink() }
                #expect(throws: expected) { try path.rmdir() }
                #expect(throws: expected) { try path.rename(to: place / "made") }
                #expect(throws: expected) { try (place / "file").rename(to: path) }
                #expect(throws: expected) { try path.link(to: place / "made") }
                #expect(throws: expected) { try (place / "file").link(to: path) }
            }
        }
    }

    private func make(_ place: Place) throws {
        try (place / "file").create(bytes(10))
        try (place / "d").mkdir()
        try (place / "fifo").mkfifo()
        try (place / "dangling").symlink(to: "none")
        try (place / "loop").symlink(to: "loop")
    }

    @Test("each call on each kind of file does what it does on the source", arguments: Setting.available)
    func kinds(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            for kind in FileKind.available {
                for (name, call) in PathCalls.all {
                    for suffix: Path in ["", "/", "/."] {
                        let path = place / "x"
                        try kind.make(path)
                        try place.cutOnce()
                        transcript.note("\(name) of a \(kind) with '\(suffix)'") {
                            try call(Path(path.bytes + suffix.bytes))
                        }
                        transcript.state("then", path.exists ? "\(try path.lstat().kind)" : "nothing")
                        for name: Path in ["x", "x.link", "target"] { (place / name).remove() }
                    }
                }
            }
        }
    }
}

/// A kind of file, as rename and the rest tell them apart.
enum FileKind: String, CaseIterable, CustomStringConvertible {
    case file, linked, empty, full, symlink, fifo, socket, device

    var description: String { rawValue }

    static var available: [FileKind] { Machine.isRoot ? allCases : allCases.filter { $0 != .device } }

    func make(_ path: Path) throws {
        switch self {
        case .file: try path.create(bytes(100))
        case .linked:
            try path.create(bytes(5_000, seed: 2))
            try path.link(to: path.appending(".link"))
        case .empty: try path.mkdir()
        case .full:
            try path.mkdir()
            try (path / "inside").create(bytes(10))
        case .symlink: try path.symlink(to: "target")
        case .fifo: try path.mkfifo()
        case .socket: try path.makeSocket()
        case .device: try path.mknod(mode: S_IFCHR | 0o600, device: ts_makedev(1, 3))
        }
    }
}

extension Path {
    func appending(_ text: String) -> Path { Path(bytes + Array(text.utf8)) }

    /// What tells it from others in a transcript: not the place of the test.
    var suffix: String {
        let text = name.description
        return text.count > 20 ? "\(bytes.count > 1_000 ? "a path" : "a name") that is too long" : "\(self.last2)"
    }

    private var last2: Path {
        Path(
            bytes.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false).suffix(2).joined(
                separator: [UInt8(ascii: "/")]))
    }
}
