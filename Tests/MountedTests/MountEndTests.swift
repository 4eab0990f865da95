import Glibc
import SystemPackage
import TestSupport
import Testing

/// How a mount ends, and what it must not share.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct MountEndTests {
    @Test(
        "unmount while a snapshot is active ends it and says so; with --force that counts as success",
        arguments: [false, true])
    func unmountWhileActive(_ force: Bool) throws {
        try MountedSource.with { mount in
            try (mount.mountpoint / "file").create(bytes(10_000))
            try mount.start()
            try (mount.mountpoint / "file").write(bytes(10, seed: 2), at: 0)
            let live = try TreeCapture(mount.mountpoint)
            let finished = try run(
                [Machine.binary, "unmount"] + (force ? ["--force"] : []) + [mount.mountpoint.string])
            #expect(finished.code == (force ? 0 : 1), "\(finished)")
            if !force { #expect(finished.errors.contains("snapshot")) }
            try mount.waitForEnd()
            #expect(try !isMounted(mount.mountpoint))
            expect(try TreeCapture(mount.source), equals: live, "the source after unmount")
            try expectNothingStored(mount)
        }
    }

    @Test("SIGTERM and SIGINT unmount cleanly and leave nothing", arguments: [SIGTERM, SIGINT], [false, true])
    func signals(_ signal: Int32, _ isActive: Bool) throws {
        try MountedSource.with { mount in
            try (mount.mountpoint / "file").create(bytes(10_000))
            if isActive { try mount.start() }
            try (mount.mountpoint / "file").write(bytes(10, seed: 2), at: 0)
            let live = try TreeCapture(mount.mountpoint)
            #expect(kill(mount.daemon, signal) == 0)
            try mount.waitForEnd()
            try wait("the mount to go") { try !isMounted(mount.mountpoint) }
            expect(try TreeCapture(mount.source), equals: live, "the source after the signal")
            try expectNothingStored(mount)
        }
    }

    @Test("a source can be mounted once only, and the first mount is not disturbed")
    func twoMounts() throws {
        try MountedSource.with { mount in
            try (mount.top / "second").mkdir()
            let second = try run([Machine.binary, "mount", mount.source.string, (mount.top / "second").string])
            #expect(second.code == 1 && second.errors.contains(mount.source.string), "\(second)")
            #expect(try !isMounted(mount.top / "second"))
            try (mount.mountpoint / "file").create()
            try mount.start()
        }
    }

    @Test(
        "a daemon that is killed leaves every byte that was written, and its mount can be removed and made again")
    func killed() throws {
        try MountedSource.with { mount in
            try (mount.mountpoint / "file").create(bytes(50_000))
            try mount.start()
            try (mount.mountpoint / "file").write(bytes(20_000, seed: 2), at: 10_000)
            let live = try TreeCapture(mount.mountpoint)
            kill(mount.daemon, SIGKILL)
            try mount.waitForEnd()
            // ECONNABORTED while the kernel is still ending the connection.
            #expect {
                try (mount.mountpoint / "file").lstat()
            } throws: { error in
                error as? Errno == .socketNotConnected || error as? Errno == .connectionAbort
            }
            try succeed([Machine.binary, "unmount", mount.mountpoint.string])
            expect(try TreeCapture(mount.source), equals: live, "the source after the kill")
            try succeed([Machine.binary, "mount", mount.source.string, mount.mountpoint.string])
            expect(try TreeCapture(mount.mountpoint), equals: live, "the live view, mounted again")
            try succeed([Machine.binary, "unmount", "--force", mount.mountpoint.string])
        }
    }

    @Test("inode numbers, data and times are the same in a new mount")
    func mountedAgain() throws {
        try MountedSource.with { mount in
            for kind in Kind.available { try kind.make(mount.mountpoint / Path("\(kind)")) }
            let before = try TreeCapture(mount.mountpoint)
            try mount.unmount()
            try succeed([Machine.binary, "mount", mount.source.string, mount.mountpoint.string])
            let after = try TreeCapture(mount.mountpoint)
            expect(after, equals: before, "mounted again")
            #expect(after.inodes == before.inodes)
            try succeed([Machine.binary, "unmount", mount.mountpoint.string])
        }
    }

    /// At most a few small files may be left where the store was.
    private func expectNothingStored(_ mount: MountedSource) throws {
        let store = mount.source / ".fusesnap"
        if !store.exists { return }
        let left = try TreeCapture(store).files.values.compactMap { $0[.size] }.compactMap { Int($0) }.reduce(0, +)
        #expect(left < 16_384, "bytes left in the store")
    }
}
