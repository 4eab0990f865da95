internal import Glibc
package import SystemPackage

/// A path as the kernel knows it: bytes.
package struct Path: Hashable, Sendable, ExpressibleByStringLiteral, CustomStringConvertible {
    package var bytes: [UInt8]

    package init(_ bytes: some Sequence<UInt8>) { self.bytes = Array(bytes) }
    package init(_ string: String) { bytes = Array(string.utf8) }
    package init(stringLiteral value: String) { self.init(value) }

    package static func / (left: Path, right: Path) -> Path {
        if left.bytes.isEmpty { return right }
        return Path(left.bytes + [UInt8(ascii: "/")] + right.bytes)
    }

    /// Printable names as they are, other bytes as \xNN.
    package var description: String {
        var text = ""
        for byte in bytes {
            if byte >= 0x20, byte < 0x7f {
                text.unicodeScalars.append(Unicode.Scalar(byte))
            } else {
                text += "\\x" + String(byte, radix: 16)
            }
        }
        return text
    }

    /// What the command line takes; only for paths that the tests named themselves.
    package var string: String { String(decoding: bytes, as: UTF8.self) }

    package var name: Path { Path(bytes.split(separator: UInt8(ascii: "/")).last ?? []) }

    package func isWithin(_ other: Path) -> Bool { bytes.starts(with: (other / "").bytes) }

    package func withCString<Result>(
        _ body: (UnsafePointer<CChar>) throws(Errno) -> Result
    ) throws(Errno) -> Result {
        var outcome: Swift.Result<Result, Errno> = .failure(.invalidArgument)
        (bytes + [0]).withUnsafeBufferPointer { buffer in
            buffer.withMemoryRebound(to: CChar.self) { characters in
                guard let start = characters.baseAddress else { return }
                do throws(Errno) {
                    outcome = .success(try body(start))
                } catch {
                    outcome = .failure(error)
                }
            }
        }
        return try outcome.get()
    }
}

/// errno as the thread's last failed call left it.
package var currentErrno: Errno { Errno(rawValue: errno) }

/// The result of a call that returns a negative number and sets errno when it fails.
@discardableResult
package func check<Number: SignedInteger>(_ result: Number) throws(Errno) -> Number {
    if result < 0 { throw currentErrno }
    return result
}
