import ControlSocket
import Testing

@testable import fusesnap

struct HookAndLeaseTests {
    @Test(
        "durations are numbers of seconds, or of what a letter says",
        arguments: [("90", 90), ("90s", 90), ("15m", 900), ("6h", 21_600), ("2d", 172_800)])
    func durations(_ text: String, _ seconds: Int) throws {
        #expect(try LeaseTime.parse(text).seconds == seconds)
    }

    @Test(
        "what is no duration is refused",
        arguments: ["", "0", "-1", "s", "1w", "1.5h", "99999999999d", "٣", "1 h"])
    func noDurations(_ text: String) {
        #expect(throws: (any Error).self) { try LeaseTime.parse(text) }
    }

    @Test("the level is `application` only where each hook froze and thawed without failure") func level() {
        func result(_ action: HookResult.Action, _ outcome: HookResult.Outcome = .succeeded) -> HookResult {
            HookResult(name: "a", origin: .command, action: action, outcome: outcome, durationMicroseconds: 1)
        }
        #expect(HookResult.level([]) == .crash)
        #expect(HookResult.level([result(.freeze), result(.thaw)]) == .application)
        #expect(HookResult.level([result(.freeze)]) == .crash)
        #expect(HookResult.level([result(.freeze, .failed), result(.thaw)]) == .crash)
        #expect(HookResult.level([result(.freeze), result(.thaw, .timedOut)]) == .crash)
    }

    @Test("what a start and a stop tell fits into a line of the control channel, with the most hooks there can be")
    func lineLength() {
        let hook = Hook(path: "/d/" + String(repeating: "\u{1}", count: 255), origin: .directory)
        let result = HookResult(
            name: hook.name, origin: .directory, action: .freeze, outcome: .interrupted, exitCode: 255, signal: 64,
            durationMicroseconds: .max)
        var report = StopReport(exact: false, reason: "why", deltaBytes: .max, changedAreas: .max)
        report.hooks = Array(repeating: result, count: 2 * 3 * HookLimits.hooksMax)
        #expect(report.jsonText.utf8.count < ControlProtocol.lineBytesMax)
    }
}
