import Glibc
import Synchronization
import Testing

@testable import FuseSession

/// Workers of a queue that a pipe stands for: a byte is a request.
private final class Workers: Sendable {
    private let readiness = Readiness()
    private let reading: Int32
    private let writing: Int32
    /// The requests that were read, in order.
    private let seen = Mutex<[UInt8]>([])
    /// The worker of each.
    private let threads = Mutex<[UInt]>([])
    private let isReleased = Atomic<Bool>(false)
    /// What all requests write to; 0: they are no writes.
    private let node: UInt64
    /// Whether they are said to take long.
    private let areLong: Bool

    init(writing node: UInt64 = 0, areLong: Bool = false) throws {
        self.node = node
        self.areLong = areLong
        var ends: [Int32] = [0, 0]
        try #require(pipe(&ends) == 0)
        (reading, writing) = (ends[0], ends[1])
        try readiness.attach(reading)
    }

    /// Starts `count` workers.
    func start(_ count: Int) throws {
        for _ in 0..<count {
            var thread = pthread_t()
            let argument = Unmanaged.passRetained(self).toOpaque()
            let result = pthread_create(
                &thread, nil,
                { argument in
                    if let argument { Unmanaged<Workers>.fromOpaque(argument).takeRetainedValue().work() }
                    return nil
                }, argument)
            try #require(result == 0)
            pthread_detach(thread)
        }
    }

    /// Requests are served at once from now on.
    func release() {
        isReleased.store(true, ordering: .sequentiallyConsistent)
    }

    /// Lets all workers end.
    func end(_ count: Int) {
        release()
        for _ in 0..<count { send(0) }
        readiness.hurry(true)
        readiness.end()
    }

    func send(_ request: UInt8) {
        var request = request
        write(writing, &request, 1)
    }

    var requests: [UInt8] { seen.withLock { $0 } }
    var threadCount: Int { threads.withLock { Set($0).count } }
    /// How many requests were read by another worker than the one before.
    var turnCount: Int { threads.withLock { threads in zip(threads, threads.dropFirst()).count { $0 != $1 } } }

    /// Whether that many requests have been read within 20 s.
    func haveRead(_ count: Int) -> Bool {
        let deadline = ContinuousClock.now + .seconds(20)
        while seen.withLock({ $0.count }) < count {
            if ContinuousClock.now > deadline { return false }
            usleep(20)
        }
        return true
    }

    /// Reads until it gets a 0; what it gets it serves for as long as `isReleased` is false.
    func work() {
        readiness.join()
        while true {
            guard readiness.enter(tookLong: false) else { continue }
            var request: UInt8 = 0
            let count = read(reading, &request, 1)
            readiness.leave(withRequest: count == 1)
            guard count == 1 else { continue }
            readiness.didRead(isLong: areLong, wasImmediate: false, writing: node)
            if request == 0 { return }
            threads.withLock { $0.append(UInt(pthread_self())) }
            if isReleased.load(ordering: .sequentiallyConsistent) { readiness.disarm() }
            // Told last: the next request may come from now on.
            seen.withLock { $0.append(request) }
            while !isReleased.load(ordering: .sequentiallyConsistent) { usleep(100) }
        }
    }
}

@Suite struct ReadinessTests {
    @Test(
        "each request is read although the workers of all earlier ones are blocked", arguments: [0, 7] as [UInt64])
    func blocked(writing node: UInt64) throws {
        let count = 5
        let workers = try Workers(writing: node)
        try workers.start(count)
        defer { workers.end(count) }
        for request in 1...UInt8(count) {
            workers.send(request)
            #expect(workers.haveRead(Int(request)))
            #expect(workers.requests == Array(1...request))
            #expect(workers.threadCount == Int(request))
        }
    }

    @Test("requests that come one by one are read by one worker, although another is ready to help with each")
    func oneByOne() throws {
        let count = 3
        let workers = try Workers(areLong: true)
        try workers.start(count)
        defer { workers.end(count) }
        workers.release()
        let requests = 2_000
        for request in 1...requests {
            workers.send(1)
            try #require(workers.haveRead(request))
        }
        // Some, where a worker that has read loses its processor for longer than the guard waits.
        #expect(workers.turnCount < requests / 20)
    }
}
