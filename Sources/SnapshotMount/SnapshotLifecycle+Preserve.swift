internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import Synchronization
package import SystemPackage

// Snapshots in preserve that are taken up again after their daemon was killed, and who holds a snapshot.
extension SnapshotLifecycle {
    /// Takes up the snapshot that an earlier daemon kept by preserving originals, or discards it; `note` gets a line on it.
    func recoverPreserve(countsClones: Bool, _ note: (String) -> Void) throws(RecordError) {
        guard let boot else { return }
        let recovery = PreserveRecovery(
            store: store, source: source, credentials: credentials, boot: boot, bytesMax: deltaBytesMax,
            countsClones: countsClones, didBecomeInexact: tellInexact)
        let refusal = redirects ? "it preserved originals, and this mount redirects changes (--mode redirect)" : nil
        switch try recovery.recover(refusal: refusal) {
        case .nothing, .discarded(nil):
            return
        case .discarded(let why?):
            note(
                "\(store.path): discarded the snapshot of a daemon that did not end in order: \(why);"
                    + " the live files are not affected")
        case .active(let preserve, let head):
            serial.store(head.serial, ordering: .relaxed)
            generation.mutex.withLock {
                $0 = Generation(.preserve(preserve), cut: head.cut, serial: head.serial)
            }
            note(
                "\(store.path): took up the snapshot of a daemon that did not end in order"
                    + (preserve.end.inexactReason.map { "; it is not exact: \($0)" } ?? ""))
        }
    }

    /// Keeps who holds the snapshot that is about to begin; nil: nobody.
    package func keepLease(_ text: String?) throws(Errno) {
        // What was redirected outlives a power cut, and so must that nobody holds it any more.
        try store.keepLease(text, isDurable: redirects)
    }

    /// Who held the snapshot that was taken up, as `keepLease` got it.
    package func keptLease() throws(Errno) -> String? { try store.keptLease() }
}
