internal import Glibc
internal import LinuxSystem
package import SnapshotCore
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

// Snapshots that are kept by redirecting changes: how they begin, are merged or discarded, and are taken up again.
extension SnapshotLifecycle {
    /// How often what applications did is made durable though nobody asks for it.
    private static let commitPeriod = Duration.seconds(5)

    func makeRedirect(_ serial: UInt64, _ terms: SnapshotTerms) throws(Errno) -> Redirect {
        guard let boot else { throw .notSupported }
        let number = (try store.layerNumbers().max() ?? 0) + 1
        // What an idle daemon may have left: from now on there is a journal that speaks of all that is in there.
        try store.emptyNew()
        let head = JournalHead(
            embodiment: .redirect, layer: number, isContinued: false, source: source.rootReference.key,
            cut: .current, serial: serial, boot: boot)
        let layer = try Redirect.makeLayer(number, in: store, head, terms, bytesMax: deltaBytesMax)
        do throws(Errno) {
            try layer.makeReserve()
            return try makeRedirect(layer, terms, boot)
        } catch {
            // Left behind, the next mount would take it for a snapshot.
            try store.removeLayer(number)
            throw error
        }
    }

    private func makeRedirect(
        _ layer: Layer, _ terms: SnapshotTerms, _ boot: BootIdentity
    ) throws(Errno) -> Redirect {
        let cut = SnapshotCut(
            source: source, store: nil, notes: layer.files.directory, scope: terms.scope,
            singlePass: terms.isSinglePass ? SinglePass(credentials) : nil, didBecomeInexact: tellInexact)
        return try Redirect(
            [layer], cut: cut, terms: terms, store: store, credentials: credentials, boot: boot,
            bytesMax: deltaBytesMax)
    }

    /// Makes durable now and then what applications did, and keeps the journal short.
    func keepDurable(_ redirect: Redirect) {
        do throws(Errno) {
            try committer.start(every: Self.commitPeriod) {
                // The first is long, since what lies below must be durable: so that no application waits for it.
                Self.attempt { () throws(Errno) in try redirect.synchronizeAll() }
            } _: { [gate, committer] in
                let deadline = ContinuousClock.now + Self.commitPeriod
                redirect.moveReleased(gate) { !committer.isToEnd && ContinuousClock.now < deadline }
                Self.attempt { () throws(Errno) in
                    try redirect.renewJournal()
                    try redirect.synchronizeChanges()
                    try redirect.compactJournal()
                }
            }
        } catch {
            // No thread is to be had: then only fsync makes anything durable.
        }
    }

    private static func attempt(_ body: () throws(Errno) -> Void) {
        do throws(Errno) {
            try body()
        } catch {
            // Nothing is lost by it: who asks for it by fsync is told, and it is tried again.
        }
    }

    /// What the active snapshot was asked to be, where that is kept; nil where none is redirected.
    package var terms: SnapshotTerms? {
        guard case .redirect(let redirect)? = generation.mutex.withLock({ $0?.embodiment }) else { return nil }
        return redirect.terms
    }

    /// How far the merge is; nil where nothing is merged.
    package var mergeProgress: MergeProgress? { merging.mutex.withLock { $0 } }

    /// Why the last merge did not come to its end.
    package var mergeProblem: Errno? { mergeFailure.withLock { $0 } }

    /// With `transitions` held.
    func stopRedirect(
        only: UInt64?, isServing: Bool, _ report: @escaping (MergeProgress) -> Void
    ) throws(Errno) -> Ended {
        guard let ending = generation.mutex.withLock({ $0 }), only == nil || only == ending.serial,
            case .redirect(let redirect) = ending.embodiment
        else {
            // A merge that did not come to its end is tried again.
            if only == nil, let redirect { try merge(redirect, report) }
            throw .noData
        }
        let wasWatching = isWatchingSource
        foreignChanges?.finish()
        committer.end()
        let sealed = redirect.stack.top
        var summary = Self.summary(ending)
        do throws(Errno) {
            try sealed.giveReserveBack()
            try redirect.seal(gate) {
                summary = Self.summary(ending, sealed)
                ending.end.end()
                generation.mutex.withLock { $0 = nil }
                merging.mutex.withLock { $0 = MergeProgress() }
            }
        } catch {
            keepDurable(redirect)
            throw error
        }
        didEnd(isServing)
        let ended = Ended(
            summary: summary, end: .current, changes: redirect.changes(of: sealed), wasWatchingSource: wasWatching)
        try merge(redirect, report)
        return ended
    }

    /// After the snapshot has ended. No worker waits for `transitions` in redirect, so the kernel may be spoken to.
    private func didEnd(_ isServing: Bool) {
        foreignChanges?.end()
        observer.mutex.withLock { $0 }?.didStop()
        if isServing { observer.mutex.withLock { $0 }?.forget() }
    }

    /// Merges all that is redirected; changes go to the source again when it returns. With `transitions` held.
    private func merge(
        _ redirect: Redirect, _ report: @escaping (MergeProgress) -> Void
    ) throws(Errno) {
        mergeFailure.withLock { $0 = nil }
        let observer = observer.mutex.withLock { $0 }
        do throws(Errno) {
            try redirect.merge(gate) { reference in
                observer?.openUnnamed(reference)
            } report: { [merging] progress in
                merging.mutex.withLock { $0 = progress }
                report(progress)
            } becomeIdle: {
                redirecting.mutex.withLock { $0 = nil }
            }
            merging.mutex.withLock { $0 = nil }
        } catch {
            mergeFailure.withLock { $0 = error }
            throw error
        }
    }

