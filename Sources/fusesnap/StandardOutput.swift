internal import Glibc
internal import SystemPackage

/// Standard input, output and error.
enum StandardDescriptors {
    /// Opens /dev/null in place of those that the caller has closed: another file, such as the control socket or the
    /// source, would get their numbers, and be written to or closed in their stead.
    static func fill() {
        for descriptor in STDIN_FILENO...STDERR_FILENO where fcntl(descriptor, F_GETFD) < 0 {
            // The lowest number that is free is this one.
            _ = open("/dev/null", O_RDWR)
        }
    }
}

/// Output that is not text alone, or that must not wait in a buffer.
enum StandardOutput {
    /// write(2) until all is written. An error ends the command: what reads must not take a part for the whole.
    static func write(_ bytes: some Collection<UInt8>) throws(CommandFailure) {
        var rest = Array(bytes)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes {
                Glibc.write(STDOUT_FILENO, $0.baseAddress, $0.count)
            }
            if count < 0 && errno != EINTR {
                let error = Errno(rawValue: errno)
                throw CommandFailure("cannot write to standard output: \(error)")
            }
            rest = rest.dropFirst(max(0, count))
        }
    }

    static func writeLine(_ line: String) throws(CommandFailure) {
        try write(Array((line + "\n").utf8))
    }
}

extension String {
    /// For people: a file's name must not forge a line, nor speak to the terminal.
    var onOneLine: String {
        guard utf8.contains(where: { $0 < 0x20 || $0 == 0x7f }) else { return self }
        return unicodeScalars.reduce(into: "") { text, scalar in
            text += scalar.value < 0x20 || scalar.value == 0x7f ? "?" : String(scalar)
        }
    }
}
