import TestSupport

/// All that a load is made of.
enum Stations {
    static func all(seed: UInt64) -> [any Station] {
        var random = SeededGenerator(seed: seed)
        func odd() -> Int { random.number(0...2047) * 2 + 1 }
        let unaligned = Records(slots: 16, size: 5003, stride: 7001, first: odd())
        let scattered = Records(slots: 24, size: 5003, stride: 0, first: odd(), hasFilePerSlot: true)
        let vectors = Records(slots: 8, size: 12_345, stride: 20_011, first: odd())
        let uring = Records(lanes: 8, slots: 4, size: 5003, stride: 9001, first: odd())
        func aligned(_ size: Int, lanes: Int = 1, slots: Int) -> Records {
            Records(lanes: lanes, slots: slots, size: size, stride: size, first: 0)
        }
        return [
            RecordWriter(name: "overwrite", records: unaligned, way: .plain),
            LargeWrites(),
            AppendLog(name: "append", size: 21, recordsPerFile: 5000),
            AppendLog(name: "append-large", size: (5 << 19) + 7, recordsPerFile: 3),
            SharedAppend(),
            RecordWriter(name: "writev", records: vectors, way: .vectors),
            RecordWriter(name: "direct-4k", records: aligned(4096, slots: 16), way: .direct),
            RecordWriter(name: "direct-4m", records: aligned(4 << 20, slots: 2), way: .direct),
            AsyncWriter(name: "aio-4k", records: aligned(4096, lanes: 16, slots: 4), kind: .aio),
            AsyncWriter(name: "aio-3m", records: aligned(3 << 20, lanes: 2, slots: 1), kind: .aio),
            AsyncWriter(name: "uring", records: uring, kind: .uring),
            Mapped(),
            Renames(),
            Saves(),
            Names(name: "link", kind: .link, pattern: .rounds(20)),
            Names(name: "mkdir", kind: .directory, pattern: .window(8)),
            Names(name: "create", kind: .file, pattern: .window(100)),
            Names(name: "unlink", kind: .file, pattern: .rounds(100)),
            Truncations(),
            Allocations(),
            Attributes(),
            Symlinks(),
            RecordWriter(name: "churn", records: scattered, way: .opening),
            Rewrites(),
            Pair(),
        ]
    }
}

extension Stations {
    /// Whether this machine can run it: asynchronous I/O may be forbidden in a container.
    static func isAvailable(_ station: any Station) -> Bool {
        guard let writer = station as? AsyncWriter else { return true }
        return AsyncWriter.isAvailable(writer.kind)
    }
}
