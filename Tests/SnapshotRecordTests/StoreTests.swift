import Glibc
import LinuxSystem
import SnapshotRecord
import Synchronization
import SystemPackage
import TestSupport
import Testing

@Suite struct StoreTests {
    private func openSource(_ path: Path) throws(Errno) -> Descriptor {
        try FileName(path.string).withCString { (name) throws(Errno) in
            try Descriptor.open(at: .workingDirectory, name, O_RDONLY | O_DIRECTORY)
        }
    }

    private func openStore(
        _ source: Path, at path: Path? = nil
    ) throws -> Store {
        try Store(source: try openSource(source), sourcePath: source.string, path: path?.string)
    }

    @Test("opening and closing leaves the source as it was, its times too")
    func leavesNoTrace() throws {
        try TemporaryDirectory.with { top in
            try (top / "s").mkdir()
            let before = try (top / "s").lstat().modified
            try openStore(top / "s").close()
            #expect(try (top / "s").entries().isEmpty)
            #expect(try (top / "s").lstat().modified == before)
        }
    }

    @Test("a second opening while the first lasts is refused")
    func isExclusive() throws {
        try TemporaryDirectory.with { top in
            let store = try openStore(top)
            #expect {
                try openStore(top)
            } throws: { error in
                if case StoreError.inUse = error { true } else { false }
            }
            store.close()
        }
    }

    @Test("a source has one store at a time, wherever it is")
    func oneStoreForASource() throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "a", "b"] { try (top / name).mkdir() }
            let store = try openStore(top / "source", at: top / "a")
            #expect {
                try openStore(top / "source", at: top / "b")
            } throws: { error in
                if case StoreError.inUse = error { true } else { false }
            }
            store.close()
            #expect(try (top / "source").entries().isEmpty)
        }
    }

    @Test("the store of another directory is refused, and nothing in it is changed")
    func belongsToOne() throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["one", "two", "store"] { try (top / name).mkdir() }
            let store = try openStore(top / "one", at: top / "store")
            try (top / "store" / "snapshot").mkdir()
            #expect {
                try openStore(top / "two", at: top / "store")
            } throws: { error in
                if case StoreError.inUse = error { true } else { false }
            }
            withExtendedLifetime(store) {}
        }
        try TemporaryDirectory.with { top in
            for name: Path in ["one", "two", "store"] { try (top / name).mkdir() }
            do {
                _ = try openStore(top / "one", at: top / "store")
            }
            try (top / "store" / "snapshot").mkdir()
            #expect {
                try openStore(top / "two", at: top / "store")
            } throws: { error in
                if case StoreError.wrongStore = error { true } else { false }
            }
            #expect(try (top / "store").entries().contains("snapshot"))
        }
    }

    @Test("a directory that holds something else is refused, and nothing in it is touched")
    func foreign() throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mine", "mine/snapshot"] { try (top / name).mkdir() }
            try (top / "mine/snapshot/precious").create(bytes(100))
            #expect {
                try openStore(top / "source", at: top / "mine")
            } throws: { error in
                if case StoreError.damaged = error { true } else { false }
            }
            #expect(try (top / "mine").entries() == ["snapshot"])
            #expect(try (top / "mine/snapshot/precious").contents() == bytes(100))
            try (top / "source/.fusesnap").mkdir()
            try (top / "source/.fusesnap/graveyard").mkdir()
            #expect(throws: StoreError.self) { try openStore(top / "source") }
            #expect(try (top / "source/.fusesnap").entries() == ["graveyard"])
        }
    }

    @Test("a format file that is none is named")
    func damaged() throws {
        try TemporaryDirectory.with { top in
            try (top / ".fusesnap").mkdir()
            try (top / ".fusesnap" / "format").create(Array("something else\n".utf8))
            #expect {
                try openStore(top)
            } throws: { error in
                if case StoreError.damaged(let file, _) = error { file.hasSuffix("/format") } else { false }
            }
        }
    }

    @Test("what a killed daemon left stays, is seen, and goes when it is discarded")
    func leftover() throws {
        try TemporaryDirectory.with { top in
            do {
                _ = try openStore(top)
            }
            for name: Path in ["snapshot", "graveyard"] {
                try (top / ".fusesnap" / name).mkdir()
                try (top / ".fusesnap" / name / "1-2").create(bytes(100))
            }
            try openStore(top).close()
            #expect(try Set((top / ".fusesnap").entries()).isSuperset(of: ["snapshot", "graveyard", "format"]))
            let store = try openStore(top)
            let kept = try #require(try store.keptSnapshot())
            #expect(kept.deltaBytes == 4096)
            #expect(kept.graves.isEmpty)
            #expect(kept.strayGraves == ["1-2"])
            try store.discardSnapshot()
            #expect(try store.keptSnapshot() == nil)
            #expect(try Set((top / ".fusesnap").entries()) == ["format", "lock"])
            store.close()
            #expect(try top.entries().isEmpty)
        }
    }

    @Test("the delta file keeps data as data and holes as holes, at the same offsets")
    func originals() throws {
        try TemporaryDirectory.with { top in
            let store = try openStore(top)
            defer { store.close() }
            let delta = try DeltaStore(in: store, bytesMax: nil)
            let file = try (top / "f").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(8192), at: 0)
            try file.writeAll(bytes(4096, seed: 2), at: 1 << 20)
            let key = InodeKey(inode: 1, birth: 2)
            let source = Descriptor(owning: dup(file.raw))
            try delta.storeOriginal(of: key, from: source, 4096..<2 << 20)
            let deltaFile = try delta.files.file(of: key, createFor: nil)
            let stored = File(raw: withExtendedLifetime(deltaFile) { dup(deltaFile.raw) })
            #expect(try stored.read(4096, at: 4096) == Array(bytes(8192)[4096...]))
            #expect(try stored.read(4096, at: 1 << 20) == bytes(4096, seed: 2))
            #expect(try stored.dataRanges() == [4096..<8192, 1 << 20..<(1 << 20) + 4096])
            #expect(delta.storedBytes == 8192)
            try delta.discard()
        }
    }

    @Test("a store beyond its bound says so")
    func bounded() throws {
        try TemporaryDirectory.with { top in
            let store = try openStore(top)
            defer { store.close() }
            let delta = try DeltaStore(in: store, bytesMax: 10_000)
            let file = try (top / "f").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(20_000), at: 0)
            let key = InodeKey(inode: 1, birth: 2)
            let source = Descriptor(owning: dup(file.raw))
            try delta.storeOriginal(of: key, from: source, 0..<8192)
            #expect(throws: Errno.noSpace) {
                try delta.storeOriginal(of: key, from: source, 8192..<16384)
            }
            try delta.discard()
        }
    }
}
