import Glibc
import Testing

@testable import FuseSession

@Suite struct AnticipationTests {
    private let quick = Anticipation.lookNanoseconds / 2
    private let late = Anticipation.lookNanoseconds * 100

    @Test("it looks once requests come quickly, and stops when they do not")
    func learns() {
        let anticipation = Anticipation(processors: 2)
        #expect(!anticipation.isHopeful)
        anticipation.learn(waited: late, looking: false)
        #expect(!anticipation.isHopeful)
        for _ in 0..<100 { anticipation.learn(waited: quick, looking: false) }
        #expect(anticipation.isHopeful)
        anticipation.learn(waited: late, looking: true)
        #expect(anticipation.isHopeful, "one that is late does not end it")
        for _ in 0..<4 { anticipation.learn(waited: late, looking: true) }
        #expect(!anticipation.isHopeful, "what is in vain ends soon, however much went before")
    }

    @Test("one that looked in vain most of the time does not go on")
    func mixed() {
        let anticipation = Anticipation(processors: 2)
        for _ in 0..<50 {
            anticipation.learn(waited: quick, looking: true)
            anticipation.learn(waited: late, looking: true)
        }
        #expect(!anticipation.isHopeful)
    }

    @Test("it does not look where there is one processor")
    func alone() {
        let anticipation = Anticipation(processors: 1)
        for _ in 0..<100 { anticipation.learn(waited: quick, looking: false) }
        #expect(!anticipation.isHopeful)
    }

    @Test("looking ends with a request, or with the time")
    func looks() throws {
        var ends: [Int32] = [0, 0]
        try #require(pipe(&ends) == 0)
        defer { ends.forEach { close($0) } }
        let anticipation = Anticipation()
        anticipation.look(ends[0])
        var byte: UInt8 = 1
        #expect(write(ends[1], &byte, 1) == 1)
        anticipation.look(ends[0])
        #expect(read(ends[0], &byte, 1) == 1)
    }
}
