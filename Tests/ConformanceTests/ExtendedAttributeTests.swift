import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

@Suite(.serialized) struct ExtendedAttributeTests {
    @Test("attributes are set, read, listed and removed", arguments: Setting.available)
    func roundTrip(_ setting: Setting) throws {
        try setting.run { place in
            for name: Path in ["file", "d"] {
                let path = place / name
                if name == "d" { try path.mkdir() } else { try path.create() }
                #expect(try path.attributeNames() == [])
                try path.setAttribute("user.a", bytes(100))
                try path.setAttribute("user.empty", [])
                try place.cut()
                #expect(try path.attribute("user.a") == bytes(100))
                #expect(try path.attribute("user.empty") == [])
                #expect(try Set(path.attributeNames()) == ["user.a", "user.empty"])
                try path.setAttribute("user.a", bytes(50, seed: 2))
                #expect(try path.attribute("user.a") == bytes(50, seed: 2))
                try path.removeAttribute("user.a")
                #expect(try path.attributeNames() == ["user.empty"])
            }
        }
    }

    @Test("errors of attributes, errno for errno", arguments: Setting.available)
    func errors(_ setting: Setting) throws {
        try setting.run { place in
            let file = place / "file"
            try file.create()
            try file.setAttribute("user.a", bytes(100))
            try place.cut()
            #expect(throws: Errno.noData) { try file.attribute("user.none") }
            #expect(throws: Errno.noData) { try file.removeAttribute("user.none") }
            #expect(throws: Errno.noData) { try file.setAttribute("user.none", [1], flags: Int32(XATTR_REPLACE)) }
            #expect(throws: Errno.fileExists) { try file.setAttribute("user.a", [1], flags: Int32(XATTR_CREATE)) }
            #expect(throws: Errno.outOfRange) { try file.attribute("user.a", room: 99) }
            #expect(throws: Errno.outOfRange) { try file.attributeNames(room: 3) }
            #expect(throws: Errno.argListTooLong) { try file.setAttribute("user.big", bytes(65_537)) }
            #expect(throws: Errno.outOfRange) {
                try file.setAttribute("user." + String(repeating: "n", count: 251), [1])
            }
            #expect(throws: Errno.notSupported) { try file.setAttribute("nonsense", [1]) }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "none").attribute("user.a") }
            try (place / "link").symlink(to: "file")
            #expect(throws: Errno.notPermitted) { try (place / "link").setAttribute("user.a", [1]) }
        }
    }

    @Test("asking with no room tells the size", arguments: Setting.available)
    func sizes(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            try (place / "file").setAttribute("user.a", bytes(77))
            let count = try (place / "file").withCString { (path) throws(Errno) in
                try check(lgetxattr(path, "user.a", nil, 0))
            }
            #expect(count == 77)
        }
    }

    @Test("setting and removing an attribute stamp ctime only", arguments: Setting.available)
    func stamps(_ setting: Setting) throws {
        try setting.run { place in
            let file = place / "file"
            try file.create()
            try place.cut()
            var before = try file.lstat()
            try waitForClockTick()
            try file.setAttribute("user.a", [1])
            #expect(try file.lstat().changed > before.changed)
            #expect(try file.lstat().modified == before.modified)
            before = try file.lstat()
            try waitForClockTick()
            try file.removeAttribute("user.a")
            #expect(try file.lstat().changed > before.changed)
        }
    }

    @Test(
        "trusted and security attributes are root's", .enabled(if: Machine.isRoot, "needs root"),
        arguments: Setting.available)
    func namespaces(_ setting: Setting) throws {
        try setting.run { place in
            let file = place / "file"
            try file.create()
            try file.chmod(0o666)
            try place.cut()
            try file.setAttribute("trusted.t", [1, 2])
            try file.setAttribute("security.s", [3])
            #expect(try file.attribute("trusted.t") == [1, 2])
            #expect(try Set(file.attributeNames()) == ["trusted.t", "security.s"])
            try asUser(1000) { () throws in
                #expect(throws: Errno.noData) { try file.attribute("trusted.t") }
                #expect(try file.attributeNames() == ["security.s"])
                #expect(try file.attributeNames(room: "security.s".utf8.count + 1) == ["security.s"])
                #expect(throws: Errno.outOfRange) { try file.attributeNames(room: "security.s".utf8.count) }
                #expect(throws: Errno.notPermitted) { try file.setAttribute("trusted.t", [1]) }
                #expect(throws: Errno.notPermitted) { try file.setAttribute("security.s", [1]) }
            }
        }
    }
}

