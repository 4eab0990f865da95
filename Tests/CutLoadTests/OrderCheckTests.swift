import Testing

@testable import cutload

/// The general check, on histories made up here. Ticks are written as `began...finished`.
struct OrderCheckTests {
    /// A lane whose operations are these, in order; nil in place of the end of one that had not finished.
    private static func history(
        _ name: String, _ spans: [(Int, Int?)], finishedBefore: Int = 0, isBestEffort: Bool = false
    ) -> LaneHistory {
        let all =
            [Span(began: 0, finished: 0)] + spans.map { Span(began: $0.0, finished: $0.1 ?? Span.unfinished) }
        return LaneHistory(
            name: name, finishedBefore: finishedBefore, begun: spans.count, spans: Array(all[finishedBefore...]),
            isBestEffort: isBestEffort)
    }

    private let cut = Cut(called: 100, returned: 200)

    private func violations(_ lanes: [LaneHistory], _ last: [Int?]) -> [String] {
        OrderCheck(lanes, last.map { $0.map { Found($0) } }, cut).violations
    }

    /// The lane that a message begins with, and its operation.
    private func lane(_ message: String) -> String { String(message.prefix(3)) }

    @Test func `operations during the start may be in or not`() {
        let lane = Self.history("a", [(110, 120), (130, 140), (150, nil)])
        for last in 0...3 { #expect(violations([lane], [last]).isEmpty, "\(last)") }
    }

    @Test func `what finished before the start was called must be in`() {
        let lane = Self.history("a", [(10, 20), (30, 99), (101, 102)])
        #expect(violations([lane], [2]).isEmpty)
        #expect(violations([lane], [1]).count == 1)
        #expect(violations([lane], [0]).count == 1)
        let counted = Self.history("a", [(10, 20), (30, 99), (101, 102)], finishedBefore: 2)
        #expect(violations([counted], [1]).count == 1)
        #expect(violations([counted], [2]).isEmpty)
    }

    @Test func `what was under way when the start was called may be in or not`() {
        let lane = Self.history("a", [(10, 101)])
        #expect(violations([lane], [0]).isEmpty)
        #expect(violations([lane], [1]).isEmpty)
    }

    @Test func `what began after the start had returned must not be in`() {
        let lane = Self.history("a", [(110, 120), (201, 210)])
        #expect(violations([lane], [1]).isEmpty)
        #expect(violations([lane], [2]).count == 1)
        #expect(violations([lane], [3]).count == 1, "an operation that never began")
    }

    @Test func `an operation that is in brings with it what had finished before it began`() {
        let earlier = Self.history("a", [(110, 120)])
        let later = Self.history("b", [(121, 130)])
        for (first, second) in [(0, 0), (1, 0), (1, 1)] {
            #expect(violations([earlier, later], [first, second]).isEmpty, "\(first) \(second)")
        }
        let wrong = violations([earlier, later], [0, 1])
        #expect(wrong == ["a 1 finished at tick 120 and is not in, but b 1, begun after that at tick 121, is"])
    }

    @Test func `operations that overlap are in no order`() {
        let lanes = [Self.history("a", [(110, 121)]), Self.history("b", [(120, 130)])]
        for (first, second) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            #expect(violations(lanes, [first, second]).isEmpty, "\(first) \(second)")
        }
    }

    @Test func `order is checked over several lanes, and for every one that lacks something`() {
        let lanes = [
            Self.history("a", [(110, 111), (140, 145)]), Self.history("b", [(115, 120), (160, 165)]),
            Self.history("c", [(150, 155)]),
        ]
        #expect(violations(lanes, [2, 1, 1]).isEmpty)
        #expect(violations(lanes, [1, 1, 1]).map(lane) == ["a 2"])
        #expect(violations(lanes, [1, 0, 1]).map(lane) == ["a 2", "b 1"])
        #expect(violations(lanes, [2, 0, 0]).map(lane) == ["b 1"])
    }

    @Test func `a lane of which nothing could be told is left out`() {
        let lanes = [Self.history("a", [(110, 120)]), Self.history("b", [(121, 130)])]
        #expect(violations(lanes, [nil, 1]).isEmpty)
    }

    @Test func `best effort needs what was synced, and proves nothing`() {
        let mapped = Self.history("m", [(110, 120), (121, nil)], isBestEffort: true)
        let other = Self.history("a", [(125, 130)])
        #expect(violations([mapped, other], [1, 1]).isEmpty)
        #expect(violations([mapped, other], [0, 1]).count == 1, "synced before a 1 began")
        let earlier = Self.history("a", [(101, 105)])
        #expect(violations([mapped, earlier], [1, 0]).isEmpty, "its pages being in asks for nothing")
        let tooNew = OrderCheck([mapped], [Found(1, most: 3)], cut).violations
        #expect(tooNew.count == 1, "no such store had begun")
    }

    @Test func `where older operations are forgotten nothing is found that may be right`() {
        // Operations 1 to 3 had not finished before the start: they are forgotten.
        let spans = [Span(began: 150, finished: 155), Span(began: 160)]
        let long = LaneHistory(name: "a", finishedBefore: 0, begun: 5, first: 4, spans: spans)
        let other = Self.history("b", [(140, 145)])
        let maybe = OrderCheck([long, other], [Found(2), Found(1)], cut)
        #expect(maybe.violations.isEmpty)
        #expect(maybe.undecided == ["a"])
        let late = Self.history("b", [(151, 156)])
        #expect(
            OrderCheck([long, late], [Found(2), Found(1)], cut).violations.count == 1, "3 ended before 4 began")
        let known = OrderCheck([long, late], [Found(4), Found(1)], cut)
        #expect(known.violations.isEmpty && known.undecided.isEmpty)
    }

    /// What a run of lanes would show, were it stopped at any instant, breaks no promise; moved apart, it does.
    @Test(arguments: 1...200)
    func `every instant passes, and two instants far apart do not`(_ seed: Int) {
        var state = UInt64(seed) &* 0x9e37_79b9_7f4a_7c15
        func random(_ bound: Int) -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(state >> 33) % bound
        }
        // Ticks are drawn in turn, so each is unique; an operation takes effect somewhere between its ends.
        var spans: [[(Int, Int?)]] = [[], [], []]
        var effects: [[Int]] = [[], [], []]
        for tick in 101...199 {
            let lane = random(3)
            if let last = spans[lane].last, last.1 == nil {
                spans[lane][spans[lane].count - 1].1 = tick
                effects[lane].append(last.0 + random(tick - last.0))
            } else {
                spans[lane].append((tick, nil))
            }
        }
        let lanes = spans.enumerated().map { Self.history("lane \($0)", $1) }
        for instant in 101...199 {
            let last = effects.map { $0.filter { $0 < instant }.count }
            #expect(violations(lanes, last).isEmpty, "stopped at \(instant): \(last)")
        }
        let torn = effects.enumerated().map { lane, at in at.filter { $0 < (lane == 0 ? 110 : 190) }.count }
        #expect(!violations(lanes, torn).isEmpty, "\(torn)")
    }
}
