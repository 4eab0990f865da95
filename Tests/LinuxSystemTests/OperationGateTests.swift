import LinuxSystem
import Synchronization
import TestSupport
import Testing

@Suite struct OperationGateTests {
    @Test("no operation is inside while the gate is closed")
    func closedMeansEmpty() throws {
        let gate = OperationGate()
        let inside = Counter()
        let operations = Counter()
        let isOver = Flag()
        let workers = try (0..<4).map { _ in
            try Worker {
                while !isOver.isSet {
                    gate.pass {
                        inside.increment()
                        operations.increment()
                        inside.set(0)
                    }
                }
            }
        }
        var seenInside = 0
        var moved = 0
        for _ in 0..<300 {
            let before = operations.current
            gate.withClosed {
                let first = operations.current
                inside.set(0)
                for _ in 0..<200 where inside.current != 0 { seenInside += 1 }
                if operations.current != first { moved += 1 }
            }
            try wait("operations go on after the gate opens") { operations.current > before }
        }
        isOver.set()
        for worker in workers { try worker.join() }
        #expect(seenInside == 0)
        #expect(moved == 0, "an operation ran while the gate was closed")
    }

    @Test("an operation that is inside is waited for")
    func waitsForThoseInside() throws {
        let gate = OperationGate()
        let isInside = Flag()
        let mayLeave = Flag()
        let isClosed = Flag()
        let operation = try Worker {
            gate.enter()
            isInside.set()
            try wait("leave to go") { mayLeave.isSet }
            #expect(!isClosed.isSet)
            gate.leave()
        }
        try wait("the operation to enter") { isInside.isSet }
        let closer = try Worker { gate.withClosed { isClosed.set() } }
        mayLeave.set()
        try operation.join()
        try closer.join()
        #expect(isClosed.isSet)
    }
}
