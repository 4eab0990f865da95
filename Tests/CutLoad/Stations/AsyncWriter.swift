import CTestSupport
import Glibc
import SystemPackage
import TestSupport

/// Overwrites records with many writes under way at the same time, a lane for each.
struct AsyncWriter: Station {
    enum Kind {
        case aio, uring

        var raw: Int32 { Int32((self == .aio ? TS_ASYNC_AIO : TS_ASYNC_URING).rawValue) }
        var call: Call { self == .aio ? .aioWrite : .uringWrite }
        /// AIO is asynchronous with O_DIRECT only.
        var flags: Int32 { self == .aio ? O_WRONLY | O_DIRECT : O_WRONLY }
    }

    let name: String
    let records: Records
    let kind: Kind

    var lanes: [String] { (0..<records.lanes).map { "\(name)[\($0)]" } }

    func prepare(_ root: Path) throws { try records.prepare(root) }
    func find(_ root: Path) throws -> [Found]? { try records.find(root) }

    /// Whether this machine has it; a container may forbid it.
    static func isAvailable(_ kind: Kind) -> Bool {
        guard let async = ts_async_open(kind.raw, 1) else { return false }
        ts_async_close(async)
        return true
    }

    func work(_ actor: Actor) throws {
        let file = try records.file(actor.root, 0, 0).open(kind.flags)
        guard let async = ts_async_open(kind.raw, UInt32(records.lanes)) else {
            throw CallFailure(description: "\(name): cannot be set up: \(currentErrno)")
        }
        defer { ts_async_close(async) }
        let buffers = (0..<records.lanes).map { _ in Buffer(records.size) }
        var began: [Lane.Moment?] = buffers.map { _ in nil }
        var underWay = 0
        func submit(_ index: Int) throws {
            let lane = actor.lanes[index]
            let offset = records.offset(index, records.slot(lane.next))
            buffers[index].fill(Stamp(lane: index, lane.next))
            lane.begin()
            began[index] = lane.callBegins()
            let result = ts_async_write(
                async, file.raw, buffers[index].start, records.size, Int64(offset), UInt64(index))
            if result != 0 { throw CallFailure(description: "\(lane.name): submitting: \(currentErrno)") }
            underWay += 1
        }
        func complete() throws -> Int {
            var (tag, result): (UInt64, Int64) = (0, 0)
            guard ts_async_wait(async, &tag, &result) == 0 else {
                throw CallFailure(description: "\(name): waiting: \(currentErrno)")
            }
            let lane = actor.lanes[Int(tag)]
            if result != Int64(records.size) {
                let what = result < 0 ? "\(Errno(rawValue: Int32(-result)))" : "\(result) of \(records.size) bytes"
                throw CallFailure(description: "\(lane.name) \(lane.begun): \(kind.call): \(what)")
            }
            if let began = began[Int(tag)] { lane.callEnds(kind.call, began) }
            lane.finish()
            underWay -= 1
            return Int(tag)
        }
        for index in 0..<records.lanes { try submit(index) }
        while underWay > 0 {
            let index = try complete()
            if actor.goesOn { try submit(index) }
        }
    }
}
