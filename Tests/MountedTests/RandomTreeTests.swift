import Glibc
import SystemPackage
import TestSupport
import Testing

/// The same random operations on names and files, on the mount and on a plain twin: every result must agree.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct RandomTreeTests {
    private static let operations = 700

    @Test(
        "random trees agree with a plain directory, and every snapshot stays what it was",
        arguments: seeds(6), Machine.Mode.available)
    func agrees(_ seed: UInt64, _ mode: Machine.Mode) throws {
        try MountedSource.with(mode: mode) { mount in
            let twin = mount.top / "twin"
            try twin.mkdir()
            var generator = OperationGenerator(seed: seed)
            func apply(_ number: Int) throws {
                for _ in 0..<number {
                    let operation = generator.next()
                    let (expected, found) = (
                        operation.result(under: twin), operation.result(under: mount.mountpoint)
                    )
                    guard expected == found else {
                        throw TestFailure("seed \(seed): \(operation): plain \(expected), mount \(found)")
                    }
                }
            }
            for round in 1...2 {
                try apply(200)
                let atCut = try TreeCapture(mount.mountpoint)
                try mount.start()
                for part in 1...4 {
                    try apply(Self.operations / 4)
                    try expectSnapshot(mount, is: atCut, "seed \(seed), round \(round), part \(part)")
                }
                let (live, plain) = (try TreeCapture(mount.mountpoint), try TreeCapture(twin))
                let vague = instants.union([.ranges])
                expect(live, equals: plain, ignoring: vague, "seed \(seed), round \(round): live view")
                if mode == .redirect {
                    expect(
                        try TreeCapture(mount.source), equals: atCut, "seed \(seed): the source while redirected")
                }
                try mount.stop()
                let stamps: Set<Fact> = mode == .redirect ? [.ranges, .ctime] : [.ranges]
                for root in [mount.mountpoint, mount.source] {
                    expect(try TreeCapture(root), equals: live, ignoring: stamps, "seed \(seed): after the stop")
                }
            }
        }
    }

    private static let scopes: [[UInt32]] = [[0, 1], [2], [1, 3]]

    /// Does operations on both, whose results must agree.
    private func apply(
        _ number: Int, of generator: inout OperationGenerator, _ mount: MountedSource, _ twin: Path, _ seed: UInt64
    ) throws {
        for _ in 0..<number {
            let operation = generator.next()
            let (expected, found) = (operation.result(under: twin), operation.result(under: mount.mountpoint))
            guard expected == found else {
                throw TestFailure("seed \(seed): \(operation): plain \(expected), mount \(found)")
            }
        }
    }

    @Test(
        "a snapshot of some users' files shows these and what leads to them, whatever becomes of files and owners",
        .enabled(if: Machine.isRoot, "needs root"), arguments: scopes, Machine.Mode.available)
    func scope(_ users: [UInt32], _ mode: Machine.Mode) throws {
        for seed in seeds(3) {
            try MountedSource.with(mode: mode) { mount in
                let twin = mount.top / "twin"
                try twin.mkdir()
                var generator = OperationGenerator(seed: seed)
                try apply(400, of: &generator, mount, twin, seed)
                for round in 1...3 {
                    let what = "seed \(seed), users \(users), round \(round)"
                    let all = try TreeCapture(mount.mountpoint)
                    let atCut = all.limited { user, _ in users.contains(user) }
                    let options = users.flatMap { ["--user", "\($0)"] }
                    try succeed([Machine.binary, "ctl", "start"] + options + [mount.mountpoint.string])
                    for part in 1...4 {
                        try apply(Self.operations / 4, of: &generator, mount, twin, seed)
                        // Allocated space counts as data once it is read (Docs/Semantics.md).
                        expect(
                            try TreeCapture(mount.snapshot), equals: atCut, ignoring: [.ranges],
                            ".snapshot, \(what), part \(part)")
                    }
                    let vague = instants.union([.ranges])
                    expect(
                        try TreeCapture(mount.mountpoint), equals: try TreeCapture(twin), ignoring: vague,
                        "live view, \(what)")
                    try mount.stop()
                    for root in [mount.mountpoint, mount.source] {
                        expect(
                            try TreeCapture(root), equals: try TreeCapture(twin), ignoring: vague,
                            "after the stop, \(what)")
                    }
                }
            }
        }
    }

    @Test(
        "some users' files, a single pass, redirected, and the daemon is killed: the backup reads the cut or EIO, and the live files are what applications made",
        .enabled(if: Machine.Mode.available.contains(.redirect), "needs root and the default I/O policy"),
        arguments: seeds(6))
    func combined(_ seed: UInt64) throws {
        let vague = instants.union([.ranges])
        try MountedSource.with(mode: .redirect) { mount in
            let twin = mount.top / "twin"
            try twin.mkdir()
            var generator = OperationGenerator(seed: seed)
            try apply(500, of: &generator, mount, twin, seed)
            let atCut = try TreeCapture(mount.mountpoint).limited { user, _ in user < 2 }
            try #require(try mount.control("start", "--user=0", "--user=1", "--single-pass").code == 0)
            try apply(150, of: &generator, mount, twin, seed)
            // What nobody has read before has all been kept.
            #expect(try backUp(mount, atCut) == 0, "seed \(seed)")
            #expect(try mount.status().number("released_bytes") > 0)
            for _ in 1...3 {
                try apply(150, of: &generator, mount, twin, seed)
                _ = try backUp(mount, atCut)
            }
            expect(
                try TreeCapture(mount.mountpoint), equals: try TreeCapture(twin), ignoring: vague,
                "seed \(seed): live view")
            #expect(try mount.control("stop", "--discard").code == 1)
            try mount.killed { mount in
                expect(
                    try TreeCapture(mount.mountpoint), equals: try TreeCapture(twin), ignoring: vague,
                    "seed \(seed): after the kill")
                _ = try backUp(mount, atCut)
                try apply(150, of: &generator, mount, twin, seed)
                #expect(try mount.control("stop").code == 3, "what was given up is not known any more")
                for root in [mount.mountpoint, mount.source] {
                    expect(
                        try TreeCapture(root), equals: try TreeCapture(twin), ignoring: vague,
                        "seed \(seed): after the stop")
                }
            }
        }
    }

    /// Reads all files that a snapshot has: the cut's, or EIO. How many of the latter.
    private func backUp(_ mount: MountedSource, _ atCut: TreeCapture) throws -> Int {
        var failures = 0
        for (path, facts) in atCut.files {
            guard let data = facts[.data] else { continue }
            do throws(Errno) {
                let found = String(try hash(of: mount.snapshot / path), radix: 16)
                #expect(found == data, "\(path)")
            } catch {
                if error != .ioError { throw error }
                failures += 1
            }
        }
        return failures
    }
}
