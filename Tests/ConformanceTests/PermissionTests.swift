import Glibc
import SystemPackage
import TestSupport
import Testing

/// Who may do what: by modes, supplementary groups, ownership and sticky bits, as pjdfstest asks it of each call.
@Suite(.serialized, .enabled(if: Machine.isRoot, "needs root")) struct PermissionTests {
    /// The file is user 1000's and group 2000's.
    private static let owner: UInt32 = 1000
    private static let group: UInt32 = 2000
    private static let callers = [
        Caller.root, Caller(description: "owner", user: owner, group: 1000),
        Caller(description: "owner in the group", user: owner, group: 1000, groups: [group, 3000]),
        Caller(description: "member", user: 1001, group: group),
        Caller(description: "supplementary member", user: 1001, group: 1001, groups: [3000, group]),
        Caller(description: "other", user: 1002, group: 1002, groups: [3000]),
    ]

    @Test("access to a file and a directory by each mode", arguments: Setting.available)
    func access(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            let (file, directory) = (place / "file", place / "d")
            try file.create(bytes(10))
            try directory.mkdir()
            try (directory / "inside").create()
            for path in [file, directory] { try path.chown(user: Self.owner, group: Self.group) }
            try place.cut()
            for mode: mode_t in [
                0o000, 0o400, 0o040, 0o004, 0o200, 0o020, 0o002, 0o100, 0o010, 0o001, 0o751, 0o567,
            ] {
                try file.chmod(mode)
                try directory.chmod(mode)
                for caller in Self.callers {
                    let what = "\(caller) with mode \(String(mode, radix: 8))"
                    try caller.run {
                        try files(what, file, transcript)
                        try directories(what, directory, transcript)
                    }
                    (directory / "new").remove()
                }
            }
        }
    }

    private func files(_ what: String, _ file: Path, _ transcript: Transcript) throws {
        for flags in [O_RDONLY, O_WRONLY, O_RDWR, O_WRONLY | O_APPEND, O_RDONLY | O_NOATIME, O_PATH] {
            transcript.note("\(what): open \(flags)") { _ = try file.open(flags) }
        }
        for right in [R_OK, W_OK, X_OK] { transcript.note("\(what): access \(right)") { try file.access(right) } }
        transcript.note("\(what): truncate") { try file.truncate(10) }
        transcript.note("\(what): setxattr") { try file.setAttribute("user.a", [1]) }
        transcript.note("\(what): getxattr") { try file.attribute("user.a") }
        transcript.note("\(what): removexattr") { try file.removeAttribute("user.a") }
        transcript.note("\(what): now") { try file.setTimes(accessed: .now, modified: .now) }
        transcript.note("\(what): now, omit") { try file.setTimes(accessed: .now, modified: nil) }
        transcript.note("\(what): omit, now") { try file.setTimes(accessed: nil, modified: .now) }
        transcript.note("\(what): omit") { try file.setTimes(accessed: nil, modified: nil) }
        transcript.note("\(what): times") { try file.setTimes(accessed: Timestamp(5), modified: Timestamp(6)) }
        transcript.note("\(what): now, a time") { try file.setTimes(accessed: .now, modified: Timestamp(6)) }
    }

    private func directories(_ what: String, _ directory: Path, _ transcript: Transcript) throws {
        let (inside, new) = (directory / "inside", directory / "new")
        transcript.note("\(what): list") { try directory.entries() }
        transcript.note("\(what): stat") { try inside.lstat().size }
        transcript.note("\(what): open") { _ = try inside.open(O_RDONLY) }
        for (name, call) in PathCalls.ofNewNames {
            transcript.note("\(what): \(name)") { try call(new) }
            transcript.note("\(what): unlink") { try new.unlink() }
            transcript.note("\(what): rmdir") { try new.rmdir() }
        }
        transcript.note("\(what): link") { try inside.link(to: new) }
        transcript.note("\(what): unlink") { try new.unlink() }
        transcript.note("\(what): rename") { try inside.rename(to: new) }
        transcript.note("\(what): rename back") { try new.rename(to: inside) }
        transcript.note("\(what): temporary") { _ = try directory.open(O_RDWR | O_TMPFILE, mode: 0o600) }
    }

    @Test("chmod by each user, of each kind, with set-id and sticky bits", arguments: Setting.available)
    func chmod(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            for kind in [FileKind.file, .empty, .fifo, .socket, .device] {
                let path = place / Path(kind.rawValue)
                try kind.make(path)
                try path.chown(user: Self.owner, group: Self.group)
            }
            try place.cut()
            for kind in [FileKind.file, .empty, .fifo, .socket, .device] {
                let path = place / Path(kind.rawValue)
                for mode: mode_t in [0o644, 0o6755, 0o2711, 0o2640, 0o1777, 0o7777] {
                    for caller in Self.callers {
                        let what = "\(caller): \(kind) to \(String(mode, radix: 8))"
                        try path.chmod(0o600)
                        try caller.run { transcript.note(what) { try path.chmod(mode) } }
                        transcript.state(what, String(try path.lstat().permissions, radix: 8))
                    }
                }
            }
        }
    }

    @Test(
        "chown by each user, to each owner and group: rights, and what becomes of set-id bits",
        arguments: Setting.available)
    func chown(_ setting: Setting) throws {
        let pairs: [(UInt32?, UInt32?)] = [
            (nil, nil), (Self.owner, nil), (nil, Self.group), (nil, 3000), (nil, 4000), (1001, nil),
            (Self.owner, 3000),
            (1001, 3000), (0, 0),
        ]
        try setting.compare { place, transcript in
            for kind in [FileKind.file, .empty, .symlink, .fifo] {
                for mode: mode_t in [0o6755, 0o2644, 0o4644] where kind != .symlink || mode == 0o4644 {
                    for caller in Self.callers {
                        for (user, group) in pairs {
                            let path = place / "x"
                            try kind.make(path)
                            try path.chown(user: Self.owner, group: Self.group)
                            if kind != .symlink { try path.chmod(mode) }
                            try place.cutOnce()
                            let what = "\(caller): \(kind) \(String(mode, radix: 8)) to \(user ?? 9):\(group ?? 9)"
                            try caller.run { transcript.note(what) { try path.chown(user: user, group: group) } }
                            let status = try path.lstat()
                            transcript.state(
                                what, "\(status.user):\(status.group) \(String(status.permissions, radix: 8))")
                            path.remove()
                        }
                    }
                }
            }
        }
    }

    @Test(
        "a sticky directory: who may remove and rename whose entries, of each kind", arguments: Setting.available)
    func sticky(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            let directory = place / "sticky"
            for (directoryOwner, entryOwner) in [(0, 1001), (1001, 0), (1000, 0), (0, 1000), (1002, 1002)]
                as [(UInt32, UInt32)]
            {
                for kind in [FileKind.file, .linked, .empty, .symlink, .fifo] {
                    try directory.mkdir()
                    try directory.chmod(0o1777)
                    try directory.chown(user: directoryOwner)
                    func renew() throws {
                        for name in try directory.entries() { (directory / name).remove() }
                        try kind.make(directory / "x")
                        try (directory / "x").chown(user: entryOwner)
                        try FileKind.file.make(directory / "y")
                        try (directory / "y").chown(user: Self.owner)
                        try place.cutOnce()
                    }
                    let calls: [(String, () throws -> Void)] = [
                        ("unlink", { try (directory / "x").unlink() }),
                        ("rmdir", { try (directory / "x").rmdir() }),
                        ("rename", { try (directory / "x").rename(to: directory / "z") }),
                        ("rename out", { try (directory / "x").rename(to: place / "out") }),
                        ("rename over", { try (directory / "y").rename(to: directory / "x") }),
                        ("exchange", { try (directory / "y").rename(to: directory / "x", flags: 2) }),
                    ]
                    for (name, call) in calls {
                        try renew()
                        let what = "\(kind) of \(entryOwner) in a directory of \(directoryOwner): \(name)"
                        try Caller(description: "", user: Self.owner, group: 1000).run {
                            transcript.note(what, call)
                        }
                        (place / "out").remove()
                    }
                    directory.remove()
                }
            }
        }
    }

    @Test(
        "in directories with and without setgid: owner, group and set-id bits of what each user makes",
        arguments: Setting.available)
    func creation(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            for mode: mode_t in [0o777, 0o2777, 0o3777] {
                let directory = place / "d"
                try directory.mkdir()
                try directory.chown(user: 5000, group: Self.group)
                try directory.chmod(mode)
                try place.cut()
                for caller in Self.callers {
                    for bits: mode_t in [0o666, 0o2775, 0o6711, 0o2644, 0o1777] {
                        try caller.run(mask: 0o027) {
                            try (directory / "create").create(mode: bits)
                            try (directory / "mkdir").mkdir(mode: bits)
                            try (directory / "mkfifo").mkfifo(mode: bits)
                            try (directory / "mknod").mknod(mode: S_IFREG | bits)
                            try (directory / "symlink").symlink(to: "x")
                            try (directory / "socket").makeSocket()
                            let unnamed = try directory.open(O_RDWR | O_TMPFILE, mode: bits)
                            try unnamed.link(to: directory / "tmpfile")
                        }
                        for name in try directory.entries().sorted(by: { "\($0)" < "\($1)" }) {
                            let status = try (directory / name).lstat()
                            transcript.state(
                                "\(caller) in \(String(mode, radix: 8)): \(name) \(String(bits, radix: 8))",
                                "\(status.user):\(status.group) \(String(status.permissions, radix: 8))")
                            (directory / name).remove()
                        }
                    }
                }
                directory.remove()
            }
        }
    }
}
