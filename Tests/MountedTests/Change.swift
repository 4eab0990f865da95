import TestSupport
import Testing

/// One kind of change that is made while a snapshot is active.
struct Change: Sendable, CustomTestStringConvertible {
    let name: String
    /// Makes, under a root, what the change needs before the cut; what it returns makes the change.
    let prepare: @Sendable (Path) throws -> () throws -> Void
    /// Whether it leaves blocks that are allocated and not written. Those count as data or hole by what is in the page
    /// cache of the file system below, so that the live view's map of them cannot be compared.
    let allocates: Bool

    init(
        _ name: String, allocates: Bool = false, _ prepare: @escaping @Sendable (Path) throws -> () throws -> Void
    ) {
        self.name = name
        self.allocates = allocates
        self.prepare = prepare
    }

    var testDescription: String { name }
}

/// How the mount is set up around a change.
enum Variant: String, CaseIterable, Sendable, CustomTestStringConvertible {
    case unread = "snapshot first read after the change"
    case readBefore = "snapshot read before and after the change"
    case overItself = "mounted over itself"
    case storeElsewhere = "store outside the source"
    case withoutHandles = "without file handles"
    case redirected = "redirected, then merged"
    case discarded = "redirected, then discarded"

    var testDescription: String { rawValue }

    static var available: [Variant] {
        allCases.filter { !$0.isRedirect || Machine.Mode.available.contains(.redirect) }
    }

    var isRedirect: Bool { self == .redirected || self == .discarded }

    func mount(_ body: (MountedSource) throws -> Void) throws {
        switch self {
        case .unread, .readBefore: try MountedSource.with(body)
        case .redirected, .discarded: try MountedSource.with(mode: .redirect, body)
        case .overItself: try MountedSource.with(overItself: true, body)
        case .withoutHandles: try MountedSource.with(options: ["-o", "no_file_handles"], body)
        case .storeElsewhere:
            try TemporaryDirectory.with { store in
                try MountedSource.with(options: ["--store", (store / "store").string], body)
            }
        }
    }
}

/// What two trees that were changed alike, at different instants, cannot have in common.
let instants: Set<Fact> = [.mtime, .ctime]

/// Makes a change on a mount with a snapshot active and on a plain twin directory: the live view must become what the
/// twin becomes, and `.snapshot` must stay what the tree was at the cut.
func verify(_ change: Change, _ variant: Variant) throws {
    try variant.mount { mount in
        let twin = mount.top / "twin"
        let vague: Set<Fact> = change.allocates ? [.ranges] : []
        // Without handles a file of which one name went is kept by a further link, whose end stamps the file.
        // And a merge stamps all that it changes.
        let atStop = variant == .withoutHandles || variant == .redirected ? vague.union([.ctime]) : vague
        try twin.mkdir()
        let (changeLive, changeTwin) = (try change.prepare(mount.mountpoint), try change.prepare(twin))
        let (atCut, twinAtCut) = (try TreeCapture(mount.mountpoint), try TreeCapture(twin))
        expect(atCut, equals: twinAtCut, ignoring: instants, "live view before the start")
        try waitForClockTick()
        try mount.start()
        if variant == .readBefore { try expectSnapshot(mount, is: atCut, "just after the start") }

        try changeTwin()
        try changeLive()
        let (now, twinNow) = (try TreeCapture(mount.mountpoint), try TreeCapture(twin))
        expect(now, equals: twinNow, ignoring: instants.union(vague), "live view after the change")
        let (stamped, twinStamped) = (atCut.changedTimes(now), twinAtCut.changedTimes(twinNow))
        // A name made again may have its old number on one side only: then it is not the same file there.
        for (path, facts) in twinStamped {
            guard let mine = stamped[path] else { continue }
            // A kernel that owns the times does not move them where a truncation keeps the size.
            if Machine.kernelOwnsTimes && mine.isEmpty { continue }
            #expect(mine == facts, "times that the change moved: \(path)")
        }
        try expectSnapshot(mount, is: atCut, "after the change")
        if variant.isRedirect {
            expect(try TreeCapture(mount.source), equals: atCut, "the source itself while redirected")
        }
        if variant == .discarded {
            try mount.discard()
            expect(try TreeCapture(mount.mountpoint), equals: atCut, "live view after the discard")
            expect(try TreeCapture(mount.source), equals: atCut, "the source itself after the discard")
            return
        }

        try mount.stop()
        expect(try TreeCapture(mount.mountpoint), equals: now, ignoring: atStop, "live view after the stop")
        #expect(!mount.snapshot.exists, ".snapshot after the stop")
        #expect(try mount.status().deltaBytes == 0)
        if mount.mountpoint != mount.source {
            expect(
                try TreeCapture(mount.source), equals: now, ignoring: atStop, "the source itself after the stop")
        }
    }
}

func expectSnapshot(
    _ mount: MountedSource, is atCut: TreeCapture, _ when: String,
    sourceLocation: SourceLocation = #_sourceLocation
) throws {
    expect(try TreeCapture(mount.snapshot), equals: atCut, ".snapshot \(when)", sourceLocation: sourceLocation)
}

/// Records how two captures differ, a dozen lines at most.
func expect(
    _ actual: TreeCapture, equals expected: TreeCapture, ignoring: Set<Fact> = [], _ what: String,
    sourceLocation: SourceLocation = #_sourceLocation
) {
    let lines = expected.differences(actual, ignoring: ignoring)
    if lines.isEmpty { return }
    let shown = lines.prefix(12).joined(separator: "\n  ")
    Issue.record("\(what): \(lines.count) differences\n  \(shown)", sourceLocation: sourceLocation)
}
