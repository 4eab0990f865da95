import Glibc
import SystemPackage
import TestSupport
import Testing

/// Merges: what applications do meanwhile, and sizes.
@Suite(
    .serialized,
    .enabled(if: Machine.canMount && Machine.Mode.available.contains(.redirect), "needs /dev/fuse and root"))
struct RedirectMergeTests {
    private static let block = 4_096

    @Test("every block of a file is written while it is merged, and each is in the end what was written last")
    func writesDuringMerge() throws {
        try MountedSource.with(mode: .redirect) { mount in
            let (path, blocks) = (mount.mountpoint / "file", 8_192)
            try path.create(bytes(blocks * Self.block))
            try mount.start()
            let file = try path.open(O_RDWR)
            var model = bytes(blocks * Self.block)
            for number in stride(from: 0, to: blocks, by: 2) {
                let data = bytes(Self.block, seed: UInt64(number))
                try file.write(data, at: number * Self.block)
                model.replaceSubrange(number * Self.block..<(number + 1) * Self.block, with: data)
            }
            let start = model
            let (isOver, rounds) = (Flag(), Counter())
            let writer = try Worker {
                let file = try path.open(O_RDWR)
                repeat {
                    rounds.increment()
                    for number in 0..<blocks {
                        if isOver.isSet && rounds.current > 1 { break }
                        try file.write(Self.mark(rounds.current, number), at: Self.place(number))
                    }
                } while !isOver.isSet
            }
            try wait("the writer's first round") { rounds.current > 0 }
            try mount.stop()
            isOver.set()
            try writer.join()
            for root in [mount.mountpoint, mount.source] {
                let found = try (root / "file").contents()
                #expect(found.count == start.count)
                // A round that was broken off has reached some block, and none behind it.
                var last = rounds.current
                for number in 0..<blocks {
                    let at = Self.place(number)
                    if last == rounds.current, rounds.current > 1,
                        Array(found[at..<at + 4]) != Self.mark(last, number)
                    {
                        last -= 1
                    }
                    var expected = Array(start[number * Self.block..<(number + 1) * Self.block])
                    let offset = at - number * Self.block
                    expected.replaceSubrange(offset..<offset + 4, with: Self.mark(last, number))
                    guard found[number * Self.block..<(number + 1) * Self.block].elementsEqual(expected) else {
                        throw TestFailure(
                            "\(root): block \(number) is not what was written last, in round \(last)")
                    }
                }
            }
        }
    }

    private static func place(_ number: Int) -> Int { number * block + number % 4_000 }

    private static func mark(_ round: Int, _ number: Int) -> [UInt8] {
        [UInt8(truncatingIfNeeded: round), 1, UInt8(truncatingIfNeeded: number), 2]
    }

    @Test("names that change while they are merged are in the end what they were changed to", arguments: seeds(2))
    func namesDuringMerge(_ seed: UInt64) throws {
        try MountedSource.with(mode: .redirect) { mount in
            let (root, twin) = (mount.mountpoint / "d", mount.top / "twin")
            for directory in [root, twin] {
                try directory.mkdir()
                for number in 0..<300 { try (directory / Path("\(number)")).create(bytes(number, seed: seed)) }
                for number in 0..<20 { try (directory / Path("sub\(number)")).mkdir() }
            }
            try mount.start()
            let isOver = Flag()
            let changer = try Worker {
                var random = SeededGenerator(seed: seed)
                var number = 0
                // As much as makes a difference, however fast the merge is.
                while !isOver.isSet || number < 3_000 {
                    number += 1
                    let choice = random.number(0...6)
                    let (first, second) = (Self.name(&random), Self.name(&random))
                    let results = [root, twin].map { directory in
                        Self.apply(choice, directory / first, directory / second, number)
                    }
                    if results[0] != results[1] {
                        throw TestFailure("seed \(seed): \(choice) \(first) \(second): \(results)")
                    }
                }
            }
            for _ in 1...3 {
                try mount.stop()
                try mount.start()
            }
            try mount.stop()
            isOver.set()
            try changer.join()
            for directory in [root, mount.source / "d"] {
                expect(
                    try TreeCapture(directory), equals: try TreeCapture(twin),
                    ignoring: [.mtime, .ctime, .ranges],
                    "seed \(seed): \(directory)")
            }
        }
    }