/// POSIX access control lists, as the kernel keeps them in `system.posix_acl_*`.
@Suite(.serialized, .enabled(if: Machine.isRoot, "needs root")) struct AccessControlListTests {
    @Test("a list grants and denies, and the group's mode is its mask", arguments: Setting.available)
    func granting(_ setting: Setting) throws {
        try setting.run { place in
            let file = place / "file"
            try file.create(bytes(10), mode: 0o600)
            try place.cut()
            try file.setAttribute(accessList, list(owner: 6, user: (1000, 4), group: 0, mask: 6, other: 0))
            #expect(try file.lstat().permissions == 0o660)
            try asUser(1000) { () throws in
                #expect(try file.contents() == bytes(10))
                #expect(throws: Errno.permissionDenied) { try file.open(O_WRONLY) }
            }
            try asUser(1001) {
                #expect(throws: Errno.permissionDenied) { try file.open(O_RDONLY) }
            }
            try file.chmod(0o600)
            try asUser(1000) { #expect(throws: Errno.permissionDenied) { try file.open(O_RDONLY) } }
            let narrowed = try file.attribute(accessList)
            #expect(narrowed == list(owner: 6, user: (1000, 4), group: 0, mask: 0, other: 0))
        }
    }

    @Test("a list that says no more than a mode becomes the mode", arguments: Setting.available)
    func minimal(_ setting: Setting) throws {
        try setting.run { place in
            let file = place / "file"
            try file.create()
            try place.cut()
            try file.setAttribute(accessList, list(owner: 7, group: 5, other: 1))
            #expect(try file.lstat().permissions == 0o751)
            #expect(throws: Errno.noData) { try file.attribute(accessList) }
            #expect(throws: Errno.invalidArgument) { try file.setAttribute(accessList, [9, 9, 9]) }
        }
    }

    @Test(
        "a default list is inherited by files and directories, and the umask is left aside",
        arguments: Setting.available)
    func inheriting(_ setting: Setting) throws {
        try setting.run { place in
            let directory = place / "d"
            try directory.mkdir()
            let inherited = list(owner: 7, user: (1000, 6), group: 5, mask: 7, other: 0)
            try directory.setAttribute(defaultList, inherited)
            try place.cut()
            try asUser(0, mask: 0o077) {
                try (directory / "file").create(mode: 0o664)
                try (directory / "sub").mkdir(mode: 0o775)
                try (directory / "fifo").mkfifo(mode: 0o666)
            }
            #expect(
                try (directory / "file").attribute(accessList)
                    == list(owner: 6, user: (1000, 6), group: 5, mask: 6, other: 0))
            #expect(try (directory / "file").lstat().permissions == 0o660)
            #expect(try (directory / "fifo").lstat().permissions == 0o660)
            #expect(try (directory / "sub").attribute(defaultList) == inherited)
            #expect(try (directory / "sub").lstat().permissions == 0o770)
            #expect(throws: Errno.noData) { try (directory / "file").attribute(defaultList) }
            #expect(throws: Errno.permissionDenied) {
                try (directory / "file").setAttribute(defaultList, inherited)
            }
        }
    }
}

private let accessList = "system.posix_acl_access"
private let defaultList = "system.posix_acl_default"

/// The bytes of a list: version 2, then tag, rights, who, eight bytes an entry.
private func list(
    owner: UInt16, user: (id: UInt32, rights: UInt16)? = nil, group: UInt16, mask: UInt16? = nil, other: UInt16
) -> [UInt8] {
    var bytes: [UInt8] = [2, 0, 0, 0]
    func add(_ tag: UInt16, _ rights: UInt16, _ id: UInt32 = .max) {
        for value in [UInt32(tag) | UInt32(rights) << 16, id] {
            bytes += (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
        }
    }
    add(0x01, owner)
    if let user { add(0x02, user.rights, user.id) }
    add(0x04, group)
    if let mask { add(0x10, mask) }
    add(0x20, other)
    return bytes
}
