import Glibc
import SystemPackage
import TestSupport
import Testing

/// What happens when a snapshot can be kept no longer.
@Suite(
    .serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)"),
    .disabled(if: Machine.preservesWholeFiles, "a whole file is preserved when it is opened"))
struct OverflowTests {
    @Test("over --max-delta, live writes go on, reads of the snapshot are EIO, and the stop exits with 3")
    func overflow() throws {
        try MountedSource.with(options: ["--max-delta", "1M"]) { mount in
            let file = mount.mountpoint / "file"
            try file.create(bytes(4 << 20))
            try (mount.mountpoint / "other").create(bytes(50_000))
            try mount.start()
            try file.write(bytes(100_000, seed: 2), at: 0)
            #expect(try mount.status().state == "active")
            #expect(try (mount.snapshot / "file").contents() == bytes(4 << 20))
            try file.write(bytes(4 << 20, seed: 3), at: 0)
            #expect(try file.contents() == bytes(4 << 20, seed: 3))
            #expect(try mount.status().state == "overflowed")
            #expect(throws: Errno.ioError) { try (mount.snapshot / "file").contents() }
            try file.truncate(10)
            try (mount.mountpoint / "other").unlink()
            try (mount.mountpoint / "new").create(bytes(1 << 20))
            let stopped = try mount.control("stop")
            #expect(stopped.code == 3, "\(stopped)")
            #expect(!stopped.errors.isEmpty)
            #expect(try file.contents() == Array(bytes(10, seed: 3)))
            #expect(try mount.status().state == "idle")
        }
    }

    @Test("after an overflow a new snapshot is exact again")
    func afterOverflow() throws {
        try MountedSource.with(options: ["--max-delta", "64K"]) { mount in
            let file = mount.mountpoint / "file"
            try file.create(bytes(1 << 20))
            try mount.start()
            try file.write(bytes(1 << 20, seed: 2), at: 0)
            #expect(try mount.control("stop").code == 3)
            let atCut = try TreeCapture(mount.mountpoint)
            try mount.start()
            try file.write(bytes(10_000, seed: 3), at: 5_000)
            try expectSnapshot(mount, is: atCut, "after the overflow of another")
            try mount.stop()
        }
    }

    @Test("a descriptor that was reading when the snapshot overflowed gets errors, never other data")
    func openReader() throws {
        try MountedSource.with(options: ["--max-delta", "64K"]) { mount in
            let file = mount.mountpoint / "file"
            try file.create(bytes(1 << 20))
            try mount.start()
            let reader = try (mount.snapshot / "file").open(O_RDONLY)
            #expect(try reader.read(4_096, at: 0) == bytes(4_096))
            try file.write(bytes(1 << 20, seed: 2), at: 0)
            #expect(throws: Errno.ioError) { try reader.read(4_096, at: 900_000) }
            #expect(try mount.control("stop").code == 3)
        }
    }
}
