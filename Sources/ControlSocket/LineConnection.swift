internal import FoundationEssentials
internal import Glibc
package import LinuxSystem
package import SystemPackage

/// One end of a connected control socket: JSON objects, one a line. Not safe for use by two threads at once.
package final class LineConnection {
    /// The longest line that is taken.
    package static let lineBytesMax = 64 << 10

    package enum ReadFailure: Error {
        case system(Errno)
        /// The line is longer than `lineBytesMax`.
        case tooLong
        /// The line is not what was expected.
        case malformed(String)
    }

    private let socket: Descriptor
    private var received: [UInt8] = []

    package init(_ socket: Descriptor) {
        self.socket = socket
    }

    /// Reads a line; nil where the other end has closed.
    package func read<Message: Decodable>(
        _ type: Message.Type
    ) throws(ReadFailure) -> Message? {
        guard let line = try readLine() else { return nil }
        do {
            return try JSONDecoder().decode(type, from: Data(line))
        } catch {
            throw .malformed("\(error)")
        }
    }

    private func readLine() throws(ReadFailure) -> [UInt8]? {
        while true {
            if let end = received.firstIndex(of: UInt8(ascii: "\n")) {
                let line = Array(received[..<end])
                received.removeSubrange(...end)
                return line
            }
            if received.count > Self.lineBytesMax { throw .tooLong }
            let room = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 1)
            defer { room.deallocate() }
            let count: Int
            do throws(Errno) {
                count = try checked { recv(socket.raw, room.baseAddress, room.count, 0) }
            } catch {
                throw .system(error)
            }
            if count == 0 { return nil }
            received += room[..<count]
        }
    }

    /// Writes a line.
    package func write(_ message: some Encodable) throws(Errno) {
        let line: Data
        do {
            line = try JSONEncoder().encode(message) + Data([UInt8(ascii: "\n")])
        } catch {
            preconditionFailure("the messages of this module can be encoded: \(error)")
        }
        let bytes = [UInt8](line)
        var sent = 0
        while sent < bytes.count {
            sent += try checked {
                bytes.withUnsafeBytes {
                    send(
                        socket.raw, $0.baseAddress.map { $0 + sent }, bytes.count - sent,
                        Int32(MSG_NOSIGNAL))
                }
            }
        }
    }

    /// Waits until the other end closes; what it sends meanwhile is dropped.
    package func waitForEnd() {
        do throws(ReadFailure) {
            while try readLine() != nil {}
        } catch {
            // An end too.
        }
    }

    /// Bounds how long a read waits; 0 for ever.
    package func setReadTimeout(seconds: Int) {
        var time = timeval(tv_sec: seconds, tv_usec: 0)
        setsockopt(
            socket.raw, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    }
}
