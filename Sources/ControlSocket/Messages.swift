#if canImport(FoundationEssentials)
    internal import FoundationEssentials
#else
    internal import Foundation
#endif

/// What both ends of the control channel agree on. `Docs/Control.md` is its description.
package enum ControlProtocol {
    package static let version = 1
    /// A longer line is refused by whoever receives it.
    package static let lineBytesMax = 64 << 10
    /// While a request is worked on, the server says so this often.
    package static let heartbeatMilliseconds: Int32 = 2_000
}

/// What a client asks for.
enum Command: String, Codable, Sendable, CaseIterable {
    case start, stop, status, unmount, changed
    /// What became of the hooks that the client ran.
    case hooks
    /// What reads the snapshot without requests of the mount asks for, and how it looks whether that still holds.
    case reader
}

/// The part of a request that tells how to read the rest.
struct RequestHead: Decodable {
    var `protocol`: Int
    var command: String
}

/// A request: one line.
struct Request<Options: Codable>: Codable {
    var `protocol` = ControlProtocol.version
    var command: Command
    var options: Options?
}

struct NoOptions: Codable {}

/// A line of the server: `working`, `progress` any number of times, then `result` or `error` once.
struct Reply<Result: Codable>: Codable {
    var `protocol` = ControlProtocol.version
    var working: Bool?
    var progress: StopProgress?
    /// Any number of lines of these, before the result of `changed`.
    var changes: [ChangeItem]?
    var result: Result?
    var error: ControlFailure?
}

struct NoResult: Codable {}

/// JSON as it goes over the socket: one line, newline included.
enum ControlLine {
    static func encode(_ message: some Encodable) -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        do {
            return try [UInt8](encoder.encode(message)) + [UInt8(ascii: "\n")]
        } catch {
            preconditionFailure("a control message holds only what JSON can: \(error)")
        }
    }

    static func decode<Message: Decodable>(_ type: Message.Type, _ line: [UInt8]) throws -> Message {
        try JSONDecoder().decode(type, from: Data(line))
    }
}

extension Encodable {
    /// The report on one line, without its end.
    package var jsonLine: String {
        String(decoding: ControlLine.encode(self).dropLast(), as: UTF8.self)
    }

    /// The report as `--json` prints it.
    package var jsonText: String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        do {
            return try String(decoding: encoder.encode(self), as: UTF8.self)
        } catch {
            preconditionFailure("a report holds only what JSON can: \(error)")
        }
    }
}
