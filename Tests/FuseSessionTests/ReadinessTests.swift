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
    private let threads = Mutex<Set<UInt>>([])
    private let isReleased = Atomic<Bool>(false)
    /// What all requests write to; 0: they are no writes.
    private let node: UInt64

    init(writing node: UInt64) throws {
        self.node = node
        var ends: [Int32] = [0, 0]
        try #require(pipe(&ends) == 0)
        (reading, writing) = (ends[0], ends[1])
        try readiness.attach(reading)
    }

    /// Lets all workers end.
    func end(_ count: Int) {
        isReleased.store(true, ordering: .sequentiallyConsistent)
        for _ in 0..<count { send(0) }
        readiness.hurry(true)
        readiness.end()
    }

    func send(_ request: UInt8) {
        var request = request
        write(writing, &request, 1)
    }

    var requests: [UInt8] { seen.withLock { $0 } }
    var threadCount: Int { threads.withLock { $0.count } }

    /// Reads until it gets a 0; what it gets it serves for as long as `isReleased` is false.
    func work() {
        readiness.join()
        while true {
            guard readiness.enter(tookLong: false) else { continue }
            var request: UInt8 = 0
            let count = read(reading, &request, 1)
            readiness.leave()
            guard count == 1 else { continue }
            readiness.didRead(isLong: false, wasImmediate: false, writing: node)
            if request == 0 { return }
            seen.withLock { $0.append(request) }
            threads.withLock { _ = $0.insert(UInt(pthread_self())) }
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
        for _ in 0..<count {
            var thread = pthread_t()
            let argument = Unmanaged.passRetained(workers).toOpaque()
            let result = pthread_create(
                &thread, nil,
                { argument in
                    if let argument { Unmanaged<Workers>.fromOpaque(argument).takeRetainedValue().work() }
                    return nil
                }, argument)
            try #require(result == 0)
            pthread_detach(thread)
        }
        defer { workers.end(count) }
        for request in 1...UInt8(count) {
            workers.send(request)
            let deadline = ContinuousClock.now + .seconds(20)
            while workers.requests.count < Int(request) && ContinuousClock.now < deadline { usleep(100) }
            #expect(workers.requests == Array(1...request))
            #expect(workers.threadCount == Int(request))
        }
    }
}
