import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Blocks instead of files (claim 8 of the patent): a disk image in the mount, with a file system in it, at work. For longer,
/// with a crash ledger and more load: `make check-real APPS=image`.
@Suite(
    .serialized,
    .enabled(
        if: Machine.isRoot && Machine.canMount && Path("/dev/loop-control").exists,
        "needs root, /dev/fuse and loop devices"))
struct BlockTests {
    private static let mebibyte = 1 << 20

    struct Disk: CustomTestStringConvertible, Sendable {
        let kind: String
        /// Whether the loop device goes past the page cache, with asynchronous direct I/O.
        let isDirect: Bool

        /// mkfs.xfs makes none below 300 MiB.
        var bytes: Int { (kind == "xfs" ? 320 : 64) * mebibyte }
        var testDescription: String { kind + (isDirect ? ", past the page cache" : "") }
        var mountOptions: String { kind == "xfs" ? "nouuid" : "defaults" }

        /// Checks an image that nobody has attached.
        func expectClean(_ image: Path) throws {
            try succeed(kind == "xfs" ? ["xfs_repair", "-n", image.string] : ["e2fsck", "-fn", image.string])
        }
    }

    private static let disks = ["ext4", "xfs"].filter { Machine.has("mkfs.\($0)") }
        .flatMap { kind in [false, true].map { Disk(kind: kind, isDirect: $0) } }

    /// Attaches an image to a loop device for as long as `body` runs.
    private func attached(_ image: Path, direct: Bool = false, _ body: (Path) throws -> Void) throws {
        let words = ["losetup", "--find", "--show"] + (direct ? ["--direct-io=on"] : [])
        let device = try succeed(words + [image.string]).filter { $0 != "\n" }
        if direct {
            let said = try succeed(["losetup", "--noheadings", "--raw", "--output", "DIO", device])
            try #require(said.hasPrefix("1"), "\(image) is not read and written past the page cache")
        }
        let result = Result { try body(Path(device)) }
        try succeed(["losetup", "--detach", device])
        // The kernel closes the image a moment later.
        let backing = Path("/sys/block/\(device.split(separator: "/").last ?? "")/loop/backing_file")
        try wait("\(device) to be detached", seconds: 60) { !backing.exists }
        try result.get()
    }

    /// Mounts the file system in an image for as long as `body` runs.
    private func mounted(
        _ disk: Disk, _ image: Path, at place: Path, _ body: (Path) throws -> Void
    ) throws {
        try attached(image, direct: disk.isDirect) { device in
            if !place.exists { try place.mkdir() }
            try succeed(["mount", "-t", disk.kind, "-o", disk.mountOptions, device.string, place.string])
            let result = Result { try body(place) }
            try succeed(["umount", place.string], seconds: 60)
            try result.get()
        }
    }

    private func make(_ disk: Disk, _ image: Path) throws {
        try image.create()
        try image.truncate(disk.bytes)
        try succeed(["mkfs.\(disk.kind)", "-q", image.string])
    }

    /// What writes in the file system: numbers are committed one after the other, each as a file that is synced, renamed,
    /// and synced in its directory, and between them files are written and removed without any care, and trimmed.
    private final class Load: Sendable {
        let begun = Counter()
        let committed = Counter()
        let isOver = Flag()

        static func content(_ number: Int) -> [UInt8] {
            bytes(100 + number * 7919 % 20_000, seed: UInt64(number))
        }

        func run(in directory: Path) throws {
            try (directory / "ledger").mkdir()
            try (directory / "load").mkdir()
            var random = SeededGenerator(seed: 1)
            while !isOver.isSet {
                for _ in 0..<5 {
                    let file = directory / "load" / Path("\(random.number(0...30))")
                    if random.isTrue(oneIn: 3), file.exists {
                        try file.unlink()
                    } else {
                        try file.open(O_RDWR | O_CREAT).write(
                            random.data(random.number(1...100_000)), at: random.number(0...100_000))
                    }
                }
                begun.increment()
                try commit(begun.current, in: directory / "ledger")
                committed.set(begun.current)
                if committed.current % 20 == 10 { try succeed(["fstrim", directory.string]) }
            }
        }

        private func commit(_ number: Int, in ledger: Path) throws {
            let file = try (ledger / "new").open(O_RDWR | O_CREAT | O_TRUNC)
            try file.writeAll(Self.content(number))
            try file.sync()
            try (ledger / "new").rename(to: ledger / Path("\(number)"))
            try ledger.open(O_RDONLY | O_DIRECTORY).sync()
        }

        /// How many numbers are in the ledger, from 1 without a gap; their files are as they were synced.
        static func check(_ directory: Path) throws -> Int {
            let names = try (directory / "ledger").entries().filter { $0 != "new" }
            for number in 1...max(1, names.count) {
                let file = directory / "ledger" / Path("\(number)")
                #expect(try file.contents() == content(number), "number \(number) is not as it was synced")
            }
            return names.count
        }
    }

