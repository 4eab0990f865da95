import CTestSupport
import Glibc
import SystemPackage
import TestSupport

/// The kinds of file, each with something in it by which it is known.
enum Kind: String, CaseIterable, Sendable, CustomStringConvertible {
    case file, directory, symlink, fifo, socket, device

    var description: String { rawValue }

    /// Devices are root's.
    static var available: [Kind] { allCases.filter { $0 != .device || Machine.isRoot } }

    func make(_ path: Path, seed: UInt64 = 1) throws {
        switch self {
        case .file: try path.create(bytes(9_000, seed: seed))
        case .directory: try path.mkdir()
        case .symlink: try path.symlink(to: Path("target-\(seed)"))
        case .fifo: try path.mkfifo(mode: 0o620)
        case .socket: try path.mknod(mode: S_IFSOCK | 0o640)
        case .device:
            try path.mknod(mode: S_IFCHR | 0o600, device: ts_makedev(7, UInt32(truncatingIfNeeded: seed)))
        }
    }

    func remove(_ path: Path) throws {
        if self == .directory { try path.rmdir() } else { try path.unlink() }
    }
}
