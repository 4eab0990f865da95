internal import Glibc
internal import LinuxSystem
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// Lists what changed since the cut: the record of a snapshot, told by paths.
///
/// A record knows its inode, not where that is. So first it is found where each is now: by its handle and the path that
/// the kernel knows, or, where there are no handles or it knows none, by one walk of the source for all of them.
/// What the names in changed directories stand for now, beside what they stood for at the cut, gives what was created,
/// removed, moved and linked; and where a directory was at the cut, by which a path of then is put together.
///
/// Changes go on meanwhile: each entry is true of some moment during the call. Nothing is locked across I/O, and the
/// gate is not passed.
package struct ChangeFinder: ~Copyable {
    private let preserve: Preserve
    private let source: SourceTree
    private let records: [InodeRecord]
    private var places: NowPlaces
    /// The first name that an inode has lost since the cut, or has again.
    private var placeAtCut: [InodeKey: Place] = [:]
    private var cutPaths: [InodeKey: [UInt8]] = [:]
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
        /// Recorded, and the same as at the cut again.
        var kept: Place?
    }

    package init(_ preserve: Preserve) {
        self.preserve = preserve
        source = preserve.source
        records = preserve.map.records.filter { preserve.cut.isOfScope($0.contents.withLock { $0.attributes }) }
        places = NowPlaces(source: preserve.source, map: preserve.map)
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
        for (key, names) in names where preserve.map.isBorn(key) {
            for place in names.gained { try tell(created(key, place)) }
        }
        for record in records where !preserve.map.isBorn(record.key) {
            for change in changes(of: record) { try tell(change) }
        }
    }

    private func check() throws(ChangesFailure) {
        do throws(Errno) {
            try preserve.end.check()
        } catch {
            throw error == .ioError ? .overflowed : .ended
        }
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

    private mutating func compare(
        _ place: Place, _ entry: RecordedEntry, _ now: FileStatus?, _ born: inout [Place]
    ) {
        let key = now.map { InodeKey($0) }
        var before: InodeKey?
        if case .present(let reference) = entry { before = reference.key }
        if before == key {
            if let key { names[key, default: Names()].kept = place }
            return
        }
        entriesChanged[place.parent, default: 0] += 1
        if let before {
            names[before, default: Names()].lost.append(place)
            if placeAtCut[before] == nil { placeAtCut[before] = place }
        }
        if let key, let now { gain(key, now, place, &born) }
    }

    private mutating func gain(_ key: InodeKey, _ now: FileStatus, _ place: Place, _ born: inout [Place]) {
        names[key, default: Names()].gained.append(place)
        if !now.isDirectory { places.noteGained(key, place) }
        if now.isDirectory && now.device == source.device {
            places.note(key, place)
            if preserve.map.isBorn(key) { born.append(place) }
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
            gain(InodeKey(status), status, Place(parent: key, name: name), &born)
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
        places.path(of: place.parent).map { Self.join($0, place.name) }
    }

    private mutating func pathAtCut(_ place: Place) -> [UInt8]? {
        directoryAtCut(place.parent).map { Self.join($0, place.name) }
    }

    /// The path that a directory had at the cut.
    private mutating func directoryAtCut(_ key: InodeKey) -> [UInt8]? {
        if key == source.rootReference.key { return [] }
        if let known = cutPaths[key] { return known }
        // Where it has not been moved, it is where it was, below a directory that may have been.
        guard let place = placeAtCut[key] ?? places.place(of: key) else { return nil }
        let path = pathAtCut(place)
        cutPaths[key] = path
        return path
    }

    // MARK: Changes

    private mutating func created(_ key: InodeKey, _ place: Place) -> Change {
        var change = Change(key: key)
        change.kinds = [.created]
        change.path = pathNow(place)
        if let parent = places.open(place.parent), let status = Self.lookUp(parent, place.name) {
            change.fileKind = status.kind
            change.bytes = status.isRegular ? status.size : 0
        }
        return change
    }

    private mutating func changes(of record: InodeRecord) -> [Change] {
        let contents = record.contents.withLock { $0 }
        let names = names[record.key] ?? Names()
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
            if new == nil && isFile { item.bytes = contents.attributes?.status.size ?? 0 }
            list.append(item)
        }
        let content = describe(
            record, contents, change(nil), isNamed: !names.lost.isEmpty || !names.gained.isEmpty)
        let stable = keepsName(contents, names) ? names.kept ?? places.place(of: record.key) : nil
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
    private func keepsName(_ contents: InodeRecord.Contents, _ names: Names) -> Bool {
        if names.kept != nil { return true }
        guard let status = contents.attributes?.status else { return true }
        return names.lost.count < (status.isDirectory ? 1 : Int(status.links))
    }

    /// What changed in an inode itself. `isNamed`: what its names tell is reason enough for its new times.
    private func describe(
        _ record: InodeRecord, _ contents: InodeRecord.Contents, _ empty: Change, isNamed: Bool
    ) -> Change {
        var change = empty
        if contents.isLost { change.kinds.append(.pastMount) }
        if let entries = entriesChanged[record.key] {
            change.kinds.append(.entries)
            change.entries = entries
        }
        guard let before = contents.attributes, let opened = places.openInode(record) else { return change }
        do throws(Errno) {
            let now = try FileStatus(of: opened)
            let names = try differences(before, now, opened)
            let size = before.status.size
            if now.isRegular {
                change.ranges = Self.ranges(contents.changedBlocks, size: size, now: now.size)
                change.bytes = change.ranges.reduce(0) { $0 + Int64($1.count) }
                if !change.ranges.isEmpty || contents.isUnreadable { change.kinds.insert(.data, at: 0) }
            }
            change.attributes = names
            if now.modified != before.status.modified && change.kinds.isEmpty && !isNamed {
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

    private func differences(
        _ before: RecordedAttributes, _ now: FileStatus, _ opened: Descriptor
    ) throws(Errno) -> [String] {
        var names: [String] = []
        if now.mode != before.status.mode { names.append("mode") }
        if now.user != before.status.user { names.append("owner") }
        if now.group != before.status.group { names.append("group") }
        if try allExtendedAttributes(opened).differs(from: before.extended) { names.append("xattrs") }
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
