internal import Glibc

/// The user namespace of this process.
package enum UserNamespace {
    /// Who its root is outside of it; nil where its root is the machine's own.
    package static let rootOutside: UInt32? = {
        // Lines of: first inside, first outside, how many.
        guard let file = fopen("/proc/self/uid_map", "re") else { return nil }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 128)
        while fgets(&line, Int32(line.count), file) != nil {
            let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            let numbers = text.split(whereSeparator: \.isWhitespace).compactMap { UInt32($0) }
            if numbers.count == 3, numbers[0] == 0 { return numbers[1] == 0 ? nil : numbers[1] }
        }
        return nil
    }()
}
