import Glibc
import SystemPackage
import TestSupport

/// An operation on paths below a root.
enum RandomOperation: CustomStringConvertible {
    case make(Kind, Path, UInt64)
    case remove(Path)
    case rename(Path, Path, Int32)
    case link(Path, Path)
    case write(Path, Int, Int, UInt64)
    case truncate(Path, Int)
    case allocate(Path, Int32, Int, Int)
    case chmod(Path, UInt32)
    case chown(Path, UInt32)
    case setTimes(Path, Int64)
    case setAttribute(Path, String, Int)
    case removeAttribute(Path, String)
    case list(Path)
    case stat(Path)

    var description: String { String(reflecting: self).split(separator: ".").last.map(String.init) ?? "" }

    /// What it gave: a text, or the name of its error.
    func result(under root: Path) -> String {
        do throws(Errno) {
            return try perform(root)
        } catch {
            return "errno \(error.rawValue)"
        }
    }

    private func perform(_ root: Path) throws(Errno) -> String {
        switch self {
        case .make(let kind, let path, let seed):
            do {
                try kind.make(root / path, seed: seed)
            } catch let error as Errno {
                throw error
            } catch {
                return "\(error)"
            }
        case .remove(let path):
            do throws(Errno) { try (root / path).unlink() } catch .isDirectory { try (root / path).rmdir() }
        case .rename(let old, let new, let flags): try (root / old).rename(to: root / new, flags: flags)
        case .link(let old, let new): try (root / old).link(to: root / new)
        case .write(let path, let offset, let count, let seed):
            try file(root / path).writeAll(bytes(count, seed: seed), at: offset)
        case .truncate(let path, let size): try (root / path).truncate(size)
        case .allocate(let path, let mode, let offset, let count):
            try file(root / path).allocate(mode, at: offset, count: count)
        case .chmod(let path, let mode): try file(root / path).chmod(mode)
        case .chown(let path, let user): try (root / path).chown(user: user)
        case .setTimes(let path, let seconds):
            try (root / path).setTimes(accessed: Timestamp(1), modified: Timestamp(seconds, 5))
        case .setAttribute(let path, let name, let count): try (root / path).setAttribute(name, bytes(count))
        case .removeAttribute(let path, let name): try (root / path).removeAttribute(name)
        case .list(let path): return "\(try (root / path).entries().map(\.description).sorted())"
        case .stat(let path):
            let status = try (root / path).lstat()
            let size = status.kind == .directory ? 0 : status.size
            return "\(status.mode) \(status.links) \(size) \(status.user)"
        }
        return "done"
    }

    /// Never waits, as a fifo's open would, and follows nothing.
    private func file(_ path: Path) throws(Errno) -> File {
        try path.open(O_RDWR | O_NONBLOCK | O_NOFOLLOW)
    }
}

/// Makes operations over few names, so that they meet each other.
struct OperationGenerator {
    private var random: SeededGenerator

    init(seed: UInt64) { random = SeededGenerator(seed: seed) }

    /// One to three levels of four names each.
    private mutating func path() -> Path {
        let names: [Path] = ["a", "b", "c", "d"]
        return (1..<random.pick([1, 2, 2, 3, 3])).reduce(random.pick(names)) { path, _ in
            path / random.pick(names)
        }
    }

    private mutating func offset() -> Int {
        random.isTrue(oneIn: 3) ? random.number(0...20) * 4_096 : random.number(0...70_000)
    }

    mutating func next() -> RandomOperation {
        switch random.number(0...29) {
        case 0...4: .make(random.pick([.file, .file, .file] + Kind.available), path(), random.next() % 100)
        case 5...8: .make(.directory, path(), 0)
        case 9...11: .remove(path())
        case 12...14: .rename(path(), path(), 0)
        case 15: .rename(path(), path(), 2)
        case 16: .rename(path(), path(), 1)
        case 17, 18: .link(path(), path())
        case 19...22: .write(path(), offset(), random.number(1...20_000), random.next())
        case 23: .truncate(path(), offset())
        case 24: .allocate(path(), random.pick([0, 0x1, 0x3, 0x10]), offset(), random.number(1...20_000))
        case 25: Machine.isRoot ? .chown(path(), UInt32(random.number(0...3))) : .stat(path())
        case 26: .chmod(path(), random.pick([0o600, 0o755, 0o4711, 0o2755]))
        case 27: .setTimes(path(), Int64(random.number(0...2_000_000_000)))
        case 28:
            random.isTrue(oneIn: 3)
                ? .removeAttribute(path(), "user.a") : .setAttribute(path(), "user.a", random.number(0...500))
        default: random.isTrue(oneIn: 2) ? .list(path()) : .stat(path())
        }
    }
}
