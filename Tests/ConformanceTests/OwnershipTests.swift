import Glibc
import SystemPackage
import TestSupport
import Testing

/// Rights, owners and set-id bits, asked for by another user.
@Suite(.serialized, .enabled(if: Machine.isRoot, "needs root")) struct OwnershipTests {
    private static let user: UInt32 = 1000

    @Test("what a user makes is the user's, of every kind", arguments: Setting.available)
    func newFiles(_ setting: Setting) throws {
        try setting.run { place in
            try place.root.chmod(0o777)
            try place.cut()
            try asUser(Self.user, group: 1001) {
                try (place / "file").create(bytes(10))
                try (place / "d").mkdir()
                try (place / "s").symlink(to: "file")
                try (place / "fifo").mkfifo()
                try (place / "socket").makeSocket()
                let unnamed = try place.root.open(O_RDWR | O_TMPFILE, mode: 0o600)
                #expect(try unnamed.stat().user == Self.user)
                #expect(throws: Errno.notPermitted) {
                    try (place / "null").mknod(mode: S_IFCHR | 0o666, device: 259)
                }
            }
            for name in try place.root.entries() {
                let status = try (place / name).lstat()
                #expect(status.user == Self.user && status.group == 1001, "\(name)")
            }
        }
    }

    @Test("of many who make files at the same time, each owns what they made", arguments: Setting.available)
    func concurrentMakers(_ setting: Setting) throws {
        try setting.run { place in
            try place.root.chmod(0o777)
            try place.cut()
            // A thread of the daemon begins with the rights of the one that started it: that of a user, for root's.
            for users: [UInt32] in [[1000], [0, 0, 0, 0, 0, 0], [1001, 0, 1002, 0, 1003, 0]] {
                let makers = try users.enumerated().map { number, user in
                    try Worker {
                        try asUser(user, group: user + 100) {
                            for file in 0..<50 {
                                try (place / Path("\(users)-\(user)-\(number)-\(file)")).create(bytes(10))
                            }
                        }
                    }
                }
                for maker in makers { try maker.join() }
            }
            for name in try place.root.entries() {
                let status = try (place / name).lstat()
                let user = UInt32(name.string.split(separator: "-")[1])
                let group = user == 0 ? 0 : user.map { $0 + 100 }
                #expect(status.user == user && status.group == group, "\(name): \(status.user):\(status.group)")
            }
        }
    }

    @Test("modes bind users other than root", arguments: Setting.available)
    func modes(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "secret").create(bytes(10), mode: 0o600)
            try (place / "closed").mkdir(mode: 0o700)
            try (place / "closed/file").create()
            try (place / "open").mkdir()
            try (place / "open/file").create(mode: 0o644)
            try place.cut()
            try asUser(Self.user) {
                #expect(throws: Errno.permissionDenied) { try (place / "secret").open(O_RDONLY) }
                #expect(throws: Errno.permissionDenied) { try (place / "secret").truncate(0) }
                #expect(throws: Errno.permissionDenied) { try (place / "closed/file").lstat() }
                #expect(throws: Errno.permissionDenied) { try (place / "closed").entries() }
                #expect(throws: Errno.permissionDenied) { try (place / "open/file").open(O_WRONLY) }
                #expect(throws: Errno.permissionDenied) { try (place / "open/new").create() }
                #expect(throws: Errno.permissionDenied) { try (place / "open/file").unlink() }
                #expect(throws: Errno.permissionDenied) { try (place / "open/file").rename(to: place / "open/x") }
                #expect(throws: Errno.permissionDenied) { try (place / "open/file").access(W_OK) }
                #expect(throws: Errno.notPermitted) { try (place / "open/file").chmod(0o666) }
                #expect(throws: Errno.notPermitted) { try (place / "open/file").chown(user: Self.user) }
                #expect(throws: Errno.notPermitted) { try (place / "open/file").chown(group: Self.user) }
                #expect(throws: Errno.permissionDenied) {
                    try (place / "open/file").setTimes(accessed: .now, modified: .now)
                }
                #expect(throws: Errno.notPermitted) {
                    try (place / "open/file").setTimes(accessed: nil, modified: Timestamp(1))
                }
                #expect(throws: Errno.permissionDenied) { try (place / "open/file").setAttribute("user.a", [1]) }
            }
        }
    }

    @Test("a sticky directory protects others' files", arguments: Setting.available)
    func sticky(_ setting: Setting) throws {
        try setting.run { place in
            let directory = place / "tmp"
            try directory.mkdir()
            try directory.chmod(0o1777)
            try (directory / "roots").create(mode: 0o666)
            try asUser(1001) { try (directory / "other").create() }
            try place.cut()
            try asUser(Self.user) {
                try (directory / "mine").create()
                #expect(throws: Errno.notPermitted) { try (directory / "roots").unlink() }
                #expect(throws: Errno.notPermitted) { try (directory / "other").unlink() }
                #expect(throws: Errno.notPermitted) { try (directory / "other").rename(to: directory / "x") }
                #expect(throws: Errno.notPermitted) { try (directory / "mine").rename(to: directory / "other") }
                try (directory / "mine").rename(to: directory / "moved")
                try (directory / "moved").unlink()
            }
            #expect(try Set(directory.entries()) == ["roots", "other"])
        }
    }

    @Test("a setgid directory gives its group on, and directories the bit too", arguments: Setting.available)
    func setgidDirectory(_ setting: Setting) throws {
        try setting.run { place in
            let directory = place / "shared"
            try directory.mkdir()
            try directory.chown(group: 2000)
            try directory.chmod(0o2777)
            try place.cut()
            try asUser(Self.user) {
                try (directory / "file").create(mode: 0o644)
                try (directory / "sub").mkdir()
                try (directory / "program").create(mode: 0o2755)
            }
            #expect(try (directory / "file").lstat().group == 2000)
            #expect(try (directory / "file").lstat().user == Self.user)
            #expect(try (directory / "sub").lstat().group == 2000)
            #expect(try (directory / "sub").lstat().permissions == 0o2755)
            #expect(try (directory / "program").lstat().permissions == 0o755)
        }
    }

    @Test("a user's write, truncation and chown clear the set-id bits", arguments: Setting.available)
    func clearing(_ setting: Setting) throws {
        try setting.run { place in
            let names: [Path] = ["write", "truncate", "ftruncate", "open", "fallocate"]
            for name in names {
                try (place / name).create(bytes(5_000))
                try (place / name).chown(user: Self.user, group: Self.user)
                try (place / name).chmod(0o6777)
            }
            try place.cut()
            try asUser(Self.user) {
                try (place / "write").write([1], at: 0)
                try (place / "truncate").truncate(10)
                try (place / "ftruncate").open(O_RDWR).truncate(10)
                _ = try (place / "open").open(O_WRONLY | O_TRUNC)
                try (place / "fallocate").open(O_RDWR).allocate(at: 0, count: 10_000)
            }
            for name in names { #expect(try (place / name).lstat().permissions == 0o777, "\(name)") }
        }
    }

    @Test(
        "another group's user clears the setgid bit of a file that is no program too", arguments: Setting.available
    )
    func clearingOfData(_ setting: Setting) throws {
        try setting.run { place in
            let names: [Path] = ["write", "fallocate", "punch", "own"]
            for name in names {
                try (place / name).create(bytes(20_000))
                try (place / name).chown(group: name == "own" ? 1001 : 0)
                try (place / name).chmod(0o6666)
            }
            try place.cut()
            try asUser(Self.user, group: 1001) {
                try (place / "write").write([1], at: 0)
                try (place / "fallocate").open(O_RDWR).allocate(at: 0, count: 10_000)
                try (place / "punch").open(O_RDWR).allocate(0x3, at: 0, count: 10_000)
                try (place / "own").open(O_RDWR).allocate(at: 0, count: 10_000)
            }
            for name in names {
                // Asks for the mode alone, which the kernel may know without the daemon.
                let mode = try succeed(["stat", "-c", "%a", (place / name).string])
                #expect(mode == (name == "own" ? "2666\n" : "666\n"), "\(name)")
            }
        }
    }

    @Test("the daemon's supplementary groups are nobody else's", .enabled(if: Machine.canMount, "needs /dev/fuse"))
    func daemonsGroups() throws {
        let groups: [gid_t] = [3000]
        #expect(setgroups(groups.count, groups) == 0)
        defer { setgroups(0, nil) }
        try MountedSource.with { mount in
            let file = mount.mountpoint / "file"
            try file.create(bytes(100))
            try file.chown(group: 3000)
            try file.chmod(0o2666)
            try asUser(Self.user) { try file.write([1], at: 0) }
            #expect(try (mount.source / "file").lstat().permissions == 0o666)
        }
    }

    @Test("root's write keeps the set-id bits, root's chown clears them", arguments: Setting.available)
    func rootsChanges(_ setting: Setting) throws {
        try setting.run { place in
            let file = place / "file"
            try file.create(bytes(100))
            try file.chmod(0o6755)
            try place.cut()
            try file.write([1], at: 0)
            #expect(try file.lstat().permissions == 0o6755)
            try file.chown(user: Self.user)
            #expect(try file.lstat().permissions == 0o755)
            try file.chmod(0o6755)
            try (place / "d").mkdir()
            try (place / "d").chmod(0o6755)
            try (place / "d").chown(user: Self.user)
            #expect(try (place / "d").lstat().permissions == 0o6755)
        }
    }

    @Test("chmod by a user outside the group drops the setgid bit", arguments: Setting.available)
    func foreignGroup(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            try (place / "file").chown(user: Self.user, group: 3000)
            try place.cut()
            try asUser(Self.user) { try (place / "file").chmod(0o2755) }
            #expect(try (place / "file").lstat().permissions == 0o755)
        }
    }

    @Test("chown changes what it is given, with ctime", arguments: Setting.available)
    func changingOwners(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            try (place / "s").symlink(to: "file")
            try place.cut()
            for name: Path in ["file", "s"] {
                let before = try (place / name).lstat()
                try waitForClockTick()
                try (place / name).chown(user: 70_000)
                #expect(try (place / name).lstat().user == 70_000)
                #expect(try (place / name).lstat().group == before.group)
                #expect(try (place / name).lstat().changed > before.changed)
                try (place / name).chown(group: 80_000)
                #expect(try (place / name).lstat().user == 70_000)
                #expect(try (place / name).lstat().group == 80_000)
            }
            #expect(try (place / "file").lstat().inode != (place / "s").lstat().inode)
        }
    }
}
