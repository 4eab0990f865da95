import Glibc
import Testing

@testable import ControlSocket

@Suite(.timeLimit(.minutes(1)))
struct HostileClientTests {
    static let malformed = [
        "\n", "nonsense\n", "{}\n", "[]\n", "null\n", "{\"protocol\":1}\n",
        "{\"protocol\":1,\"command\":7}\n",
        "{\"protocol\":\"1\",\"command\":\"status\"}\n",
        "{\"protocol\":1,\"command\":\"format\"}\n",
        "{\"protocol\":1,\"command\":\"stop\",\"options\":{\"discard\":\"yes\"}}\n",
        "{\"protocol\":1,\"command\":\"stop\",\"options\":[]}\n",
        "{\"protocol\":99999999999999999999999,\"command\":\"status\"}\n",
        "{\"protocol\":1,\"command\":\"status\"",
        "\u{0}\u{1}\u{2}\n", String(repeating: "[", count: 60_000) + "\n",
        String(repeating: "{\"a\":", count: 10_000) + "\n",
    ]

    @Test(arguments: malformed)
    func `malformed bytes are answered with an error and the connection ends`(_ text: String) throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        let connection = try under.rawConnection()
        connection.send(text)
        if !text.hasSuffix("\n") { connection.endSending() }
        let answer = connection.receiveAll()
        #expect(answer.contains("\"code\":\"bad_request\""), "answered \(answer)")
        #expect(answer.hasSuffix("\n"))
        var client = try under.client()
        #expect(try client.status().state == .idle)
    }

    @Test func `bytes that are no text are refused`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        var generator = SystemRandomNumberGenerator()
        for _ in 0..<50 {
            let seed = generator.next()
            var state = seed
            let bytes = (0..<512).map { _ -> UInt8 in
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                return UInt8(state >> 56)
            }
            let connection = try under.rawConnection()
            connection.send(bytes + [UInt8(ascii: "\n")])
            #expect(connection.receiveAll().contains("bad_request"), "seed \(seed)")
        }
        var client = try under.client()
        #expect(try client.status().state == .idle)
    }

    @Test func `a line beyond the bound is refused before it ends`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        let connection = try under.rawConnection()
        connection.send([UInt8](repeating: UInt8(ascii: "a"), count: ControlProtocol.lineBytesMax + 4096))
        // The rest may be cut off by the server's end of the connection, together with its answer.
        let answer = connection.receiveAll()
        #expect(answer.isEmpty || answer.contains("longer than"))
        var client = try under.client()
        #expect(try client.status().state == .idle)
    }

    @Test func `another protocol version is refused by name`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        let connection = try under.rawConnection()
        connection.send("{\"protocol\":2,\"command\":\"unmount\",\"options\":{\"force\":true}}\n")
        #expect(connection.receiveAll().contains("unsupported_protocol"))
        #expect(!under.controller.isUnmounted)
    }

    @Test func `who connects and sends nothing, or a byte now and then, is cut off`() throws {
        var limits = ControlLimits()
        limits.requestTimeout = .milliseconds(200)
        let under = try ServerUnderTest(limits: limits)
        defer { under.end() }
        let silent = try under.rawConnection()
        let slow = try under.rawConnection()
        let begin = ContinuousClock.now
        while slow.send("{") && ContinuousClock.now - begin < .seconds(5) { usleep(50_000) }
        #expect(ContinuousClock.now - begin < .seconds(3))
        #expect(silent.receiveAll().contains("timed_out"))
    }

    @Test func `a client who ends its sending side is still answered`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        let connection = try under.rawConnection()
        connection.send("{\"protocol\":1,\"command\":\"status\"}\n")
        connection.endSending()
        #expect(connection.receiveAll().contains("\"state\":\"idle\""))
    }

    @Test func `a client who goes away in the middle of a stop harms nobody`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        under.controller.holdStop(true)
        var client = try under.client()
        _ = try client.start(StartOptions())
        do {
            let connection = try under.rawConnection()
            connection.send("{\"protocol\":1,\"command\":\"stop\"}\n")
            while under.controller.stopsWaiting == 0 { pauseBriefly() }
        }
        under.controller.holdStop(false)
        while try client.status().state != .idle { pauseBriefly() }
    }

    @Test func `clients beyond the bound are told so, and find a place when others leave`() throws {
        var limits = ControlLimits()
        limits.clientsMax = 2
        let under = try ServerUnderTest(limits: limits)
        defer { under.end() }
        var idle: [RawConnection] = try (0..<2).map { _ in try under.rawConnection() }
        #expect(try under.rawConnection().receiveAll().contains("too many clients"))
        idle.removeAll()
        while true {
            var client = try under.client()
            if let status = try? client.status() {
                #expect(status.state == .idle)
                break
            }
            pauseBriefly()
        }
    }

    @Test func `only root and the mounting user may control`() {
        #expect(ControlServer.mayControl(user: 0, owner: 1000))
        #expect(ControlServer.mayControl(user: 1000, owner: 1000))
        #expect(!ControlServer.mayControl(user: 1001, owner: 1000))
        #expect(!ControlServer.mayControl(user: 1000, owner: 0))
    }
}
