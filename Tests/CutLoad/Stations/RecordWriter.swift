import Glibc
import SystemPackage
import TestSupport

/// Overwrites records, one write call each.
struct RecordWriter: Station {
    enum Way {
        case plain, vectors, direct
        /// Opens and closes the file for each write.
        case opening
    }

    let name: String
    let records: Records
    let way: Way

    func prepare(_ root: Path) throws { try records.prepare(root) }
    func find(_ root: Path) throws -> [Found]? { try records.find(root) }

    func work(_ actor: Actor) throws {
        let lane = actor.lanes[0]
        let buffer = Buffer(records.size)
        let flags = way == .direct ? O_WRONLY | O_DIRECT : O_WRONLY
        let held = way == .opening ? nil : try records.file(actor.root, 0, 0).open(flags)
        while actor.goesOn {
            let (number, slot) = (lane.next, records.slot(lane.next))
            buffer.fill(Stamp(number))
            let offset = records.offset(0, slot)
            if let held {
                try write(lane, held.raw, buffer, offset)
                continue
            }
            let path = records.file(actor.root, 0, slot)
            // Closed by hand, so that what close(2) says is heard.
            let raw = try lane.perform(.open) { try Self.open(path, flags) }
            try write(lane, raw, buffer, offset)
            _ = try lane.perform(.close) { try check(close(raw)) }
        }
    }

    private static func open(_ path: Path, _ flags: Int32) throws -> Int32 {
        try path.withCString { (path) throws(Errno) in try check(Glibc.open(path, flags | O_CLOEXEC)) }
    }

    private func write(_ lane: Lane, _ raw: Int32, _ buffer: Buffer, _ offset: Int) throws {
        guard way == .vectors else {
            return try lane.write(.pwrite, count: buffer.count) { pwrite(raw, buffer.start, buffer.count, offset) }
        }
        // Pieces of growing, odd sizes.
        var (vectors, done): ([iovec], Int) = ([], 0)
        while done < buffer.count {
            let piece = min(buffer.count - done, 1 + 700 * vectors.count)
            vectors.append(iovec(iov_base: buffer.start + done, iov_len: piece))
            done += piece
        }
        try lane.write(.pwritev, count: buffer.count) { pwritev(raw, vectors, Int32(vectors.count), offset) }
    }
}
