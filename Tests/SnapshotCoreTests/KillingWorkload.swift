import Glibc
import LinuxSystem
import SnapshotCore
import SnapshotRecord
import SystemPackage
import TestSupport
import Testing

/// Random operations, as the live view calls them, with kills: behind one, or within it, where the next daemon finds the
/// source as it was before the operation and some of its records, or the source behind it and not all of them.
struct KillingWorkload {
    private let snapshot: KilledSnapshot
    private let seed: UInt64
    private var random: SeededGenerator
    private var made = 0
    private(set) var kills = 0
    private var log: [String] = []

    init(_ snapshot: KilledSnapshot, seed: UInt64) {
        self.snapshot = snapshot
        self.seed = seed
        random = SeededGenerator(seed: seed)
    }

    private enum Kill {
        case none
        case behind
        /// Announced and not made, the last records not written.
        case before(lost: Int)
        /// Made, the record that follows not written.
        case unrecorded
    }

    private mutating func kill() -> Kill {
        switch random.number(0...9) {
        case 0: .behind
        case 1, 2: .before(lost: random.number(0...4))
        case 3: .unrecorded
        default: .none
        }
    }

    private func paths(_ kind: UInt32? = nil) throws -> [Path] {
        var found: [Path] = []
        func visit(_ path: Path) throws {
            for name in try (snapshot.top / path).entries() where name != ".fusesnap" {
                let child = path == "." ? name : path / name
                let mode = try FileStatus(of: try snapshot.target(child).descriptor)
                if kind == nil || kind == mode.kind { found.append(child) }
                if mode.isDirectory { try visit(child) }
            }
        }
        try visit(".")
        return found
    }

    private mutating func newName() throws -> Path {
        made += 1
        let directory = random.pick(try paths(UInt32(S_IFDIR)) + ["."])
        let name = Path("n\(made)")
        return directory == "." ? name : directory / name
    }

    /// One operation: what is announced, what is done, and what is recorded after it.
    private struct Operation {
        let name: String
        let announce: () throws -> Void
        let perform: () throws -> Void
        var record: () throws -> Void = {}
    }

    mutating func step() throws {
        guard let operation = try operation() else { return }
        let kill = kill()
        log.append("\(operation.name), kill \(kill)")
        let before = try snapshot.recordCount()
        do {
            try operation.announce()
            if case .before(let lost) = kill {
                let all = try snapshot.recordCount()
                try snapshot.keepRecords(max(before, all - lost))
                return try takeUp()
            }
            try operation.perform()
        } catch let error as Errno {
            // As an application would be told: the directory is not empty, or is moved into itself.
            let expected: [Errno] = [.directoryNotEmpty, .invalidArgument, .fileExists, .isDirectory, .notDirectory]
            try check(expected.contains(error), "\(operation.name): \(error)")
            return
        }
        if case .unrecorded = kill { return try takeUp() }
        try operation.record()
        if case .behind = kill { return try takeUp() }
        if random.isTrue(oneIn: 5) { try compare() }
    }

    private mutating func takeUp() throws {
        kills += 1
        try snapshot.takeUp()
        try compare()
        try checkLinks()
    }

    private func check(_ condition: Bool, _ what: String) throws {
        if !condition { throw TestFailure("seed \(seed): \(what); after\n\(log.suffix(12).joined(separator: "\n"))") }
    }

    private func compare() throws {
        let shown = try snapshot.shown()
        for (path, facts) in snapshot.expected where shown[path] != facts {
            try check(false, "\(path) was \(facts) and is \(shown[path] ?? "gone")")
        }
        try check(shown.count == snapshot.expected.count, "there is more than at the cut: \(shown.keys)")
        try check(snapshot.preserve.end.inexactReason == nil, "\(snapshot.preserve.end.inexactReason ?? "")")
    }

    /// What applications see as the number of links is that of the names.
    private func checkLinks() throws {
        var names: [InodeKey: UInt32] = [:]
        for path in try paths() { names[try snapshot.target(path).key, default: 0] += 1 }
        for path in try paths() {
            let status = try FileStatus(of: try snapshot.target(path).descriptor)
            if status.isDirectory { continue }
            let graves: UInt32 = snapshot.preserve.isInGraveyard(status) ? 1 : 0
            try check(status.links == (names[InodeKey(status)] ?? 0) + graves, "links of \(path): \(status.links)")
        }
    }

    // MARK: Operations

    private func parent(_ path: Path) throws -> ChangeTarget {
        let parts = path.string.split(separator: "/")
        return try snapshot.directory(parts.count == 1 ? "." : Path(parts.dropLast().joined(separator: "/")))
    }

    private func name(_ path: Path) -> String { String(path.string.split(separator: "/").last ?? "") }

    private mutating func operation() throws -> Operation? {
        let files = try paths(UInt32(S_IFREG))
        let all = try paths()
        let new = try newName()
        let path = random.pick(all + ["."])
        let other = random.isTrue(oneIn: 2) ? random.pick(all + [new]) : new
        switch random.number(0...8) {
        case 0, 1: return files.isEmpty ? nil : try write(random.pick(files))
        case 2: return files.isEmpty ? nil : try truncate(random.pick(files))
        case 3: return try changeMode(path)
        case 4: return try make(new)
        case 5: return files.isEmpty ? nil : try link(random.pick(files), new)
        case 6, 7: return path == "." ? nil : try remove(path)
        default: return path == "." ? nil : try rename(path, other)
        }
    }

