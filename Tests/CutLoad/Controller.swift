import Glibc
import Synchronization
import SystemPackage
import TestSupport

/// Runs the processes of a load, starts snapshots of it at random moments, and checks them.
final class Controller {
    private let load: Load
    private let options: Run
    private let seed: UInt64
    private var random: SeededGenerator
    private let shared: SharedState
    private let lanes: [[Lane]]
    private var children: [Child] = []

    private var startSeconds: [Double] = []
    private var failedStarts = 0
    /// How many snapshots were wrong, by what was wrong.
    private(set) var wrong: [String: Int] = [:]
    private let began = ContinuousClock.now

    private static let callSecondsMax = 60.0
    private static let commandSeconds = 120.0
    private static let messagesMax = 30

    init(_ load: Load, _ options: Run, seed: UInt64) throws {
        self.load = load
        self.options = options
        self.seed = seed
        random = SeededGenerator(seed: seed)
        shared = try SharedState(making: load.lanes)
        lanes = load.lanes(shared)
    }

    func run() throws {
        for station in load.stations {
            let root = load.root(station)
            if root.exists { removeTree(root) }
            do {
                try root.mkdir()
                try station.prepare(root)
            } catch {
                throw LoadFailure("preparing \(station.name): \(error)")
            }
        }
        shared.phase = .running
        let watchdog = try Worker { [shared, lanes] in try Self.watch(shared, lanes.flatMap { $0 }) }
        do {
            try spawn()
            try waitForAll("every station's first operation") { $0.finished > 0 }
            if options.snapshot != nil { try takeSnapshots() } else { try sleep(milliseconds: .max) }
        } catch {
            shared.phase = .over
            throw error
        }
        shared.phase = .over
        try end()
        try watchdog.join()
        try checkLive()
        if wrong.isEmpty { for station in load.stations { removeTree(load.root(station)) } }
    }

    // MARK: Processes

    private func spawn() throws {
        for (index, station) in load.stations.enumerated() {
            for actor in 0..<station.actors {
                children.append(
                    try Child(options.work(seed: seed, station: index, actor: actor, shared: shared.path)))
            }
        }
    }

    private func end() throws {
        for child in children {
            let finished = try child.wait(seconds: Self.callSecondsMax)
            if shared.hasFailed { throw LoadFailure(shared.message) }
            if finished.code != 0 { throw LoadFailure(finished.description) }
        }
    }

    private func checkHealth() throws {
        if shared.hasFailed { throw LoadFailure(shared.message) }
    }

    /// Ends this process where a call of a station does not end: what waits in the kernel cannot be helped from here.
    private static func watch(_ shared: SharedState, _ lanes: [Lane]) throws {
        while shared.phase == .running || lanes.contains(where: { $0.secondsInCall > 0 }) {
            if let lane = lanes.first(where: { $0.secondsInCall > callSecondsMax }), !shared.hasFailed {
                say("failed: \(lane.name) \(lane.begun): a call has not ended for \(callSecondsMax) s")
                _exit(2)
            }
            usleep(50_000)
            if shared.hasFailed { return }
        }
    }

    private func waitForAll(_ what: String, _ condition: (Lane) -> Bool) throws {
        do {
            try wait(what, seconds: Self.callSecondsMax) {
                try checkHealth()
                return lanes.allSatisfy { $0.allSatisfy(condition) }
            }
        } catch let error as TestFailure {
            throw LoadFailure(error.description)
        }
    }

    private var isOver: Bool {
        if let starts = options.starts, startSeconds.count + failedStarts >= starts { return true }
        if !wrong.isEmpty, !options.keepGoing { return true }
        guard let seconds = options.seconds else { return false }
        return began.duration(to: .now) > .seconds(seconds)
    }

    private func sleep(milliseconds: Int) throws {
        let until = ContinuousClock.now + .milliseconds(min(milliseconds, 1_000_000_000))
        while ContinuousClock.now < until, !isOver || milliseconds < .max {
            try checkHealth()
            usleep(UInt32(min(5000, max(0, (until - .now) / .microseconds(1)))))
        }
    }

    // MARK: Snapshots

