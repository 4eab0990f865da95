internal import CTestSupport
internal import Glibc

/// SplitMix64: the same numbers for the same seed, everywhere.
package struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    package init(seed: UInt64) { state = seed }

    package mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ z >> 30) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
        return z ^ z >> 31
    }

    package mutating func pick<Element>(_ elements: [Element]) -> Element {
        elements[Int(next() % UInt64(elements.count))]
    }

    package mutating func number(_ range: ClosedRange<Int>) -> Int { Int.random(in: range, using: &self) }

    package mutating func isTrue(oneIn number: Int) -> Bool { next() % UInt64(number) == 0 }

    package mutating func data(_ count: Int) -> [UInt8] { bytes(count, seed: next()) }
}

/// `count` bytes that follow from `seed`, none of them 0.
package func bytes(_ count: Int, seed: UInt64 = 1) -> [UInt8] {
    [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
        ts_fill(buffer.baseAddress, count, seed)
        initialized = count
    }
}

/// How often a test repeats what it does at random moments: `usual`, or what FUSESNAP_TEST_ROUNDS says for a campaign.
package func rounds(_ usual: UInt64) -> UInt64 {
    environmentValue("FUSESNAP_TEST_ROUNDS").flatMap { UInt64($0) } ?? usual
}

/// How many files a test of size makes: `usual`, or what FUSESNAP_TEST_FILES says for a campaign.
package func files(_ usual: Int) -> Int {
    environmentValue("FUSESNAP_TEST_FILES").flatMap { Int($0) } ?? usual
}

/// The seeds to test: FUSESNAP_TEST_SEED alone where it is set, else `number` of them from 1.
package func seeds(_ number: UInt64) -> [UInt64] {
    if let seed = environmentValue("FUSESNAP_TEST_SEED").flatMap({ UInt64($0) }) { return [seed] }
    return Array(1...number)
}

package func environmentValue(_ name: String) -> String? {
    getenv(name).map { String(cString: $0) }
}
