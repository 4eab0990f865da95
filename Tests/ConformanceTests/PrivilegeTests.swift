import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Set-id bits and file capabilities, which a change of data takes away unless root makes it.
@Suite(.serialized, .enabled(if: Machine.isRoot, "needs root")) struct PrivilegeTests {
    /// cap_net_raw, permitted and effective: struct vfs_cap_data, revision 2.
    private static let capability: [UInt8] = [1, 0, 0, 2, 0, 0x20, 0, 0] + [UInt8](repeating: 0, count: 12)
    private static let name = "security.capability"

    private static let changes: [(name: String, change: @Sendable (Path) throws -> Void)] = [
        ("write", { try $0.open(O_WRONLY).write([1]) }),
        ("append", { try $0.append([1]) }),
        ("pwrite", { try $0.open(O_RDWR).write([1], at: 100) }),
        ("pwritev2", { try $0.open(O_RDWR).writeVectored([1], at: 100, flags: RWF_DSYNC) }),
        (
            "direct write",
            { file in
                let buffer = AlignedBuffer(4096)
                guard pwrite(try file.open(O_RDWR | O_DIRECT).raw, buffer.start, 4096, 0) == 4096 else {
                    throw currentErrno
                }
            }
        ),
        ("write of nothing", { try $0.open(O_WRONLY).write([]) }),
        ("truncate", { try $0.truncate(10) }),
        ("truncate to the same size", { try $0.truncate(5_000) }),
        ("ftruncate", { try $0.open(O_RDWR).truncate(20) }),
        ("open with O_TRUNC", { _ = try $0.open(O_WRONLY | O_TRUNC) }),
        ("fallocate", { try $0.open(O_RDWR).allocate(at: 0, count: 10_000) }),
        ("punch a hole", { try $0.open(O_RDWR).allocate(0x3, at: 0, count: 4_096) }),
        ("zero a range", { try $0.open(O_RDWR).allocate(0x10, at: 0, count: 4_096) }),
        (
            "copy_file_range",
            { file in
                try file.open(O_RDWR).copyRange(from: file.open(O_RDONLY), at: 0, to: 10_000, count: 100)
            }
        ),
        (
            "sendfile",
            { file in
                let (input, output) = (try file.open(O_RDONLY), try file.open(O_WRONLY))
                _ = try check(sendfile(output.raw, input.raw, nil, 10))
            }
        ),
        ("utimensat", { try $0.setTimes(accessed: .now, modified: .now) }),
        ("setxattr", { try $0.setAttribute("user.a", [1]) }),
        ("read", { _ = try $0.contents() }),
    ]

    /// In the file's group by the supplementary groups or not: it matters for setgid without group execute.
    private static let callers = [
        Caller.root, Caller(description: "another user", user: 1000, group: 1000),
        Caller(description: "a group's member", user: 1000, group: 2000),
        Caller(description: "the owner", user: 1001, group: 1001),
    ]

    @Test("each change of data, by root and by others, on each combination of bits", arguments: Setting.available)
    func changes(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            for (name, change) in Self.changes {
                for caller in Self.callers {
                    for mode: mode_t in [0o6777, 0o4666, 0o2676, 0o2666] {
                        let file = place / "file"
                        try file.create(bytes(5_000))
                        try file.chown(user: 1001, group: 2000)
                        try file.chmod(mode)
                        try file.setAttribute(Self.name, Self.capability)
                        try place.cutOnce()
                        let what = "\(name) by \(caller) of \(String(mode, radix: 8))"
                        try caller.run { transcript.note(what) { try change(file) } }
                        transcript.state(what, String(try file.lstat().permissions, radix: 8))
                        transcript.note(what) { try file.attribute(Self.name) }
                        try file.unlink()
                    }
                }
            }
        }
    }

    @Test(
        "a descriptor that is open already clears them too, and its stat shows it at once",
        arguments: Setting.available)
    func openDescriptor(_ setting: Setting) throws {
        try setting.run { place in
            let file = place / "file"
            try file.create(bytes(5_000))
            let open = try file.open(O_RDWR)
            try file.chmod(0o6777)
            try file.setAttribute(Self.name, Self.capability)
            try place.cut()
            try asUser(1000) { _ = try open.write([1], at: 0) }
            #expect(try open.stat().permissions == 0o777)
            #expect(throws: Errno.noData) { try file.attribute(Self.name) }
            try file.chmod(0o6777)
            try asUser(1000) { _ = try open.write([1], at: 0) }
            #expect(try open.stat().permissions == 0o777)
        }
    }

    @Test("chown takes file capabilities away, by root too", arguments: Setting.available)
    func owners(_ setting: Setting) throws {
        try setting.run { place in
            let file = place / "file"
            try file.create()
            try file.setAttribute(Self.name, Self.capability)
            try place.cut()
            #expect(try file.attribute(Self.name) == Self.capability)
            try file.chown(user: 1000)
            #expect(throws: Errno.noData) { try file.attribute(Self.name) }
        }
    }
}
