import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

@Suite(.serialized) struct AttributeTests {
    @Test("times keep their nanoseconds, before 1970 and after 2038", arguments: Setting.available)
    func times(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            try (place / "d").mkdir()
            try place.cut()
            let years: [Timestamp] = [
                Timestamp(1_500_000_000, 123_456_789), Timestamp(0, 1), Timestamp(-2_145_916_800, 999_999_999),
                Timestamp(4_291_747_200, 1),
            ]
            for name: Path in ["file", "d"] {
                for time in years {
                    try (place / name).setTimes(accessed: time, modified: Timestamp(time.seconds, 5))
                    let status = try (place / name).lstat()
                    #expect(status.accessed == time)
                    #expect(status.modified == Timestamp(time.seconds, 5))
                }
            }
        }
    }

    @Test("UTIME_OMIT leaves a time as it is, UTIME_NOW sets the present", arguments: Setting.available)
    func omittedTimes(_ setting: Setting) throws {
        try setting.run { place in
            let file = place / "file"
            try file.create()
            try file.setTimes(accessed: Timestamp(10, 1), modified: Timestamp(20, 2))
            try place.cut()
            try file.setTimes(accessed: Timestamp(30, 3), modified: nil)
            #expect(try file.lstat().accessed == Timestamp(30, 3))
            #expect(try file.lstat().modified == Timestamp(20, 2))
            let before = try file.lstat()
            try waitForClockTick()
            try file.setTimes(accessed: nil, modified: .now)
            let after = try file.lstat()
            #expect(after.accessed == Timestamp(30, 3))
            #expect(after.modified > before.changed)
            #expect(after.changed > before.changed)
            try file.setTimes(accessed: nil, modified: nil)
            #expect(try file.lstat() == after)
            #expect(throws: Errno.invalidArgument) {
                try file.setTimes(accessed: nil, modified: Timestamp(1, 1_000_000_000))
            }
        }
    }

    @Test("chmod sets modes and ctime only", arguments: Setting.available)
    func modes(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            try (place / "d").mkdir()
            try place.cut()
            for name: Path in ["file", "d"] {
                for mode: mode_t in [0o000, 0o777, 0o4755, 0o2755, 0o1777, 0o640] {
                    let before = try (place / name).lstat()
                    try waitForClockTick()
                    try (place / name).chmod(mode)
                    let after = try (place / name).lstat()
                    #expect(after.permissions == mode)
                    #expect(after.changed > before.changed)
                    #expect(after.modified == before.modified)
                }
            }
            #expect(throws: Errno.noSuchFileOrDirectory) { try (place / "none").chmod(0o644) }
        }
    }

    @Test(
        "inode numbers and kinds agree between stat, listing and descriptor, and stay",
        arguments: Setting.available)
    func inodes(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            try (place / "d").mkdir()
            try (place / "s").symlink(to: "file")
            let names: [Path] = ["file", "d", "s"]
            func inodes(_ root: Path) throws -> [UInt64] { try names.map { try (root / $0).lstat().inode } }
            let before = try inodes(place.root)
            try place.cut()
            #expect(try inodes(place.root) == before)
            #expect(Set(before).count == 3)
            #expect(try (place / "file").open(O_RDONLY).stat().inode == before[0])
            let listed = try place.root.open(O_RDONLY | O_DIRECTORY).nextEntries()
            for (name, inode) in zip(names, before) {
                #expect(listed.first { $0.name == name }?.inode == inode)
            }
            #expect(listed.first { $0.name == "d" }?.type == UInt8(DT_DIR))
            if let mount = place.mount, mount.source != mount.mountpoint {
                #expect(try inodes(mount.source) == before)
            }
        }
    }

    @Test("statvfs tells of the file system below", arguments: Setting.available)
    func space(_ setting: Setting) throws {
        try setting.run { place in
            let (here, below) = try (place.root.fileSystem(), (place / "..").fileSystem())
            #expect(here.f_blocks * here.f_frsize == below.f_blocks * below.f_frsize)
            #expect(here.f_files == below.f_files)
            #expect(here.f_namemax == below.f_namemax)
            #expect(here.f_bavail <= here.f_bfree)
        }
    }

    @Test("st_blocks follows the data", arguments: Setting.available)
    func blocks(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.truncate(1 << 20)
            // Where writes are gathered a file that is open for them never seems to be without data.
            let none = Machine.kernelOwnsTimes && setting != .plain ? 8 : 0
            #expect(try file.stat().blocks == none)
            try place.cut()
            try file.writeAll(bytes(65_536), at: 0)
            try file.sync()
            let blocks = try file.stat().blocks
            #expect((128...160).contains(blocks))
        }
    }

    @Test("reading with O_NOATIME leaves atime as it is", arguments: Setting.available)
    func accessTimes(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(100))
            try (place / "file").setTimes(accessed: Timestamp(100), modified: Timestamp(200))
            try place.cut()
            let reader = try (place / "file").open(O_RDONLY | O_NOATIME)
            _ = try reader.read(10, at: 0)
            #expect(try (place / "file").lstat().accessed == Timestamp(100))
        }
    }

    @Test(
        "a mount with -o noatime leaves the source's access times as they are",
        .enabled(if: Machine.canMount && !Machine.preservesWholeFiles, "needs /dev/fuse; not with io=passthrough"),
        arguments: [["-o", "noatime"], ["-o", "noatime,no_file_handles"]])
    func mountWithoutAccessTimes(options: [String]) throws {
        try MountedSource.with(
            options: options,
            prepare: { source in
                try (source / "d").mkdir()
                try (source / "d/file").create(bytes(100))
                for name: Path in ["d", "d/file"] {
                    try (source / name).setTimes(accessed: Timestamp(100), modified: Timestamp(200))
                }
            }
        ) { (mount) throws in
            #expect(try (mount.mountpoint / "d/file").contents() == bytes(100))
            #expect(try (mount.mountpoint / "d").entries() == ["file"])
            #expect(try (mount.source / "d/file").lstat().accessed == Timestamp(100))
            #expect(try (mount.source / "d").lstat().accessed == Timestamp(100))
        }
    }
}
