internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

/// What a name in a directory of the snapshot stands for.
package struct SnapshotEntry {
    package let reference: InodeReference
    /// The attributes that the primary's inode had when the name was looked at, for `status(of:seen:)`; nil where it was
    /// not looked at.
    package let seen: FileStatus?
}

/// The primary area, but with the delta map's version of each area that has one.
///
/// How it reads beside writers, without waiting for them: look at the map; where it has nothing, read the primary,
/// and look at the map again. A writer makes the map's entry before it changes the primary, so if there is still no
/// entry, what was read is the version of the cut. Where reading the primary fails, a writer may just be taking the
/// inode away, between its change and its note of it: then the reader waits for that writer, and asks once more.
///
/// In another process than the writer's (`follower`) to look at the map is to catch up with the journal first. There a writer is
/// not waited for: by its journal an inode is detached before it is taken away, so that is not relied on while the inode is
/// still found; and whoever moves one to the graveyard need not be waited for where there are handles.
package struct OverlayView: Sendable {
    package let source: SourceTree
    package let map: DeltaMap
    /// Where the versions are that the map tells of; nil where nothing is stored, the map knowing only what is lost or given up.
    let files: DeltaFiles?
    /// nil also in another process.
    let store: DeltaStore?
    let locations: LocationTable
    /// nil in the process that writes the map.
    let follower: (any RecordFollower)?
    /// When nobody recorded what was changed; nil for a snapshot that its daemon began.
    let absence: Absence?

    init(
        source: SourceTree, map: DeltaMap, store: DeltaStore?, files: DeltaFiles?, locations: LocationTable,
        absence: Absence?, follower: (any RecordFollower)?
    ) {
        self.files = files ?? store?.files
        self.follower = follower
        self.absence = absence
        self.source = source
        self.map = map
        self.store = store
        self.locations = locations
    }

    /// The record of an inode, as it is now.
    func record(of key: InodeKey) throws(Errno) -> InodeRecord? {
        try follower?.catchUp()
        return map.record(of: key)
    }

    /// The recorded version of an area, else the primary's. Throws EIO where it is lost.
    private func version<Version>(
        of key: InodeKey,
        recorded: (borrowing InodeRecord.Contents) -> Version?,
        primary: () throws(Errno) -> Version
    ) throws(Errno) -> Version {
        func look() throws(Errno) -> Version? {
            guard let record = try record(of: key) else { return nil }
            let (version, isLost) = record.contents.withLock { (recorded($0), $0.isLost) }
            if version == nil && isLost { throw .ioError }
            return version
        }
        if let version = try look() { return version }
        let version: Version
        do throws(Errno) {
            version = try primary()
        } catch {
            guard waitForWriter(key) else { throw error }
            if let version = try look() { return version }
            let again = try primary()
            return try look() ?? again
        }
        return try look() ?? version
    }

    /// Throws EIO where what is not recorded of an inode is lost.
    func checkNotLost(_ key: InodeKey) throws(Errno) {
        if try record(of: key)?.contents.withLock({ $0.isLost }) == true { throw .ioError }
    }

    /// Waits for a writer that may be taking an inode away; false where nobody can be.
    private func waitForWriter(_ key: InodeKey) -> Bool {
        if follower != nil { return true }
        if !source.usesHandles { locations.waitForMoves() }
        guard let record = map.record(of: key) else { return !source.usesHandles }
        record.firstChange.withLock { _ in }
        return true
    }

    /// `checkNotLost` for data: nor may they have been changed before they could be read.
    func checkReadable(_ key: InodeKey) throws(Errno) {
        let isBad = try record(of: key)?.contents.withLock { $0.isLost || $0.isUnreadable }
        if isBad == true { throw .ioError }
    }

    /// In another process, after something was read of an inode: whether it was changed when nobody recorded that, in redirect
    /// at any time since the cut. (The daemon has it from the kernel.) To be asked before the map is looked at again: only
    /// what is not recorded then is doubtful.
    func wasChangedUnseen(_ descriptor: Descriptor) throws(Errno) -> Bool {
        guard follower != nil, let absence else { return false }
        return absence.includes(changeOf: try FileStatus(of: descriptor))
    }

    /// `wasChangedUnseen`, and the look, which throws EIO where that is so and nothing is recorded.
    func checkUnchanged(_ key: InodeKey, _ descriptor: Descriptor) throws(Errno) {
        if try wasChangedUnseen(descriptor), try record(of: key) == nil { throw .ioError }
    }

    // MARK: Inodes

    /// Opens the inode of the cut where it is now; nil where all that there was of it is in the record.
    package func open(
        _ reference: InodeReference, _ flags: Int32,
        find: () throws(Errno) -> Descriptor
    ) throws(Errno) -> Descriptor? {
        func isDetached() throws(Errno) -> Bool {
            try record(of: reference.key)?.contents.withLock { $0.place == .detached } == true
        }
        if follower == nil, try isDetached() { return nil }
        do throws(Errno) {
            return try openPresent(reference, flags, find: find)
        } catch {
            guard waitForWriter(reference.key) else { throw error }
            // Another process takes the inode as long as it is there (EMFILE does not say that it is not).
            if follower == nil || error == .staleNFSFileHandle, try isDetached() { return nil }
            // One that was removed beside the mount, or after it was changed there, is not kept.
            try checkNotLost(reference.key)
            return try openPresent(reference, flags, find: find)
        }
    }

    private func openPresent(
        _ reference: InodeReference, _ flags: Int32,
        find: () throws(Errno) -> Descriptor
    ) throws(Errno) -> Descriptor {
        if source.usesHandles { return try source.open(reference, flags) }
        let place = map.record(of: reference.key)?.contents.withLock { $0.place }
        if place == .graveyard, let store { return try store.openGrave(reference.key, flags) }
        let moved = try locations.open(reference.key, root: source.root)
        let found = if let moved { moved } else { try find() }
        guard InodeKey(try FileStatus(of: found)) == reference.key else {
            throw .staleNFSFileHandle
        }
        return flags & O_PATH != 0 ? found : try Descriptor.reopen(found, flags)
    }

    /// `seen`: the attributes of the primary's inode, where the caller has just looked at them.
    package func status(
        of reference: InodeReference, seen: FileStatus? = nil, _ descriptor: () throws(Errno) -> Descriptor
    ) throws(Errno) -> FileStatus {
        try version(of: reference.key) {
            $0.attributes?.status
        } primary: { () throws(Errno) in
            let status = if let seen { seen } else { try FileStatus(of: try descriptor()) }
            if absence?.includes(changeOf: status) == true { throw .ioError }
            return source.withoutStore(status)
        }
    }

    package func extendedAttributes(
        of reference: InodeReference, _ descriptor: () throws(Errno) -> Descriptor
    ) throws(Errno) -> ExtendedAttributes {
        try version(of: reference.key) {
            $0.attributes?.extended
        } primary: { () throws(Errno) in
            let inode = try descriptor()
            let extended = try allExtendedAttributes(inode)
            try checkUnchanged(reference.key, inode)
            return extended
        }
    }

    package func target(
        of reference: InodeReference, _ descriptor: () throws(Errno) -> Descriptor
    ) throws(Errno) -> [UInt8] {
        try version(of: reference.key) {
            $0.target
        } primary: { () throws(Errno) in
            let inode = try descriptor()
            let target = try readLink(inode)
            try checkUnchanged(reference.key, inode)
            return target
        }
    }

    // MARK: Names

    /// What `name` stands for in a directory; throws ENOENT where it stands for nothing. `directory` is nil where
    /// the directory is detached.
    package func entry(
        in reference: InodeReference, _ directory: Descriptor?, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> SnapshotEntry {
        let key = FileName(name)
        var seen: FileStatus?
        let entry = try version(of: reference.key) {
            $0.entries[key]
        } primary: { () throws(Errno) -> RecordedEntry in
            guard let directory else { return .absent }
            do throws(Errno) {
                let inode = try Descriptor.open(at: directory, name, O_PATH | O_NOFOLLOW)
                let status = try FileStatus(of: inode)
                if source.hides(status) { return .absent }
                if status.device != source.device {
                    return .present(InodeReference(status, handle: FileHandle()))
                }
                seen = status
                return .present(try source.reference(of: inode, status))
            } catch .noSuchFileOrDirectory {
                return .absent
            }
        }
        switch entry {
        case .absent: throw .noSuchFileOrDirectory
        case .present(let reference):
            // A name that came to be recorded meanwhile may stand for another inode than that which was seen.
            let isSame = seen.map { InodeKey($0) == reference.key } ?? false
            return SnapshotEntry(reference: reference, seen: isSame ? seen : nil)
        }
    }

    private func primaryListing(
        of reference: InodeReference, _ directory: Descriptor?
    ) throws(Errno) -> Listing {
        guard let directory else { return Listing() }
        func list() throws(Errno) -> Listing {
            var listing = Listing()
            var reader = DirectoryReader(directory)
            try reader.seek(to: 0)
            try reader.forEach { entry in
                if !entry.isDot && !source.hides(entry) {
                    listing.append(entry.name, inode: entry.inode, kind: entry.kind)
                }
            }
            return listing
        }
        do throws(Errno) {
            return try list()
        } catch {
            // Removed since it was opened: all its names are recorded by then.
            guard waitForWriter(reference.key) else { throw error }
            let record = try record(of: reference.key)
            if record?.contents.withLock({ $0.place == .detached }) == true { return Listing() }
            do throws(Errno) {
                return try list()
            } catch .noSuchFileOrDirectory {
                // For whom lists it the directory is there.
                throw .ioError
            }
        }
    }

    /// Every name in a directory, in the same order whenever it is listed, since the kernel puts what it has cached of one
    /// listing and what it reads of another together. `directory` is a descriptor opened for reading, nil where the
    /// directory is detached.
    package func listing(
        of reference: InodeReference, _ directory: Descriptor?
    ) throws(Errno) -> Listing {
        var primary = try primaryListing(of: reference, directory)
        if let directory { try checkUnchanged(reference.key, directory) }
        try checkNotLost(reference.key)
        // The names that are not recorded by now have not changed since the cut, so each was met exactly once.
        let changed = try record(of: reference.key)?.contents.withLock { $0.entries } ?? [:]
        if changed.isEmpty {
            primary.sort()
            return primary
        }
        var patched = Listing()
        primary.forEach { name, inode, kind in
            if changed[FileName(name)] == nil {
                patched.append(name, inode: inode, kind: kind)
            }
        }
        for (name, entry) in changed {
            guard case .present(let inode) = entry else { continue }
            name.withCString {
                patched.append($0, inode: inode.key.inode, kind: UInt8(inode.kind >> 12))
            }
        }
        patched.sort()
        return patched
    }
}
