internal import FuseSession
internal import LinuxSystem
internal import Synchronization
internal import SystemPackage

/// The files that the kernel reads and writes by itself (`io=passthrough`): all opens of a node share one
/// registration, from the first open to the last release. Safe for use by all threads.
final class Backings: Sendable {
    private struct Backing {
        let id: Int32
        var opens: Int
    }

    private let session = MutexBox<Session?>(nil)
    private let backings = Mutex<[UInt64: Backing]>([:])

    /// From now on, where the session's kernel agreed to it, files are passed through.
    func attach(_ session: Session) {
        self.session.mutex.withLock { $0 = session }
    }

    private var passingSession: Session? {
        session.mutex.withLock { $0.flatMap { $0.passesThrough ? $0 : nil } }
    }

    var areUsed: Bool { passingSession != nil }

    /// Counts an open of a node that `file` refers to; nil where files are not passed through.
    func open(_ node: UInt64, _ file: Descriptor) throws(Errno) -> Int32? {
        guard let session = passingSession else { return nil }
        return try backings.withLock { (backings) throws(Errno) -> Int32 in
            if let known = backings[node] {
                backings[node]?.opens += 1
                return known.id
            }
            let id = try session.openBacking(file)
            backings[node] = Backing(id: id, opens: 1)
            return id
        }
    }

    /// Counts a release.
    func release(_ node: UInt64) {
        guard let session = passingSession else { return }
        backings.withLock { backings in
            guard let backing = backings[node] else { return }
            if backing.opens > 1 {
                backings[node]?.opens -= 1
            } else {
                backings[node] = nil
                session.closeBacking(backing.id)
            }
        }
    }
}
