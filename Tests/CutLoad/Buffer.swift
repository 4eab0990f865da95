import CTestSupport
import Glibc
import SystemPackage
import TestSupport

/// Page-aligned memory, as O_DIRECT wants it.
final class Buffer: @unchecked Sendable {
    // Of one thread at a time.
    let start: UnsafeMutableRawPointer
    let count: Int

    private static let alignment = 4096

    init(_ count: Int) {
        self.count = count
        start = .allocate(byteCount: max(count, 1), alignment: Self.alignment)
    }

    deinit { start.deallocate() }

    func fill(_ stamp: Stamp, _ range: Range<Int>? = nil) {
        let range = range ?? 0..<count
        ts_fill_word(start + range.lowerBound, range.count, stamp.word)
    }

    /// Reads until `count` bytes are there or the file ends; how many there are.
    func read(_ file: File, at offset: Int, count wanted: Int? = nil) throws -> Int {
        let wanted = wanted ?? count
        var done = 0
        while done < wanted {
            let more = try check(pread(file.raw, start + done, wanted - done, offset + done))
            if more == 0 { break }
            done += more
        }
        return done
    }

    /// The stamp that begins at an offset.
    func stamp(at offset: Int) -> Stamp { Stamp(word: (start + offset).loadUnaligned(as: UInt64.self)) }

    /// Throws unless the range is filled with a stamp whose first byte was at `begin`.
    func expect(_ stamp: Stamp, _ range: Range<Int>, from begin: Int? = nil, _ what: String) throws {
        // A stamp that begins in the middle, turned round.
        let turn = UInt64((range.lowerBound - (begin ?? range.lowerBound)) % 8 * 8)
        let word = turn == 0 ? stamp.word : stamp.word >> turn | stamp.word << (64 - turn)
        let at = ts_word_mismatch(start + range.lowerBound, range.count, word)
        if at < 0 { return }
        // Where the next stamp of the same beginning would be; what follows may have begun elsewhere.
        let other = self.stamp(at: min(range.lowerBound + (at + 7) / 8 * 8, count - 8))
        let next = (0..<Stamp.lanesMax).contains(other.lane) || other.word == 0 ? "\(other)" : "something else"
        throw TestFailure(
            "\(what) is torn: \(at) of \(range.count) bytes are of \(stamp), what follows is of \(next)")
    }

    /// Throws unless the range holds zeros.
    func expectZeros(_ range: Range<Int>, _ what: String) throws {
        let at = ts_word_mismatch(start + range.lowerBound, range.count, 0)
        if at >= 0 { throw TestFailure("\(what): byte \(range.lowerBound + at) is not zero") }
    }
}

/// What fills a record: the lane and the operation's number, never 0.
struct Stamp: Equatable, CustomStringConvertible {
    let word: UInt64

    private static let numberBits = 48
    static let lanesMax = 64

    init(word: UInt64) { self.word = word }
    init(lane: Int = 0, _ number: Int) { word = UInt64(lane + 1) << Self.numberBits | UInt64(number) }

    var lane: Int { Int(word >> Self.numberBits) - 1 }
    var number: Int { Int(word & (1 << Self.numberBits - 1)) }

    var description: String {
        word == 0 ? "nothing (zeros)" : lane == 0 ? "operation \(number)" : "operation \(number) of lane \(lane)"
    }
}
