import Glibc
import Synchronization
import Testing

@testable import ControlSocket

@Suite(.timeLimit(.minutes(1)))
struct RoundTripTests {
    @Test func `start, status and stop come back as the controller answered`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        var client = try under.client()
        #expect(client.daemonProcess == getpid())
        let started = try client.start(StartOptions())
        #expect(started.stallMicroseconds == 17)
        #expect(started.attempts == 2)
        #expect(started.filesFrozen == 3)
        #expect(started.snapshotDirectory == "/mnt/.snapshot")
        #expect(try client.status().state == .active)
        var progress: [StopProgress] = []
        let stopped = try client.stop(StopOptions()) { progress.append($0) }
        #expect(progress.map(\.bytesDone) == [1, 2])
        #expect(
            stopped == StopReport(exact: false, reason: "the delta is full", deltaBytes: 4096, changedAreas: 3))
        #expect(try client.status() == under.controller.status())
    }

    @Test func `changes come whole and in order, in lines that are bounded`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        var client = try under.client()
        var items: [ChangeItem] = []
        let report = try client.changed { items.append($0) }
        #expect(report.count == items.count)
        #expect(items == under.controller.changes)
        // The connection goes on.
        #expect(try client.status().state == .idle)
        let raw = try under.rawConnection()
        raw.send("{\"protocol\":1,\"command\":\"changed\"}\n")
        raw.endSending()
        let lines = raw.receiveAll().split(separator: "\n")
        #expect(lines.count > 10)
        #expect(lines.allSatisfy { $0.utf8.count <= ControlProtocol.lineBytesMax })
    }

    @Test func `a client that reads late is not cut off by a heartbeat`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        let raw = try under.rawConnection()
        raw.send("{\"protocol\":1,\"command\":\"changed\"}\n")
        raw.endSending()
        // The socket is full long before the heartbeat.
        usleep(UInt32(ControlProtocol.heartbeatMilliseconds) * 1000 + 500_000)
        #expect(raw.receiveAll().split(separator: "\n").last?.contains("\"result\"") == true)
    }

    @Test func `a path too long for a line is a failure, not a torn list`() throws {
        var lines: [[UInt8]] = []
        let packer = ChangePacker {
            lines.append($0)
            return true
        }
        let path = [UInt8](repeating: 1, count: ControlProtocol.lineBytesMax)
        let item = ChangeItem(kinds: ["removed"], type: "file", inode: 7, pathAtCut: path, path: nil)
        #expect(throws: ControlFailure.self) { try packer.add(item) }
    }

    @Test func `a failure of the controller reaches the client with its code and message`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        var client = try under.client()
        let expected = ControlClientError.failure(ControlFailure(.notActive, "no snapshot is active"))
        #expect(throws: expected) { _ = try client.stop(StopOptions()) { _ in } }
        // The connection goes on.
        #expect(try client.status().state == .idle)
    }

    @Test func `the answer to unmount arrives although the server closes at once`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        var client = try under.client()
        #expect(try client.unmount(UnmountOptions(force: true)) == UnmountReport(endedSnapshot: false))
        under.server.close()
        #expect(throws: ControlClientError.closed(path: under.server.path)) { _ = try client.status() }
        #expect(access(under.server.path, F_OK) != 0)
    }

    @Test func `a client is answered while another waits for a long stop`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        under.controller.holdStop(true)
        var other = try under.client()
        _ = try other.start(StartOptions())
        let stopping = try under.rawConnection()
        stopping.send("{\"protocol\":1,\"command\":\"stop\"}\n")
        while under.controller.stopsWaiting == 0 { pauseBriefly() }
        #expect(try other.status().state == .active)
        // Long enough for a heartbeat.
        usleep(UInt32(ControlProtocol.heartbeatMilliseconds) * 1000 + 500_000)
        under.controller.holdStop(false)
        stopping.endSending()
        let lines = stopping.receiveAll().split(separator: "\n")
        #expect(lines.contains("{\"protocol\":1,\"working\":true}"))
        #expect(lines.last?.contains("\"delta_bytes\":4096") == true)
    }

    @Test func `two clients at once start one snapshot`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        let connections = try (0..<2).map { _ in try under.rawConnection() }
        for connection in connections {
            connection.send("{\"protocol\":1,\"command\":\"start\",\"options\":{}}\n")
            connection.endSending()
        }
        let answers = connections.map { $0.receiveAll() }
        #expect(answers.filter { $0.contains("\"result\"") }.count == 1)
        #expect(answers.filter { $0.contains("already_active") }.count == 1)
    }

    @Test func `a status has every field of the contract, and started as null when idle`() throws {
        let text = FakeController().status().jsonText
        for key in [
            "schema", "pid", "version", "source", "mountpoint", "mode", "state", "delta_bytes",
            "changed_areas",
            "snapshot_bytes_read", "store", "io",
        ] {
            #expect(text.contains("\"\(key)\" :"), "\(key) is missing")
        }
        #expect(text.contains("\"started\" : null"))
        #expect(!text.contains("inexact_reason"))
    }
}
