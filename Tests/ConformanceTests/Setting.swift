import TestSupport
import Testing

/// Where a test of the conformance suite runs: the same functions must pass on each.
enum Setting: String, CaseIterable, Sendable, CustomTestStringConvertible {
    /// No FUSE at all: shows that the test asks for what the file system below does.
    case plain = "plain directory"
    case idle = "idle mount"
    case active = "mount with a snapshot active"
    case overItself = "mount over itself"
    case redirectIdle = "idle mount in mode redirect"
    case redirected = "mount with changes redirected"

    var testDescription: String { rawValue }

    static var available: [Setting] {
        if !Machine.canMount { return [.plain] }
        return allCases.filter { Machine.Mode.available.contains($0.mode) }
    }

    /// Whether an old file's blocks are told as they are: while it is redirected they are what the file and the delta have.
    var tellsBlocks: Bool { self != .redirected }

    private var mode: Machine.Mode { self == .redirectIdle || self == .redirected ? .redirect : .preserve }
    private var isActive: Bool { self == .active || self == .redirected }

    /// Calls `body` with an empty directory.
    func run(_ body: (Place) throws -> Void) throws {
        switch self {
        case .plain:
            try TemporaryDirectory.with { try body(Place(root: $0, mount: nil, isActive: false)) }
        case .idle, .active, .overItself, .redirectIdle, .redirected:
            try MountedSource.with(mode: mode, overItself: self == .overItself) { mount in
                if isActive { try mount.start() }
                try body(Place(root: mount.mountpoint, mount: mount, isActive: isActive))
            }
        }
    }
}

/// The directory of a test.
struct Place {
    let root: Path
    let mount: MountedSource?
    fileprivate let isActive: Bool
    private let steps = Counter()

    fileprivate init(root: Path, mount: MountedSource?, isActive: Bool) {
        self.root = root
        self.mount = mount
        self.isActive = isActive
    }

    static func / (place: Place, name: Path) -> Path { place.root / name }

    /// `cut`, for tests of many small steps: where a step makes what it changes, every tenth is enough.
    func cutOnce() throws {
        if isActive && steps.current % 10 == 0 { try cut() }
        steps.increment()
    }

    /// Where a snapshot is active: takes it anew, so that it holds what the test has made so far and every later
    /// change must be intercepted.
    func cut() throws {
        guard isActive, let mount else { return }
        try mount.stop()
        try mount.start()
    }
}
