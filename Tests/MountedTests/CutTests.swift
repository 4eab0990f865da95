import TestSupport
import Testing

/// The cut is linearizable: `cutload` does operations of all kinds in many processes, and checks snapshots of them.
/// `make check-cut` runs it for longer.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct CutTests {
    private static let starts = 20
    private static let seconds = 30.0

    @Test(
        "what a snapshot holds of many writers is what was there at one instant",
        arguments: [false, true], seeds(1))
    func cut(overItself: Bool, seed: UInt64) throws {
        try MountedSource.with(overItself: overItself) { mount in
            let control = "'\(Machine.binary)' ctl"
            let words = [
                Machine.cutload, "run", mount.mountpoint.string, "--seed", "\(seed)",
                "--starts", "\(Self.starts)", "--seconds", "\(Self.seconds)", "--interval", "50",
                "--snapshot", mount.snapshot.string,
                "--start-command", "\(control) start '\(mount.mountpoint.string)'",
                "--stop-command", "\(control) stop '\(mount.mountpoint.string)'",
            ]
            let finished = try run(words, seconds: 6 * Self.seconds)
            #expect(finished.code == 0, "seed \(seed): \(finished)")
        }
    }
}
