import Glibc
import TestSupport
import Testing

/// What the kernel asks of the daemon, and how it is served.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)"))
struct RequestTests {
    @Test("after an fsync of little the kernel asks for no attributes, and tells the blocks a second late at most")
    func synchronizing() throws {
        try MountedSource.with(mode: .preserve, options: ["-o", "io=writeback,count_requests"]) { mount in
            let file = try (mount.mountpoint / "log").open(O_RDWR | O_CREAT)
            let before = try mount.status().number("GETATTR")
            let rounds = 100
            for round in 0..<rounds {
                try file.writeAll(bytes(4096), at: round * 4096)
                try file.sync()
            }
            let asked = try mount.status().number("GETATTR") - before
            // Each 32 KiB, or quarter of what there is; a machine that is busy takes seconds, and so some more.
            #expect(asked < rounds / 2)
            try wait("the blocks of what was written") { try file.stat().blocks >= rounds * 8 }
        }
    }

    @Test("a file that was empty when the kernel was told of it does not seem to be without data later")
    func emptyBefore() throws {
        try MountedSource.with(mode: .preserve, options: ["-o", "io=writeback"], overItself: true) { mount in
            let file = mount.mountpoint / "file"
            try file.create()
            #expect(try file.lstat().blocks == 0)
            let writer = try file.open(O_RDWR)
            try writer.writeAll(bytes(1 << 20))
            #expect(try file.lstat().blocks > 0, "to tar, a file without blocks is one without data")
            try writer.sync()
            #expect(try file.lstat().blocks >= 2048)
        }
    }

    @Test("a mount with one worker ends when it is unmounted")
    func oneWorker() throws {
        try MountedSource.with(options: ["-o", "max_threads=1"]) { mount in
            try (mount.mountpoint / "file").create(bytes(10_000))
            #expect(try (mount.mountpoint / "file").contents() == bytes(10_000))
        }
    }
}
