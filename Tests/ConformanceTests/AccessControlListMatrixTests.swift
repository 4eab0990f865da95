import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// POSIX access control lists with named users and groups, for each caller, compared with the source.
@Suite(.serialized, .enabled(if: Machine.isRoot, "needs root")) struct AccessControlListMatrixTests {
    private static let callers = [
        Caller.root, Caller(description: "owner", user: 1000, group: 1000),
        Caller(description: "named user", user: 1001, group: 1001),
        Caller(description: "member of the file's group", user: 1002, group: 1002, groups: [2000]),
        Caller(description: "member of the named group", user: 1003, group: 1003, groups: [50, 3000]),
        Caller(description: "member of both", user: 1004, group: 2000, groups: [3000]),
        Caller(description: "other", user: 1005, group: 1005),
    ]

    private static let lists: [AccessControlList] = [
        AccessControlList(owner: 6, users: [1001: 4], group: 0, groups: [:], mask: 7, other: 0),
        AccessControlList(owner: 0, users: [1001: 6], group: 4, groups: [3000: 2], mask: 6, other: 0),
        AccessControlList(owner: 7, users: [1001: 0], group: 7, groups: [3000: 0], mask: 7, other: 7),
        AccessControlList(owner: 7, users: [1001: 7], group: 7, groups: [3000: 7], mask: 1, other: 4),
        AccessControlList(owner: 6, users: [:], group: 0, groups: [3000: 6], mask: 4, other: 0),
    ]

    @Test("who may read, write and search by each list", arguments: Setting.available)
    func access(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            let (file, directory) = (place / "file", place / "d")
            try file.create(bytes(10))
            try directory.mkdir()
            try (directory / "inside").create()
            for path in [file, directory] { try path.chown(user: 1000, group: 2000) }
            try place.cut()
            for (number, list) in Self.lists.enumerated() {
                for path in [file, directory] { try path.setAttribute(AccessControlList.access, list.bytes) }
                transcript.state("\(number): modes", try [file, directory].map { try $0.lstat().permissions })
                for caller in Self.callers {
                    try caller.run {
                        let what = "\(number), \(caller)"
                        transcript.note("\(what): read") { _ = try file.open(O_RDONLY) }
                        transcript.note("\(what): write") { _ = try file.open(O_WRONLY) }
                        transcript.note("\(what): execute") { try file.access(X_OK) }
                        transcript.note("\(what): list") { try directory.entries() }
                        transcript.note("\(what): search") { try (directory / "inside").lstat().size }
                        transcript.note("\(what): make") { try (directory / "new").create() }
                        transcript.note("\(what): remove") { try (directory / "new").unlink() }
                        transcript.note("\(what): set") {
                            try file.setAttribute(AccessControlList.access, list.bytes)
                        }
                        transcript.note("\(what): get") { try file.attribute(AccessControlList.access) }
                        transcript.note("\(what): default") {
                            try directory.setAttribute(AccessControlList.standard, list.bytes)
                        }
                        transcript.note("\(what): no default") {
                            try directory.removeAttribute(AccessControlList.standard)
                        }
                    }
                }
                for mode: mode_t in [0o640, 0o777, 0o000] {
                    try file.chmod(mode)
                    transcript.state("\(number): after chmod", try file.attribute(AccessControlList.access))
                }
                try file.removeAttribute(AccessControlList.access)
                transcript.state("\(number): without", try file.lstat().permissions)
            }
        }
    }

    @Test("what each call makes below a default list, with each mode and umask", arguments: Setting.available)
    func inheriting(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            let directory = place / "d"
            try directory.mkdir()
            try directory.chown(user: 1000, group: 2000)
            try place.cut()
            let defaults: [AccessControlList?] =
                Self.lists + [
                    AccessControlList(owner: 7, users: [:], group: 5, groups: [:], mask: nil, other: 1), nil,
                ]
            for (number, list) in defaults.enumerated() {
                if let list {
                    try directory.setAttribute(AccessControlList.standard, list.bytes)
                } else {
                    try directory.removeAttribute(AccessControlList.standard)
                }
                for setgid in [false, true] {
                    try directory.chmod(setgid ? 0o2777 : 0o777)
                    for (mode, mask): (mode_t, mode_t) in [
                        (0o666, 0o022), (0o777, 0o077), (0o640, 0), (0o2770, 0o007),
                    ] {
                        try Self.callers[1].run(mask: mask) { try make(in: directory, mode) }
                        for name in try directory.entries().sorted(by: { "\($0)" < "\($1)" }) {
                            let path = directory / name
                            let what = "\(number) \(setgid) \(String(mode, radix: 8)) \(mask): \(name)"
                            let status = try path.lstat()
                            transcript.state(what, "\(String(status.permissions, radix: 8)) \(status.group)")
                            transcript.note(what) { try path.attribute(AccessControlList.access) }
                            transcript.note(what) { try path.attribute(AccessControlList.standard) }
                            path.remove()
                        }
                    }
                }
            }
        }
    }

    private func make(in directory: Path, _ mode: mode_t) throws {
        try (directory / "create").create(mode: mode)
        try (directory / "mkdir").mkdir(mode: mode)
        try (directory / "mknod").mknod(mode: S_IFREG | mode)
        try (directory / "mkfifo").mkfifo(mode: mode)
        try (directory / "socket").makeSocket()
        try (directory / "symlink").symlink(to: "x")
        try directory.open(O_RDWR | O_TMPFILE, mode: mode).link(to: directory / "tmpfile")
    }

    @Test(
        "a list that is set takes the setgid bit away unless its setter is in the group",
        arguments: Setting.available)
    func setGroupBit(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            for group: UInt32 in [0, 1000, 2000, 3000] {
                for mode: mode_t in [0o2755, 0o6775, 0o2644] {
                    for kind in [FileKind.file, .empty] {
                        for list in [
                            Self.lists[0],
                            AccessControlList(owner: 7, users: [:], group: 5, groups: [:], mask: nil, other: 1),
                        ] {
                            for user: UInt32 in [0, 1000] {
                                let path = place / "x"
                                try kind.make(path)
                                try path.chown(user: 1000, group: group)
                                try path.chmod(mode)
                                try place.cutOnce()
                                let caller = Caller(
                                    description: "\(user)", user: user, group: user, groups: [3000])
                                let what = "\(user) on \(kind) \(String(mode, radix: 8)) of group \(group)"
                                try caller.run {
                                    transcript.note(what) {
                                        try path.setAttribute(AccessControlList.access, list.bytes)
                                    }
                                }
                                transcript.state(what, String(try path.lstat().permissions, radix: 8))
                                path.remove()
                            }
                        }
                    }
                }
            }
        }
    }
}

/// An access control list, as `system.posix_acl_*` holds it.
struct AccessControlList: Sendable {
    static let access = "system.posix_acl_access"
    static let standard = "system.posix_acl_default"

    var owner: UInt16
    var users: [UInt32: UInt16]
    var group: UInt16
    var groups: [UInt32: UInt16]
    var mask: UInt16?
    var other: UInt16

    /// Version 2, then tag, rights, who: eight bytes an entry.
    var bytes: [UInt8] {
        var bytes: [UInt8] = [2, 0, 0, 0]
        func add(_ tag: UInt16, _ rights: UInt16, _ id: UInt32 = .max) {
            for value in [UInt32(tag) | UInt32(rights) << 16, id] {
                bytes += (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
            }
        }
        add(0x01, owner)
        for (id, rights) in users.sorted(by: { $0.key < $1.key }) { add(0x02, rights, id) }
        add(0x04, group)
        for (id, rights) in groups.sorted(by: { $0.key < $1.key }) { add(0x08, rights, id) }
        if let mask { add(0x10, mask) }
        add(0x20, other)
        return bytes
    }
}
