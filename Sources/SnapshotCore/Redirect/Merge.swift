internal import Glibc
internal import LinuxSystem
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// How far a merge is.
package struct MergeProgress: Sendable, Equatable {
    package var bytesDone: UInt64 = 0
    package var bytesTotal: UInt64 = 0

    package init() {}
}

/// Merges one sealed layer into the primary (the patent's restoration phase), while applications go on above it.
///
/// The layer does not change; each step looks at what is there and does what is missing. So after a crash all of it may
/// be done again, and there is nothing to remember. The order is what makes that so:
/// 1. take: what a name stands for and should not goes, to `staging/` where the layer names it elsewhere, and
///    directories always, so that swaps and cycles come out right;
/// 2. settle: that is made durable, or a power cut could leave two directories in each other;
/// 3. put: names get what they stand for, from `staging/` and `new/`;
/// 4. clear: what is left there;
/// 5. data, then attributes of files; 6. attributes of directories, whose times the names have changed.
///
/// One thread; no lock is held, but `metadata` in one place of `clear`.
struct Merge {
    private let redirect: Redirect
    private let layer: Layer
    /// The layer that applications write to meanwhile; nil where nobody does.
    private let above: Layer?
    /// Opens an inode that has no name any more, if somebody has it open.
    private let openUnnamed: (InodeReference) -> Descriptor?
    private let report: (MergeProgress) -> Void
    private var progress = MergeProgress()
    private let records: [InodeRecord]
    /// How many names of each inode the layer holds, and of those how many have not been put yet.
    private var names: [InodeKey: Int] = [:]
    private var left: [InodeKey: Int] = [:]
    /// Whether anything was taken away.
    private var hasTaken = false
    /// Blocks that have been copied and still take space in the delta.
    private var copied: [(key: InodeKey, blocks: Range<UInt64>)] = []

    private var source: SourceTree { redirect.source }

    init(
        _ redirect: Redirect, _ layer: Layer, above: Layer?,
        openUnnamed: @escaping (InodeReference) -> Descriptor?, report: @escaping (MergeProgress) -> Void
    ) {
        self.redirect = redirect
        self.layer = layer
        self.above = above
        self.openUnnamed = openUnnamed
        self.report = report
        records = layer.map.records
        for record in records {
            for case .present(let reference) in record.contents.withLock({ $0.entries.values }) {
                names[reference.key, default: 0] += 1
            }
            progress.bytesTotal += Self.weight(record)
        }
        left = names
    }

    /// What the merge of a record amounts to: its data, and a block for each name.
    private static func weight(_ record: InodeRecord) -> UInt64 {
        record.contents.withLock { contents in
            (contents.blocks.count + UInt64(contents.entries.count)) * UInt64(RecordLimits.blockBytes)
        }
    }

    private mutating func didBytes(_ number: UInt64) {
        progress.bytesDone += number
        report(progress)
    }

    /// Returns when the primary holds all of the layer, not yet durably.
    mutating func run() throws(Errno) {
        try redirect.credentials.assumeDaemon()
        report(progress)
        try forEachName { (merge, directory, name, entry) throws(Errno) in
            try merge.take(directory, name, entry)
        }
        if hasTaken { try makeDurable() }
        try forEachName { (merge, directory, name, entry) throws(Errno) in
            try merge.put(directory, name, entry)
            merge.didBytes(UInt64(RecordLimits.blockBytes))
        }
        try clear()
        for record in records { try mergeFile(record) }
        for record in records { try mergeDirectory(record) }
    }

    /// Up to so many inodes are made durable one by one: all of a file system may have much that is not of the layer.
    private static let recordsMax = 64

    /// Returns when what the steps so far did is durable.
    func makeDurable() throws(Errno) {
        func isSynchronizable(_ record: InodeRecord) -> Bool {
            record.reference?.kind == UInt32(S_IFREG) || record.reference?.kind == UInt32(S_IFDIR)
        }
        guard records.count <= Self.recordsMax, records.allSatisfy(isSynchronizable) else {
            return try redirect.synchronizeSource()
        }
        for record in records {
            guard let reference = record.reference,
                let inode = try open(reference, O_RDONLY | O_NONBLOCK | O_NOATIME)
            else { continue }
            try LinuxSystem.synchronizeAll(inode)
        }
        try LinuxSystem.synchronizeAll(redirect.staging)
        try LinuxSystem.synchronizeAll(redirect.newFiles)
    }

