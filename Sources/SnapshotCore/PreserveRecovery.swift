internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// The snapshot of a daemon in preserve mode that was killed, taken up again before anything is served; or discarded, where
/// it cannot be known to be exact. The source is not changed, whatever is found.
///
/// All that the daemon wrote is there: the kernel goes on (the journal's head says so). So each change is at one place in the
/// order «original stored, record appended, map entry made, primary changed», and what the next daemon finds is:
///
/// | killed behind | is found | and means |
/// | --- | --- | --- |
/// | an original stored | bytes in a delta file that no record tells of | nothing: the primary still has them, and the first change stores them again |
/// | half a record | `JournalScan.isUnfinished` | nothing: the change that it is of had not begun |
/// | a record | an entry of the map, and the primary unchanged | the same version in both |
/// | the change | entry and change | what is meant to be |
///
/// A change of one area is one system call, so the primary is before or behind it, or, for data, anywhere between. What
/// takes two:
/// - **A last name** goes by a rename into the graveyard, or a link there and then a rename over it. The graveyard itself tells
///   which inodes are there, under their keys: those have `InodePlace.graveyard`, and one link more than applications may
///   see, whether or not the journal got to say it. What the journal says to be there was there: where it is missing,
///   somebody took it.
/// - **Detached**: the journal says it before the name goes. So inodes that it says to be detached are looked up: one that is
///   still there was not removed (or its removal failed), and is in the source. One that is gone without that
///   having been said was removed past the mount.
/// - **A new inode**: its name is recorded as absent before it is made, and it is recorded as born after it. A kill in between
///   leaves an inode of an unknown key under a name recorded as absent. A snapshot never shows that: it has no
///   other name, and each that it gets is recorded before as what it was. An inode of the cut cannot be under such a name
///   without a record, since rename and link record its attributes first. `Absence.includes(birthOf:)` tells its key for
///   born when it changes next; where the file system knows no times of birth, originals are stored for it in vain.
/// - **The end** of a snapshot, by a stop or because it has become inexact, is in the journal before the first change goes by
///   unrecorded (`DeltaStore.forsake`). **Its start** is there when all has been done for it (`DeltaStore.begin`): before, it was
///   promised to nobody, and files that are written to unseen may not have been cloned.
///
/// What nobody recorded while no daemon was there: `Absence`.
package struct PreserveRecovery {
    /// What was found.
    package enum Outcome: Sendable {
        case nothing
        /// A snapshot that goes on.
        case active(Preserve, JournalHead)
        /// One that was removed, and why; nil where it had ended, or had not begun.
        case discarded(String?)
    }

    private let store: Store
    private let source: SourceTree
    private let credentials: Credentials
    private let boot: BootIdentity
    private let bytesMax: UInt64?
    private let countsClones: Bool
    private let didBecomeInexact: @Sendable (String) -> Void

    /// `countsClones` false where files are cloned before they are written to (`io=passthrough`).
    package init(
        store: Store, source: SourceTree, credentials: Credentials, boot: BootIdentity, bytesMax: UInt64?,
        countsClones: Bool = true, didBecomeInexact: @escaping @Sendable (String) -> Void
    ) {
        self.store = store
        self.source = source
        self.credentials = credentials
        self.boot = boot
        self.bytesMax = bytesMax
        self.countsClones = countsClones
        self.didBecomeInexact = didBecomeInexact
    }

    /// Why a snapshot is not taken up.
    private enum Refusal: Error {
        /// It had ended, or its start had not come to its end: nobody misses it.
        case isNone
        case because(String)
        case failed(RecordError)
    }

    /// `refusal`: why no snapshot in preserve may go on in this mount; nil where it may. Throws where something cannot be
    /// read, or is of a later version: then nothing has been changed.
    package func recover(refusal: String? = nil) throws(RecordError) -> Outcome {
        guard
            let kept = try attempt("look at", store.snapshotPath, { () throws(Errno) in try store.keptSnapshot() })
        else { return .nothing }
        do throws(Refusal) {
            let scan = try readJournal(kept)
            if let refusal { throw .because(refusal) }
            let (preserve, head) = try takeUp(scan, kept)
            return .active(preserve, head)
        } catch {
            let why: String?
            switch error {
            case .failed(let problem): throw problem
            case .isNone: why = nil
            case .because(let reason): why = reason
            }
            try attempt("discard the snapshot in", store.path) { () throws(Errno) in
                try credentials.assumeDaemon()
                try store.discardSnapshot()
            }
            return .discarded(why)
        }
    }

    // MARK: The journal

    private func readJournal(_ kept: KeptFiles) throws(Refusal) -> JournalScan {
        guard let directory = kept.directory else { throw .isNone }
        if let why = kept.unjournaledReason { throw .because(why) }
        let scan = try reading { () throws(RecordError) in
            try JournalScan.read(in: directory, path: store.snapshotPath)
        }
        guard let scan else { throw .isNone }
        let head = scan.head
        guard head.embodiment == .preserve, head.source == source.rootReference.key else {
            throw .because("\(store.snapshotPath)/journal is not this snapshot's")
        }
        if scan.isDiscarded { throw .isNone }
        let isOfThisBoot = head.boot == boot
        if isOfThisBoot, case .torn(let offset) = scan.end, !scan.isUnfinished {
            throw .because("\(store.snapshotPath)/journal is damaged at byte \(offset)")
        }
        if scan.lastMarkSequence == nil { throw .isNone }
        guard isOfThisBoot else {
            throw .because(
                "since then the machine, or the mount of the source's file system, was started anew, and after a power"
                    + " cut a snapshot cannot be known to be exact")
        }
        guard source.usesHandles else {
            throw .because("without file handles (which need root) files that were moved cannot be found again")
        }
        return scan
    }

    /// Damage is no reason not to serve the source.
    private func reading<Result>(
        _ body: () throws(RecordError) -> Result
    ) throws(Refusal) -> Result {
        do throws(RecordError) {
            return try body()
        } catch {
            switch error {
            case .damaged(let file, let offset, let problem):
                throw .because("\(file) is damaged at byte \(offset): \(problem)")
            case .noHead(let file):
                throw .because("\(file) is not a journal, its beginning is damaged, or it was just being begun")
            case .incomplete(let file, let problem):
                throw .because("\(file) \(problem)")
            case .newer, .system:
                throw .failed(error)
            }
        }
    }

    // MARK: Taking up

    private func takeUp(
        _ scan: JournalScan, _ kept: KeptFiles
    ) throws(Refusal) -> (Preserve, JournalHead) {
        let map = DeltaMap()
        try reading { () throws(RecordError) in try scan.replay(.all, into: map) }
        if let damage = kept.damage(by: map).first {
            let directory = damage.isGrave ? store.graveyardPath : store.snapshotPath
            throw .because("\(directory)/\(damage.file) is not as it was: \(damage.problem)")
        }
        do throws(Errno) {
            let corrections = try findPlaces(map, kept)
            let delta = try DeltaStore(
                takingUp: scan, kept, in: store, bytesMax: bytesMax, countsClones: countsClones)
            let preserve = Preserve(
                source: source, store: delta, credentials: credentials, map: map,
                absence: Absence(cut: scan.head.cut, end: .current), didBecomeInexact: didBecomeInexact)
            for change in corrections { preserve.note([change]) }
            if let reason = kept.inexactReason { preserve.cut.becomeIncomplete(reason, tells: false) }
            return (preserve, scan.head)
        } catch {
            throw .failed(.system(error, action: "take up the snapshot in", path: store.path))
        }
    }

    /// Sets right where inodes are: what the journal says of it may be a step ahead of what was done, or behind. Returns
    /// what it is to be told.
    private func findPlaces(_ map: DeltaMap, _ kept: KeptFiles) throws(Errno) -> [RecordChange] {
        var changes: [RecordChange] = []
        for key in kept.graves {
            let place = map.record(of: key)?.contents.withLock { $0.place }
            if let place, place != .graveyard { changes.append(.place(key, .graveyard)) }
        }
        for record in map.records
        where record.contents.withLock({ $0.place == .detached }) && !kept.graves.contains(record.key) {
            if let reference = record.reference, try isPresent(reference) {
                changes.append(.place(record.key, .source))
            }
        }
        for change in changes { map.apply(change) }
        return changes
    }

    private func isPresent(_ reference: InodeReference) throws(Errno) -> Bool {
        do throws(Errno) {
            return try FileStatus(of: try source.open(reference, O_PATH)).links > 0
        } catch .staleNFSFileHandle {
            return false
        }
    }

    private func attempt<Result>(
        _ action: String, _ path: String, _ body: () throws(Errno) -> Result
    ) throws(RecordError) -> Result {
        do throws(Errno) {
            return try body()
        } catch {
            throw .system(error, action: action, path: path)
        }
    }
}
