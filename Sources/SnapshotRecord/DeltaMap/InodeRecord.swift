package import LinuxSystem
package import Synchronization

/// The attributes of an inode: at the cut in preserve, as applications see them in redirect.
package final class RecordedAttributes: Sendable {
    package let status: FileStatus
    package let extended: ExtendedAttributes

    package init(status: FileStatus, extended: ExtendedAttributes) {
        self.status = status
        self.extended = extended
    }
}

extension RecordedAttributes: Equatable {
    package static func == (left: RecordedAttributes, right: RecordedAttributes) -> Bool {
        left === right || left.status == right.status && left.extended == right.extended
    }
}

/// What a name stands for: at the cut in preserve, to applications in redirect.
package enum RecordedEntry: Sendable, Equatable {
    case absent
    case present(InodeReference)

    package var isPresent: Bool {
        if case .present = self { true } else { false }
    }
}

/// Where an inode is.
package enum InodePlace: UInt8, Sendable {
    /// In the source, under some name.
    case source
    /// In the graveyard: it has lost its last name, and its data serves the snapshot from there. Its link count is
    /// one higher than applications may see.
    case graveyard
    /// Gone: all that the snapshot needs of it is in the record.
    case detached
    /// Redirect: made while this layer was the top one; a real file in the store until the layer is merged.
    case store
}

/// How many names an inode has, and when it changed last.
package struct LinkCount: Sendable, Equatable {
    package var count: UInt32
    package var changed: Timestamp

    package init(count: UInt32, changed: Timestamp) {
        self.count = count
        self.changed = changed
    }
}

/// The other version of one inode, as far as it has one: of its attributes, its data and the names in it.
///
/// Two locks. `firstChange` is held by a writer while it stores an original, across I/O, so that two writers in one
/// area store it once and neither goes on before it is stored. `contents` is held only to look and to note, never
/// across I/O, so that readers do not wait for writers. `firstChange` is taken before `contents`; of several
/// records only one is locked at a time.
package final class InodeRecord: Sendable {
    package struct Contents: Sendable {
        package var attributes: RecordedAttributes?
        /// The blocks in the delta file: in preserve data as they were, holes as holes.
        package var blocks = BlockSet()
        /// Single pass: blocks that the backup had read and that have changed, or whose originals were given back. Their reads
        /// fail. None of them is in `blocks`.
        package private(set) var gone = BlockSet()
        /// Redirect: blocks that are holes, whatever delta file or primary have there. Preserve: of the `blocks` those
        /// that a journal tells to have been holes, so that no delta file is missed for them.
        package var holes = BlockSet()
        /// Redirect, of an inode that is new in this layer, or was in one that has been merged since: the names that it
        /// has, and its time of change. nil: those of the file itself. Void where there are `attributes`.
        package var links: LinkCount?
        /// Whether the block that the file ended in is among them where it was a hole: before data are added to it.
        package var knowsEnd = false
        package var place = InodePlace.source
        /// The target of a symbolic link that is detached.
        package var target: [UInt8]?
        /// The names in this directory that have changed since the cut.
        package var entries: [FileName: RecordedEntry] = [:]
        /// Data that could not be read when it was about to change: by an ordinary user's daemon, in a file that
        /// this user may not read. Nor may the reader of a snapshot.
        package var isUnreadable = false
        /// Changed beside the mount: what of it is not recorded by then is lost.
        package var isLost = false

        /// Notes that the originals of blocks are in the delta file, but for those that are gone. How many were not there.
        package mutating func insert(_ range: Range<UInt64>) -> UInt64 {
            let before = blocks.count
            if gone.isEmpty {
                blocks.insert(range)
                return blocks.count - before
            }
            var at = range.lowerBound
            while at < range.upperBound {
                let (isGone, end) = gone.run(from: at, limit: range.upperBound)
                if !isGone { blocks.insert(at..<end) }
                at = end
            }
            return blocks.count - before
        }

        /// Before blocks change that the backup has read, and that have no originals.
        package mutating func insertGone(_ range: Range<UInt64>) {
            gone.insert(range)
        }

        /// After the backup has read blocks: those with originals are gone. Which these are.
        package mutating func release(_ range: Range<UInt64>) -> [Range<UInt64>] {
            let stored = blocks.runs(in: range)
            for run in stored {
                blocks.remove(run)
                gone.insert(run)
            }
            return stored
        }

        /// The run that begins with `block` of blocks that have originals or are gone, or of those that have not changed.
        package func changedRun(from block: UInt64, limit: UInt64) -> (hasChanged: Bool, end: UInt64) {
            let (isStored, end) = blocks.run(from: block, limit: limit)
            if gone.isEmpty || isStored { return (isStored, end) }
            let (isGone, goneEnd) = gone.run(from: block, limit: end)
            return (isGone, goneEnd)
        }

        /// Whether each of these blocks has an original or is gone.
        package func haveChanged(_ range: Range<UInt64>) -> Bool {
            var at = range.lowerBound
            while at < range.upperBound {
                let (hasChanged, end) = changedRun(from: at, limit: range.upperBound)
                if !hasChanged { return false }
                at = end
            }
            return true
        }

        /// All blocks that may have changed.
        package var changedBlocks: BlockSet {
            if gone.isEmpty { return blocks }
            var all = blocks
            for run in gone.runs { all.insert(run) }
            return all
        }

        /// Of the data, what has changed: whole blocks.
        var changedBytes: UInt64 {
            (blocks.count + gone.count).multipliedReportingOverflow(by: UInt64(RecordLimits.blockBytes))
                .partialValue
        }

        /// Whether all is recorded that the snapshot needs of a file.
        package var isWhole: Bool {
            guard let status = attributes?.status else { return false }
            if !status.isRegular { return !status.isDirectory }
            let blocks = RecordLimits.blockCount(status.size)
            return self.blocks.run(from: 0, limit: blocks) == (true, blocks) || blocks == 0
        }
    }

    package let key: InodeKey
    /// nil where it was changed beside the mount alone.
    package let reference: InodeReference?
    package let firstChange = Mutex<Void>(())
    package let contents = Mutex<Contents>(Contents())

    package init(key: InodeKey, reference: InodeReference? = nil) {
        self.key = key
        self.reference = reference
    }
}
