package import ControlSocket
public import SystemPackage

/// Why a snapshot, or a part of it, could not be read.
public enum SnapshotReaderError: Error, Sendable, Equatable, CustomStringConvertible {
    /// There is no fusesnap mount at that path, or its daemon does not answer.
    case noDaemon(mountPoint: String, reason: String)
    /// The mount has no active snapshot.
    case noSnapshot
    /// The daemon does not allow it, or cannot do it; its own words.
    case refused(String)
    /// The snapshot has ended since it was opened, or was given up; nothing more can be read of it.
    case ended
    /// A part of the snapshot is lost: what has been read may not be all of it. The reason in words.
    case inexact(String)
    /// A system call failed. `path` is below the snapshot's root; empty for the root itself.
    case system(Errno, action: String, path: String)
    /// What the daemon keeps of the snapshot cannot be understood.
    case damaged(String)

    public var description: String {
        switch self {
        case .noDaemon(let mountPoint, let reason): "no fusesnap mount answers at \(mountPoint): \(reason)"
        case .noSnapshot: "no snapshot is active"
        case .refused(let message): message
        case .ended: "the snapshot has ended, or was given up"
        case .inexact(let reason): "the snapshot is not exact any more: \(reason)"
        case .system(let error, let action, let path):
            "cannot \(action) \(path.isEmpty ? "the root" : path): \(error)"
        case .damaged(let what): what
        }
    }

    package init(_ error: ControlClientError, mountPoint: String) {
        switch error {
        case .failure(let failure):
            self = failure.code == .notActive ? .noSnapshot : .refused(failure.message)
        case .noDaemon(let tried):
            self = .noDaemon(mountPoint: mountPoint, reason: "no socket at \(tried.joined(separator: " or "))")
        case .denied(let path): self = .noDaemon(mountPoint: mountPoint, reason: "no permission for \(path)")
        case .unresponsive(let path), .closed(let path), .malformedReply(let path):
            self = .noDaemon(mountPoint: mountPoint, reason: "its daemon does not answer on \(path)")
        case .system(let error, let path):
            self = .noDaemon(mountPoint: mountPoint, reason: "\(path) fails: \(error)")
        }
    }
}
