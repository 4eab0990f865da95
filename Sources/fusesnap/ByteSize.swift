internal import ArgumentParser

/// A number of bytes as people write it: 512, 64K, 10G, 1T; powers of 1024.
struct ByteSize: Equatable, Sendable {
    var bytes: UInt64

    private static let suffixes: [Character] = ["K", "M", "G", "T"]

    init(bytes: UInt64) {
        self.bytes = bytes
    }

    init?(_ text: String) {
        var digits = Substring(text)
        var unit: UInt64 = 1
        if let last = text.uppercased().last, let power = Self.suffixes.firstIndex(of: last) {
            digits.removeLast()
            unit <<= 10 * UInt64(power + 1)
        }
        guard !digits.isEmpty,
            digits.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }),
            let count = UInt64(digits)
        else { return nil }
        let (bytes, overflows) = count.multipliedReportingOverflow(by: unit)
        if overflows { return nil }
        self.bytes = bytes
    }

    /// In the largest unit that leaves at least 1, with one decimal.
    var text: String {
        guard bytes >= 1024 else { return bytes == 1 ? "1 byte" : "\(bytes) bytes" }
        let names = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        var power = 0
        while power < names.count - 1 && bytes >> (10 * UInt64(power + 2)) > 0 { power += 1 }
        let shift = 10 * UInt64(power + 1)
        let whole = bytes >> shift
        let tenth = ((bytes >> (shift - 10)) & 1023) * 10 / 1024
        return "\(whole).\(tenth) \(names[power])"
    }

    /// What an option's value means.
    static func parse(_ text: String) throws -> ByteSize {
        guard let size = ByteSize(text), size.bytes > 0 else {
            throw ValidationError(
                "'\(text)' is no size; write for example 512M or 10G (K, M, G, T)")
        }
        return size
    }
}
