internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// What an earlier daemon left of a redirect, taken up again before anything is served. Every step may be interrupted,
/// and is done again by the next mount (Docs/Redirect.md, «Recovery»).
package struct RedirectRecovery {
    /// What was found.
    package enum Outcome: Sendable {
        case nothing
        /// A snapshot that goes on: the primary has not changed.
        case active(Redirect, JournalHead)
        /// What is to be merged; the snapshot is over.
        case merging(Redirect)
    }

    private let store: Store
    private let source: SourceTree
    private let credentials: Credentials
    private let boot: BootIdentity
    private let bytesMax: UInt64?
    private let didBecomeInexact: @Sendable (String) -> Void

    package init(
        store: Store, source: SourceTree, credentials: Credentials, boot: BootIdentity, bytesMax: UInt64?,
        didBecomeInexact: @escaping @Sendable (String) -> Void
    ) {
        self.store = store
        self.source = source
        self.credentials = credentials
        self.boot = boot
        self.bytesMax = bytesMax
        self.didBecomeInexact = didBecomeInexact
    }

    /// A layer's journal, and the directory that it lies in.
    private struct Found {
        let number: UInt64
        let directory: Descriptor
        let scan: JournalScan
        /// Whether the machine has gone on since it was written, so that all of it counts.
        let isOfThisBoot: Bool

        /// Whether it is sealed, and all of it counts.
        var isSealed: Bool {
            guard let sealed = scan.sealedSequence else { return false }
            // Not any mark behind the seal: that of an fsync which began before it covers only what came before that.
            return isOfThisBoot || scan.through > sealed
        }
    }

    /// Throws a `RecordError` where the record cannot be used as it is: then nothing has been changed.
    package func recover() throws(RecordError) -> Outcome {
        var found = try journals()
        guard let lowest = found.first else {
            try attempt("clear", store.path) { () throws(Errno) in try clear([]) }
            return .nothing
        }
        if found.contains(where: { $0.scan.isDiscarded }) {
            try attempt("discard what is left in", store.path) { () throws(Errno) in
                try clear(found.map(\.number))
            }
            return .nothing
        }
        // What lies above a layer that is not sealed was never promised to anybody.
        let kept = lowest.isSealed ? 2 : 1
        let dropped = found.dropFirst(kept)
        found = Array(found.prefix(kept))
        var layers: [Layer] = []
        for layer in found { layers.insert(try load(layer), at: 0) }
        // Not before what is kept is known to be good.
        for layer in dropped {
            try attempt("remove", store.layerPath(layer.number)) { () throws(Errno) in
                try store.removeLayer(layer.number)
            }
        }
        // A sealed layer has one above it, which may not have come to be.
        if lowest.isSealed, layers.count == 1 {
            layers.insert(
                try attempt("make a layer in", store.path) { () throws(Errno) in
                    try Redirect.makeLayer(
                        lowest.number + 1, in: store, head(lowest.scan.head, lowest.number + 1, continued: true),
                        bytesMax: bytesMax)
                }, at: 0)
        }
        return try attempt("take up what is in", store.path) { () throws(Errno) in
            try resume(layers, found)
        }
    }

    private func resume(_ layers: [Layer], _ found: [Found]) throws(Errno) -> Outcome {
        let lowest = found[0]
        let isActive = !(lowest.scan.isSealed || lowest.scan.head.isContinued)
        let kept = try KeptFiles(directory: lowest.directory, graveyard: nil)
        let (terms, termsReason) = terms(of: kept, lowest)
        let reason = isActive ? kept.inexactReason ?? termsReason : nil
        // Until it is merged the primary is as it was at the cut: what is not, was changed while no daemon was there, or by then.
        let cut = SnapshotCut(
            source: source, store: nil, notes: lowest.directory,
            absence: isActive ? Absence(cut: lowest.scan.head.cut, end: .current, isDoubted: reason != nil) : nil,
            scope: terms.scope, didBecomeInexact: didBecomeInexact)
        let redirect = try Redirect(
            layers, cut: cut, terms: terms, store: store, credentials: credentials, boot: boot, bytesMax: bytesMax)
        if let sealed = redirect.stack.sealed {
            // A mark behind the seal of a layer of an earlier boot is what made it count.
            let isDurable = found.first.map { !$0.isOfThisBoot } ?? false
            sealed.isSealDurable.store(isDurable, ordering: .releasing)
        }
        redirect.flushLater(layers)
        try redirect.removeStrays(layers)
        if !isActive { return .merging(redirect) }
        if terms.isSinglePass, let reason {
            // What of it was changed in the primary only its map knew; times of change are not enough after a power cut.
            cut.becomeInexact(reason)
        } else if let reason {
            cut.becomeIncomplete(reason, tells: false)
        }
        return .active(redirect, lowest.scan.head)
    }

    /// What the snapshot was asked to be, and why it cannot be exact for that.
    private func terms(of kept: KeptFiles, _ layer: Found) -> (SnapshotTerms, String?) {
        guard let text = kept.terms else { return (SnapshotTerms(), nil) }
        guard let terms = SnapshotTerms(text: text) else {
            // Whatever they were, what they may bring about is reckoned with.
            let path = store.layerPath(layer.number)
            return (
                SnapshotTerms(isSinglePass: true), "what it was asked to be is not known: \(path)/terms is damaged"
            )
        }
        let lost =
            "it was for a single pass (--single-pass), and what of it was read and given up is not known any more"
        return (terms, terms.isSinglePass ? lost : nil)
    }

    // MARK: Journals

    private func journals() throws(RecordError) -> [Found] {
        var found: [Found] = []
        let numbers = try attempt("list", store.path) { () throws(Errno) in try store.layerNumbers() }
        for number in numbers {
            let path = store.layerPath(number)
            let directory = try attempt("open", path) { () throws(Errno) in try store.openLayer(number) }
            let scan = try self.scan(
                directory, path, isHighest: number == numbers.last, isOnly: numbers.count == 1)
            guard let scan else {
                // A layer that was about to begin, or has been merged.
                try attempt("remove", path) { () throws(Errno) in try store.removeLayer(number) }
                continue
            }
            guard scan.head.source == source.rootReference.key else {
                throw .damaged(file: path + "/journal", offset: 0, problem: "it is of another source")
            }
            let isOfThisBoot = scan.head.boot == boot
            if isOfThisBoot, case .torn(let offset) = scan.end, !scan.isUnfinished {
                // Nothing but a record that was being written can be torn by a kill.
                throw .damaged(file: path + "/journal", offset: offset, problem: "a record in it is damaged")
            }
            found.append(
                Found(number: number, directory: directory, scan: scan, isOfThisBoot: isOfThisBoot))
        }
        return found
    }

    /// nil where there is no journal, or one whose head was never written: by a daemon, or a machine, that ended when it
    /// was about to begin the layer, which has nothing in it then.
    private func scan(
        _ directory: Descriptor, _ path: String, isHighest: Bool, isOnly: Bool
    ) throws(RecordError) -> JournalScan? {
        do throws(RecordError) {
            return try JournalScan.read(in: directory, path: path)
        } catch {
            guard case .noHead = error, isHighest else { throw error }
            let mayBe = try attempt("read", path) { () throws(Errno) in
                if try !isUnwritten(directory) { return false }
                if try holdsOthers(directory) { return false }
                if !isOnly { return true }
                return try !store.holdsNew()
            }
            if !mayBe { throw error }
            return nil
        }
    }

    /// Whether there is more in a layer's directory than its journal, and what the snapshot was asked to be: that is made once
    /// the journal's head is durable.
    private func holdsOthers(_ directory: Descriptor) throws(Errno) -> Bool {
        var holdsOthers = false
        var reader = DirectoryReader(try Descriptor.open(at: directory, ".", O_RDONLY | O_DIRECTORY))
        try reader.forEach { entry in
            if entry.isDot || Journal.fileName.equals(entry.name) || KeptFiles.termsName.equals(entry.name) {
                return
            }
            holdsOthers = true
        }
        return holdsOthers
    }

    /// Whether a journal has no whole head: a crash came before it was written, so nothing in it counts. Any other
    /// that has none is damaged.
    private func isUnwritten(_ directory: Descriptor) throws(Errno) -> Bool {
        let file = try Journal.fileName.withCString { (name) throws(Errno) in
            try Descriptor.open(at: directory, name, O_RDONLY)
        }
        let buffer = WorkerThread.buffer(RecordLimits.copyBytesMax)
        var at: Int64 = 0
        while true {
            let count = try readFully(file, into: buffer, at: at)
            if at == 0, count < Journal.bytesMin { return true }
            if !buffer[..<count].allSatisfy({ $0 == 0 }) { return false }
            if count < buffer.count { return true }
            at += Int64(count)
        }
    }

    private func load(_ found: Found) throws(RecordError) -> Layer {
        let map = DeltaMap(isRedirect: true)
        let isWhole = found.isOfThisBoot || found.isSealed
        try found.scan.replay(isWhole ? .all : .marked, device: source.device, into: map)
        try expectFiles(of: map, found)
        let head = head(found.scan.head, found.number, continued: found.scan.head.isContinued)
        return try attempt("take up", store.layerPath(found.number)) { () throws(Errno) in
            let journal = try Journal(resuming: found.scan, in: found.directory)
            let files = DeltaFiles(in: found.directory, bytesMax: bytesMax)
            files.count(map.storedBlocks * UInt64(RecordLimits.blockBytes))
            let layer = Layer(number: found.number, map: map, files: files, journal: journal)
            if !found.isOfThisBoot {
                // Behind a power cut: first of all what does not count must never come to count by a later mark.
                try zeroTails(layer)
                try journal.compact(
                    dump: { (emit) throws(Errno) in try map.forEachChange(emit) },
                    makeDurable: { () throws(Errno) in try synchronizeFileSystem(found.directory) }, head: head)
            }
            return layer
        }
    }

    /// Throws where a file is not there that the map speaks of, or is too short: that would be served as zeros.
    private func expectFiles(of map: DeltaMap, _ found: Found) throws(RecordError) {
        let path = store.layerPath(found.number)
        for record in map.records {
            let (lastRun, isNew) = record.contents.withLock { contents -> (Range<UInt64>?, Bool) in
                let links = contents.attributes?.status.links ?? contents.links?.count ?? 0
                return (contents.blocks.runs.last, contents.place == .store && links > 0)
            }
            let name = record.key.fileName
            if let lastRun {
                guard let status = try status(of: name, in: found.directory, path) else {
                    throw .incomplete(file: "\(path)/\(name)", problem: "is not there")
                }
                // Of the last block at least one byte was written.
                if status.size <= RecordLimits.offset(ofBlock: lastRun.upperBound - 1) {
                    throw .incomplete(
                        file: "\(path)/\(name)", problem: "has only \(status.size) bytes, which are too few")
                }
            }
            // A merge takes the new files of a sealed layer away.
            guard isNew, !found.isSealed else { continue }
            let isThere = try attempt("look for \(name) in", store.newPath) { () throws(Errno) in
                try store.hasNew(name)
            }
            if !isThere {
                throw .incomplete(file: "\(store.newPath)/\(name)", problem: "is not there")
            }
        }
    }

    private func status(
        of name: FileName, in directory: Descriptor, _ path: String
    ) throws(RecordError) -> FileStatus? {
        try attempt("look for \(name) in", path) { () throws(Errno) in
            do throws(Errno) {
                return try name.withCString { (name) throws(Errno) in try FileStatus(at: directory, name) }
            } catch .noSuchFileOrDirectory {
                return nil
            }
        }
    }

    private func head(_ old: JournalHead, _ number: UInt64, continued: Bool) -> JournalHead {
        var head = old
        head.layer = number
        head.isContinued = continued
        head.boot = boot
        return head
    }

    /// What lies behind a file's size in its last block may be of a later moment than the size is.
    private func zeroTails(_ layer: Layer) throws(Errno) {
        for record in layer.map.records {
            let (size, isStored) = record.contents.withLock { contents -> (Int64, Bool) in
                guard let status = contents.attributes?.status, status.isRegular else { return (0, false) }
                return (status.size, contents.blocks.contains(UInt64(status.size / RecordLimits.blockBytes)))
            }
            let tail = size % RecordLimits.blockBytes
            guard isStored, tail > 0, let file = try layer.files.existingFile(of: record.key) else { continue }
            let zeros = WorkerThread.buffer(Int(RecordLimits.blockBytes - tail))
            zeros.initializeMemory(as: UInt8.self, repeating: 0)
            try writeFully(file, UnsafeRawBufferPointer(zeros), at: size)
        }
    }

    /// Removes layers, and what they had made.
    private func clear(_ numbers: [UInt64]) throws(Errno) {
        try credentials.assumeDaemon()
        try store.removeLeftovers()
        for number in numbers { try store.removeLayer(number) }
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

extension Redirect {
    /// Of which inodes the data have to be flushed with the next mark, only the daemon that is gone knew: of all.
    fileprivate func flushLater(_ layers: [Layer]) {
        for layer in layers {
            for record in layer.map.records {
                guard let reference = record.reference, reference.kind == UInt32(S_IFREG) else { continue }
                commits.noteReplacing(reference)
            }
        }
        commits.noteChange()
    }

    /// Removes from the directory of new files what no layer knows, at once; and what has no name any more once a mark
    /// covers that, since a power cut may lose the record that took it away.
    fileprivate func removeStrays(_ layers: [Layer]) throws(Errno) {
        try credentials.assumeDaemon()
        var known: Set<FileName> = []
        for layer in layers {
            for record in layer.map.records {
                let (isKept, named) = record.contents.withLock { contents in
                    let named = contents.entries.values.compactMap { entry -> InodeKey? in
                        if case .present(let reference) = entry { reference.key } else { nil }
                    }
                    return (contents.place == .store || contents.links != nil, named)
                }
                if isKept { known.insert(record.key.fileName) }
                // Made without a name before the cut or in the layer below, and named since.
                for key in named { known.insert(key.fileName) }
            }
        }
        var strays: [FileName] = []
        var reader = DirectoryReader(try Descriptor.open(at: newFiles, ".", O_RDONLY | O_DIRECTORY))
        try reader.forEach { entry in
            let name = FileName(entry.name)
            if !entry.isDot && !known.contains(name) { strays.append(name) }
        }
        for name in strays { try store.removeNew(name) }
        let top = stack.top
        for record in top.map.records {
            let isGone = record.contents.withLock { contents in
                contents.place == .store
                    && (contents.links?.count ?? contents.attributes?.status.links) == 0
            }
            guard isGone else { continue }
            commits.afterMark(covering: top.journal.nextSequence) { [self] in
                do throws(Errno) { try store.removeNew(record.key.fileName) } catch { /* With the layer, then. */
                }
            }
        }
    }
}