    private static func name(_ random: inout SeededGenerator) -> Path {
        let name =
            random.isTrue(oneIn: 4) ? Path("sub\(random.number(0...19))") : Path("\(random.number(0...299))")
        return random.isTrue(oneIn: 5) ? Path("sub\(random.number(0...19))") / name : name
    }

    private static func apply(_ choice: Int, _ first: Path, _ second: Path, _ number: Int) -> String {
        do throws(Errno) {
            switch choice {
            case 0, 1: try first.rename(to: second)
            case 2: try first.rename(to: second, flags: 2)
            case 3: try first.link(to: second)
            case 4: try first.unlink()
            case 5: try first.create(bytes(number % 100))
            default: try first.append(bytes(10, seed: UInt64(number)))
            }
            return "done"
        } catch {
            return "\(error)"
        }
    }

    /// 100,000 with FUSESNAP_TEST_FILES.
    @Test("thousands of new files in new and old directories are merged, and none is missing")
    func manyFiles() throws {
        let count = files(3_000)
        try MountedSource.with(mode: .redirect) { mount in
            let root = mount.mountpoint
            for number in 0..<10 { try (root / Path("old\(number)")).mkdir() }
            try mount.start()
            for number in 0..<10 { try (root / Path("new\(number)")).mkdir() }
            func name(_ number: Int) -> Path {
                Path("\(number % 2 == 0 ? "old" : "new")\(number / 2 % 10)/file\(number)")
            }
            for number in 0..<count { try (root / name(number)).create(bytes(10, seed: UInt64(number))) }
            try mount.control("stop", seconds: 600).expectSuccess()
            for top in [root, mount.source] {
                for number in 0..<count {
                    guard try (top / name(number)).contents() == bytes(10, seed: UInt64(number)) else {
                        throw TestFailure("\(top / name(number)) has other data")
                    }
                }
                for kind in ["old", "new"] {
                    let names = try (0..<10).flatMap { try (top / Path("\(kind)\($0)")).entries() }
                    #expect(names.count == Set(names).count && names.count == count / 2, "\(top) \(kind)")
                }
            }
        }
    }

    /// With FUSESNAP_TEST_FILES as many writes, in a file of 4 GiB.
    @Test("scattered writes to a large sparse file are merged where they belong")
    func largeFile() throws {
        let writes = files(500)
        let size = environmentValue("FUSESNAP_TEST_FILES") == nil ? 64 << 20 : 4 << 30
        try MountedSource.with(mode: .redirect) { mount in
            let (path, twin) = (mount.mountpoint / "file", mount.top / "twin")
            for file in [path, twin] {
                try file.create(bytes(1 << 20))
                try file.truncate(size)
            }
            try mount.start()
            var random = SeededGenerator(seed: 1)
            let (live, plain) = (try path.open(O_RDWR), try twin.open(O_RDWR))
            for _ in 0..<writes {
                let offset = random.number(0...size - 10_000)
                let data = random.data(random.number(1...9_000))
                for file in [live, plain] { try file.writeAll(data, at: offset) }
            }
            try mount.control("stop", seconds: 600).expectSuccess()
            let (ranges, expected) = (try live.dataRanges(), try plain.dataRanges())
            for (file, ranges) in [(live, ranges), (plain, expected)] {
                #expect(try file.stat().size == size)
                for range in ranges {
                    for at in stride(from: range.lowerBound, to: range.upperBound, by: 1 << 20) {
                        let count = min(1 << 20, range.upperBound - at)
                        guard try live.read(count, at: at) == plain.read(count, at: at) else {
                            throw TestFailure("other data between \(at) and \(at + count)")
                        }
                    }
                }
                #expect(try file.stat().blocks < (writes * 16_384 + 2 << 20) / 512)
            }
        }
    }
}

extension Finished {
    fileprivate func expectSuccess() throws {
        if code != 0 { throw TestFailure(description) }
    }
}
