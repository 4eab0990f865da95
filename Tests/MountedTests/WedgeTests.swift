import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Nothing that a user or an administrator does leaves a process that cannot be ended.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct WedgeTests {
    @Test(
        "a connection that is aborted through fusectl ends the daemon, its mount and its snapshot",
        .enabled(if: Machine.isRoot, "\(Machine.needsRoot)"), arguments: [false, true])
    func aborted(_ overItself: Bool) throws {
        try MountedSource.with(overItself: overItself) { mount in
            try (mount.mountpoint / "file").create(bytes(100_000))
            try mount.start()
            let isOver = Flag()
            let workers = try (0..<3).map { number in
                try Worker {
                    // What is under way when the connection ends fails, and everything after that.
                    var failures = 0
                    while !isOver.isSet && failures < 5 {
                        do throws(Errno) {
                            try (mount.mountpoint / "file").write(bytes(10_000), at: number * 5000)
                            _ = try (mount.snapshot / "file").contents()
                        } catch {
                            failures += 1
                        }
                    }
                }
            }
            try mount.abortConnection()
            try mount.waitForEnd()
            isOver.set()
            for worker in workers { try worker.join() }
            try wait("the mount to go") { try !isMounted(mount.mountpoint) }
            #expect(try (mount.source / "file").contents().count == 100_000)
            try succeed([Machine.binary, "mount", mount.source.string, (mount.mountpoint).string])
            #expect(try (mount.mountpoint / "file").contents().count == 100_000)
            #expect(!mount.snapshot.exists)
            try succeed([Machine.binary, "unmount", mount.mountpoint.string])
        }
    }

    @Test("signals that interrupt system calls change no result", arguments: [false, true])
    func interrupted(_ isActive: Bool) throws {
        try MountedSource.with { mount in
            let file = mount.mountpoint / "file"
            try file.create(bytes(300_000))
            for number in 0..<50 { try (mount.mountpoint / Path("entry-\(number)")).create() }
            if isActive { try mount.start() }
            let isOver = Flag()
            let worker = try Worker {
                defer { isOver.set() }
                let open = try file.open(O_RDWR)
                for round in 0..<200 {
                    let data = bytes(200_001, seed: UInt64(round))
                    try open.writeAll(data, at: round)
                    if try open.read(200_001, at: round) != data {
                        throw TestFailure("round \(round): other data")
                    }
                    try file.rename(to: mount.mountpoint / "moved")
                    try (mount.mountpoint / "moved").rename(to: file)
                    let listed = try mount.mountpoint.entries().count
                    if listed != 51 { throw TestFailure("round \(round): \(listed) entries") }
                    try (mount.mountpoint / "new").create(bytes(10))
                    try (mount.mountpoint / "new").unlink()
                }
            }
            try worker.interrupt(until: isOver)
            try worker.join()
        }
    }

    /// In ticks, what the process and the children that it waited for took.
    private func processorTime(_ process: Int32) throws -> Int {
        let text = String(decoding: try Path("/proc/\(process)/stat").contents(), as: UTF8.self)
        let fields = text.split(separator: ")").last?.split(separator: " ") ?? []
        return fields.dropFirst(11).prefix(4).compactMap { Int($0) }.reduce(0, +)
    }

    @Test("a process that is killed in the middle of a large copy is gone within a second")
    func killed() throws {
        try MountedSource.with { mount in
            let file = mount.mountpoint / "file"
            try file.create(bytes(1 << 20))
            try file.truncate(4 << 30)
            try mount.start()
            for words in [
                ["cp", "--sparse=never", "--reflink=never", "file", "copy"],
                ["dd", "if=/dev/zero", "of=file", "bs=1M", "conv=notrunc"], ["cat", "file"],
                ["tar", "-cf", "archive", "file"],
            ] {
                let child = try Child(words, in: mount.mountpoint)
                let done = try processorTime(mount.daemon)
                try wait("\(words) to be under way") { try processorTime(mount.daemon) > done + 3 }
                child.signal(SIGKILL)
                let ended = try child.wait(seconds: 1)
                #expect(ended.code == 128 + SIGKILL, "\(ended)")
            }
        }
    }
}
