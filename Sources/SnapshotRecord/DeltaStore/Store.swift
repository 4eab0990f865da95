internal import Glibc
package import LinuxSystem
package import SystemPackage

/// Why a store cannot be used, in words for the user.
package enum StoreError: Error {
    case inUse(path: String)
    case wrongStore(path: String, found: String)
    case damaged(file: String, problem: String)
    case system(Errno, action: String, path: String)
}

/// The directory in which fusesnap keeps the other version of what changes, and the graveyard, which is always on
/// the source's own device.
///
/// Layout: `format` (what this is and of which source), `lock` (held while in use), `snapshot/` (delta files of the
/// active snapshot, by inode). The graveyard is `SOURCE/.fusesnap/graveyard/`. In redirect `layer-N/` (delta files and
/// journal of layer N), and always in the source `new/` (files made since the cut) and `staging/` (what a merge is
/// moving). Where the store is elsewhere, the source's directory holds only what must be there. Everything is readable by
/// the daemon's user only.
package final class Store: Sendable {
    package static let defaultName = FileName(".fusesnap")
    private static let formatName = FileName("format")
    private static let lockName = FileName("lock")
    static let snapshotName = FileName("snapshot")
    static let graveyardName = FileName("graveyard")
    private static let newName = FileName("new")
    private static let stagingName = FileName("staging")
    private static let layerPrefix = "layer-"

    package let path: String
    /// The store's own directory.
    let directory: Descriptor
    /// The directory `.fusesnap` of the source: the store itself, unless that is elsewhere.
    let companion: Descriptor
    private let companionPath: String
    /// What must not be seen in the mount.
    package let hidden: [InodeKey]
    private let locks: [Descriptor]
    private let source: Descriptor
    /// Whether `init` made the store's directory elsewhere, to be removed by `close`.
    private let madeDirectory: Bool

    /// Opens the store of `source`, making it where it does not exist, and takes it for this process.
    ///
    /// `path` nil is the default place. `sourcePath` is noted in the store for people. What a daemon that was killed
    /// left of a snapshot is discarded; `note` gets a line on it.
    package init(
        source: Descriptor, sourcePath: String, path: String?, note: (String) -> Void
    ) throws(StoreError) {
        let defaultPath = sourcePath + "/" + Self.defaultName.description
        self.path = path ?? defaultPath
        self.source = source
        let times = try Self.attempt("read the attributes of", sourcePath) { () throws(Errno) in
            try FileStatus(of: source)
        }
        let identity = InodeKey(times)
        if let path {
            // Somebody else's store is refused before anything is made in the source.
            (directory, madeDirectory) = try Self.openDirectory(
                at: .workingDirectory, FileName(path), path: path)
            let lock = try Self.takeLock(in: directory, path: path)
            try Self.checkFormat(of: directory, path: path, sourcePath: sourcePath, identity)
            // One daemon for a store, and one for a source, wherever its store is.
            if let own = try Self.openCompanion(source, defaultPath, times) {
                companion = own
                locks = [lock, try Self.takeLock(in: own, path: defaultPath)]
                try Self.checkFormat(of: own, path: defaultPath, sourcePath: sourcePath, identity)
            } else {
                companion = directory
                locks = [lock]
            }
        } else {
            guard let own = try Self.openCompanion(source, defaultPath, times) else {
                throw .system(.readOnlyFileSystem, action: "make the store", path: defaultPath)
            }
            (directory, companion, madeDirectory) = (own, own, false)
            locks = [try Self.takeLock(in: own, path: defaultPath)]
            try Self.checkFormat(of: own, path: defaultPath, sourcePath: sourcePath, identity)
        }
        companionPath = companion === directory ? self.path : defaultPath
        hidden = try Self.attempt("read the attributes of", self.path) {
            [companion, directory] () throws(Errno) -> [InodeKey] in
            // On another device the same number means another file.
            try [FileStatus(of: companion), FileStatus(of: directory)]
                .filter { $0.device == times.device }.map { InodeKey($0) }
        }
        try discardLeftover(note)
    }

    /// Opens or makes the directory in the source, which keeps its times; nil where the source is read-only, so that
    /// nothing is ever buried.
    private static func openCompanion(
        _ source: Descriptor, _ path: String, _ before: FileStatus
    ) throws(StoreError) -> Descriptor? {
        do throws(StoreError) {
            let (companion, made) = try openDirectory(at: source, defaultName, path: path)
            if made {
                // Only the status change of the user's directory cannot be undone.
                try attempt("restore the times of the directory above", path) { () throws(Errno) in
                    try changeTimes(source, accessed: before.accessed, modified: before.modified)
                }
            }
            return companion
        } catch {
            guard case .system(.readOnlyFileSystem, _, _) = error else { throw error }
            return nil
        }
    }

    /// Removes what an idle store leaves and its directories, if this process made them and nothing else is in them.
    package func close() {
        do throws(Errno) {
            // What is not merged is taken up by the next mount.
            guard try layerNumbers().isEmpty else { return }
            let times = try FileStatus(of: source)
            let leftovers = [
                (directory, Self.formatName), (directory, Self.lockName),
                (companion, Self.formatName), (companion, Self.lockName),
            ]
            // First what without the format would be taken for somebody else's.
            for name in [Self.graveyardName, Self.newName, Self.stagingName] {
                try removeIfPresent(companion, name, AT_REMOVEDIR)
            }
            for (parent, name) in leftovers { try removeIfPresent(parent, name, 0) }
            // By its name it is ours, also where an earlier daemon that was killed made it.
            try removeIfPresent(source, Self.defaultName, AT_REMOVEDIR)
            try changeTimes(source, accessed: times.accessed, modified: times.modified)
            if madeDirectory {
                try removeIfPresent(nil, FileName(path), AT_REMOVEDIR)
            }
        } catch {
            // Something is in the way (a file of the user's in the store): it stays, and the next mount takes it up.
        }
    }

    private func removeIfPresent(
        _ parent: Descriptor?, _ name: FileName, _ flags: Int32
    ) throws(Errno) {
        do throws(Errno) {
            try name.withCString { (string) throws(Errno) in
                try unlink(at: parent ?? .workingDirectory, string, flags)
            }
        } catch .noSuchFileOrDirectory {
            // Not there: what was asked for.
        }
    }

    // MARK: Opening

    private static func attempt<Result>(
        _ action: String, _ path: String, _ body: () throws(Errno) -> Result
    ) throws(StoreError) -> Result {
        do throws(Errno) {
            return try body()
        } catch {
            throw .system(error, action: action, path: path)
        }
    }

    /// Opens a directory, made for the daemon's user alone where it does not exist; whether it was made.
    private static func openDirectory(
        at parent: Descriptor, _ name: FileName, path: String
    ) throws(StoreError) -> (Descriptor, made: Bool) {
        try attempt("make the store", path) { () throws(Errno) in
            try name.withCString { (string) throws(Errno) in
                var made = true
                do throws(Errno) {
                    try makeDirectory(at: parent, string, mode: 0o700)
                } catch .fileExists {
                    made = false
                }
                let flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW
                return (try Descriptor.open(at: parent, string, flags), made)
            }
        }
    }

    /// Refuses a directory that holds something and is not a store: what lies there is the user's, whatever its
    /// name, and nothing of it may be discarded.
    private static func refuseForeign(_ directory: Descriptor, path: String) throws(StoreError) {
        var isStore = false
        var others = false
        try attempt("list", path) { () throws(Errno) in
            let opened = try Descriptor.open(at: directory, ".", O_RDONLY | O_DIRECTORY)
            var reader = DirectoryReader(opened)
            try reader.forEach { entry in
                if formatName.equals(entry.name) { isStore = true }
                // The lock alone: left by a daemon that was killed before it wrote the format.
                if !entry.isDot && !lockName.equals(entry.name) { others = true }
            }
        }
        if others && !isStore {
            throw .damaged(
                file: path, problem: "it is not empty, and not a fusesnap store: nothing was changed in it")
        }
    }

    private static func takeLock(
        in directory: Descriptor, path: String
    ) throws(StoreError) -> Descriptor {
        try refuseForeign(directory, path: path)
        let file = try attempt("open the lock of the store", path) { () throws(Errno) in
            try lockName.withCString { (string) throws(Errno) in
                try Descriptor.open(at: directory, string, O_RDWR | O_CREAT, mode: 0o600)
            }
        }
        if flock(file.raw, LOCK_EX | LOCK_NB) != 0 {
            let error = currentErrno()
            if error == .resourceTemporarilyUnavailable { throw .inUse(path: path) }
            throw .system(error, action: "lock the store", path: path)
        }
        return file
    }

    /// The first line says what this is, the second names the source's root by number and birth.
    private static func checkFormat(
        of directory: Descriptor, path: String, sourcePath: String, _ identity: InodeKey
    ) throws(StoreError) {
        let expected = "fusesnap store 1\nsource \(identity.fileName) \(sourcePath)\n"
        let file = path + "/format"
        let opened = try attempt("open", file) { () throws(Errno) in
            try formatName.withCString { (string) throws(Errno) in
                try Descriptor.open(at: directory, string, O_RDWR | O_CREAT, mode: 0o600)
            }
        }
        let found = try attempt("read", file) { () throws(Errno) in
            let room = UnsafeMutableRawBufferPointer.allocate(byteCount: 8192, alignment: 1)
            defer { room.deallocate() }
            let count = try readFully(opened, into: room, at: 0)
            return String(decoding: room[..<count], as: UTF8.self)
        }
        // Written in part: by a daemon, or a machine, that ended while it made the store.
        if expected.hasPrefix(found) && found != expected || found.utf8.allSatisfy({ $0 == 0 }) {
            try attempt("write", file) { () throws(Errno) in
                var text = expected
                try text.withUTF8 { $0.count == 0 ? nil : UnsafeRawBufferPointer($0) }
                    .map { (bytes) throws(Errno) in try writeFully(opened, bytes, at: 0) }
            }
            return
        }
        let lines = found.split(separator: "\n")
        guard lines.count == 2, lines[0].hasPrefix("fusesnap store ") else {
            throw .damaged(file: file, problem: "it is not the head of a fusesnap store")
        }
        guard lines[0] == "fusesnap store 1" else {
            throw .damaged(file: file, problem: "it was written by a later version (\(lines[0]))")
        }
        guard lines[1].hasPrefix("source \(identity.fileName) ") else {
            throw .wrongStore(path: path, found: String(lines[1]))
        }
    }

    /// Throws where a file of the source cannot be cloned into the store: EOPNOTSUPP, EXDEV, ...
    package func checkClones() throws(Errno) {
        let flags = O_TMPFILE | O_RDWR
        let original = try Descriptor.open(at: companion, ".", flags, mode: 0o600)
        let block = WorkerThread.buffer(Int(RecordLimits.blockBytes))
        block.initializeMemory(as: UInt8.self, repeating: 1)
        try writeFully(original, UnsafeRawBufferPointer(block), at: 0)
        let clone = try Descriptor.open(at: directory, ".", flags, mode: 0o600)
        try cloneRange(original, to: clone, 0..<RecordLimits.blockBytes)
    }

    // MARK: Layers

    private static func layerName(_ number: UInt64) -> FileName { FileName(layerPrefix + String(number)) }

    /// Of the layers that are there, ascending.
    package func layerNumbers() throws(Errno) -> [UInt64] {
        var numbers: [UInt64] = []
        var reader = DirectoryReader(try Descriptor.open(at: directory, ".", O_RDONLY | O_DIRECTORY))
        try reader.forEach { entry in
            let name = String(cString: entry.name)
            if name.hasPrefix(Self.layerPrefix), let number = UInt64(name.dropFirst(Self.layerPrefix.count)) {
                numbers.append(number)
            }
        }
        return numbers.sorted()
    }

    /// The path of a layer's directory, for messages.
    package func layerPath(_ number: UInt64) -> String { "\(path)/\(Self.layerPrefix)\(number)" }

    /// The directory of a layer, which is there.
    package func openLayer(_ number: UInt64) throws(Errno) -> Descriptor {
        try Self.layerName(number).withCString { (name) throws(Errno) in
            try Descriptor.open(at: directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
        }
    }

    /// Makes the directory of a new layer.
    package func makeLayer(_ number: UInt64) throws(Errno) -> Descriptor {
        try Self.layerName(number).withCString { (name) throws(Errno) in
            try makeDirectory(at: directory, name, mode: 0o700)
        }
        return try openLayer(number)
    }

    /// Removes the journal of a layer, durably: it is none from then on.
    package func removeJournal(_ number: UInt64) throws(Errno) {
        let opened: Descriptor
        do throws(Errno) {
            opened = try openLayer(number)
        } catch .noSuchFileOrDirectory {
            return
        }
        try removeIfPresent(opened, Journal.fileName, 0)
        try synchronizeAll(opened)
    }

    /// Removes a layer: first its journal, then its delta files.
    package func removeLayer(_ number: UInt64) throws(Errno) {
        try removeJournal(number)
        _ = try removeTree(at: directory, Self.layerName(number))
    }

    /// The path of the directory of new files, for messages.
    package var newPath: String { "\(companionPath)/\(Self.newName)" }

    /// Whether there is a new file of that name.
    package func hasNew(_ name: FileName) throws(Errno) -> Bool {
        try FileName("\(Self.newName)/\(name)").withCString { (path) throws(Errno) in
            do throws(Errno) {
                _ = try FileStatus(at: companion, path)
                return true
            } catch .noSuchFileOrDirectory {
                return false
            }
        }
    }

    /// Whether anything lies where new files are made.
    package func holdsNew() throws(Errno) -> Bool {
        var holdsAny = false
        var reader = DirectoryReader(try Descriptor.open(at: try openPlaces().new, ".", O_RDONLY | O_DIRECTORY))
        try reader.forEach { entry in
            if !entry.isDot { holdsAny = true }
        }
        return holdsAny
    }

    /// Removes one name where new files are made, with what is below it.
    package func removeNew(_ name: FileName) throws(Errno) {
        let places = try openPlaces()
        do throws(Errno) {
            try removeIfPresent(places.new, name, 0)
        } catch .isDirectory {
            _ = try removeTree(at: places.new, name)
        }
    }

    /// Removes all that lies where new files are made.
    package func emptyNew() throws(Errno) {
        try emptyTree(try openPlaces().new)
    }

    /// Makes the layers' directories themselves durable.
    package func synchronize() throws(Errno) {
        try synchronizeAll(directory)
        if companion !== directory { try synchronizeAll(companion) }
    }

    /// The directories of new files, and of what a merge is moving; made where they are not there.
    package func openPlaces() throws(Errno) -> (new: Descriptor, staging: Descriptor) {
        func open(_ name: FileName) throws(Errno) -> Descriptor {
            try name.withCString { (string) throws(Errno) in
                do throws(Errno) {
                    try makeDirectory(at: companion, string, mode: 0o700)
                } catch .fileExists {
                    // As it should be.
                }
                return try Descriptor.open(at: companion, string, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
            }
        }
        return (try open(Self.newName), try open(Self.stagingName))
    }

    private func discardLeftover(_ note: (String) -> Void) throws(StoreError) {
        let directory = directory
        let companion = companion
        let removed = try Self.attempt("discard what an earlier snapshot left in", path) {
            () throws(Errno) in
            let delta = try removeTree(at: directory, Self.snapshotName)
            let graves = try removeTree(at: companion, Self.graveyardName)
            return delta || graves
        }
        if removed {
            note(
                "\(path): discarded the snapshot of a daemon that did not end in order;"
                    + " the live files are not affected")
        }
    }
}

/// Removes `name` in `directory` with all that is in it; whether there was something.
func removeTree(at directory: Descriptor, _ name: FileName) throws(Errno) -> Bool {
    let opened: Descriptor
    do throws(Errno) {
        opened = try name.withCString { (string) throws(Errno) in
            try Descriptor.open(at: directory, string, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
        }
    } catch .noSuchFileOrDirectory {
        return false
    }
    let hadEntries = try emptyTree(opened)
    try name.withCString { (string) throws(Errno) in
        try unlink(at: directory, string, AT_REMOVEDIR)
    }
    return hadEntries
}

/// Removes all that is in a directory; whether there was something.
@discardableResult
private func emptyTree(_ opened: Descriptor) throws(Errno) -> Bool {
    var hadEntries = false
    var reader = DirectoryReader(opened)
    var more = true
    while more {
        // Removed while listed: some file systems then pass entries over, so until a pass finds nothing.
        more = false
        try reader.seek(to: 0)
        try reader.forEach { (entry) throws(Errno) in
            if entry.isDot { return }
            hadEntries = true
            more = true
            do throws(Errno) {
                try unlink(at: opened, entry.name)
            } catch .isDirectory {
                _ = try removeTree(at: opened, FileName(entry.name))
            }
        }
    }
    return hadEntries
}
