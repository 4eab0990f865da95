import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// The freeze of writers: what stands in its way, and what becomes of it when a process is killed in the middle.
/// What a cut holds is `CutTests`' business.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct FreezeTests {
    /// A write(2) that goes on until `finish`, and holds the file's lock in the kernel meanwhile.
    private final class HeldWrite: @unchecked Sendable {
        static let count = 4096
        private let page: UnsafeMutableRawPointer
        private let faults: Int32
        private let writer: Worker

        /// Returns once the write is under way.
        init(to file: File, at offset: Int) throws {
            var faults: Int32 = -1
            guard let page = ts_waiting_page(&faults) else { throw TestFailure("userfaultfd: \(currentErrno)") }
            (self.page, self.faults) = (page, faults)
            nonisolated(unsafe) let start = page
            writer = try Worker {
                let count = pwrite(file.raw, start, HeldWrite.count, offset)
                if count != HeldWrite.count { throw TestFailure("the write returned \(count): \(currentErrno)") }
            }
            if ts_await_fault(faults, 30_000) == 0 { throw TestFailure("nothing waits for the page") }
        }

        /// The write goes on, with this byte throughout.
        func finish(_ byte: UInt8) throws {
            if ts_fill_page(faults, page, Int32(byte)) != 0 { throw TestFailure("userfaultfd: \(currentErrno)") }
            try writer.join()
            munmap(page, Self.count)
        }
    }

    @Test(
        "a file without a name is gone when it is closed, however it was written",
        .enabled(if: Machine.isRoot, "\(Machine.needsRoot)"))
    func temporaryFile() throws {
        try MountedSource.with { mount in
            for _ in 0..<10 {
                let file = try mount.mountpoint.open(O_TMPFILE | O_RDWR)
                try file.writeAll(bytes(100_000))
                #expect(try file.read(200_000, at: 0) == bytes(100_000))
            }
            try mount.start()
            try mount.stop()
            try wait("the daemon to let go of files that are gone") { try removedFilesHeld(by: mount) == 0 }
        }
    }

    /// How many of the daemon's descriptors are of files that have no name.
    private func removedFilesHeld(by mount: MountedSource) throws -> Int {
        let directory = Path("/proc/\(mount.daemon)/fd")
        var count = 0
        for name in try directory.entries() {
            do throws(Errno) {
                // In a mount of the daemon's own: its paths are not ours.
                if try (directory / name).readlink().string.hasSuffix("(deleted)") { count += 1 }
            } catch {
                // Closed since it was listed.
                guard error == .noSuchFileOrDirectory else { throw error }
            }
        }
        return count
    }

    @Test(
        "a start that cannot freeze a file names it and changes nothing",
        .enabled(if: Machine.isRoot, "\(Machine.needsRoot)"))
    func heldFile() throws {
        try MountedSource.with { mount in
            let path = mount.mountpoint / "held by a write"
            let file = try path.open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(8192))
            let other = try (mount.mountpoint / "other").open(O_RDWR | O_CREAT)
            let write = try HeldWrite(to: file, at: 0)
            let refused = try mount.control("start", "--stall-max", "40", "--attempts", "3")
            #expect(refused.code == 1)
            #expect(refused.errors.contains(path.string), "\(refused)")
            #expect(refused.errors.contains("process \(getpid())"), "\(refused)")
            #expect(refused.errors.contains("3 attempts of at most 40 ms"), "\(refused)")
            #expect(try mount.status().state == "idle")
            #expect(!mount.snapshot.exists)
            #expect(try helpers(of: mount).isEmpty)
            // All goes on: writing, opening for writing, making files.
            try other.writeAll(bytes(100), at: 0)
            try (mount.mountpoint / "other").write([1], at: 0)
            try (mount.mountpoint / "new").create([2])
            try write.finish(7)
            try mount.start()
            try file.writeAll(bytes(8192, seed: 2), at: 0)
            let kept = try (mount.snapshot / "held by a write").contents()
            #expect(kept == [UInt8](repeating: 7, count: HeldWrite.count) + bytes(8192)[HeldWrite.count...])
            let report = try mount.status()
            #expect(report.number("last_stall_microseconds") >= 0)
        }
    }

    @Test("a start freezes a thousand files that are open for writing, and lets all of them go")
    func manyFiles() throws {
        try MountedSource.with { mount in
            let files = try (0..<1000).map { number in
                try (mount.mountpoint / Path("file \(number)")).open(O_RDWR | O_CREAT)
            }
            let report = try mount.control("start", "--json", "--stall-max", "5000")
            #expect(report.output.contains("\"files_frozen\" : 1000"), "\(report)")
            for file in files { try file.writeAll([1], at: 0) }
            for number in 0..<1000 {
                #expect(try (mount.snapshot / Path("file \(number)")).stat().size == 0)
            }
            try mount.stop()
            #expect(try helpers(of: mount).isEmpty)
        }
    }

    @Test("in a file that is opened, made and closed all the time, a start finds its moment")
    func openings() throws {
        try MountedSource.with { mount in
            let isOver = Flag()
            let workers = try (0..<3).map { worker in
                try Worker {
                    var number = 0
                    while !isOver.isSet {
                        number += 1
                        let path = mount.mountpoint / Path("\(worker)-\(number % 5)")
                        let file = try path.open(O_RDWR | O_CREAT)
                        try file.writeAll(bytes(5000, seed: UInt64(number)), at: 3)
                        if number % 7 == 0 { try path.unlink() }
                    }
                }
            }
            for _ in 0..<20 {
                try mount.start()
                let first = try TreeCapture(mount.snapshot)
                expect(try TreeCapture(mount.snapshot), equals: first, ignoring: [.ranges], "read again")
                try mount.stop()
            }
            isOver.set()
            for worker in workers { try worker.join() }
        }
    }

    @Test(
        "a helper or daemon that is killed while a snapshot starts leaves nothing that waits",
        arguments: ["helper", "daemon"])
    func killed(_ victim: String) throws {
        for seed in seeds(rounds(6)) {
            var generator = SeededGenerator(seed: seed)
            let delay = UInt32.random(in: 0..<60_000, using: &generator)
            try killOnce(victim, afterMicroseconds: delay, "seed \(seed)")
        }
    }

    private func killOnce(_ victim: String, afterMicroseconds delay: UInt32, _ what: String) throws {
        try MountedSource.with { mount in
            let isOver = Flag()
            let isDaemon = victim == "daemon"
            let writer = try Worker {
                var number = 0
                while !isOver.isSet {
                    number += 1
                    do {
                        let file = try (mount.mountpoint / Path("\(number % 9)")).open(O_RDWR | O_CREAT)
                        try file.writeAll(bytes(9000, seed: UInt64(number)), at: 5)
                    } catch  where isDaemon {
                        return  // As it must be without a daemon.
                    }
                }
            }
            let start = try Child([Machine.binary, "ctl", "start", mount.mountpoint.string])
            // A moment in the middle, whichever: that is what is tested.
            usleep(delay)
            if isDaemon {
                kill(mount.daemon, SIGKILL)
            } else {
                for helper in try helpers(of: mount) { kill(helper, SIGKILL) }
            }
            let finished = try start.wait(seconds: 60)
            isOver.set()
            try writer.join()
            try wait("the helper to end, \(what)") { try helpers(of: mount).isEmpty }
            if isDaemon {
                try mount.waitForEnd()
                try succeed([Machine.binary, "unmount", mount.mountpoint.string], seconds: 30)
                try succeed([Machine.binary, "mount", mount.source.string, mount.mountpoint.string], seconds: 30)
                try (mount.mountpoint / "after").create([1])
                try succeed([Machine.binary, "unmount", mount.mountpoint.string], seconds: 30)
            } else {
                try (mount.mountpoint / "after").create([1])
                let isActive = try mount.status().state == "active"
                #expect(isActive == (finished.code == 0), "\(what): \(finished)")
                if isActive { try mount.stop() }
                try mount.start()
                try mount.stop()
            }
        }
    }

    @Test("what is stored through a mapping that outlives its descriptor is not in a snapshot begun before")
    func mappingWithoutDescriptor() throws {
        try MountedSource.with { mount in
            let path = mount.mountpoint / "mapped"
            try path.create(bytes(20_000))
            let mapping = try path.open(O_RDWR).map(20_000)  // Its descriptor is closed by now.
            try mapping.write([1, 1, 1], at: 5_000)
            try mapping.sync()
            var expected = bytes(20_000)
            expected.replaceSubrange(5_000..<5_003, with: [1, 1, 1])
            for round in UInt8(2)...4 {
                try mount.start()
                try mapping.write([round, round, round], at: 5_000)
                try mapping.write([round], at: 19_999)
                try mapping.sync()
                #expect(try (mount.snapshot / "mapped").contents() == expected, "round \(round)")
                #expect(try path.contents()[5_000] == round)
                try mount.stop()
                expected = try path.contents()
            }
        }
    }

    /// Freeze helpers of the mount that run.
    private func helpers(of mount: MountedSource) throws -> [Int32] {
        try Path("/proc").entries().compactMap { Int32($0.description) }.filter { process in
            do {
                let words = try Path("/proc/\(process)/cmdline").contents().split(separator: 0)
                return words.count > 2 && words[1].elementsEqual("freeze-helper".utf8)
                    && words[2].elementsEqual(mount.mountpoint.string.utf8)
            } catch {
                return false  // It has ended.
            }
        }
    }
}
