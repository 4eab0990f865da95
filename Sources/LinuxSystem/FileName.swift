internal import Glibc

/// One name in a directory: bytes, since Linux names need not be UTF-8. Kept with a NUL byte at its end, so
/// that it can be handed to a system call as it is.
package struct FileName: Hashable, Sendable {
    private let terminated: [CChar]

    package init(_ string: UnsafePointer<CChar>) {
        var length = 0
        while string[length] != 0 { length += 1 }
        terminated = Array(UnsafeBufferPointer(start: string, count: length + 1))
    }

    package init(_ string: String) {
        terminated = string.utf8CString.map { $0 }
    }

    /// The name of these bytes, which hold no NUL byte.
    package init(bytes: some Sequence<UInt8>) {
        terminated = bytes.map { CChar(bitPattern: $0) } + [0]
    }

    /// The bytes, without the NUL byte.
    package var bytes: [UInt8] { terminated.dropLast().map { UInt8(bitPattern: $0) } }

    /// The number of bytes, the NUL byte not counted.
    package var length: Int { terminated.count - 1 }

    @inline(__always)
    package func withCString<Result, Failure: Error>(
        _ body: (UnsafePointer<CChar>) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try terminated.withUnsafeBufferPointer { (buffer) throws(Failure) -> Result in
            guard let start = buffer.baseAddress else {
                preconditionFailure("a file name has at least its NUL byte")
            }
            return try body(start)
        }
    }

    // By all bytes at once: an array is hashed and compared one element after the other, which was most of the replay of a
    // journal.
    package static func == (left: FileName, right: FileName) -> Bool {
        left.terminated.count == right.terminated.count
            && left.withCString { left in right.withCString { right in strcmp(left, right) == 0 } }
    }

    package func hash(into hasher: inout Hasher) {
        terminated.withUnsafeBytes { hasher.combine(bytes: $0) }
    }

    /// Whether the name begins with these characters.
    package func hasPrefix(_ prefix: StaticString) -> Bool {
        guard length >= prefix.utf8CodeUnitCount else { return false }
        return withCString { strncmp($0, prefix.utf8Start, prefix.utf8CodeUnitCount) == 0 }
    }

    /// Whether the name equals a C string.
    package func equals(_ string: UnsafePointer<CChar>) -> Bool {
        for (index, byte) in terminated.enumerated() {
            if string[index] != byte { return false }
            if byte == 0 { return true }
        }
        return true
    }
}

extension FileName: CustomStringConvertible {
    /// For messages: bytes that are not UTF-8 are shown as replacement characters.
    package var description: String {
        String(decoding: terminated.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
