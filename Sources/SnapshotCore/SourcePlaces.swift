internal import Glibc
internal import LinuxSystem
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// Where inodes are in the source, by parent and name. A directory has one place; of a file's names one is kept that the
/// record has too.
struct SourcePlaces {
    private typealias Place = ChangeFinder.Place

    private let source: SourceTree
    private let map: DeltaMap
    private var places: [InodeKey: ChangeFinder.Place] = [:]
    /// Names that the record does not have, to open what has no handle.
    private var gained: [InodeKey: ChangeFinder.Place] = [:]
    private var references: [InodeKey: InodeReference] = [:]
    /// The last directory opened: names of one directory come together.
    private var lastOpened: (key: InodeKey, descriptor: Descriptor)?

    /// Bounds how deep a way is followed.
    private static let depthMax = 4096

    init(source: SourceTree, map: DeltaMap) {
        self.source = source
        self.map = map
    }

    private var rootKey: InodeKey { source.rootReference.key }

    // MARK: Finding

    /// Finds recorded inodes that are in the source.
    mutating func find(_ records: [InodeRecord]) {
        let rootPath = pathKnown(of: source.root) ?? []
        var missing: Set<InodeKey> = []
        for record in records where record.key != rootKey {
            if let reference = record.reference { references[record.key] = reference }
            let place = record.contents.withLock { $0.place }
            // Made since the cut, in redirect: it is in the store.
            if place == .store { continue }
            // One in the graveyard may keep a name in a source without handles.
            if place == .detached || place == .graveyard && source.usesHandles { continue }
            if !findByHandle(record, below: rootPath) { missing.insert(record.key) }
        }
        if !missing.isEmpty { walk(for: missing) }
    }

    private func pathKnown(of descriptor: Descriptor) -> [UInt8]? {
        do throws(Errno) {
            return try linkTarget(of: descriptor)
        } catch {
            return nil
        }
    }

    /// Whether the kernel knows where an inode is, and it is there.
    private mutating func findByHandle(_ record: InodeRecord, below root: [UInt8]) -> Bool {
        guard source.usesHandles, let reference = record.reference else { return false }
        do throws(Errno) {
            let inode = try source.open(reference, O_PATH)
            guard let path = pathKnown(of: inode) else { return false }
            let slash = UInt8(ascii: "/")
            let prefix = root == [slash] ? [] : root
            guard path.starts(with: prefix), path.count > prefix.count, path[prefix.count] == slash else {
                return false
            }
            return try follow(
                path[prefix.count...].split(separator: slash).map { FileName(bytes: $0) }, to: record.key)
        } catch {
            return error == .staleNFSFileHandle  // Gone: nowhere to be found.
        }
    }

    /// Notes the places on a way from the root, if it leads to the inode.
    private mutating func follow(_ names: [FileName], to key: InodeKey) throws(Errno) -> Bool {
        var way: [(InodeKey, ChangeFinder.Place)] = []
        var (at, parent) = (source.root, rootKey)
        for name in names {
            at = try name.withCString { (string) throws(Errno) in
                try Descriptor.open(at: at, string, O_PATH | O_NOFOLLOW)
            }
            let status = try FileStatus(of: at)
            let next = InodeKey(status)
            way.append((next, Place(parent: parent, name: name)))
            parent = next
        }
        guard parent == key, let last = way.last else { return false }
        let status = try FileStatus(of: at)
        if !status.isDirectory && !isRecorded(last.1, key) { return false }
        for (key, place) in way { places[key] = place }
        return true
    }

    /// Whether a name stands for the inode to the record too.
    private func isRecorded(_ place: ChangeFinder.Place, _ key: InodeKey) -> Bool {
        if map.isBorn(place.parent) { return false }
        let entry = map.record(of: place.parent)?.contents.withLock { $0.entries[place.name] }
        return switch entry {
        case nil: true
        case .absent?: false
        case .present(let reference)?: reference.key == key
        }
    }

    /// Looks for inodes in all of the source.
    private mutating func walk(for keys: Set<InodeKey>) {
        var left = keys
        let numbers = Set(keys.map(\.inode))
        walk(source.root, rootKey, numbers, &left)
    }