    private mutating func write(_ path: Path) throws -> Operation {
        let (snapshot, offset, data) = (snapshot, random.number(0...50_000), random.data(random.number(1...9000)))
        let target = try snapshot.target(path, O_RDWR)
        return Operation(name: "write \(path) \(offset) \(data.count)") {
            try preserved(snapshot, target, Int64(offset)..<Int64(offset + data.count))
        } perform: {
            try (snapshot.top / path).write(data, at: offset)
        }
    }

    private mutating func truncate(_ path: Path) throws -> Operation {
        let (snapshot, size) = (snapshot, random.number(0...50_000))
        let target = try snapshot.target(path, O_RDWR)
        return Operation(name: "truncate \(path) \(size)") {
            try preserved(snapshot, target, Int64(size)..<Int64.max)
        } perform: {
            try (snapshot.top / path).truncate(size)
        }
    }

    private mutating func changeMode(_ path: Path) throws -> Operation {
        let (snapshot, target) = (snapshot, try snapshot.directory(path))
        if target.reference.kind == UInt32(S_IFLNK) || path == "." { return try make(try newName()) }
        let mode = mode_t(random.number(0...0o777)) | 0o700
        return Operation(name: "chmod \(path)") {
            snapshot.preserve.willChangeAttributes(of: target)
        } perform: {
            try (snapshot.top / path).chmod(mode)
            try (snapshot.top / path).setAttribute("user.n", [UInt8(mode & 0x7f)])
        }
    }

    private mutating func make(_ path: Path) throws -> Operation {
        let (snapshot, directory, name) = (snapshot, try parent(path), name(path))
        let kind = random.number(0...2)
        let data = random.data(random.number(0...9000))
        return Operation(name: "make \(path) \(kind)") {
            name.withCString { snapshot.preserve.willChangeEntry(in: directory, $0, now: .absent) }
        } perform: {
            switch kind {
            case 0: try (snapshot.top / path).create(data)
            case 1: try (snapshot.top / path).mkdir()
            default: try (snapshot.top / path).symlink(to: "f")
            }
        } record: {
            snapshot.preserve.didMake(try FileStatus(of: try snapshot.target(path).descriptor))
        }
    }

    private func link(_ path: Path, _ new: Path) throws -> Operation {
        let (snapshot, target, directory, name) = (snapshot, try snapshot.target(path), try parent(new), name(new))
        return Operation(name: "link \(path) \(new)") {
            snapshot.preserve.willChangeAttributes(of: target)
            name.withCString { snapshot.preserve.willChangeEntry(in: directory, $0, now: .absent) }
        } perform: {
            try (snapshot.top / path).link(to: snapshot.top / new)
        }
    }

    private func remove(_ path: Path) throws -> Operation {
        let (snapshot, target, directory, name) = (snapshot, try snapshot.target(path), try parent(path), name(path))
        let isDirectory = target.reference.kind == UInt32(S_IFDIR)
        return Operation(name: "remove \(path)") {
            snapshot.preserve.willChangeAttributes(of: target)
            name.withCString {
                snapshot.preserve.willChangeEntry(in: directory, $0, now: .present(target.reference))
            }
        } perform: {
            try snapshot.unlink(path, isDirectory ? AT_REMOVEDIR : 0)
        }
    }

    private func rename(_ path: Path, _ new: Path) throws -> Operation {
        let (snapshot, moved, name) = (snapshot, try snapshot.target(path), name(path))
        let directory = try parent(path)
        return Operation(name: "rename \(path) \(new)") {
            snapshot.preserve.willChangeAttributes(of: moved)
            name.withCString {
                snapshot.preserve.willChangeEntry(in: directory, $0, now: .present(moved.reference))
            }
        } perform: {
            try snapshot.rename(path, to: new)
        }
    }
}

private func preserved(_ snapshot: KilledSnapshot, _ target: ChangeTarget, _ range: Range<Int64>) throws {
    if !snapshot.preserve.willChangeData(of: target, range) { throw TestFailure("more than a slice was to be preserved") }
}

extension KilledSnapshot {
    /// unlink(2) or rmdir(2).
    func unlink(_ path: Path, _ flags: Int32 = 0) throws {
        let (directory, name) = try place(path)
        let victim = try target(path)
        try name.withCString {
            while try !preserve.unlink(in: directory, $0, victim: victim, flags) {}
        }
    }

    /// rename(2).
    func rename(_ path: Path, to new: Path) throws {
        let (directory, name) = try place(path)
        let (newDirectory, newName) = try place(new)
        let exists = (top / new).exists
        let move = Preserve.Move(
            try target(path), replacing: exists ? try target(new) : nil, flags: 0, ancestors: [])
        try name.withCString { name in
            try newName.withCString { newName in
                while try !preserve.rename(move, from: directory, name, to: newDirectory, newName) {}
            }
        }
    }

    private func place(_ path: Path) throws -> (ChangeTarget, String) {
        let parts = path.string.split(separator: "/")
        let directory = Path(parts.count == 1 ? "." : parts.dropLast().joined(separator: "/"))
        return (try self.directory(directory), String(parts.last ?? ""))
    }
}