    @Test(
        "the image of a file system under load is consistent in the snapshot, and holds what was synced before the cut",
        arguments: disks)
    func image(_ disk: Disk) throws {
        try MountedSource.with { mount in
            let image = mount.mountpoint / "disk.img"
            let copy = mount.top / "copy.img"
            try make(disk, image)
            let load = Load()
            try mounted(disk, image, at: mount.top / "live") { place in
                let worker = try Worker { try load.run(in: place) }
                let result = Result {
                    try wait("the load to begin") { load.committed.current > 25 || worker.hasEnded }
                    let before = load.committed.current
                    try mount.start()
                    let after = load.begun.current
                    try wait("the load to go on") { load.committed.current > after + 15 || worker.hasEnded }
                    try succeed(["cp", "--sparse=always", (mount.snapshot / "disk.img").string, copy.string])
                    let status = try mount.status()
                    #expect(status.state == "active" && status.changedAreas > 0)
                    try mount.stop()
                    return before...after
                }
                load.isOver.set()
                try worker.join()
                let possible = try result.get()
                try mounted(Disk(kind: disk.kind, isDirect: false), copy, at: mount.top / "copy") { place in
                    let found = try Load.check(place)
                    #expect(possible.contains(found), "\(found) is not in \(possible)")
                }
            }
            try disk.expectClean(copy)
            try mounted(disk, image, at: mount.top / "live") { place in
                let found = try Load.check(place)
                #expect(found == load.committed.current)
            }
            try disk.expectClean(image)
            try mount.unmount()
            try disk.expectClean(mount.source / "disk.img")
        }
    }

    @Test(
        "what is discarded in an image gives its space back on the source, and stays in the snapshot",
        arguments: disks)
    func discard(_ disk: Disk) throws {
        try MountedSource.with { mount in
            let image = mount.mountpoint / "disk.img"
            let copy = mount.top / "copy.img"
            let data = bytes(24 * Self.mebibyte, seed: 3)
            try make(disk, image)
            try mounted(disk, image, at: mount.top / "live") { place in
                try (place / "file").create(data)
                try (place / "file").open(O_RDWR).sync()
                try succeed(["sync", "-f", place.string])
                let before = try (mount.source / "disk.img").lstat().blocks
                try mount.start()
                try (place / "file").unlink()
                // XFS frees a removed file's space a moment later.
                try wait("the space of a removed file to come back on the source") {
                    try succeed(["sync", "-f", place.string])
                    try succeed(["fstrim", place.string])
                    let now = try (mount.source / "disk.img").lstat().blocks
                    return (before - now) * 512 > 20 * Self.mebibyte
                }
                try succeed(["cp", "--sparse=always", (mount.snapshot / "disk.img").string, copy.string])
            }
            let kept = try hash(of: copy)
            try mounted(Disk(kind: disk.kind, isDirect: false), copy, at: mount.top / "copy") { place in
                try (mount.top / "plain").create(data)
                #expect(try hash(of: place / "file") == hash(of: mount.top / "plain"))
            }
            try disk.expectClean(copy)
            // All of the device, zeroed and then discarded: fallocate's ZERO_RANGE and PUNCH_HOLE from end to end.
            try attached(image, direct: disk.isDirect) { device in
                try succeed(["blkdiscard", "--force", "--zeroout", device.string])
                try succeed(["blkdiscard", "--force", device.string])
            }
            #expect(try (mount.source / "disk.img").lstat().blocks == 0)
            // Past the kernel's cache of the snapshot.
            let direct = try (mount.snapshot / "disk.img").open(O_RDONLY | O_DIRECT)
            #expect(try hash(of: direct) == kept)
            try mount.stop()
        }
    }

    private static let engines = ["io_uring", "native", "threads"]
    private static let requestBytes = 65_536

    @Test(
        "no write of qemu's, past the page cache and many at once, is torn by the cut, or in the snapshot later",
        .enabled(if: Machine.has("qemu-img"), "qemu-utils is not installed"), arguments: engines)
    func qemu(_ engine: String) throws {
        try MountedSource.with { mount in
            let image = mount.mountpoint / "disk.img"
            try image.create(bytes(16 * Self.mebibyte))
            @Sendable func write(_ pattern: Int) throws {
                try succeed([
                    "qemu-img", "bench", "-w", "-f", "raw", "-t", "none", "-i", engine, "-d", "16", "-c", "256",
                    "-s", "\(Self.requestBytes)", "--pattern", "\(pattern)", image.string,
                ])
            }
            try write(1)
            let rounds = Counter()
            let isOver = Flag()
            let writer = try Worker {
                while !isOver.isSet {
                    try write(2 + rounds.current % 200)
                    rounds.increment()
                }
            }
            let result = Result {
                for _ in 0..<4 {
                    let before = rounds.current
                    try wait("the writer to go on") { rounds.current > before || writer.hasEnded }
                    try mount.start()
                    let first = try patterns(mount)
                    let then = rounds.current
                    try wait("the writer to go on") { rounds.current > then + 2 || writer.hasEnded }
                    #expect(try patterns(mount) == first)
                    try mount.stop()
                }
            }
            isOver.set()
            try writer.join()
            try result.get()
        }
    }

    /// The byte that fills each request's place in the snapshot, read past the page cache.
    private func patterns(_ mount: MountedSource) throws -> [UInt8] {
        let file = try (mount.snapshot / "disk.img").open(O_RDONLY | O_DIRECT)
        var found: [UInt8] = []
        for place in stride(from: 0, to: 16 * Self.mebibyte, by: Self.requestBytes) {
            let data = try file.read(Self.requestBytes, at: place)
            try #require(data.count == Self.requestBytes)
            let word = UInt64(data[0]) * 0x0101_0101_0101_0101
            #expect(ts_word_mismatch(data, data.count, word) == -1, "torn at \(place)")
            found.append(data[0])
        }
        return found
    }
}