    private mutating func forEachName(
        _ body: (inout Merge, Descriptor, UnsafePointer<CChar>, RecordedEntry) throws(Errno) -> Void
    ) throws(Errno) {
        for record in records {
            let entries = record.contents.withLock { $0.entries }
            if entries.isEmpty { continue }
            guard let reference = record.reference, let directory = try open(reference, O_PATH | O_DIRECTORY)
            else { continue }
            for (name, entry) in entries {
                try name.withCString { (string) throws(Errno) in
                    try Steps.step("merge name") { () throws(Errno) in
                        try body(&self, directory, string, entry)
                    }
                }
            }
        }
    }

    /// Opens an inode wherever it is; nil where it is gone: merged, and removed, by an earlier attempt.
    private func open(_ reference: InodeReference, _ flags: Int32) throws(Errno) -> Descriptor? {
        do throws(Errno) {
            return try source.open(reference, flags)
        } catch .staleNFSFileHandle {
            guard let unnamed = openUnnamed(reference) else { return nil }
            return flags & O_PATH != 0 ? unnamed : try Descriptor.reopen(unnamed, flags)
        }
    }

    // MARK: Names

    private func status(
        _ directory: Descriptor, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> FileStatus? {
        do throws(Errno) {
            return try FileStatus(at: directory, name)
        } catch .noSuchFileOrDirectory {
            return nil
        }
    }

    private func isNew(_ key: InodeKey) -> Bool {
        layer.contents(of: key) { $0.place == .store } == true
    }

    private mutating func take(
        _ directory: Descriptor, _ name: UnsafePointer<CChar>, _ entry: RecordedEntry
    ) throws(Errno) {
        guard let status = try status(directory, name), !source.hides(status) else { return }
        let key = InodeKey(status)
        if case .present(let wanted) = entry {
            if wanted.key == key { return }
            // A new file takes the place of another by one rename, later.
            let replaces =
                isNew(wanted.key) && wanted.kind != UInt32(S_IFDIR) && !status.isDirectory && names[key] == nil
            if replaces { return }
        }
        hasTaken = true
        try key.fileName.withCString { (staged) throws(Errno) in
            let isStaged = try self.status(redirect.staging, staged) != nil
            if !isStaged && (names[key] != nil || status.isDirectory) {
                try rename(at: directory, name, to: redirect.staging, staged)
            } else {
                try unlink(at: directory, name)
            }
        }
    }

    private mutating func put(
        _ directory: Descriptor, _ name: UnsafePointer<CChar>, _ entry: RecordedEntry
    ) throws(Errno) {
        guard case .present(let wanted) = entry else { return }
        let isLast = left[wanted.key] == 1
        left[wanted.key, default: 1] -= 1
        if let there = try status(directory, name), InodeKey(there) == wanted.key { return }
        let mayRename = isLast || wanted.kind == UInt32(S_IFDIR)
        let isPut = try wanted.key.fileName.withCString { (stored) throws(Errno) in
            for place in [redirect.staging, redirect.newFiles] {
                guard let status = try status(place, stored), InodeKey(status) == wanted.key else { continue }
                if mayRename {
                    try rename(at: place, stored, to: directory, name)
                } else {
                    try link(at: place, stored, over: directory, name)
                }
                return true
            }
            return false
        }
        if isPut { return }
        // It has another name, where it has always been, or where an earlier attempt has put it.
        guard let inode = try open(wanted, O_PATH) else { throw .staleNFSFileHandle }
        try LinuxSystem.link(inode, at: directory, name)
    }

    /// link(2) of a name in the store, where a file may be that is to be replaced.
    private func link(
        at place: Descriptor, _ stored: UnsafePointer<CChar>, over directory: Descriptor,
        _ name: UnsafePointer<CChar>
    ) throws(Errno) {
        do throws(Errno) {
            try LinuxSystem.link(at: place, stored, to: directory, name)
        } catch .fileExists {
            try redirect.temporaryName().withCString { (temporary) throws(Errno) in
                try LinuxSystem.link(at: place, stored, to: redirect.staging, temporary)
                try rename(at: redirect.staging, temporary, to: directory, name)
            }
        }
    }

    /// What is left in the store of inodes that the layer names, or that lost their last name in it.
    private func clear() throws(Errno) {
        try redirect.emptyStaging()
        for record in records where record.contents.withLock({ $0.place == .store }) {
            try record.key.fileName.withCString { (name) throws(Errno) in
                guard try status(redirect.newFiles, name) != nil else { return }
                try redirect.metadata.withLock { (_) throws(Errno) in
                    // One of which the next layer says anything waits for that: it may be named there, or have been by a
                    // record that is durable while the one that took the name away is not.
                    if names[record.key] == nil, above?.map.record(of: record.key) != nil { return }
                    do throws(Errno) {
                        try unlink(at: redirect.newFiles, name)
                    } catch .isDirectory {
                        try unlink(at: redirect.newFiles, name, AT_REMOVEDIR)
                    }
                }
            }
        }
    }

    // MARK: Data and attributes

    private mutating func mergeFile(_ record: InodeRecord) throws(Errno) {
        let contents = record.contents.withLock { $0 }
        guard let attributes = contents.attributes, !attributes.status.isDirectory,
            let reference = record.reference
        else { return }
        guard let inode = try open(reference, O_PATH) else { return }
        if attributes.status.isRegular {
            let isResized = try FileStatus(of: inode).size != attributes.status.size
            if isResized || !contents.blocks.isEmpty || !contents.holes.isEmpty {
                let file = try Descriptor.reopen(inode, O_RDWR | O_NONBLOCK | O_NOATIME)
                try mergeData(record.key, contents, attributes.status, to: file)
            }
        }
        try Steps.step("merge attributes") { () throws(Errno) in
            try Self.apply(attributes, to: inode)
        }
    }

    private mutating func mergeDirectory(_ record: InodeRecord) throws(Errno) {
        guard let attributes = record.contents.withLock({ $0.attributes }), attributes.status.isDirectory,
            let reference = record.reference, let inode = try open(reference, O_PATH)
        else { return }
        try Steps.step("merge attributes") { () throws(Errno) in
            try Self.apply(attributes, to: inode)
        }
    }

    private mutating func mergeData(
        _ key: InodeKey, _ contents: InodeRecord.Contents, _ status: FileStatus, to file: Descriptor
    ) throws(Errno) {
        let size = status.size
        if try FileStatus(of: file).size != size {
            try Steps.step("merge size") { () throws(Errno) in try truncate(file, to: size) }
        }
        for run in contents.holes.runs {
            let start = RecordLimits.offset(ofBlock: run.lowerBound)
            let end = min(RecordLimits.offset(ofBlock: run.upperBound), size)
            if start >= end { continue }
            try Steps.step("merge hole") { () throws(Errno) in try Self.punch(file, start..<end) }
        }
        guard let delta = try layer.files.existingFile(of: key) else { return }
        for run in contents.blocks.runs {
            let start = RecordLimits.offset(ofBlock: run.lowerBound)
            let end = min(RecordLimits.offset(ofBlock: run.upperBound), size)
            if start < end { try copy(key, delta, to: file, start..<end) }
        }
    }

    /// Small ranges through a buffer, since each clone splits the file's extents; large ones are cloned. Where the primary
    /// has no space left, the delta's is given back, of what has been copied by then.
    private mutating func copy(
        _ key: InodeKey, _ delta: Descriptor, to file: Descriptor, _ range: Range<Int64>
    ) throws(Errno) {
        if range.count >= RecordLimits.cloneBytesMin, Self.clone(delta, to: file, range) {
            return didBytes(UInt64(range.count))
        }
        var at = range.lowerBound
        var lengthMax = RecordLimits.copyBytesMax
        while at < range.upperBound {
            let length = min(Int(range.upperBound - at), lengthMax)
            do throws(Errno) {
                try copy(delta, to: file, at: at, length)
            } catch {
                guard error == .noSpace || error == .diskQuotaExceeded else { throw error }
                if try giveBack() { continue }
                // Nothing can be given back: by smaller pieces, as long as there are any.
                guard lengthMax > Int(RecordLimits.blockBytes) else { throw error }
                lengthMax = max(lengthMax / 8, Int(RecordLimits.blockBytes))
                continue
            }
            // Whole blocks: the last one of a file is whole where the file ends.
            let first = UInt64(at / RecordLimits.blockBytes)
            at += Int64(length)
            copied.append((key, first..<RecordLimits.blockCount(at)))
            didBytes(UInt64(length))
        }
    }

    /// Gives the space of blocks back that have been copied: once the primary has them durably, and the layer's journal
    /// says that it has. Whether there were any.
    private mutating func giveBack() throws(Errno) -> Bool {
        if copied.isEmpty { return false }
        try redirect.synchronizeSource()
        _ = try layer.journal.append(.changes(copied.map { .merged($0.key, $0.blocks) }))
        try layer.journal.synchronize()
        for (key, blocks) in copied {
            layer.map.apply(.merged(key, blocks))
            guard let delta = try layer.files.existingFile(of: key) else { continue }
            let start = RecordLimits.offset(ofBlock: blocks.lowerBound)
            let length = RecordLimits.offset(ofBlock: blocks.upperBound) - start
            try allocate(
                delta, mode: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset: start, length: length)
            layer.files.release(UInt64(length))
        }
        copied = []
        // Freed blocks are there for others once that is durable.
        try redirect.synchronizeSource()
        return true
    }

    private func copy(
        _ delta: Descriptor, to file: Descriptor, at: Int64, _ length: Int
    ) throws(Errno) {
        let buffer = WorkerThread.buffer(length)
        let count = try readFully(delta, into: buffer, at: at)
        if count < length {
            // A power cut has taken the end of the delta file, which no mark had named.
            UnsafeMutableRawBufferPointer(rebasing: buffer[count...])
                .initializeMemory(as: UInt8.self, repeating: 0)
        }
        try Steps.step("merge data") { () throws(Errno) in
            try writeFully(file, UnsafeRawBufferPointer(buffer), at: at)
        }
    }

    private static func clone(_ delta: Descriptor, to file: Descriptor, _ range: Range<Int64>) -> Bool {
        do throws(Errno) {
            // The file may end within the last block.
            try cloneRange(delta, to: file, range)
            return true
        } catch {
            // No reflink here, or not for this range: it is copied, which says what is wrong if something is.
            return false
        }
    }

    private static func punch(_ file: Descriptor, _ range: Range<Int64>) throws(Errno) {
        do throws(Errno) {
            try allocate(
                file, mode: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset: range.lowerBound,
                length: Int64(range.count))
        } catch .notSupportedOnSocket {
            let zeros = WorkerThread.buffer(min(range.count, RecordLimits.copyBytesMax))
            zeros.initializeMemory(as: UInt8.self, repeating: 0)
            var at = range.lowerBound
            while at < range.upperBound {
                let count = min(zeros.count, Int(range.upperBound - at))
                try writeFully(file, UnsafeRawBufferPointer(rebasing: zeros[..<count]), at: at)
                at += Int64(count)
            }
        }
    }

    /// Gives an inode these attributes, as far as it has others.
    static func apply(_ attributes: RecordedAttributes, to inode: Descriptor) throws(Errno) {
        let wanted = attributes.status
        var now = try FileStatus(of: inode)
        if now.user != wanted.user || now.group != wanted.group {
            try changeOwner(inode, user: wanted.user, group: wanted.group)
        }
        let present = try allExtendedAttributes(inode)
        for name in present.values.keys where attributes.extended.values[name] == nil {
            if attributes.extended.unreadable.contains(name) { continue }
            try name.withCString { (string) throws(Errno) in
                do throws(Errno) {
                    try removeExtendedAttribute(inode, string)
                } catch .noData {
                    // Gone with another: the owner's change takes capabilities, for one.
                }
            }
        }
        // Capabilities last: changes of owner and mode take them.
        let capability = FileName("security.capability")
        func set(_ name: FileName) throws(Errno) {
            guard let value = attributes.extended.values[name], present.values[name] != value || name == capability
            else { return }
            try name.withCString { (string) throws(Errno) in
                try value.withUnsafeBytesTyped { (bytes) throws(Errno) in
                    try setExtendedAttribute(inode, string, bytes, 0)
                }
            }
        }
        for name in attributes.extended.values.keys where name != capability { try set(name) }
        now = try FileStatus(of: inode)
        if !wanted.isSymbolicLink, now.mode & 0o7777 != wanted.mode & 0o7777 {
            try changeMode(inode, wanted.mode & 0o7777)
        }
        try set(capability)
        now = try FileStatus(of: inode)
        if now.modified != wanted.modified || now.accessed != wanted.accessed {
            try changeTimes(inode, accessed: wanted.accessed, modified: wanted.modified)
        }
    }
}

extension Redirect {
    /// Removes what is in `staging/`: files, and directories, which are empty by now.
    func emptyStaging() throws(Errno) {
        var more = true
        var kept: Set<FileName> = []
        while more {
            // Removed while listed: some file systems then pass entries over, so until a pass finds nothing.
            more = false
            var reader = DirectoryReader(try Descriptor.open(at: staging, ".", O_RDONLY | O_DIRECTORY))
            try reader.forEach { (entry) throws(Errno) in
                if entry.isDot || kept.contains(FileName(entry.name)) { return }
                do throws(Errno) {
                    do throws(Errno) {
                        try LinuxSystem.unlink(at: staging, entry.name)
                    } catch .isDirectory {
                        try LinuxSystem.unlink(at: staging, entry.name, AT_REMOVEDIR)
                    }
                    more = true
                } catch .directoryNotEmpty {
                    // Somebody has put something into it past the mount: that is not ours to remove.
                    kept.insert(FileName(entry.name))
                }
            }
        }
    }
}
