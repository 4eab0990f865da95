import Glibc
import SystemPackage
import TestSupport
import Testing

/// Shared mappings of one file by several descriptors, and the times that stores into them leave.
@Suite(.serialized) struct MappingTests {
    @Test("two mappings by two descriptors and two names see each other's stores", arguments: Setting.available)
    func coherence(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(20_000))
            try (place / "file").link(to: place / "other")
            try place.cut()
            let (one, other) = (try (place / "file").open(O_RDWR), try (place / "other").open(O_RDWR))
            let (first, second) = (try one.map(20_000), try other.map(20_000))
            for round in 0..<10 {
                let seed = UInt64(round + 2)
                try first.write(bytes(3_000, seed: seed), at: round * 1_500)
                #expect(try second.read(3_000, at: round * 1_500) == bytes(3_000, seed: seed))
                try second.write(bytes(100, seed: seed + 50), at: 19_000)
                #expect(try first.read(100, at: 19_000) == bytes(100, seed: seed + 50))
                try other.write(bytes(50, seed: seed + 90), at: 18_000)
                #expect(try first.read(50, at: 18_000) == bytes(50, seed: seed + 90))
                if round == 5 { try first.sync() }
            }
            let expected = try first.read(20_000, at: 0)
            #expect(try one.read(20_000, at: 0) == expected)
            try second.sync()
            try dropCachesIfRoot()
            #expect(try (place / "other").contents() == expected)
        }
    }

    @Test("stores into a mapping stamp mtime and ctime by msync, reads neither", arguments: Setting.available)
    func stamps(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(8_192))
            let file = try (place / "file").open(O_RDWR)
            try file.sync()
            try place.cut()
            let before = try file.stat()
            let mapping = try file.map(8_192)
            try waitForClockTick()
            _ = try mapping.read(8_192, at: 0)
            try mapping.sync()
            #expect(try file.stat().modified == before.modified)
            try mapping.write([1, 2, 3], at: 5_000)
            try mapping.sync()
            let after = try (place / "file").lstat()
            #expect(after.modified > before.modified)
            #expect(after.changed > before.changed)
            #expect(after.size == 8_192)
            #expect(try file.stat() == after)
        }
    }

    @Test("what is stored behind the end in the last page is not in the file", arguments: Setting.available)
    func behindTheEnd(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(5_000))
            try place.cut()
            let mapping = try file.map(8_192)
            try mapping.write([9, 9, 9], at: 6_000)
            try mapping.sync()
            #expect(try file.stat().size == 5_000)
            #expect(try file.read(10_000, at: 0) == bytes(5_000))
            try file.truncate(8_000)
            #expect(try file.read(3_000, at: 5_000) == [UInt8](repeating: 0, count: 3_000))
        }
    }

    @Test("a mapping of a removed file lives on with its changes", arguments: Setting.available)
    func removed(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(10_000))
            try place.cut()
            let file = try (place / "file").open(O_RDWR)
            let mapping = try file.map(10_000)
            try (place / "file").unlink()
            try mapping.write(bytes(100, seed: 2), at: 4_050)
            try mapping.sync()
            #expect(try file.read(100, at: 4_050) == bytes(100, seed: 2))
            try file.write(bytes(10, seed: 3), at: 0)
            #expect(try mapping.read(10, at: 0) == bytes(10, seed: 3))
        }
    }

    private func dropCachesIfRoot() throws {
        if Machine.isRoot { try dropCaches() }
    }
}
