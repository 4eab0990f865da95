import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// That what the daemon takes of the machine follows what is open and what the kernel remembers. `make check-scale` runs
/// these with a million files.
@Suite(.serialized, .enabled(if: Machine.canMount && Machine.isRoot, "\(Machine.needsMount), as root"))
struct ScaleTests {
    /// What workers' buffers, stacks and caches may take, whatever the number of files.
    private static let fixedBytes = 12 << 20
    private static let bytesPerInode = 200
    private static let descriptorsMax = 1000

    @Test(
        "a walk costs few descriptors and little memory an inode, and forgetting gives it back",
        arguments: [[], ["-o", "no_file_handles"]] as [[String]])
    func walk(_ options: [String]) throws {
        let count = files(20_000)
        try MountedSource.with(options: options, prepare: { try Self.make(count, in: $0) }) { mount in
            let before = try mount.figures()
            func expectLittle(_ nodes: Int, _ what: String) throws {
                let now = try mount.figures()
                #expect(now.descriptors < Self.descriptorsMax, "\(what)")
                #expect(
                    now.memoryBytes - before.memoryBytes < nodes * Self.bytesPerInode + Self.fixedBytes,
                    "\(what): \(now), at first \(before)")
            }
            try Self.walk(mount.mountpoint)
            try expectLittle(count, "after a walk")
            try mount.start()
            try Self.walk(mount.snapshot)
            try expectLittle(2 * count, "after a walk of the snapshot too")
            try mount.stop()
            // The kernel lets go of some 50,000 in a second, and tells it as slowly.
            try mount.dropCaches("the memory of \(count) nodes to go back", seconds: 30 + Double(count) / 5_000) {
                try mount.figures().memoryBytes - before.memoryBytes < count * 10 + Self.fixedBytes
            }
        }
    }

    /// Makes files `dN/file-NUMBER`, a thousand in a directory: by programs, since a million would take long here.
    private static func make(_ count: Int, in source: Path) throws {
        let script = """
            cd "$0" && for first in $(seq 0 1000 $(($1 - 1))); do
                last=$((first + 999)); [ $last -lt $1 ] || last=$(($1 - 1))
                mkdir d$((first / 1000)) && cd d$((first / 1000)) && seq -f file-%.0f $first $last | xargs touch && cd .. || exit
            done
            """
        try succeed(["sh", "-c", script, source.string, "\(count)"], seconds: 1200)
    }

    /// Looks up everything, as a backup does.
    private static func walk(_ directory: Path) throws {
        try succeed(["find", directory.string, "-newermt", "@0", "-size", "+1G"], seconds: 1200)
    }

    @Test("15,000 files are open at once, for reading and writing, while a snapshot starts and ends")
    func manyOpen() throws {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        let usual = limit
        limit.rlim_cur = limit.rlim_max
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        defer {
            var usual = usual
            setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &usual)
        }
        let count = min(15_000, Int(limit.rlim_max) - 3000)
        let writers = 500
        try MountedSource.with(prepare: { try Self.make(count, in: $0) }) { mount in
            let idle = try mount.figures()
            var open: [File] = []
            for number in 0..<count {
                let path = mount.mountpoint / Path("d\(number / 1000)") / Path("file-\(number)")
                open.append(try path.open(number < writers ? O_RDWR : O_RDONLY))
            }
            try mount.start()
            for (number, file) in open.enumerated() where number < writers {
                try file.writeAll(bytes(10, seed: UInt64(number)))
            }
            for number in 0..<writers {
                let name = Path("d\(number / 1000)") / Path("file-\(number)")
                #expect(try (mount.mountpoint / name).contents() == bytes(10, seed: UInt64(number)))
                #expect(try (mount.snapshot / name).contents() == [])
            }
            #expect(try mount.figures().descriptors >= count)
            try mount.stop()
            open = []
            try wait("the descriptors to be closed") {
                try mount.figures().descriptors < idle.descriptors + Self.descriptorsMax
            }
        }
    }

    @Test("where the daemon has no descriptors left, listings are whole or fail, and control works")
    func exhausted() throws {
        let count = 3000
        try MountedSource.with(prepare: { try Self.make(count, in: $0) }) { mount in
            let directory = try (mount.mountpoint / "d0").open(O_RDONLY | O_DIRECTORY)
            let held = try (mount.mountpoint / "d1" / "file-1000").open(O_RDWR)
            // A few are left, so that each call takes the last ones in another place.
            var limit = try mount.figures().descriptors + 40
            try mount.limitDescriptors(limit)
            var open: [File] = []
            var error: Errno?
            while error == nil, open.count < 1000 {
                do throws(Errno) {
                    open.append(try (mount.mountpoint / "d1" / Path("file-\(1001 + open.count)")).open(O_RDONLY))
                } catch let thrown {
                    error = thrown
                }
            }
            #expect(error == .tooManyOpenFiles)
            #expect(open.count > 20)
            var isWhole = 0
            for _ in 0..<20 {
                _ = try directory.seek(0, SEEK_SET)
                #expect(try directory.entries().count == 1000, "a directory that is open")
                do throws(Errno) {
                    let listed = try (mount.mountpoint / "d2").entries()
                    #expect(listed.count == 1000)
                    isWhole += 1
                } catch {
                    #expect(error == .tooManyOpenFiles)
                }
                try held.writeAll(bytes(100), at: 0)
                limit += 1
                try mount.limitDescriptors(limit)
                #expect(try mount.status().state == "idle")
            }
            #expect(isWhole > 0)
            open = []
            #expect(try (mount.mountpoint / "d2").entries().count == 1000)
            let before = try TreeCapture(mount.mountpoint / "d1")
            try mount.start()
            try held.writeAll(bytes(100, seed: 3), at: 0)
            expect(try TreeCapture(mount.snapshot / "d1"), equals: before, "the snapshot")
        }
    }

    @Test("snapshots that start and stop leave no descriptor, thread, memory or space behind")
    func cycles() throws {
        try MountedSource.with(prepare: { try Self.make(200, in: $0) }) { mount in
            let writer = try (mount.mountpoint / "d0" / "file-0").open(O_RDWR)
            func cycle(_ number: Int) throws {
                try writer.writeAll(bytes(5000, seed: UInt64(number)), at: number % 3 * 4096)
                try mount.start()
                try writer.writeAll(bytes(5000, seed: UInt64(number + 1)), at: number % 5 * 4096)
                let name = Path("made-\(number)")
                try (mount.mountpoint / name).create(bytes(100))
                try (mount.mountpoint / "d0" / "file-1").append(bytes(10))
                try (mount.mountpoint / "d0" / "file-2").rename(to: mount.mountpoint / "d0" / "renamed")
                try Self.walk(mount.snapshot)
                _ = try (mount.snapshot / "d0" / "file-0").contents()
                try (mount.mountpoint / "d0" / "renamed").rename(to: mount.mountpoint / "d0" / "file-2")
                try (mount.mountpoint / name).unlink()
                try mount.stop()
            }
            for number in 0..<10 { try cycle(number) }
            let before = try mount.figures()
            let space = try TreeCapture(mount.source / ".fusesnap").files.count
            let number = Int(rounds(30))
            for number in 0..<number { try cycle(number) }
            try mount.dropCaches("descriptors and threads to be as before") {
                let now = try mount.figures()
                // Workers of libfuse come and go by themselves.
                return now.descriptors <= before.descriptors + 10 && now.threads <= before.threads + 10
            }
            let after = try mount.figures()
            #expect(
                after.memoryBytes < before.memoryBytes + (4 << 20),
                "after \(number) cycles: \(after), before \(before)")
            #expect(try TreeCapture(mount.source / ".fusesnap").files.count == space)
            // By themselves they leave nothing at all, but for a little that the allocator keeps.
            let bare = 200
            for _ in 0..<bare {
                try mount.start()
                try mount.stop()
            }
            let end = try mount.figures()
            #expect(
                end.memoryBytes < after.memoryBytes + bare << 10,
                "\(bare) starts and stops: \(end), before \(after)")
        }
    }

    @Test("a directory of many entries lists correctly while entries come and go, and its snapshot too")
    func largeDirectory() throws {
        let count = files(20_000)
        try MountedSource.with(prepare: { source in
            try (source / "large").mkdir()
            let script = "cd \"$0\" && seq -f steady-%.0f 0 $(($1 - 1)) | xargs touch"
            try succeed(["sh", "-c", script, (source / "large").string, "\(count)"], seconds: 1200)
        }) { mount in
            let directory = mount.mountpoint / "large"
            try mount.start()
            let isOver = Flag()
            let churn = try Worker {
                var round = 0
                while !isOver.isSet {
                    let name = Path("new-\(round % 500)")
                    try (directory / name).create()
                    try (directory / name).rename(to: directory / "renamed")
                    try (directory / Path("steady-\(round % count)")).rename(to: directory / "moved")
                    try (directory / "moved").rename(to: directory / Path("steady-\(round % count)"))
                    if round % 2 == 0 { try (directory / "renamed").unlink() }
                    round += 1
                }
            }
            for _ in 0..<3 {
                // What is renamed while it is listed may show under either name, or both.
                let live = try directory.entries().filter { "\($0)".hasPrefix("steady-") }
                #expect(live.count >= count - 1 && Set(live).count == live.count)
                let kept = try (mount.snapshot / "large").entries()
                #expect(kept.count == count && Set(kept).count == count)
            }
            isOver.set()
            try churn.join()
        }
    }
}