    private mutating func walk(
        _ directory: Descriptor, _ key: InodeKey, _ numbers: Set<UInt64>, _ left: inout Set<InodeKey>
    ) {
        var below: [FileName] = []
        var found: [FileName] = []
        do throws(Errno) {
            var reader = DirectoryReader(try Descriptor.reopenQuietly(directory, O_RDONLY | O_DIRECTORY))
            try reader.forEach { entry in
                if entry.isDot || source.hides(entry) { return }
                let name = FileName(entry.name)
                if entry.kind == UInt8(DT_DIR) || entry.kind == UInt8(DT_UNKNOWN) {
                    below.append(name)
                } else if numbers.contains(entry.inode) {
                    found.append(name)
                }
            }
        } catch {
            // It may have gone, or an ordinary user may not read it: what is in it is not found.
        }
        for name in found + below {
            if left.isEmpty { return }
            guard let opened = Self.open(directory, name), opened.status.device == source.device else { continue }
            let next = InodeKey(opened.status)
            let place = Place(parent: key, name: name)
            if opened.status.isDirectory {
                places[next] = place
                left.remove(next)
                walk(opened.descriptor, next, numbers, &left)
            } else if left.contains(next) && isRecorded(place, next) {
                places[next] = place
                left.remove(next)
            }
        }
    }

    private static func open(
        _ directory: Descriptor, _ name: FileName
    ) -> (descriptor: Descriptor, status: FileStatus)? {
        do throws(Errno) {
            let descriptor = try name.withCString { (string) throws(Errno) in
                try Descriptor.open(at: directory, string, O_PATH | O_NOFOLLOW)
            }
            return (descriptor, try FileStatus(of: descriptor))
        } catch {
            return nil
        }
    }

    // MARK: Using

    /// Notes where a directory is.
    mutating func note(_ key: InodeKey, _ place: ChangeFinder.Place) {
        places[key] = place
    }

    /// Notes a name that an inode has here and not in the record.
    mutating func noteGained(_ key: InodeKey, _ place: ChangeFinder.Place) {
        if !source.usesHandles { gained[key] = place }
    }

    func place(of key: InodeKey) -> ChangeFinder.Place? { places[key] }

    /// The path of a directory.
    func path(of key: InodeKey) -> [UInt8]? {
        guard let names = way(to: key) else { return nil }
        return Array(names.map(\.bytes).joined(separator: [UInt8(ascii: "/")]))
    }

    private func way(to key: InodeKey) -> [FileName]? {
        var names: [FileName] = []
        var at = key
        while at != rootKey {
            guard let place = places[at] ?? gained[at], names.count < Self.depthMax else { return nil }
            names.append(place.name)
            at = place.parent
        }
        return names.reversed()
    }

    /// An O_PATH descriptor of a directory, where it is still there.
    mutating func open(_ key: InodeKey) -> Descriptor? {
        if let lastOpened, lastOpened.key == key { return lastOpened.descriptor }
        guard let descriptor = reach(key) else { return nil }
        lastOpened = (key, descriptor)
        return descriptor
    }

    mutating func open(_ place: ChangeFinder.Place) -> (descriptor: Descriptor, key: InodeKey)? {
        guard let parent = open(place.parent), let opened = Self.open(parent, place.name) else { return nil }
        return (opened.descriptor, InodeKey(opened.status))
    }

    /// An O_PATH descriptor of a recorded inode that is still in the source.
    func openInode(_ record: InodeRecord) -> Descriptor? { reach(record.key) }

    private func reach(_ key: InodeKey) -> Descriptor? {
        if key == rootKey { return source.root }
        if source.usesHandles, let reference = references[key] {
            do throws(Errno) {
                return try source.open(reference, O_PATH)
            } catch {
                return nil  // Gone.
            }
        }
        guard let names = way(to: key) else { return nil }
        var at = source.root
        for name in names {
            guard let next = Self.open(at, name) else { return nil }
            at = next.descriptor
        }
        do throws(Errno) {
            return InodeKey(try FileStatus(of: at)) == key ? at : nil
        } catch {
            return nil
        }
    }
}