    private func takeSnapshots() throws {
        while !isOver {
            try sleep(milliseconds: random.number(0...options.interval))
            try waitForDirtyData()
            guard let histories = try start() else { continue }
            var messages: [String] = []
            let first = try check(histories, &messages)
            try sleep(milliseconds: random.number(0...options.interval))
            compare(first, try look(), &messages)
            try stop()
            report(messages)
        }
    }

    /// Dirty data are written out by a start: one pass more over them, so that the next one meets them too.
    private func waitForDirtyData() throws {
        guard let index = load.stations.firstIndex(where: { $0 is DirtyData }),
            let dirty = load.stations[index] as? DirtyData
        else { return }
        let goal = lanes[index][0].finished + dirty.pass
        try waitForAll("a pass over dirty data") { $0.name != dirty.name || $0.finished >= goal }
    }

    private struct Histories {
        let lanes: [[LaneHistory]]
        let cut: Cut
    }

    /// Runs the start command; nil where it failed, and may.
    private func start() throws -> Histories? {
        let finishedBefore = lanes.map { $0.map(\.finished) }
        shared.countStart()
        let called = shared.tick()
        let began = ContinuousClock.now
        let failure = try command(options.startCommand)
        let returned = shared.tick()
        let took = began.duration(to: .now) / .seconds(1)
        // At once, before the lanes forget.
        let histories = zip(lanes, finishedBefore).map { lanes, finished in
            zip(lanes, finished).map { $0.history(finishedBefore: $1) }
        }
        shared.countStart()
        if let failure {
            guard options.startsMayFail else { throw LoadFailure(failure) }
            failedStarts += 1
            return nil
        }
        startSeconds.append(took)
        return Histories(lanes: histories, cut: Cut(called: called, returned: returned))
    }

    private func stop() throws {
        if let failure = try command(options.stopCommand) { throw LoadFailure(failure) }
    }

    /// What it said, where it failed.
    private func command(_ text: String?) throws -> String? {
        let words = ["/bin/sh", "-c", text ?? "false"]
        do {
            let finished = try Child(words).wait(seconds: Self.commandSeconds)
            try checkHealth()
            return finished.code == 0 ? nil : finished.description
        } catch let error as TestFailure {
            throw LoadFailure(error.description)
        }
    }

    // MARK: Checks

    /// What a snapshot shows of a station.
    private struct Look: Sendable {
        let station: String
        var found: [Found]?
        var fault: String?
        /// Paths and what lstat tells of them.
        var entries: [Path: Entry] = [:]
    }

    private final class Looks: Sendable {
        let all: Mutex<[Look]>
        init(_ looks: [Look]) { all = Mutex(looks) }
    }

    /// Looks at all stations at the same time: behind the load's requests each call waits long.
    private func look() throws -> [Look] {
        let snapshot = Path(options.snapshot ?? "")
        let looks = Looks(load.stations.map { Look(station: $0.name) })
        let workers = try load.stations.enumerated().map { index, station in
            try Worker {
                let look = Self.look(station, snapshot / Path(station.name))
                looks.all.withLock { $0[index] = look }
            }
        }
        for worker in workers { try worker.join() }
        return looks.all.withLock { $0 }
    }

    private static func look(_ station: any Station, _ root: Path) -> Look {
        var result = Look(station: station.name)
        do {
            result.found = try station.find(root)
            if result.found != nil { try Entry.collect(root, &result.entries) }
        } catch {
            result.fault = "\(error)"
        }
        return result
    }

    private func check(_ histories: Histories, _ messages: inout [String]) throws -> [Look] {
        let looks = try look()
        for look in looks {
            if let fault = look.fault { messages.append("\(look.station): \(fault)") }
        }
        let found: [[Found?]] = zip(looks, lanes).map { look, lanes in look.found ?? lanes.map { _ in nil } }
        let order = OrderCheck(Array(histories.lanes.joined()), Array(found.joined()), histories.cut)
        messages += order.violations
        if order.violations.isEmpty {
            messages += order.undecided.map { "\($0): the start took so long that its operations are forgotten" }
        }
        return looks
    }

