import Glibc
import SystemPackage
import TestSupport
import Testing

/// Random operations on one file against a model in memory, while a snapshot is active.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct FsxTests {
    private static let operations = 1_500
    private static let sizeMax = 300_000

    @Test(
        "a file under random operations is what the model says, and the snapshot stays", arguments: seeds(4),
        Machine.Mode.available)
    func matchesModel(_ seed: UInt64, _ mode: Machine.Mode) throws {
        try MountedSource.with(mode: mode) { mount in
            var exerciser = try Exerciser(mount.mountpoint / "file", seed: seed)
            for _ in 0..<200 { try exerciser.step() }
            let frozen = exerciser.model
            let atCut = try TreeCapture(mount.mountpoint)
            try mount.start()
            for number in 1...Self.operations {
                try exerciser.step()
                if number % 300 == 0 {
                    let found = try (mount.snapshot / "file").contents()
                    #expect(found == frozen, "seed \(seed): the snapshot after \(exerciser.log.suffix(20))")
                }
            }
            try exerciser.compareAll()
            // Allocated space that was never written counts as a hole until it is read: not only here.
            expect(
                try TreeCapture(mount.snapshot), equals: atCut, ignoring: [.ranges],
                ".snapshot at the end, seed \(seed)")
            try mount.stop()
            try exerciser.compareAll()
            for _ in 0..<100 { try exerciser.step() }
            try exerciser.compareAll()
        }
    }

    /// The file and what it should hold.
    private struct Exerciser {
        private(set) var model: [UInt8] = []
        private(set) var log: [String] = []
        private var random: SeededGenerator
        private let seed: UInt64
        private let path: Path
        private var file: File
        private let direct: File

        init(_ path: Path, seed: UInt64) throws {
            self.path = path
            self.seed = seed
            random = SeededGenerator(seed: seed)
            file = try path.open(O_RDWR | O_CREAT)
            direct = try path.open(O_RDWR | O_DIRECT)
        }

        private mutating func place() -> (offset: Int, count: Int) {
            let offset =
                random.isTrue(oneIn: 3)
                ? random.number(0...50) * 4_096 : random.number(0...FsxTests.sizeMax - 70_000)
            let count = random.isTrue(oneIn: 3) ? random.number(1...15) * 4_096 : random.number(1...20_000)
            return (offset, count)
        }

        private mutating func put(_ data: [UInt8], at offset: Int) {
            grow(to: offset + data.count)
            model.replaceSubrange(offset..<(offset + data.count), with: data)
        }

        private mutating func grow(to size: Int) {
            if model.count < size { model += [UInt8](repeating: 0, count: size - model.count) }
        }

        mutating func step() throws {
            let (offset, count) = place()
            let choice = random.number(0...12)
            log.append("\(choice) at \(offset), \(count)")
            do {
                switch choice {
                case 0...2: try write(offset, count)
                case 3: try writeMapped(offset, count)
                case 4: try writeDirect(offset / 4_096 * 4_096, max(count / 4_096, 1) * 4_096)
                case 5: try truncate(offset)
                case 6: try allocate(0x3, offset, count)
                case 7: try allocate(random.isTrue(oneIn: 2) ? 0x10 : 0, offset, count)
                case 8: try copy(offset, count)
                case 9: try readMapped(offset, count)
                case 10: file = try path.open(O_RDWR)
                case 11: try file.sync()
                default: try read(offset, count)
                }
            } catch {
                throw TestFailure("seed \(seed): \(log.suffix(10)): \(error)")
            }
        }

        private mutating func write(_ offset: Int, _ count: Int) throws {
            let data = random.data(count)
            try file.writeAll(data, at: offset)
            put(data, at: offset)
        }

        private mutating func writeMapped(_ offset: Int, _ count: Int) throws {
            if model.isEmpty { return }
            let start = min(offset, model.count - 1)
            let data = random.data(min(count, model.count - start))
            let mapping = try file.map(model.count)
            try mapping.write(data, at: start)
            put(data, at: start)
            if random.isTrue(oneIn: 2) { try mapping.sync() }
        }

        private mutating func writeDirect(_ offset: Int, _ count: Int) throws {
            let data = random.data(count)
            let memory = UnsafeMutableRawPointer.allocate(byteCount: count, alignment: 4_096)
            defer { memory.deallocate() }
            memory.copyMemory(from: data, byteCount: count)
            let written = try check(pwrite(direct.raw, memory, count, offset))
            guard written == count else { throw TestFailure("\(written) of \(count) bytes written") }
            put(data, at: offset)
        }

        private mutating func truncate(_ size: Int) throws {
            try file.truncate(size)
            grow(to: size)
            model.removeSubrange(size...)
        }

        private mutating func allocate(_ mode: Int32, _ offset: Int, _ count: Int) throws {
            try file.allocate(mode, at: offset, count: count)
            if mode & 0x1 == 0 { grow(to: offset + count) }
            if mode == 0 { return }
            let range = min(offset, model.count)..<min(offset + count, model.count)
            model.replaceSubrange(range, with: repeatElement(0, count: range.count))
        }

        private mutating func copy(_ offset: Int, _ count: Int) throws {
            let target = place().offset
            if offset < target + count, target < offset + count { return }
            // Not over the end, which the copy itself may move.
            let source = Array(model[min(offset, model.count)..<min(offset + count, model.count)])
            let done = try file.copyRange(from: file, at: offset, to: target, count: source.count)
            guard done == source.count else { throw TestFailure("copied \(done) of \(source.count) bytes") }
            if done > 0 { put(source, at: target) }
        }

        private mutating func read(_ offset: Int, _ count: Int) throws {
            let found = try file.read(count, at: offset)
            try compare(found, offset)
        }

        private mutating func readMapped(_ offset: Int, _ count: Int) throws {
            if offset >= model.count { return }
            let mapping = try file.map(model.count, protection: PROT_READ)
            try compare(mapping.read(min(count, model.count - offset), at: offset), offset)
        }

        private func compare(_ found: [UInt8], _ offset: Int) throws {
            let expected = model[min(offset, model.count)...].prefix(found.count)
            if expected.elementsEqual(found) { return }
            let first =
                zip(expected, found).enumerated().first { $0.element.0 != $0.element.1 }?.offset ?? expected.count
            throw TestFailure("other data from \(offset + first) on, size \(model.count)")
        }

        func compareAll() throws {
            let found = try path.contents()
            #expect(found.count == model.count, "seed \(seed): size, after \(log.suffix(20))")
            #expect(found == model, "seed \(seed): data, after \(log.suffix(20))")
        }
    }
}
