import Glibc
import SystemPackage
import TestSupport
import Testing

@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct DataChangeTests {
    @Test("a snapshot keeps the data at the cut", arguments: changes, Variant.available)
    func keepsData(_ change: Change, _ variant: Variant) throws {
        try verify(change, variant)
    }

    private static let changes = writes + cuts + ranges + ways + sharing

    /// Five blocks, the last one not full.
    private static let size = 19_000

    /// A change of one file of `size` bytes that was written before the cut.
    private static func ofFile(
        _ name: String, allocates: Bool = false, _ body: @escaping @Sendable (Path) throws -> Void
    ) -> Change {
        Change(name, allocates: allocates) { root in
            let file = root / "file"
            try file.create(bytes(size))
            return { try body(file) }
        }
    }

    /// The same of a file with data in its first, fifth and tenth 16 KiB, and holes between.
    private static func ofSparse(
        _ name: String, allocates: Bool = false, _ body: @escaping @Sendable (File) throws -> Void
    ) -> Change {
        Change(name, allocates: allocates) { root in
            let file = try (root / "sparse").open(O_RDWR | O_CREAT)
            for piece in [0, 4, 9] { try file.writeAll(bytes(16_384, seed: UInt64(piece)), at: piece * 16_384) }
            try file.truncate(200_000)
            try file.sync()
            return { try body(file) }
        }
    }

    private static let writes: [Change] =
        [
            (0, 1), (0, 4_096), (0, size), (1, 4_095), (1, 4_096), (4_095, 1), (4_095, 2), (4_096, 4_096),
            (4_097, 8_000),
            (8_192, size - 8_192), (size - 1, 1), (size - 10, 1_000), (size, 10), (size, 10_000), (30_000, 100),
            (1 << 20, 4_096),
        ].map { offset, count in
            ofFile("write of \(count) bytes at \(offset) of \(size)") {
                try $0.write(bytes(count, seed: 2), at: offset)
            }
        } + [
            ofFile("the same block written three times") { file in
                for seed: UInt64 in 2...4 { try file.write(bytes(100, seed: seed), at: 5_000) }
            },
            ofFile("neighbouring blocks written from the last to the first") { file in
                for block in stride(from: 4, through: 0, by: -1) {
                    try file.write(bytes(2_000, seed: 2), at: block * 4_096)
                }
            },
            ofFile("append") { try $0.append(bytes(10_000, seed: 2)) },
            ofFile("the same bytes written again") { try $0.write(bytes(size), at: 0) },
            ofFile("write of no bytes") { _ = try $0.open(O_WRONLY).write([], at: 100) },
            Change("write into an empty file") { root in
                try (root / "file").create()
                return { try (root / "file").write(bytes(10_000), at: 0) }
            },
            Change("a file of 5 MiB rewritten at once") { root in
                try (root / "file").create(bytes(5 << 20))
                return { try (root / "file").write(bytes(5 << 20, seed: 2), at: 0) }
            },
            Change("every other block of 2 MiB written") { root in
                try (root / "file").create(bytes(2 << 20))
                return {
                    let file = try (root / "file").open(O_WRONLY)
                    for block in stride(from: 0, to: 512, by: 2) {
                        try file.write(bytes(300, seed: 2), at: block * 4_096 + 9)
                    }
                }
            },
        ]

    private static let cuts: [Change] =
        [0, 1, 4_095, 4_096, 4_097, 8_192, 18_999, 19_000, 19_001, 20_480, 65_536, 1 << 30].map { to in
            ofFile("truncate of \(size) bytes to \(to)") { try $0.truncate(to) }
        } + [
            ofFile("truncate, then growing again") { file in
                try file.truncate(5_000)
                try file.truncate(size)
            },
            ofFile("truncate, then writing beyond the old end") { file in
                try file.truncate(100)
                try file.write(bytes(10_000, seed: 2), at: 25_000)
            },
            ofFile("growing, then writing inside the old size") { file in
                try file.truncate(100_000)
                try file.write(bytes(10, seed: 2), at: size - 5)
            },
            ofFile("O_TRUNC") { _ = try $0.open(O_WRONLY | O_TRUNC) },
            ofFile("O_CREAT and O_TRUNC, then rewriting") { file in
                try file.open(O_WRONLY | O_CREAT | O_TRUNC).writeAll(bytes(12_000, seed: 2))
            },
            Change("ftruncate through a descriptor opened before the cut") { root in
                let file = try (root / "file").open(O_RDWR | O_CREAT)
                try file.writeAll(bytes(size))
                return { try file.truncate(6_000) }
            },
            ofSparse("truncate into a hole") { try $0.truncate(50_000) },
            ofSparse("truncate inside data between holes") { try $0.truncate(70_000) },
            ofSparse("truncate to nothing, then growing to a hole of the old size") { file in
                try file.truncate(0)
                try file.truncate(200_000)
            },
        ]

    private static let keepSize: Int32 = 0x1
    private static let punchHole: Int32 = 0x3
    private static let zeroRange: Int32 = 0x10

    private static let ranges: [Change] =
        [(0, 4_096), (4_096, 8_192), (100, 50), (4_000, 9_000), (0, size), (18_000, 10_000)]
        .flatMap { offset, count in
            [
                ofFile("punching \(count) bytes at \(offset) of \(size)") {
                    try $0.open(O_RDWR).allocate(punchHole, at: offset, count: count)
                },
                ofFile("zeroing \(count) bytes at \(offset) of \(size)", allocates: true) {
                    try $0.open(O_RDWR).allocate(zeroRange, at: offset, count: count)
                },
            ]
        } + [
            ofFile("zeroing with the size kept, over the end", allocates: true) {
                try $0.open(O_RDWR).allocate(zeroRange | keepSize, at: 18_000, count: 10_000)
            },
            ofFile("fallocate beyond the end", allocates: true) {
                try $0.open(O_RDWR).allocate(at: 10_000, count: 50_000)
            },
            ofFile("fallocate beyond the end with the size kept", allocates: true) {
                try $0.open(O_RDWR).allocate(keepSize, at: 0, count: 100_000)
            },
            ofSparse("append behind a hole that ends in the middle of a block") {
                try $0.write(bytes(100), at: 200_000)
            },
            ofSparse("write a little behind the end, which is a hole") { try $0.write(bytes(9_000), at: 200_500) },
            ofSparse("fallocate behind a hole that ends in the middle of a block", allocates: true) { file in
                try file.allocate(at: 200_000, count: 5_000)
                _ = try file.read(10_000, at: 195_000)
            },
            ofSparse("fallocate of holes", allocates: true) { try $0.allocate(at: 0, count: 200_000) },
            ofSparse("write into a hole") { try $0.writeAll(bytes(5_000, seed: 77), at: 30_000) },
            ofSparse("write over the edges of a hole") { try $0.writeAll(bytes(60_000, seed: 77), at: 10_000) },
            ofSparse("write into every hole") { file in
                for offset in stride(from: 0, to: 200_000, by: 9_000) {
                    try file.writeAll(bytes(10, seed: 77), at: offset)
                }
            },
            ofSparse("punching over data and holes") { try $0.allocate(punchHole, at: 1_000, count: 100_000) },
            ofSparse("zeroing over data and holes", allocates: true) {
                try $0.allocate(zeroRange, at: 1_000, count: 100_000)
            },
        ]

    private static let ways: [Change] = [
        Change("copy_file_range into the file, not at a block's edge") { root in
            try (root / "file").create(bytes(size))
            let source = try (root / "source").open(O_RDWR | O_CREAT)
            try source.writeAll(bytes(30_000, seed: 5))
            return {
                try (root / "file").open(O_WRONLY).copyRange(from: source, at: 1_000, to: 3_000, count: 15_000)
            }
        },
        ofFile("copy_file_range within the file, over its end") { file in
            let open = try file.open(O_RDWR)
            try open.copyRange(from: open, at: 0, to: 15_000, count: 12_000)
        },
        ofFile("stores into a shared mapping, with msync") { file in
            let mapping = try file.open(O_RDWR).map(size)
            try mapping.write(bytes(6_000, seed: 2), at: 3_000)
            try mapping.sync()
        },
        Change("stores into a mapping made before the cut, with msync") { root in
            try (root / "file").create(bytes(size))
            let mapping = try (root / "file").open(O_RDWR).map(size)
            _ = try mapping.read(1, at: 0)
            return {
                try mapping.write(bytes(100, seed: 2), at: 12_000)
                try mapping.sync()
            }
        },
        Change("stores into a page that was dirty before the cut and synced") { root in
            try (root / "file").create(bytes(size))
            let mapping = try (root / "file").open(O_RDWR).map(size)
            try mapping.write(bytes(100, seed: 2), at: 0)
            try mapping.sync()
            return {
                try mapping.write(bytes(50, seed: 3), at: 10)
                try mapping.sync()
            }
        },
        ofFile("O_DIRECT write") { file in
            let direct = try file.open(O_RDWR | O_DIRECT)
            let memory = UnsafeMutableRawPointer.allocate(byteCount: 8_192, alignment: 4_096)
            defer { memory.deallocate() }
            memory.copyMemory(from: bytes(8_192, seed: 2), byteCount: 8_192)
            #expect(pwrite(direct.raw, memory, 8_192, 4_096) == 8_192)
            try direct.sync()
        },
        Change("write through a descriptor opened before the cut") { root in
            try (root / "file").create(bytes(size))
            let file = try (root / "file").open(O_RDWR)
            return { try file.writeAll(bytes(9_000, seed: 2), at: 5_000) }
        },
        Change("append through a descriptor opened before the cut") { root in
            try (root / "file").create(bytes(size))
            let file = try (root / "file").open(O_WRONLY | O_APPEND)
            return { try file.writeAll(bytes(9_000, seed: 2)) }
        },
        ofFile("write with O_SYNC and fsync") { file in
            let open = try file.open(O_WRONLY | O_SYNC)
            try open.writeAll(bytes(9_000, seed: 2), at: 5_000)
            try open.sync()
        },
        ofFile("writes of several threads to neighbouring blocks") { file in
            let workers = try (0..<4).map { number in
                try Worker {
                    let open = try file.open(O_WRONLY)
                    for block in stride(from: number, to: 64, by: 4) {
                        try open.writeAll(bytes(4_096, seed: UInt64(block)), at: block * 4_096)
                    }
                }
            }
            for worker in workers { try worker.join() }
        },
    ]

    private static let sharing: [Change] = [
        Change("write through one of three hard links") { root in
            try (root / "d").mkdir()
            try (root / "a").create(bytes(size))
            try (root / "a").link(to: root / "b")
            try (root / "a").link(to: root / "d/c")
            return { try (root / "b").write(bytes(100, seed: 2), at: 5_000) }
        },
        Change("write, then a hard link to the changed file, written too") { root in
            try (root / "a").create(bytes(size))
            return {
                try (root / "a").write(bytes(100, seed: 2), at: 5_000)
                try (root / "a").link(to: root / "b")
                try (root / "b").write(bytes(100, seed: 3), at: 10_000)
            }
        },
        Change("write to a file after it was renamed") { root in
            try (root / "a").create(bytes(size))
            return {
                try (root / "a").rename(to: root / "b")
                try (root / "b").write(bytes(100, seed: 2), at: 5_000)
            }
        },
        Change("rename of a file after it was written") { root in
            try (root / "a").create(bytes(size))
            return {
                try (root / "a").write(bytes(100, seed: 2), at: 5_000)
                try (root / "a").rename(to: root / "b")
                try (root / "a").create(bytes(10, seed: 3))
            }
        },
        Change("a file born after the cut, written and cut") { root in
            return {
                try (root / "new").create(bytes(size))
                try (root / "new").write(bytes(100, seed: 2), at: 5_000)
                try (root / "new").truncate(7_000)
            }
        },
    ]
}
