import CTestSupport
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

    @Test(
        "link counts stay what applications made them when the snapshot overflows",
        arguments: [[], ["-o", "no_file_handles"]])
    func linkCounts(_ options: [String]) throws {
        try MountedSource.with(options: ["--max-delta", "4M"] + options) { mount in
            let (root, files) = (mount.mountpoint, 0..<200)
            func name(_ kind: String, _ number: Int) -> Path { root / Path("\(kind)-\(number)") }
            try (root / "big").create(bytes(8 << 20))
            for number in files {
                for kind in ["unlinked", "replaced", "linked"] { try name(kind, number).create(bytes(10)) }
                try name("linked", number).link(to: name("other", number))
            }
            try mount.start()
            let open = try files.map { number in
                try ["unlinked", "replaced", "linked"].map { try name($0, number).open(O_RDONLY) }
            }
            for number in files {
                try name("unlinked", number).unlink()
                try name("linked", number).unlink()
                try (root / "new").create()
                try (root / "new").rename(to: name("replaced", number))
            }
            func expectCounts(_ when: String) throws {
                for three in open { #expect(try three.map { try $0.links() } == [0, 0, 1], "\(when)") }
                for number in files { #expect(try name("other", number).lstat().links == 1, "\(when)") }
            }
            try expectCounts("before")
            try (root / "big").write(bytes(8 << 20, seed: 2), at: 0)
            #expect(try mount.status().state == "overflowed")
            for _ in 0..<5 { try expectCounts("just after") }
            try wait("the graves to go") {
                try (mount.source / ".fusesnap").entries().allSatisfy { $0 != "graveyard" }
            }
            try expectCounts("after")
            #expect(try mount.control("stop").code == 3)
            try expectCounts("after the stop")
        }
    }
}

extension File {
    /// The link count as the daemon tells it now, not the kernel's memory of it.
    fileprivate func links() throws(Errno) -> UInt32 {
        var status = statx()
        try check(ts_statx(raw, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, UInt32(STATX_NLINK), &status))
        return status.stx_nlink
    }
}
