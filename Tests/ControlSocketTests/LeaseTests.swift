import Glibc
import Testing

@testable import ControlSocket

@Suite(.timeLimit(.minutes(1)))
struct ConnectionLeaseTests {
    private func limits() -> ControlLimits {
        var limits = ControlLimits()
        limits.requestTimeout = .milliseconds(200)
        return limits
    }

    @Test func `a connection that holds a snapshot may be silent, and its end is told once`() throws {
        let under = try ServerUnderTest(limits: limits())
        defer { under.end() }
        var other = try under.client()
        do {
            var client = try under.client()
            var options = StartOptions()
            options.leaseConnection = true
            #expect(try client.start(options).snapshot == 12)
            // Without a lease a connection that says nothing for so long is closed.
            while true {
                do throws(ControlClientError) {
                    _ = try other.status()
                    usleep(250_000)
                } catch {
                    break
                }
            }
            #expect(under.controller.connectionsEnded == [])
            let result = HookResult(
                name: "a", origin: .command, action: .freeze, outcome: .succeeded, durationMicroseconds: 5)
            try client.report(HooksOptions(snapshot: 12, hooks: [result]))
            #expect(under.controller.hooks == [result])
            let refusal = ControlClientError.failure(ControlFailure(.notActive, "another snapshot"))
            #expect(throws: refusal) { try client.report(HooksOptions(snapshot: 11, hooks: [])) }
        }
        while under.controller.connectionsEnded.isEmpty { pauseBriefly() }
        #expect(under.controller.connectionsEnded == [12])
    }

    @Test func `a connection that asked for no lease holds nothing`() throws {
        let under = try ServerUnderTest(limits: limits())
        do {
            var client = try under.client()
            _ = try client.start(StartOptions())
        }
        // Waits for the thread of each client.
        under.end()
        #expect(under.controller.connectionsEnded == [])
    }

    @Test func `a report of an earlier version, without the newer fields, is read`() throws {
        let line = Array(#"{"exact":true,"delta_bytes":1,"changed_areas":2}"#.utf8)
        let report = try ControlLine.decode(StopReport.self, line)
        #expect(report == StopReport(exact: true, reason: nil, deltaBytes: 1, changedAreas: 2))
        #expect(try ControlLine.decode(StopReport.self, ControlLine.encode(report)) == report)
    }
}
