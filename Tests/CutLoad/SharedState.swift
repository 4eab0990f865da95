import Glibc
import Synchronization
import TestSupport

/// The memory that the processes of a load share: the clock, what they are to do, and what each lane has done.
final class SharedState: @unchecked Sendable {
    // All of it is reached by way of atomics, but the message, which `hasFailed` publishes.
    private let base: UnsafeMutableRawPointer
    private let bytes: Int
    /// Held open by the process that made it, which others open it through.
    private let file: File?

    private static let pageBytes = 4096
    private static let messageOffset = 1024
    private static let messageBytesMax = 2048
    /// Spans kept of each lane: more than it does while a start lasts.
    static let spansMax = 1 << 20
    private static let laneBytes = pageBytes + spansMax * MemoryLayout<Span>.stride

    enum Phase: Int {
        case preparing, running, over
    }

    init(making lanes: Int) throws {
        file = File(raw: try check(memfd_create("cutload", 0)))
        bytes = Self.pageBytes + lanes * Self.laneBytes
        try file?.truncate(bytes)
        base = try Self.map(file, bytes)
    }

    init(opening path: Path) throws {
        let file = try path.open(O_RDWR)
        bytes = try file.stat().size
        base = try Self.map(file, bytes)
        self.file = nil
    }

    private static func map(_ file: File?, _ bytes: Int) throws -> UnsafeMutableRawPointer {
        guard let file, let base = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.raw, 0),
            base != MAP_FAILED
        else { throw TestFailure("shared memory: \(currentErrno)") }
        return base
    }

    deinit { munmap(base, bytes) }

    /// By which other processes open it, as long as this one lives.
    var path: String { "/proc/\(getpid())/fd/\(file?.raw ?? -1)" }

    private func word(_ index: Int) -> UnsafeMutablePointer<Atomic<Int>> {
        (base + index * MemoryLayout<Int>.stride).assumingMemoryBound(to: Atomic<Int>.self)
    }

    /// The memory of a lane.
    func lane(_ index: Int) -> UnsafeMutableRawPointer { base + Self.pageBytes + index * Self.laneBytes }
    static var laneHeaderBytes: Int { pageBytes }

    // MARK: Words

    /// A number greater than all that were returned before, in any process.
    func tick() -> Int { word(0).pointee.add(1, ordering: .sequentiallyConsistent).newValue }

    var phase: Phase {
        get { Phase(rawValue: word(8).pointee.load(ordering: .acquiring)) ?? .over }
        set { word(8).pointee.store(newValue.rawValue, ordering: .releasing) }
    }

    /// Odd while a start lasts.
    var starts: Int { word(9).pointee.load(ordering: .acquiring) }
    func countStart() { word(9).pointee.add(1, ordering: .acquiringAndReleasing) }

    /// 0, then 1 while a message is written, then 2.
    private var failure: UnsafeMutablePointer<Atomic<Int>> { word(10) }
    var hasFailed: Bool { failure.pointee.load(ordering: .acquiring) == 2 }

    /// The first failure is kept.
    func fail(_ message: String) {
        let isFirst = failure.pointee.compareExchange(
            expected: 0, desired: 1, ordering: .acquiringAndReleasing
        ).exchanged
        if isFirst {
            let text = Array(message.utf8.prefix(Self.messageBytesMax - 1)) + [0]
            (base + Self.messageOffset).copyMemory(from: text, byteCount: text.count)
            failure.pointee.store(2, ordering: .releasing)
        }
        phase = .over
    }

    var message: String {
        String(cString: (base + Self.messageOffset).assumingMemoryBound(to: CChar.self))
    }
}
