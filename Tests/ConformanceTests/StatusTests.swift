import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// What statx(2) and statfs(2) tell.
@Suite(.serialized) struct StatusTests {
    @Test("statx tells the time of birth, which stays, and the source's in a mount", arguments: Setting.available)
    func births(_ setting: Setting) throws {
        try setting.run { place in
            for kind in FileKind.allCases where kind != .device { try kind.make(place / kind.rawValue.path) }
            let names = FileKind.allCases.filter { $0 != .device }.map { $0.rawValue.path }
            func births(_ root: Path) throws -> [Timestamp?] {
                try names.map { try (root / $0).extendedStatus().birth }
            }
            let before = try births(place.root)
            try place.cut()
            for name in names { try (place / name).setTimes(accessed: Timestamp(1), modified: Timestamp(2)) }
            try (place / "file").append([1])
            try (place / "full").rename(to: place / "moved")
            try (place / "moved").rename(to: place / "full")
            #expect(try births(place.root) == before)
            #expect(!before.contains(nil))
            if let mount = place.mount, mount.source != mount.mountpoint {
                #expect(try births(mount.source) == before)
            }
            if let mount = place.mount, mount.source == mount.mountpoint { return }
            #expect(try (place / "file").open(O_RDWR).extendedStatus().birth == before[0])
        }
    }

    @Test("statx agrees with stat, whatever it is asked for", arguments: Setting.available)
    func masks(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(12_345))
            try place.cut()
            let status = try (place / "file").lstat()
            for mask in [STATX_BASIC_STATS, STATX_SIZE, STATX_MTIME, STATX_BTIME, STATX_ALL] {
                for sync in [AT_STATX_SYNC_AS_STAT, AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC] {
                    let extended = try (place / "file").extendedStatus(mask: UInt32(mask), flags: sync)
                    #expect(
                        extended.stx_mask & UInt32(mask) & ~UInt32(STATX_BTIME) == UInt32(mask)
                            & UInt32(STATX_BASIC_STATS))
                    #expect(extended.stx_size == 12_345 && extended.stx_ino == status.inode)
                    #expect(extended.stx_nlink == 1 && UInt32(extended.stx_mode) == status.mode)
                    if extended.stx_mask & UInt32(STATX_MTIME) != 0 {
                        #expect(extended.stx_mtime.tv_sec == status.modified.seconds)
                    }
                }
            }
        }
    }

    @Test("block size, device and attributes as the source has them", arguments: Setting.available)
    func particulars(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            for kind in FileKind.available { try kind.make(place / kind.rawValue.path) }
            try place.cut()
            for kind in FileKind.available {
                let status = try (place / kind.rawValue.path).extendedStatus()
                transcript.state(
                    "\(kind)", "\(status.stx_blksize) \(status.stx_rdev_major):\(status.stx_rdev_minor)")
                transcript.state("\(kind)", "\(status.stx_nlink) \(status.stx_size) \(status.stx_mask & 0xfff)")
            }
            let root = try place.root.extendedStatus()
            transcript.state(
                "root", "\(root.stx_attributes & UInt64(STATX_ATTR_MOUNT_ROOT) != 0 || place.mount == nil)")
        }
    }

    @Test("statvfs moves with the space that is used, as the source's", arguments: Setting.available)
    func space(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try place.cut()
            let status = try place.root.fileSystem()
            transcript.state(
                "sizes",
                "\(status.f_bsize) \(status.f_frsize) \(status.f_blocks) \(status.f_files) \(status.f_namemax)")
            try (place / "file").create()
            let other = try (place / "file").fileSystem()
            transcript.state("of a file", "\(other.f_blocks == status.f_blocks) \(other.f_fsid == status.f_fsid)")
        }
    }
}

extension Path {
    func extendedStatus(mask: UInt32 = UInt32(STATX_ALL), flags: Int32 = 0) throws(Errno) -> statx {
        var status = statx()
        _ = try withCString { (path) throws(Errno) in
            try check(ts_statx(AT_FDCWD, path, flags | AT_SYMLINK_NOFOLLOW, mask, &status))
        }
        return status
    }
}

extension File {
    func extendedStatus() throws(Errno) -> statx {
        var status = statx()
        try check(ts_statx(raw, "", AT_EMPTY_PATH, UInt32(STATX_ALL), &status))
        return status
    }
}

extension statx {
    /// nil where it is not told.
    var birth: Timestamp? {
        stx_mask & UInt32(STATX_BTIME) == 0 ? nil : Timestamp(stx_btime.tv_sec, Int64(stx_btime.tv_nsec))
    }
}
