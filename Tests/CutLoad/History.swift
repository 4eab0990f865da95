/// The general check: whether a snapshot holds what was there at one instant, told from nothing but when operations
/// began and finished and which of them are in. Ticks are those of one clock for all processes, so that of two
/// operations it is known for certain whether one had finished before the other began.

/// When one operation began and finished.
struct Span: Equatable, Sendable {
    static let unfinished = Int.max

    var began: Int
    var finished = unfinished
}

/// What is known of one lane: operations numbered from 1, each of which began after the one before it had finished.
struct LaneHistory: Sendable {
    let name: String
    /// Operations up to this one had finished before the start was called.
    let finishedBefore: Int
    /// Operations begun when the start had returned.
    let begun: Int
    /// The number of the operation that `spans` begins with: `finishedBefore`, or more where older ones are forgotten.
    let first: Int
    /// The operations from `first` to `begun`.
    let spans: [Span]
    /// What is in the snapshot does not show that the operation counts (stores through a mapping, before msync).
    let isBestEffort: Bool

    init(
        name: String, finishedBefore: Int, begun: Int, first: Int? = nil, spans: [Span],
        isBestEffort: Bool = false
    ) {
        self.name = name
        self.finishedBefore = finishedBefore
        self.begun = begun
        self.first = first ?? finishedBefore
        self.spans = spans
        self.isBestEffort = isBestEffort
        precondition(spans.count == begun - self.first + 1, "\(name): a span for every operation")
    }

    /// When an operation began, or an earlier tick where that is forgotten.
    fileprivate func earliestBegin(_ number: Int) -> Int { number < first ? 0 : spans[number - first].began }

    /// When an operation finished, or a later tick where that is forgotten: the next one began after it.
    fileprivate func latestFinish(_ number: Int) -> Int {
        if number > begun { return Span.unfinished }
        return number < first ? spans[0].began : spans[number - first].finished
    }

    fileprivate func isForgotten(_ number: Int) -> Bool { number < first && number > 0 }
}

/// What a snapshot holds of a lane: all operations up to `last`, and of those up to `most` perhaps a part.
struct Found: Equatable, Sendable {
    var last: Int
    var most: Int
    /// Tells apart what the numbers do not.
    var content: UInt64

    init(_ last: Int, most: Int? = nil, content: UInt64 = 0) {
        self.last = last
        self.most = most ?? last
        self.content = content
    }
}

/// A start: the ticks before it was called and after it returned.
struct Cut: Sendable {
    let called: Int
    let returned: Int
}

struct OrderCheck {
    private(set) var violations: [String] = []
    /// Lanes of which too much is forgotten to judge: no violation was found in them, and none is excluded.
    private(set) var undecided: [String] = []

    /// `found` has what is in of each lane, nil where that could not be told.
    init(_ lanes: [LaneHistory], _ found: [Found?], _ cut: Cut) {
        let pairs = zip(lanes, found).compactMap { lane, found in found.map { (lane, $0) } }
        for (lane, found) in pairs { checkAlone(lane, found, cut) }
        let latest = Self.latest(pairs)
        for (lane, found) in pairs where found.last >= lane.finishedBefore && found.last <= lane.begun {
            let missing = found.last + 1
            let finished = lane.latestFinish(missing)
            // What finished before the start was called has been found wanting already.
            if let latest, finished < latest.began {
                violations.append(
                    "\(lane.name) \(missing) finished at tick \(finished) and is not in, but "
                        + "\(latest.lane.name) \(latest.number), begun after that at tick \(latest.began), is")
            } else if lane.isForgotten(missing) || lane.isForgotten(found.last) {
                undecided.append(lane.name)
            }
        }
    }

    /// What a lane must fulfil by itself.
    private mutating func checkAlone(_ lane: LaneHistory, _ found: Found, _ cut: Cut) {
        if found.last < lane.finishedBefore {
            violations.append(
                "\(lane.name) \(lane.finishedBefore) had finished before the start was called (tick \(cut.called)), "
                    + "and only operations up to \(found.last) are in")
        } else if lane.latestFinish(found.last + 1) < cut.called {
            violations.append(
                "\(lane.name) \(found.last + 1) finished at tick \(lane.latestFinish(found.last + 1)), before the "
                    + "start was called (tick \(cut.called)), and is not in")
        }
        if found.most > lane.begun {
            violations.append(
                "\(lane.name) \(found.most) is in, and had not begun when the start had returned (only up to "
                    + "\(lane.begun))")
        } else if !lane.isBestEffort, lane.earliestBegin(found.last) > cut.returned {
            violations.append(
                "\(lane.name) \(found.last) is in, and began at tick \(lane.earliestBegin(found.last)), after the "
                    + "start had returned (tick \(cut.returned))")
        }
    }

    /// The operation that began last of those that are in: all that finished before it must be in too. Within a lane
    /// later operations begin later, so the last one of each lane is enough.
    private static func latest(
        _ pairs: [(LaneHistory, Found)]
    ) -> (lane: LaneHistory, number: Int, began: Int)? {
        pairs.filter { lane, found in !lane.isBestEffort && found.last <= lane.begun && found.last > 0 }
            .map { lane, found in (lane, found.last, lane.earliestBegin(found.last)) }
            .max { $0.2 < $1.2 }
    }
}
