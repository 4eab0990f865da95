import Glibc
import TestSupport
import Testing

/// What the kernel asks of the daemon, by `-o count_requests`.
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
}
