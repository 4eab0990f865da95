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

    @Test(
        "a snapshot of some users' files shows these and what leads to them, whatever becomes of files and owners",
        .enabled(if: Machine.isRoot, "needs root"), arguments: scopes, seeds(3))
    func scope(_ users: [UInt32], _ seed: UInt64) throws {
        try MountedSource.with(mode: .preserve) { mount in
            var generator = OperationGenerator(seed: seed)
            func apply(_ number: Int) {
                for _ in 0..<number { _ = generator.next().result(under: mount.mountpoint) }
            }
            apply(400)
            for round in 1...3 {
                let all = try TreeCapture(mount.mountpoint)
                let atCut = all.limited { user, _ in users.contains(user) }
                let options = users.flatMap { ["--user", "\($0)"] }
                try succeed([Machine.binary, "ctl", "start"] + options + [mount.mountpoint.string])
                for part in 1...4 {
                    apply(Self.operations / 4)
                    // Allocated space counts as data once it is read (Docs/Semantics.md).
                    expect(
                        try TreeCapture(mount.snapshot), equals: atCut, ignoring: [.ranges],
                        ".snapshot, seed \(seed), users \(users), round \(round), part \(part)")
                }
                try mount.stop()
            }
        }
    }
}
