internal import CLinux
internal import Glibc
internal import Synchronization

/// Whether the worker that reads looks for the next request for a moment before it sleeps.
///
/// Where a program waits for each answer, its next request comes within some microseconds. A thread that sleeps by then has
/// to be woken, which takes as long as serving the request, and on a virtual machine longer; one that still looks takes
/// it at once. That pays only as long as requests do come so, which is learned from how long they are waited for: what is
/// wasted after the last one of many is `lookNanoseconds` of one processor, once.
///
/// Safe for use by all threads: a count that is lost now and then does not matter.
final class Anticipation: Sendable {
    /// How long it looks.
    static let lookNanoseconds: Int = 20_000
    /// A sleeping worker has a request at the earliest so long after it began to wait, even where that came at once.
    private static let wakeNanoseconds: Int = 30_000
    /// Requests that came in time, less what those that did not take away.
    private let hope = Atomic<Int>(0)
    private static let hopeMax = 16
    private static let disappointment = 4
    /// Where there is one processor, whoever asks cannot do so meanwhile.
    private let hasOthers: Bool

    init(processors: Int = sysconf(Int32(_SC_NPROCESSORS_ONLN))) {
        hasOthers = processors > 1
    }

    /// Whether the next request is likely to come in time.
    var isHopeful: Bool { hasOthers && hope.load(ordering: .relaxed) >= Self.disappointment }

    /// Returns when a request waits at `channel`, or time is over, or a signal has come.
    func look(_ channel: Int32) {
        _ = cl_poll_for(channel, Self.lookNanoseconds)
    }

    /// A request came after it was waited for so long, looking or asleep.
    func learn(waited nanoseconds: Int, looking: Bool) {
        let hope = self.hope.load(ordering: .relaxed)
        let limit = looking ? Self.lookNanoseconds : Self.lookNanoseconds + Self.wakeNanoseconds
        let next = nanoseconds < limit ? min(hope + 1, Self.hopeMax) : max(hope - Self.disappointment, 0)
        self.hope.store(next, ordering: .relaxed)
    }
}
