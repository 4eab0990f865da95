internal import Glibc
internal import LinuxSystem
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

// Durability: fsync(2) of applications, and a mark now and then.
extension Redirect {
    /// fsync(2) of a file, or, with nil, of a directory: returns when what was done before is durable, and the file's
    /// data. Not called inside the gate.
    package func synchronize(_ reference: InodeReference?) throws(Errno) {
        try credentials.assumeDaemon()
        do throws(Errno) {
            try commits.commit(reference, at: moment) { (moment, _, inodes) throws(Errno) in
                try mark(moment, inodes)
            }
        } catch {
            if let reference { _ = untold.take(reference.key) }
            throw error
        }
        if let reference, let error = untold.take(reference.key) { throw error }
    }

    /// Makes everything durable.
    package func synchronizeAll() throws(Errno) {
        try credentials.assumeDaemon()
        try commits.commit(nil, isForAll: true, at: moment) { (moment, _, inodes) throws(Errno) in
            try mark(moment, inodes)
        }
    }

    /// Makes everything durable that is not; called now and then. Nothing where there is nothing new.
    package func synchronizeChanges() throws(Errno) {
        if commits.hasChanges { try synchronizeAll() }
    }

    /// A journal this long is written anew, as the map is now; and then once it has grown threefold.
    private static let compactBytesMin: UInt64 = 8 << 20

    /// Keeps the journal in proportion to the map. By the thread that is ended before anything is sealed.
    package func compactJournal() throws(Errno) {
        let layer = stack.top
        let before = layer.compactedBytes.load(ordering: .relaxed)
        guard layer.journal.bytes > max(Self.compactBytesMin, before * 3) else { return }
        try credentials.assumeDaemon()
        try compact(layer) { () throws(Errno) in try synchronizeAll() }
    }

    private typealias Moment = (stack: LayerStack, through: UInt64)

    /// Where a mark is to go, and through which sequence it will count. What was recorded before has been noted as to be
    /// flushed by then, since both are done with `metadata` held; what comes later is not covered.
    private func moment() -> Moment {
        let stack = stack
        return metadata.withLock { _ in (stack, stack.top.journal.nextSequence) }
    }

    /// Flushes, then writes the mark. Returns the sequence through which it counts.
    private func mark(_ moment: Moment, _ inodes: [InodeReference]) throws(Errno) -> UInt64 {
        let (stack, through) = moment
        try makeBelowDurable(stack)
        try flush(inodes, stack)
        try mark(stack.top, through: through, inodes.map(\.key))
        return through
    }

    private func mark(_ layer: Layer, through: UInt64, _ inodes: [InodeKey]) throws(Errno) {
        try layer.files.synchronizeNames()
        try synchronizeNewNames()
        _ = try layer.journal.append(.mark(through: through, inodes: inodes))
        try layer.journal.synchronize()
    }

    /// Of pages that could not be written the kernel tells once, so that a journal whose sync has failed makes nothing durable any
    /// more (`Journal.synchronize`). Then this writes it anew, with all that it stands for durable. Not by a thread that commits.
    package func renewJournal() throws(Errno) { try renew(stack.top) }

    private func renew(_ layer: Layer) throws(Errno) {
        guard layer.journal.hasFailed else { return }
        try credentials.assumeDaemon()
        try compact(layer) { () throws(Errno) in
            try synchronizeSource()
            if try FileStatus(of: layer.files.directory).device != source.device {
                try synchronizeFileSystem(layer.files.directory)
            }
        }
    }

    private func compact(_ layer: Layer, makeDurable: () throws(Errno) -> Void) throws(Errno) {
        try layer.journal.compact(
            dump: { (emit) throws(Errno) in
                // What has been appended is in the map by then.
                metadata.withLock { _ in }
                try layer.map.forEachChange(emit)
            }, makeDurable: makeDurable)
        layer.compactedBytes.store(layer.journal.bytes, ordering: .relaxed)
    }

    /// Makes the names of files durable that were made since the last time.
    private func synchronizeNewNames() throws(Errno) {
        guard hasMade.exchange(false, ordering: .sequentiallyConsistent) else { return }
        do throws(Errno) {
            try LinuxSystem.synchronizeAll(newFiles)
        } catch {
            hasMade.store(true, ordering: .sequentiallyConsistent)
            throw error
        }
    }

