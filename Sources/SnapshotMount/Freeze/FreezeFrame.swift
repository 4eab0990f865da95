internal import Glibc
internal import LinuxSystem
internal import SystemPackage

/// What daemon and freeze helper tell each other over their socket: frames of 16 bytes, in the machine's order.
struct FreezeFrame: Equatable {
    enum Kind: UInt32 {
        /// Daemon: open this node. Helper: it could not be opened, or its fsync failed with `error`.
        case node = 1
        /// Daemon: that is all. Helper: all that could be opened is open, and its dirty data are on their way.
        case opened = 2
        /// Daemon: synchronise all. There is no answer but the calls themselves.
        case synchronize = 3
    }

    static let size = 16

    var kind: Kind
    var error: Int32 = 0
    var node: UInt64 = 0

    private var words: (UInt32, Int32, UInt64) { (kind.rawValue, error, node) }

    /// Sends frames; throws EPIPE where nobody reads them any more.
    static func send(_ frames: [FreezeFrame], to socket: Descriptor) throws(Errno) {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(frames.count * size)
        for frame in frames { withUnsafeBytes(of: frame.words) { bytes += $0 } }
        var done = 0
        while done < bytes.count {
            done += try checked {
                bytes[done...].withUnsafeBytes {
                    Glibc.send(socket.raw, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
                }
            }
        }
    }

    /// The next frame; nil where the other side has gone, or says what is no frame.
    static func receive(from socket: Descriptor) -> FreezeFrame? {
        var bytes = [UInt8](repeating: 0, count: size)
        var done = 0
        while done < size {
            let count = bytes[done...].withUnsafeMutableBytes { buffer in
                recv(socket.raw, buffer.baseAddress, buffer.count, 0)
            }
            if count < 0 && errno == EINTR { continue }
            if count <= 0 { return nil }
            done += count
        }
        return bytes.withUnsafeBytes { bytes in
            Kind(rawValue: bytes.loadUnaligned(as: UInt32.self)).map {
                FreezeFrame(
                    kind: $0, error: bytes.loadUnaligned(fromByteOffset: 4, as: Int32.self),
                    node: bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
            }
        }
    }
}
