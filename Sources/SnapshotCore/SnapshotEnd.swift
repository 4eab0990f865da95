internal import Synchronization
package import SystemPackage

/// Whether a snapshot may still be read, and if not, why.
///
/// It ends once, or becomes inexact once. Both are set before the first change goes by that the record does not
/// hold. So a reader that has read the primary, and finds here after it that the snapshot goes on, has read the
/// version of the cut.
package final class SnapshotEnd: Sendable {
    private static let active = 0
    private static let inexact = 1
    private static let ended = 2

    private let state = Atomic<Int>(SnapshotEnd.active)
    private let reason = Mutex<String?>(nil)

    package init() {}

    package var isRecording: Bool {
        state.load(ordering: .sequentiallyConsistent) == Self.active
    }

    /// Why the snapshot is not exact any more; nil where it is.
    package var inexactReason: String? { reason.withLock { $0 } }

    /// Marks the snapshot inexact; whether this call was the first to do so.
    package func becomeInexact(_ why: String) -> Bool {
        reason.withLock { reason in
            if reason == nil { reason = why }
            return state.compareExchange(
                expected: Self.active, desired: Self.inexact, ordering: .sequentiallyConsistent
            ).exchanged
        }
    }

    /// Notes that a part of the snapshot cannot be read, though the rest goes on; whether it is the first such.
    package func becomeIncomplete(_ why: String) -> Bool {
        reason.withLock { reason in
            if reason != nil { return false }
            reason = why
            return true
        }
    }

    package func end() {
        state.store(Self.ended, ordering: .sequentiallyConsistent)
    }

    /// Throws where what was read may not be of the cut: EIO in a snapshot that is not exact any more, ESTALE in one
    /// that has ended.
    package func check() throws(Errno) {
        switch state.load(ordering: .sequentiallyConsistent) {
        case Self.active: return
        case Self.inexact: throw .ioError
        default: throw .staleNFSFileHandle
        }
    }
}
