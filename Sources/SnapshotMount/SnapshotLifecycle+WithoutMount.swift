package import LinuxSystem
internal import SnapshotCore
package import SnapshotRecord
internal import Synchronization
internal import SystemPackage

// What a daemon has left, finished where nothing is mounted (`fusesnap recover`).
extension SnapshotLifecycle {
    /// What was found, and what became of it.
    package enum Recovered: Sendable, Equatable {
        /// A snapshot in preserve since then, which stays.
        case kept(Timestamp)
        /// A snapshot in preserve that was removed: why it cannot go on; nil where it had ended.
        case discarded(String?)
        /// A snapshot in preserve that was removed since that was wanted.
        case discardedKept
        case merged(Timestamp)
        /// A merge that had begun.
        case mergeFinished
        case thrownAway(Timestamp)
        /// What was redirected, with a damaged record.
        /// `sourceChanged`: a part of what was changed had gone to the source, and is there.
        case damagedThrownAway(sourceChanged: Bool)
    }

    /// Merges what was redirected, or throws it away; discards a snapshot in preserve where that is wanted or it cannot go
    /// on. `note` gets a line on each thing that was found. Throws where something cannot be done; nothing has been
    /// changed by it then.
    package func recoverWithoutMount(discards: Bool, _ note: (Recovered) -> Void) throws(RecordError) {
        guard let boot else { preconditionFailure("recovery knows the boot") }
        if discards { try discardPreserve(note) } else { try keepPreserve(boot, note) }
        guard source.usesHandles else { return try refuseLayers() }
        let recovery = RedirectRecovery(
            store: store, source: source, credentials: credentials, boot: boot, bytesMax: deltaBytesMax,
            didBecomeInexact: { _ in })
        let outcome: RedirectRecovery.Outcome
        do throws(RecordError) {
            outcome = try recovery.recover()
        } catch {
            guard discards else { throw error }
            let sourceChanged = hasTerms()
            guard try discardDamaged() else { throw error }
            return note(.damagedThrownAway(sourceChanged: sourceChanged))
        }
        switch outcome {
        case .nothing: return
        case .active(let redirect, _) where discards && redirect.terms.changesSource:
            throw .system(
                .notPermitted,
                action:
                    "discard what is in the source already in part, since the snapshot was of some users' files or"
                    + " for a single pass, (run it without --discard) from", path: store.path)
        case .active(let redirect, let head) where discards:
            try attempt("discard what was redirected in") { () throws(Errno) in try redirect.discard(gate) {} }
            note(.thrownAway(head.cut))
        case .merging where discards:
            throw .system(
                .resourceBusy, action: "discard what has been merged in part (run it without --discard) from",
                path: store.path)
        case .active(let redirect, let head):
            try mergeAtOnce(redirect)
            note(.merged(head.cut))
        case .merging(let redirect):
            try mergeAtOnce(redirect)
            note(.mergeFinished)
        }
    }

    private func attempt(_ action: String, _ body: () throws(Errno) -> Void) throws(RecordError) {
        do throws(Errno) {
            try body()
        } catch {
            throw .system(error, action: action, path: store.path)
        }
    }

    private func keepPreserve(_ boot: BootIdentity, _ note: (Recovered) -> Void) throws(RecordError) {
        let recovery = PreserveRecovery(
            store: store, source: source, credentials: credentials, boot: boot, bytesMax: deltaBytesMax,
            didBecomeInexact: { _ in })
        switch try recovery.recover() {
        case .nothing: return
        case .discarded(let why):
            note(.discarded(why))
        case .active(_, let head):
            note(.kept(head.cut))
        }
    }

    /// Whatever its journal says, or does not.
    private func discardPreserve(_ note: (Recovered) -> Void) throws(RecordError) {
        var wasThere = false
        try attempt("discard the snapshot in") { () throws(Errno) in
            guard try store.keptSnapshot() != nil else { return }
            wasThere = true
            try credentials.assumeDaemon()
            try store.discardSnapshot()
        }
        if wasThere { note(.discardedKept) }
    }

    /// Throws a layer away whose journal is damaged behind its head, where the source has not been changed yet; false where
    /// that cannot be known.
    private func discardDamaged() throws(RecordError) -> Bool {
        var isDone = false
        try attempt("discard what was redirected in") { () throws(Errno) in
            // A seal makes the layer above first; so where there is one, nothing was merged from it.
            let numbers = try store.layerNumbers()
            guard numbers.count == 1, let number = numbers.first, isUnmergedSnapshot(number) else { return }
            try credentials.assumeDaemon()
            try store.emptyNew()
            try store.removeLayer(number)
            isDone = true
        }
        return isDone
    }

    /// Whether a layer is of a snapshot a part of whose changes went to the source.
    private func hasTerms() -> Bool {
        do throws(Errno) {
            for number in try store.layerNumbers() {
                let kept = try KeptFiles(directory: try store.openLayer(number), graveyard: nil)
                if kept.terms != nil { return true }
            }
            return false
        } catch {
            return true
        }
    }

    private func isUnmergedSnapshot(_ number: UInt64) -> Bool {
        do {
            let scan = try JournalScan.read(
                in: try store.openLayer(number), path: store.layerPath(number))
            return scan.map { !$0.isSealed && !$0.head.isContinued } ?? false
        } catch {
            return false
        }
    }
}
