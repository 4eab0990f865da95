import LinuxSystem
import TestSupport
import Testing

@Suite struct WorkerThreadTests {
    @Test("a thread that ends leaves no buffer behind")
    func buffers() throws {
        let bytes = 4 << 20
        let before = try residentBytes()
        for _ in 0..<100 {
            try Worker {
                WorkerThread.buffer(bytes).initializeMemory(as: UInt8.self, repeating: 1)
            }.join()
        }
        let growth = try residentBytes() - before
        #expect(growth < 20 * bytes, "100 threads with \(bytes) bytes each left \(growth)")
    }

    @Test("a buffer that grows is the thread's only one, and holds what was asked for")
    func growth() throws {
        let small = WorkerThread.buffer(1)
        #expect(small.count == 1)
        let large = WorkerThread.buffer(3 << 20)
        #expect(large.count == 3 << 20)
        large.initializeMemory(as: UInt8.self, repeating: 7)
        #expect(WorkerThread.buffer(1 << 20).baseAddress == large.baseAddress)
        #expect(large.allSatisfy { $0 == 7 })
    }

    private func residentBytes() throws -> Int {
        let text = String(decoding: try Path("/proc/self/statm").contents(), as: UTF8.self)
        let fields = text.split(separator: " ")
        guard fields.count > 1, let pages = Int(fields[1]) else { throw TestFailure("/proc/self/statm: \(text)") }
        return pages * 4096
    }
}