    /// A snapshot must not change.
    private func compare(_ first: [Look], _ second: [Look], _ messages: inout [String]) {
        for (first, second) in zip(first, second) where first.fault == nil {
            if let fault = second.fault {
                messages.append("\(first.station): changed: \(fault)")
            } else if first.found != second.found {
                let (old, new) = (first.found?.map(\.last) ?? [], second.found?.map(\.last) ?? [])
                messages.append("\(first.station): changed: operations up to \(old) were in, now up to \(new)")
            } else {
                let paths = Set(first.entries.keys).union(second.entries.keys)
                for path in paths where first.entries[path] != second.entries[path] {
                    let (old, new) = (first.entries[path], second.entries[path])
                    messages.append(
                        "\(first.station): changed: \(path): "
                            + "\(old?.description ?? "missing"), now \(new?.description ?? "missing")")
                }
            }
        }
    }

    /// When the load is over, what is there is what was done: the finders are right, and the live view is.
    private func checkLive() throws {
        for (station, lanes) in zip(load.stations, lanes) {
            let done = lanes.map(\.finished)
            do {
                guard let found = try station.find(load.root(station))?.map(\.last), found != done else {
                    continue
                }
                report(["\(station.name): the live view at the end holds \(found), and \(done) were done"])
            } catch {
                report(["\(station.name): the live view at the end: \(error)"])
            }
        }
    }

    private func report(_ messages: [String]) {
        for message in messages.prefix(Self.messagesMax) {
            say("violation: seed \(seed), start \(startSeconds.count): \(message)")
        }
        // A message begins with the name of its lane or station.
        let stations = Set(messages.map { message in String(message.prefix { !" :[".contains($0) }) })
        for station in stations { wrong[station, default: 0] += 1 }
    }

    // MARK: Summary

    var summary: String {
        var lines: [String] = []
        let total = Int(began.duration(to: .now) / .seconds(1))
        let sorted = startSeconds.sorted()
        lines.append(
            "\(startSeconds.count) starts (\(failedStarts) more failed) in \(total) s, the median "
                + "\(milliseconds(sorted.isEmpty ? 0 : sorted[sorted.count / 2])), the longest "
                + milliseconds(sorted.last ?? 0))
        lines.append(
            row("station", "operations", "longest call at a start", "longest call otherwise", "snapshots wrong"))
        for (station, lanes) in zip(load.stations, lanes) {
            lines.append(
                row(
                    station.name, "\(lanes.map(\.finished).reduce(0, +))", longest(lanes, atStart: true),
                    longest(lanes, atStart: false), wrong[station.name].map { "\($0)" } ?? ""))
        }
        return lines.joined(separator: "\n")
    }

    private func longest(_ lanes: [Lane], atStart: Bool) -> String {
        let longest = lanes.map { $0.longest(atStart: atStart) }.max { $0.seconds < $1.seconds }
        guard let longest, longest.seconds > 0 else { return "none" }
        return "\(milliseconds(longest.seconds)) \(longest.call)"
    }

    private func milliseconds(_ seconds: Double) -> String {
        let tenths = Int((seconds * 10_000).rounded())
        return "\(tenths / 10).\(tenths % 10) ms"
    }

    private func row(_ name: String, _ fields: String...) -> String {
        let widths = [11, 26, 26, 16]
        let name = name + String(repeating: " ", count: max(0, 15 - name.utf8.count))
        return zip(fields, widths).reduce(name) { line, field in
            line + String(repeating: " ", count: max(1, field.1 - field.0.utf8.count)) + field.0
        }
    }
}

/// What lstat tells of an entry that must not change in a snapshot.
struct Entry: Equatable, Sendable, CustomStringConvertible {
    private let status: Status

    var description: String {
        "\(status.kind) \(status.inode) mode \(String(status.permissions, radix: 8)) links \(status.links) "
            + "size \(status.size) mtime \(status.modified) ctime \(status.changed)"
    }

    static func == (left: Entry, right: Entry) -> Bool { left.description == right.description }

    static func collect(_ path: Path, _ entries: inout [Path: Entry]) throws {
        let status = try naming("lstat", path) { () throws(Errno) in try path.lstat() }
        entries[path] = Entry(status: status)
        if status.kind != .directory { return }
        for name in try naming("listing", path, { () throws(Errno) in try path.entries() }) {
            try collect(path / name, &entries)
        }
    }
}
