import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// inotify and dnotify on the mount: told of what is done through the mount.
@Suite(.serialized) struct NotificationTests {
    private static let changes: [(name: String, change: @Sendable (Path) throws -> Void)] = [
        ("create", { try ($0 / "new").create(bytes(10)) }), ("write", { try ($0 / "file").write([1], at: 0) }),
        ("truncate", { try ($0 / "file").truncate(5) }), ("chmod", { try ($0 / "file").chmod(0o600) }),
        ("times", { try ($0 / "file").setTimes(accessed: Timestamp(1), modified: Timestamp(2)) }),
        ("setxattr", { try ($0 / "file").setAttribute("user.a", [1]) }),
        ("read", { _ = try ($0 / "file").contents() }),
        ("mkdir", { try ($0 / "d").mkdir() }), ("symlink", { try ($0 / "s").symlink(to: "x") }),
        ("link", { try ($0 / "file").link(to: $0 / "link") }),
        ("rename", { try ($0 / "file").rename(to: $0 / "moved") }),
        ("replace", { try ($0 / "new").rename(to: $0 / "moved") }), ("unlink", { try ($0 / "moved").unlink() }),
        ("rmdir", { try ($0 / "d").rmdir() }), ("list", { _ = try $0.entries() }),
        ("allocate", { try ($0 / "link").open(O_RDWR).allocate(at: 0, count: 10_000) }),
    ]

    @Test(
        "a directory's watch tells the same events in the same order as the source's", arguments: Setting.available
    )
    func watches(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            let directory = place / "watched"
            try directory.mkdir()
            try (directory / "file").create(bytes(100))
            try place.cut()
            let queue = File(raw: try check(inotify_init1(Int32(O_CLOEXEC | O_NONBLOCK))))
            _ = try directory.withCString { (path) throws(Errno) in
                try check(inotify_add_watch(queue.raw, path, 0xfff))
            }
            for (name, change) in Self.changes {
                try change(directory)
                transcript.state(name, events(queue))
            }
            try directory.rmdirAll()
            transcript.state("end", events(queue).last ?? "none")
        }
    }

    /// The bytes of all events that wait: far fewer than this.
    private func waiting(_ queue: File) -> [UInt8] {
        do throws(Errno) {
            return try queue.read(1 << 18)
        } catch {
            return []
        }
    }

    /// Mask and name of each event that waits.
    private func events(_ queue: File) -> [String] {
        let bytes = waiting(queue)
        var texts: [String] = []
        var at = 0
        while at < bytes.count {
            let mask = bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: at + 4, as: UInt32.self) }
            let length = Int(bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: at + 12, as: UInt32.self) })
            let name = bytes[(at + 16)..<(at + 16 + length)].prefix { $0 != 0 }
            texts.append("\(String(mask, radix: 16)) \(Path(name))")
            at += 16 + length
        }
        return texts
    }

    @Test("dnotify signals what happens in a directory", arguments: Setting.available)
    func signals(_ setting: Setting) throws {
        try setting.run { place in
            let directory = place / "watched"
            try directory.mkdir()
            try (directory / "file").create()
            try place.cut()
            let open = try directory.open(O_RDONLY | O_DIRECTORY)
            let events = DN_CREATE | DN_DELETE | DN_RENAME | DN_MODIFY | DN_ATTRIB
            guard ts_notify(open.raw, Int32(bitPattern: UInt32(events) | 0x8000_0000)) == 0 else {
                #expect(currentErrno == .invalidArgument, "a kernel without dnotify")
                return
            }
            for name in ["create", "write", "chmod", "rename", "replace", "unlink"] {
                guard let change = Self.changes.first(where: { $0.name == name }) else { continue }
                try change.change(directory)
                #expect(ts_await_notification(5_000) == 1, "\(name)")
                while ts_await_notification(0) == 1 {}
            }
        }
    }
}

extension Path {
    fileprivate func rmdirAll() throws {
        for name in try entries() { try (self / name).unlink() }
        try rmdir()
    }
}
