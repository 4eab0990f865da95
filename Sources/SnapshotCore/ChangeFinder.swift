internal import Glibc
internal import LinuxSystem
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// Lists what changed since the cut: the record of a snapshot, told by paths.
///
/// A record knows its inode, not where that is. So first it is found where each is now: by its handle and the path that
/// the kernel knows, or, where there are no handles or it knows none, by one walk of the source for all of them.
/// What the names in changed directories stand for there, beside what they stand for in the record, gives what was created,
/// removed, moved and linked; and where a directory is to the record, by which a path of its side is put together.
///
/// The two embodiments are each other's mirror image: in preserve the source is what is now, and the record what was; in
/// redirect the source is what was, and the record what is now. So everything is found in the source and compared with the
/// record, and which of the two is earlier is asked where a difference is given its name.
///
/// Changes go on meanwhile: each entry is true of some moment during the call. Nothing is locked across I/O, and the
/// gate is not passed.
package struct ChangeFinder: ~Copyable {
    private let source: SourceTree
    private let map: DeltaMap
    private let end: SnapshotEnd
    /// Whether the record is what was, and the source what is now: in preserve. In redirect it is the other way round.
    private let recordsThen: Bool
    /// In redirect, what was changed beside the mount, or in the source for a single pass; preserve has that in its records.
    private let beside: DeltaMap?
    private let records: [InodeRecord]
    /// Inodes with records that are of no concern to a snapshot of some users' files.
    private let hidden: Set<InodeKey>
    private var places: SourcePlaces
    /// The first name that an inode has to the record and not in the source.
    private var recordedPlaces: [InodeKey: Place] = [:]
    private var recordedPaths: [InodeKey: [UInt8]] = [:]
    private var names: [InodeKey: Names] = [:]
    private var entriesChanged: [InodeKey: Int] = [:]

    struct Place: Hashable {
        let parent: InodeKey
        let name: FileName
    }

    /// The names that one inode has lost and gained.
    private struct Names {
        var lost: [Place] = []
        var gained: [Place] = []
        /// Recorded, and the same on both sides.
        var kept: Place?
    }

    package init(_ preserve: Preserve) {
        self.init(preserve.cut, preserve.map, recordsThen: true, where: preserve.cut.isOfScope)
    }

    /// Of what is redirected while a snapshot is active.
    package init(_ redirect: Redirect) {
        self.init(redirect.cut, redirect.stack.top.map, recordsThen: false, where: redirect.isOfScope)
    }

    private init(
        _ cut: SnapshotCut, _ map: DeltaMap, recordsThen: Bool, where isOfScope: (InodeRecord) -> Bool
    ) {
        source = cut.source
        self.map = map
        end = cut.end
        self.recordsThen = recordsThen
        let all = map.records
        let known = cut.scope == nil ? all : all.filter(isOfScope)
        hidden = cut.scope == nil ? [] : Set(all.map(\.key)).subtracting(known.map(\.key))
        if recordsThen {
            beside = nil
            records = known
        } else {
            beside = cut.map
            records = known + cut.map.records.filter { map.record(of: $0.key) == nil }
        }
        places = SourcePlaces(source: cut.source, map: map)
    }

    /// Hands each change to `emit`, which answers false where no more is wanted.
    package mutating func forEach(_ emit: (Change) -> Bool) throws(ChangesFailure) {
        func tell(_ change: Change) throws(ChangesFailure) {
            try check()
            if !emit(change) { throw .abandoned }
        }
        try check()
        places.find(records)
        try compareNames()
        for (key, names) in names where isNew(key) && !hidden.contains(key) {
            for place in names.gained { try tell(created(key, place)) }
        }
        for record in records where !isNew(record.key) {
            for change in changes(of: record) { try tell(change) }
        }
    }

    private func check() throws(ChangesFailure) {
        do throws(Errno) {
            try end.check()
        } catch {
            throw error == .ioError ? .overflowed : .ended
        }
    }

    /// Whether an inode was made since the cut.
    private func isNew(_ key: InodeKey) -> Bool {
        if recordsThen { return map.isBorn(key) }
        return map.record(of: key)?.contents.withLock { $0.place } == .store
    }

    // MARK: Names

    private mutating func compareNames() throws(ChangesFailure) {
        var born: [Place] = []
        for record in records {
            let entries = record.contents.withLock { $0.entries }
            if entries.isEmpty { continue }
            try check()
            let directory = places.open(record.key)
            for (name, entry) in entries {
                let place = Place(parent: record.key, name: name)
                let now = directory.flatMap { Self.lookUp($0, name) }
                compare(place, entry, now, &born)
            }
        }
        // What is in directories that were made since is new, or has been moved there.
        while let place = born.popLast() {
            try check()
            guard let opened = places.open(place) else { continue }
            list(opened.descriptor, opened.key, &born)
        }
    }

    /// `found`: what a name stands for in the source.
    private mutating func compare(
        _ place: Place, _ entry: RecordedEntry, _ found: FileStatus?, _ born: inout [Place]
    ) {
        let key = found.map { InodeKey($0) }
        var recorded: InodeKey?
        if case .present(let reference) = entry { recorded = reference.key }
        if recorded == key {
            if let key { names[key, default: Names()].kept = place }
            return
        }
        entriesChanged[place.parent, default: 0] += 1
        if let recorded {
            note(recorded, place, isLost: recordsThen)
            if recordedPlaces[recorded] == nil { recordedPlaces[recorded] = place }
        }
        if let key, let found { meet(key, found, place, &born) }
    }

    private mutating func note(_ key: InodeKey, _ place: Place, isLost: Bool) {
        if isLost {
            names[key, default: Names()].lost.append(place)
        } else {
            names[key, default: Names()].gained.append(place)
        }
    }

    /// A name that the source has, and the record not.
    private mutating func meet(_ key: InodeKey, _ found: FileStatus, _ place: Place, _ born: inout [Place]) {
        note(key, place, isLost: !recordsThen)
        if !found.isDirectory { places.noteGained(key, place) }
        if found.isDirectory && found.device == source.device {
            places.note(key, place)
            if map.isBorn(key) { born.append(place) }
        }
    }

    /// Takes what is in a new directory for gained.
    private mutating func list(_ directory: Descriptor, _ key: InodeKey, _ born: inout [Place]) {
        var found: [(FileName, FileStatus)] = []
        do throws(Errno) {
            var reader = DirectoryReader(try Descriptor.reopenQuietly(directory, O_RDONLY | O_DIRECTORY))
            try reader.forEach { entry in
                if entry.isDot { return }
                let name = FileName(entry.name)
                if let status = Self.lookUp(directory, name) { found.append((name, status)) }
            }
        } catch {
            // Gone, or not to be read: what was listed by then is told.
        }
        for (name, status) in found {
            meet(InodeKey(status), status, Place(parent: key, name: name), &born)
        }
    }

    private static func lookUp(_ directory: Descriptor, _ name: FileName) -> FileStatus? {
        do throws(Errno) {
            return try name.withCString { (string) throws(Errno) in try FileStatus(at: directory, string) }
        } catch {
            return nil
        }
    }

    // MARK: Paths

    private static func join(_ directory: [UInt8], _ name: FileName) -> [UInt8] {
        directory.isEmpty ? name.bytes : directory + [UInt8(ascii: "/")] + name.bytes
    }

    private mutating func pathNow(_ place: Place) -> [UInt8]? {
        recordsThen ? sourcePath(place) : recordedPath(place)
    }

    private mutating func pathAtCut(_ place: Place) -> [UInt8]? {
        recordsThen ? recordedPath(place) : sourcePath(place)
    }

    private func sourcePath(_ place: Place) -> [UInt8]? {
        places.path(of: place.parent).map { Self.join($0, place.name) }
    }

    private mutating func recordedPath(_ place: Place) -> [UInt8]? {
        recordedDirectory(place.parent).map { Self.join($0, place.name) }
    }

    /// The path that a directory has to the record.
    private mutating func recordedDirectory(_ key: InodeKey) -> [UInt8]? {
        if key == source.rootReference.key { return [] }
        if let known = recordedPaths[key] { return known }
        // Where the record has no other place for it, it is where the source has it, below a directory that may be elsewhere.
        guard let place = recordedPlaces[key] ?? places.place(of: key) else { return nil }
        let path = recordedPath(place)
        recordedPaths[key] = path
        return path
    }

    // MARK: Changes

    private mutating func created(_ key: InodeKey, _ place: Place) -> Change {
        var change = Change(key: key)
        change.kinds = [.created]
        change.path = pathNow(place)
        if let status = statusOfNew(key, place) {
            change.fileKind = status.kind
            change.bytes = status.isRegular ? status.size : 0
        }
        return change
    }

    private mutating func statusOfNew(_ key: InodeKey, _ place: Place) -> FileStatus? {
        if recordsThen {
            return places.open(place.parent).flatMap { Self.lookUp($0, place.name) }
        }
        return map.record(of: key).flatMap { statusInSource($0) }
    }

    private func statusInSource(_ record: InodeRecord) -> FileStatus? {
        guard let opened = places.openInode(record) else { return nil }
        do throws(Errno) {
            return try FileStatus(of: opened)
        } catch {
            return nil
        }
    }

    /// The status that an inode had at the cut.
    private func statusAtCut(_ record: InodeRecord, _ contents: InodeRecord.Contents) -> FileStatus? {
        recordsThen ? contents.attributes?.status : statusInSource(record)
    }

    private mutating func changes(of record: InodeRecord) -> [Change] {
        let contents = record.contents.withLock { $0 }
        let names = names[record.key] ?? Names()
        let before = statusAtCut(record, contents)
        var list: [Change] = []
        var gained = names.gained[...]
        func change(_ kind: Change.Kind?) -> Change {
            var change = Change(key: record.key)
            change.kinds = kind.map { [$0] } ?? []
            change.fileKind = record.reference?.kind ?? contents.attributes?.status.kind ?? 0
            return change
        }
        for place in names.lost {
            let new = gained.popFirst()
            var item = change(new == nil ? .removed : .renamed)
            item.pathAtCut = pathAtCut(place)
            item.path = new.flatMap { pathNow($0) }
            let isFile = item.fileKind == UInt32(S_IFREG)
            if new == nil && isFile { item.bytes = before?.size ?? 0 }
            list.append(item)
        }
        let content = describe(
            record, contents, change(nil), isNamed: !names.lost.isEmpty || !names.gained.isEmpty)
        let stable = keepsName(before, names) ? names.kept ?? places.place(of: record.key) : nil
        for place in gained {
            var item = change(.linked)
            item.pathAtCut = stable.flatMap { pathAtCut($0) }
            item.path = pathNow(place)
            list.append(item)
        }
        if content.kinds.isEmpty { return list }
        if let index = list.firstIndex(where: { $0.kinds == [.renamed] }) {
            list[index].take(content)
        } else if contents.place == .source || stable != nil || list.isEmpty {
            var item = content
            if record.key == source.rootReference.key {
                (item.pathAtCut, item.path) = ([], [])
            } else {
                item.pathAtCut = stable.flatMap { pathAtCut($0) }
                item.path = stable.flatMap { pathNow($0) }
            }
            // A removed file's content is gone with it.
            if item.path != nil || list.isEmpty { list.append(item) }
        }
        return list
    }

    /// Whether an inode has a name of the cut still.
    private func keepsName(_ before: FileStatus?, _ names: Names) -> Bool {
        if names.kept != nil { return true }
        guard let before else { return true }
        return names.lost.count < (before.isDirectory ? 1 : Int(before.links))
    }

    /// What changed in an inode itself. `isNamed`: what its names tell is reason enough for its new times.
    private func describe(
        _ record: InodeRecord, _ contents: InodeRecord.Contents, _ empty: Change, isNamed: Bool
    ) -> Change {
        var change = empty
        if contents.isLost || beside?.record(of: record.key)?.contents.withLock({ $0.isLost }) == true {
            change.kinds.append(.pastMount)
        }
        if let entries = entriesChanged[record.key] {
            change.kinds.append(.entries)
            change.entries = entries
        }
        guard let recorded = contents.attributes, let opened = places.openInode(record) else { return change }
        do throws(Errno) {
            let found = try FileStatus(of: opened)
            // In a single pass a part of the changes is in the source already, and the cut's own map has what was there.
            let (atCut, gone) =
                beside?.record(of: record.key)?.contents.withLock { ($0.attributes?.status, $0.gone) }
                ?? (nil, BlockSet())
            let (before, now) = recordsThen ? (recorded.status, found) : (atCut ?? found, recorded.status)
            if now.isRegular {
                var blocks =
                    recordsThen ? contents.changedBlocks : contents.redirectedBlocks(before.size, now: now.size)
                for run in gone.runs { blocks.insert(run) }
                change.ranges = Self.ranges(blocks, size: before.size, now: now.size)
                change.bytes = change.ranges.reduce(0) { $0 + Int64($1.count) }
                if !change.ranges.isEmpty || contents.isUnreadable { change.kinds.insert(.data, at: 0) }
            }
            change.attributes = Self.differences(before, now)
            if try allExtendedAttributes(opened).differs(from: recorded.extended) {
                change.attributes.append("xattrs")
            }
            if now.modified != before.modified && change.kinds.isEmpty && !isNamed {
                change.attributes.append("mtime")
            }
            if change.attributes.isEmpty && change.kinds.isEmpty && !isNamed && contents.entries.isEmpty {
                change.attributes.append("ctime")
            }
            if !change.attributes.isEmpty { change.kinds.append(.attributes) }
        } catch {
            // Gone meanwhile: what was found by then is told.
        }
        return change
    }

    private static func differences(_ before: FileStatus, _ now: FileStatus) -> [String] {
        var names: [String] = []
        if now.mode != before.mode { names.append("mode") }
        if now.user != before.user { names.append("owner") }
        if now.group != before.group { names.append("group") }
        return names
    }

    /// The ranges of bytes that may differ: recorded blocks, as far as the file went at the cut, and what is behind that
    /// now.
    static func ranges(_ blocks: BlockSet, size: Int64, now: Int64) -> [Range<Int64>] {
        var ranges: [Range<Int64>] = []
        let end = RecordLimits.blockCount(size)
        var at: UInt64 = 0
        while at < end {
            let (isPresent, next) = blocks.run(from: at, limit: end)
            if isPresent {
                ranges.append(RecordLimits.offset(ofBlock: at)..<min(RecordLimits.offset(ofBlock: next), size))
            }
            at = next
        }
        guard now > size else { return ranges }
        if let last = ranges.last, last.upperBound == size {
            ranges[ranges.count - 1] = last.lowerBound..<now
        } else {
            ranges.append(size..<now)
        }
        return ranges
    }
}

extension Change {
    fileprivate mutating func take(_ content: Change) {
        kinds += content.kinds
        ranges = content.ranges
        bytes = content.bytes
        attributes = content.attributes
        entries = content.entries
    }
}

extension InodeRecord.Contents {
    /// Redirect: the blocks that are elsewhere than in the primary, or nowhere any more. Where a file was cut off, from
    /// there on, as preserve stores them.
    fileprivate func redirectedBlocks(_ size: Int64, now: Int64) -> BlockSet {
        var all = blocks
        for run in holes.runs { all.insert(run) }
        if now < size {
            all.insert(UInt64(now / RecordLimits.blockBytes)..<RecordLimits.blockCount(size))
        }
        return all
    }
}
