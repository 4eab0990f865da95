import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// ioctl(2), of which FUSE passes none that a file system does not know: refused, or answered right, never wrong.
@Suite(.serialized) struct ControlCallTests {
    private static let calls: [(name: String, number: UInt)] = [
        ("unknown", 0x1234), ("another that nobody knows", 0xc018_9999), ("FS_IOC_GETFLAGS", 0x8008_6601),
        ("FS_IOC_GETVERSION", 0x8008_7601), ("FS_IOC_FSGETXATTR", 0x801c_581f), ("FIEMAP", 0xc020_660b),
        ("FICLONE", 0x4004_9409), ("FIBMAP", 1), ("FS_IOC_GETFSLABEL", 0x8100_9431),
        ("FS_IOC_FIEMAP of nothing", 0xc020_660b),
        ("TCGETS", 0x5401), ("BLKGETSIZE64", 0x8008_1272), ("FS_IOC_GET_ENCRYPTION_POLICY", 0x400c_6615),
    ]

    /// ENOTTY: what a file system without the call answers. Docs/Semantics.md lists them.
    private static let refusals: [Errno] = [
        .inappropriateIOCTLForDevice, .notSupported, .notSupportedOnSocket, .invalidArgument, .noFunction,
        .badAddress,
        .permissionDenied, .notPermitted, .badFileDescriptor, .improperLink,
    ]

    @Test("calls that the mount cannot pass on are refused, and change nothing", arguments: Setting.available)
    func refused(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(10_000))
            try (place / "d").mkdir()
            try place.cut()
            for name: Path in ["file", "d"] {
                let file = try (place / name).open(name == "d" ? O_RDONLY : O_RDWR)
                for call in Self.calls {
                    let room = AlignedBuffer(4_096)
                    let result = ts_ioctl(file.raw, call.number, room.start)
                    if result < 0 {
                        #expect(Self.refusals.contains(currentErrno), "\(call.name): \(currentErrno)")
                    }
                    if result == 0 && place.mount != nil {
                        #expect(try agrees(call.number, room, place, name), "\(call.name) of \(name)")
                    }
                }
                let room = AlignedBuffer(64)
                #expect(ts_ioctl(file.raw, 0x1234, room.start) == -1)
                #expect(currentErrno == .inappropriateIOCTLForDevice)
            }
            #expect(try (place / "file").contents() == bytes(10_000))
        }
    }

    private static let blockNumber: UInt = 1

    /// Whether an answer is what the source itself gives. FIBMAP is answered by the kernel, without asking a FUSE file
    /// system that has no block device: no block, Docs/Semantics.md.
    private func agrees(_ number: UInt, _ room: AlignedBuffer, _ place: Place, _ name: Path) throws -> Bool {
        if number == Self.blockNumber { return room.contents.allSatisfy { $0 == 0 } }
        guard let mount = place.mount, mount.source != mount.mountpoint else { return true }
        let below = AlignedBuffer(4_096)
        let file = try (mount.source / name).open(name == "d" ? O_RDONLY : O_RDWR)
        return ts_ioctl(file.raw, number, below.start) == 0 && below.contents == room.contents
    }

    @Test("flags cannot be set without an error unless they are set", arguments: Setting.available)
    func flags(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            try place.cut()
            let file = try (place / "file").open(O_RDWR)
            var flags: CLong = 0x80  // FS_NOATIME_FL
            if ts_ioctl(file.raw, 0x4008_6602, &flags) == 0 {
                var now: CLong = 0
                #expect(ts_ioctl(file.raw, 0x8008_6601, &now) == 0 && now & 0x80 != 0)
            } else {
                #expect(place.mount != nil && Self.refusals.contains(currentErrno))
            }
        }
    }

    @Test("the block size and what is left to read are those of the file", arguments: Setting.available)
    func sizes(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(10_000))
            try place.cut()
            let file = try (place / "file").open(O_RDWR)
            var number: Int32 = 0
            #expect(ts_ioctl(file.raw, 2, &number) == 0)
            #expect(UInt32(number) == (try (place / "file").extendedStatus().stx_blksize))
            if ts_ioctl(file.raw, 0x541b, &number) == 0 { #expect(number == 10_000) }
        }
    }
}