    /// The primary of the cut, or the sealed layer, before the first mark of the one above.
    private func makeBelowDurable(_ stack: LayerStack) throws(Errno) {
        if stack.top.isBelowDurable.load(ordering: .acquiring) { return }
        if let sealed = stack.sealed {
            try makeSealDurableAtOnce(sealed)
        } else {
            try synchronizeSource()
        }
        try store.synchronize()
        stack.top.isBelowDurable.store(true, ordering: .releasing)
    }

    func synchronizeSource() throws(Errno) {
        try synchronizeFileSystem(source.root)
    }

    /// Makes all of a sealed layer durable, with a mark behind the seal: what is not yet. By the thread that merges.
    func makeSealDurable(_ sealed: Layer) throws(Errno) {
        try renew(sealed)
        try commits.commit(nil, isForAll: true, at: {}) { (_, _, inodes) throws(Errno) in
            if sealed.isSealDurable.load(ordering: .acquiring) {
                // By an fsync in the layer above; but what is to be flushed for the next mark there has been taken with this.
                try flush(inodes, stack)
                return 0
            }
            if !sealed.isBelowDurable.load(ordering: .acquiring) {
                try synchronizeSource()
                try store.synchronize()
            }
            try flush(inodes, stack)
            try mark(sealed, through: sealed.journal.nextSequence, [])
            sealed.isSealDurable.store(true, ordering: .releasing)
            return 0
        }
    }

    /// The same inside of a commit of the layer above, which knows only what that is for.
    private func makeSealDurableAtOnce(_ sealed: Layer) throws(Errno) {
        if sealed.isSealDurable.load(ordering: .acquiring) { return }
        try synchronizeSource()
        if try FileStatus(of: sealed.files.directory).device != source.device {
            try synchronizeFileSystem(sealed.files.directory)
        }
        // Behind the seal, so that all of the layer counts.
        try mark(sealed, through: sealed.journal.nextSequence, [])
        sealed.isSealDurable.store(true, ordering: .releasing)
    }

    /// So many inodes are flushed one by one; more cost less together.
    private static let flushedMax = 32

    private func flush(_ inodes: [InodeReference], _ stack: LayerStack) throws(Errno) {
        if inodes.count > Self.flushedMax {
            do throws(Errno) {
                try synchronizeSource()
                let store = stack.top.files.directory
                if try FileStatus(of: store).device != source.device { try synchronizeFileSystem(store) }
            } catch {
                for reference in inodes { untold.note(error, of: reference.key) }
                throw error
            }
            return
        }
        for reference in inodes {
            try untold.noting(reference.key) { () throws(Errno) in try flush(reference, stack) }
        }
    }

    private func flush(_ reference: InodeReference, _ stack: LayerStack) throws(Errno) {
        for layer in stack.layers {
            if let file = try layer.files.existingFile(of: reference.key) {
                try synchronizeData(file)
            }
        }
        // A new file is its own, and in some snapshots there are data in the primary.
        guard reference.kind == UInt32(S_IFREG), terms.changesSource || stack.isNew(reference.key) else { return }
        do throws(Errno) {
            let file = try source.open(reference, O_RDONLY | O_NONBLOCK)
            try LinuxSystem.synchronizeAll(file)
        } catch .staleNFSFileHandle {
            // It has no name any more, and nobody has it open.
        }
    }
}

/// Errors of syncs that no application has been told. The kernel tells of what could not be written once, and it may be the daemon's
/// own thread that it tells: then the next fsync of the file does. Safe for use by all threads; its lock is taken after all others.
final class UntoldErrors: Sendable {
    private let errors = Mutex<[InodeKey: Errno]>([:])

    func note(_ error: Errno, of key: InodeKey) { errors.withLock { $0[key] = error } }

    /// Calls `body`, and notes what it throws.
    func noting(_ key: InodeKey, _ body: () throws(Errno) -> Void) throws(Errno) {
        do throws(Errno) {
            try body()
        } catch {
            note(error, of: key)
            throw error
        }
    }

    /// The error that is to be told now, once.
    func take(_ key: InodeKey) -> Errno? { errors.withLock { $0.removeValue(forKey: key) } }
}
