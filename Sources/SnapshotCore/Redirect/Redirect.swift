internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

/// The first embodiment (Figure 3): from the cut on changes go to the delta, and the primary stays as it was; after the
/// stop they are merged into it.
///
/// The delta is a stack of layers. Applications see the stack over the primary, before a merge, in it, and after a crash
/// in it: what a layer holds masks what the merge does below. Invariants (Docs/Redirect.md has why, and a model tries
/// them):
/// 1. The primary does not change before the first step of a merge, but for what the snapshot's terms leave to it
///    (`Redirect+Scope.swift`, `Redirect+Release.swift`).
/// 2. The live view is what applications did, however much of a layer has been merged.
/// 3. What a durable record stands for is durable, and is not destroyed before the record that lets go of it is.
/// 4. Only a layer all of which is durable is merged; its journal goes when the primary is durable, its files after that.
/// 5. One operation is one record in the journal, written after the data it stands for and before the answer.
///
/// A file made since the cut is a real file in the store (`new/KEY`), written as it is; its names are in the map alone. Of
/// any other inode, and of every directory, the map has the attributes once they changed.
///
/// Locks, in this order: the gate (every method that changes anything is called inside); a record's `firstChange`, held by
/// who changes one inode's data or attributes, across I/O; `untouched`'s of an inode, likewise; `metadata`, held by who decides what attributes, names and
/// counts become, across the append to the journal and nothing else. The kernel holds the locks of the directories whose
/// names change. Safe for use by all threads.
package final class Redirect: Sendable {
    package let source: SourceTree
    /// What the snapshot shows, and whether it still holds: the primary.
    package let cut: SnapshotCut
    /// What the snapshot was asked to be.
    package let terms: SnapshotTerms
    let store: Store
    let credentials: Credentials
    /// Where the files are that were made since the cut, and what the merge is moving.
    let newFiles: Descriptor
    let staging: Descriptor
    let boot: BootIdentity
    let bytesMax: UInt64?

    private let current: MutexBox<LayerStack>
    let metadata = Mutex<Void>(())
    /// Files that are read to fill blocks up.
    let readers = DescriptorCache<InodeKey>(capacity: 64)
    let commits = CommitQueue()
    /// Files without a name that may still get one.
    let temporaries = Mutex<Set<InodeKey>>([])
    let templates = Mutex<[TemplateDirectory: Descriptor]>([:])
    /// Whether the source's file system shares blocks between files; nil until that is needed.
    let isSharing = Mutex<Bool?>(nil)
    /// Whether every directory gives its group to what is made in it; nil until that is needed.
    let givesGroups = Mutex<Bool?>(nil)
    /// Whether a name was made in `newFiles` since these were made durable; true at first, for what was there before.
    let hasMade = Atomic<Bool>(true)
    /// Names in `newFiles` that stand for no inode of the map.
    let nameless = Atomic<UInt64>(0)
    let untouched = UntouchedInodes()
    let toMove = BlocksToMove()
    let untold = UntoldErrors()
    /// Held while blocks are moved, before the gate is passed.
    let mover = Mutex<Void>(())

    /// Goes on with layers that are there, the top one first.
    package init(
        _ layers: [Layer], cut: SnapshotCut, terms: SnapshotTerms = SnapshotTerms(), store: Store,
        credentials: Credentials, boot: BootIdentity, bytesMax: UInt64?
    ) throws(Errno) {
        source = cut.source
        self.cut = cut
        self.terms = terms
        self.store = store
        self.credentials = credentials
        self.boot = boot
        self.bytesMax = bytesMax
        (newFiles, staging) = try store.openPlaces()
        current = MutexBox(LayerStack(layers))
    }

    /// After all has been done for a start: says in the journal when the cut was.
    package func didStart(_ cut: Timestamp) {
        do throws(Errno) {
            try stack.top.journal.append(.cut(cut))
        } catch {
            // It says when the start began: a daemon that takes the snapshot up takes what was changed in between for changed
            // after the cut, and fails its reads, which is the safe side.
        }
    }

    /// The layers over the primary. Who reads and does not hold the gate may find another when it has read; then what it
    /// needed may be in the primary by now, and it must look again.
    package var stack: LayerStack { current.mutex.withLock { $0 } }

    /// Inside the closed gate.
    func replaceStack(_ stack: LayerStack) { current.mutex.withLock { $0 = stack } }

    /// Begins a layer: its directory and its journal's head. That is durable before anything else is in the layer, so that
    /// a layer with something in it and an empty journal is known to be damaged.
    /// What the snapshot was asked to be is there before the head, or a daemon that is killed in between would leave another.
    package static func makeLayer(
        _ number: UInt64, in store: Store, _ head: JournalHead, _ terms: SnapshotTerms = SnapshotTerms(),
        bytesMax: UInt64?
    ) throws(Errno) -> Layer {
        let directory = try store.makeLayer(number)
        do throws(Errno) {
            try terms.keep(in: directory)
            let journal = try Journal(creatingIn: directory, head: head)
            try journal.synchronize()
            try LinuxSystem.synchronizeAll(directory)
            return Layer(
                number: number, map: DeltaMap(isRedirect: true),
                files: DeltaFiles(in: directory, bytesMax: bytesMax), journal: journal)
        } catch {
            do throws(Errno) { try store.removeLayer(number) } catch { /* The next mount finds it empty. */  }
            throw error
        }
    }

    /// Reads with `body`, again where the stack has changed meanwhile.
    func reading<Result>(
        _ body: (LayerStack) throws(Errno) -> Result
    ) throws(Errno) -> Result {
        while true {
            let stack = stack
            let result: Result
            do throws(Errno) {
                result = try body(stack)
            } catch {
                if stack === self.stack { throw error }
                continue
            }
            if stack === self.stack { return result }
        }
    }

    // MARK: Changes

    /// Writes one operation to the journal, then into the map. With `metadata` held.
    func record(_ layer: Layer, _ changes: [RecordChange]) throws(Errno) {
        _ = try layer.journal.append(.changes(changes))
        for change in changes { layer.map.apply(change) }
        commits.noteChange()
    }

    /// The record of an inode in the top layer, with its attributes: those that applications see, before they change.
    func changeable(_ target: ChangeTarget, _ stack: LayerStack) throws(Errno) -> InodeRecord {
        let layer = stack.top
        guard let record = layer.map.recordForChange(of: target.key, target.reference) else {
            preconditionFailure("a layer of a redirect has a record of every inode")
        }
        if record.contents.withLock({ $0.attributes != nil }) { return record }
        try record.firstChange.withLock { (_) throws(Errno) in
            if record.contents.withLock({ $0.attributes != nil }) { return }
            try untouched.withLock(of: target.key) { () throws(Errno) in try recordAttributes(target, stack) }
        }
        return record
    }

    /// Records the attributes of an inode of which the top layer has none.
    private func recordAttributes(_ target: ChangeTarget, _ stack: LayerStack) throws(Errno) {
        let known = stack.attributes(of: target.key)
        let attributes: RecordedAttributes
        if let known {
            attributes = known
        } else {
            // The source refuses it, and would the merge.
            if try isProtected(target.descriptor) { throw .notPermitted }
            var status = source.withoutStore(try FileStatus(of: target.descriptor))
            if let links = stack.links(of: target.key) {
                status.links = links.count
                status.changed = max(status.changed, links.changed)
            }
            attributes = RecordedAttributes(
                status: status, extended: try allExtendedAttributes(target.descriptor))
        }
        try metadata.withLock { (_) throws(Errno) in
            if terms.changesSource, known == nil, target.reference.kind == UInt32(S_IFREG) {
                // Its size may be of a change that was made where it is, and that is not durable yet.
                commits.noteReplacing(target.reference)
            }
            try self.record(
                stack.top,
                [.reference(target.reference), .attributes(target.key, attributes)])
        }
    }

    /// The attributes of a record that `changeable` has given.
    func attributes(_ record: InodeRecord) -> RecordedAttributes {
        guard let attributes = record.contents.withLock({ $0.attributes }) else {
            preconditionFailure("a record that is to be changed has attributes")
        }
        return attributes
    }

    /// A time as the kernel would stamp a file with.
    static var now: Timestamp { .coarse }
}

extension Timestamp: Comparable {
    package static func < (left: Timestamp, right: Timestamp) -> Bool {
        (left.seconds, left.nanoseconds) < (right.seconds, right.nanoseconds)
    }
}