    /// Ends the snapshot and throws all away that was changed since the cut. Throws ENODATA where none is active, EBUSY
    /// where its merge has begun, EPERM where a part of the changes is in the source already (`SnapshotTerms`).
    package func discard(isServing: Bool = true) throws(Errno) -> Ended {
        try transitions.withLock { (_) throws(Errno) in
            guard let ending = generation.mutex.withLock({ $0 }), case .redirect(let redirect) = ending.embodiment
            else { throw redirect == nil ? .noData : .resourceBusy }
            let wasWatching = isWatchingSource
            foreignChanges?.finish()
            committer.end()
            let map = redirect.stack.top.map
            var summary = Self.summary(ending)
            do throws(Errno) {
                try redirect.discard(gate) {
                    summary = Self.summary(ending)
                    ending.end.end()
                    vanished.add(map)
                    generation.mutex.withLock { $0 = nil }
                    redirecting.mutex.withLock { $0 = nil }
                }
            } catch {
                if self.redirect != nil {
                    keepDurable(redirect)
                    throw error
                }
                // It has been thrown away; what is left of it in the store goes with the next mount.
            }
            didEnd(isServing)
            if isServing { observer.mutex.withLock { $0 }?.didDiscard(map) }
            return Ended(
                summary: summary, end: .current, changes: map.changes, wasWatchingSource: wasWatching)
        }
    }

    // MARK: Recovery

    /// Takes up what an earlier daemon left, before anything is served: `note` gets a line on it. Throws where that cannot
    /// be used as it is; nothing has been changed then. `countsClones` is of `PreserveRecovery`.
    package func recover(countsClones: Bool = true, _ note: (String) -> Void) throws(RecordError) {
        try recoverPreserve(countsClones: countsClones, note)
        guard let boot, source.usesHandles else { return try refuseLayers() }
        let recovery = RedirectRecovery(
            store: store, source: source, credentials: credentials, boot: boot, bytesMax: deltaBytesMax,
            didBecomeInexact: tellInexact)
        switch try recovery.recover() {
        case .nothing: return
        case .active(let redirect, let head) where redirects:
            serial.store(head.serial, ordering: .relaxed)
            redirecting.mutex.withLock { $0 = redirect }
            generation.mutex.withLock {
                $0 = Generation(.redirect(redirect), cut: head.cut, serial: head.serial)
            }
            note("\(store.path): took up the snapshot of a daemon that did not end in order")
        case .merging(let redirect) where redirects:
            redirecting.mutex.withLock { $0 = redirect }
            merging.mutex.withLock { $0 = MergeProgress() }
            note("\(store.path): goes on with the merge of a daemon that did not end in order")
        case .active(let redirect, _), .merging(let redirect):
            try mergeAtOnce(redirect)
            note("\(store.path): merged what a daemon in redirect mode had left")
        }
    }

    /// A store with layers cannot be used without file handles.
    func refuseLayers() throws(RecordError) {
        do throws(Errno) {
            if try !store.layerNumbers().isEmpty { throw Errno.notSupported }
        } catch {
            throw .system(error, action: "take up the redirected changes in", path: store.path)
        }
    }

    func mergeAtOnce(_ redirect: Redirect) throws(RecordError) {
        do throws(Errno) {
            try redirect.merge(gate) { _ in
                nil
            } report: { _ in
            } becomeIdle: {
            }
        } catch {
            throw .system(error, action: "merge what is left in", path: store.path)
        }
    }

    /// Once requests are served: shows the snapshot that was taken up, or merges on.
    package func resume() {
        if let active = generation.mutex.withLock({ $0 }) {
            foreignChanges?.prepare(active.embodiment.cut)
            foreignChanges?.begin()
            observer.mutex.withLock { $0 }?.didStart(active.embodiment.cut)
            if case .redirect(let redirect) = active.embodiment { keepDurable(redirect) }
            return
        }
        guard let redirect else { return }
        Thread.detach { [self] in
            transitions.withLock { _ in
                guard self.redirect === redirect else { return }
                do throws(Errno) {
                    try merge(redirect) { _ in }
                } catch {
                    // `mergeFailure` has it: the status tells, and the next stop tries again.
                }
            }
        }
    }

    /// Merges what is left, where anything is: the mount is about to go.
    package func finishMerge() throws(Errno) {
        try transitions.withLock { (_) throws(Errno) in
            guard generation.mutex.withLock({ $0 }) == nil, let redirect else { return }
            try merge(redirect) { _ in }
        }
    }
}

/// Inodes that were thrown away with a redirect: who has one open gets errors, never other data. Safe for use by all
/// threads.
final class VanishedInodes: Sendable {
    private let isAny = Atomic<Bool>(false)
    private let keys = Mutex<Set<InodeKey>>([])

    /// Adds all that were made in a redirect.
    func add(_ map: DeltaMap) {
        keys.withLock { keys in
            for record in map.records where record.contents.withLock({ $0.place == .store }) {
                keys.insert(record.key)
            }
        }
        isAny.store(true, ordering: .sequentiallyConsistent)
    }

    /// Whether there may be any: most mounts never discard.
    var isUsed: Bool { isAny.load(ordering: .sequentiallyConsistent) }

    /// Throws ESTALE for one of them.
    func check(_ key: InodeKey) throws(Errno) {
        guard isUsed else { return }
        if keys.withLock({ $0.contains(key) }) { throw .staleNFSFileHandle }
    }
}
