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
/// Layout: `format` (what this is and of which source), `lock` (held while in use), `lease` (who holds the snapshot),
/// `snapshot/` (delta files of the active snapshot, by inode, and its journal). The graveyard is `SOURCE/.fusesnap/graveyard/`. In redirect `layer-N/` (delta files and
/// journal of layer N), and always in the source `new/` (files made since the cut) and `staging/` (what a merge is
/// moving). Where the store is elsewhere, the source's directory holds only what must be there. Everything is readable by
/// the daemon's user only.
package final class Store: Sendable {
    package static let defaultName = FileName(".fusesnap")
    private static let formatName = FileName("format")
    static let lockName = FileName("lock")
    private static let leaseName = FileName("lease")
    private static let newLeaseName = FileName("lease.new")
    package static let snapshotName = FileName("snapshot")
    static let graveyardName = FileName("graveyard")
    static let newName = FileName("new")
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
    /// `path` nil is the default place. `sourcePath` is noted in the store for people. What a daemon that was killed left
    /// in it stays: `keptSnapshot`, `layerNumbers`.
    package init(source: Descriptor, sourcePath: String, path: String?) throws(StoreError) {
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
            // What is not merged, or still to be read, is taken up by the next mount.
            guard try layerNumbers().isEmpty, try keptSnapshot() == nil else { return }
            let times = try FileStatus(of: source)
            let leftovers = [
                (directory, Self.leaseName), (directory, Self.newLeaseName),
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

    /// For how long a daemon that is at its end may hold the lock.
    private static let lockTimeoutMilliseconds: Int32 = 60_000
    /// How often a lock is asked for again of which nobody can be told to hold it.
    private static let lockAttemptsMax = 10

    private static func takeLock(
        in directory: Descriptor, path: String
    ) throws(StoreError) -> Descriptor {
        try refuseForeign(directory, path: path)
        let file = try attempt("open the lock of the store", path) { () throws(Errno) in
            try lockName.withCString { (string) throws(Errno) in
                try Descriptor.open(at: directory, string, O_RDWR | O_CREAT, mode: 0o600)
            }
        }
        var unknown = 0
        while flock(file.raw, LOCK_EX | LOCK_NB) != 0 {
            let error = currentErrno()
            guard error == .resourceTemporarilyUnavailable else {
                throw .system(error, action: "lock the store", path: path)
            }
            // A daemon that was killed a moment ago may wait for the disk before it has gone.
            guard let holder = LockHolder(of: file) else {
                // It has just let go, or cannot be told.
                unknown += 1
                if unknown > lockAttemptsMax { throw .inUse(path: path) }
                continue
            }
            guard holder.waitForEnd(milliseconds: lockTimeoutMilliseconds) else { throw .inUse(path: path) }
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
            try readText(opened)
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
        let (key, line) = try parseFormat(found, file: file)
        guard key == identity else { throw .wrongStore(path: path, found: line) }
    }

    /// The source that a format file names, and its second line. Throws for what is no store's.
    private static func parseFormat(
        _ text: String, file: String
    ) throws(StoreError) -> (InodeKey, line: String) {
        let lines = text.split(separator: "\n")
        guard lines.count == 2, lines[0].hasPrefix("fusesnap store ") else {
            throw .damaged(file: file, problem: "it is not the head of a fusesnap store")
        }
        guard lines[0] == "fusesnap store 1" else {
            throw .damaged(file: file, problem: "it was written by a later version (\(lines[0]))")
        }
        let words = lines[1].split(separator: " ", maxSplits: 2)
        guard words.count == 3, words[0] == "source", let key = InodeKey(fileName: FileName(String(words[1])))
        else { throw .damaged(file: file, problem: "it does not say of which source the store is") }
        return (key, String(lines[1]))
    }

    /// The source of the store in a directory, of which nothing is changed: its root, and the path for people.
    static func readFormat(
        of directory: Descriptor, path: String
    ) throws(StoreError) -> (InodeKey, sourcePath: String) {
        let file = path + "/format"
        let text: String
        do throws(Errno) {
            let opened = try formatName.withCString { (name) throws(Errno) in
                try Descriptor.open(at: directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
            }
            text = try readText(opened)
        } catch .noSuchFileOrDirectory {
            throw .damaged(file: path, problem: "it is not a fusesnap store")
        } catch {
            throw .system(error, action: "read", path: file)
        }
        let (key, line) = try parseFormat(text, file: file)
        return (key, String(line.split(separator: " ", maxSplits: 2)[2]))
    }

    private static func readText(_ file: Descriptor) throws(Errno) -> String {
        let room = UnsafeMutableRawBufferPointer.allocate(byteCount: 8192, alignment: 1)
        defer { room.deallocate() }
        return String(decoding: room[..<(try readFully(file, into: room, at: 0))], as: UTF8.self)
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

    package static func layerName(_ number: UInt64) -> FileName { FileName(layerPrefix + String(number)) }

    /// Of the layers that are there, ascending.
    package func layerNumbers() throws(Errno) -> [UInt64] { try Self.layerNumbers(in: directory) }

    static func layerNumbers(in directory: Descriptor) throws(Errno) -> [UInt64] {
        var numbers: [UInt64] = []
        var reader = DirectoryReader(try Descriptor.open(at: directory, ".", O_RDONLY | O_DIRECTORY))
        try reader.forEach { entry in
            let name = String(cString: entry.name)
            if name.hasPrefix(layerPrefix), let number = UInt64(name.dropFirst(layerPrefix.count)) {
                numbers.append(number)
            }
        }
        return numbers.sorted()
    }

    /// The path of a layer's directory, for messages.
    package func layerPath(_ number: UInt64) -> String { Self.layerPath(number, in: path) }

    static func layerPath(_ number: UInt64, in path: String) -> String { "\(path)/\(layerPrefix)\(number)" }

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

    /// Removes what a daemon that was killed left where new files are made: where no layer speaks of it.
    package func removeLeftovers() throws(Errno) {
        _ = try removeTree(at: companion, Self.newName)
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

    // MARK: A snapshot in preserve

    /// The files of the snapshot of an earlier daemon, or what is left of them; nil where nothing is.
    package func keptSnapshot() throws(Errno) -> KeptFiles? {
        let graveyard = try openIfPresent(Self.graveyardName, in: companion)
        let kept = try openIfPresent(Self.snapshotName, in: directory)
        if kept == nil, graveyard == nil { return nil }
        return try KeptFiles(directory: kept, graveyard: graveyard)
    }

    /// Paths for messages: of the snapshot's directory, and of the graveyard.
    package var snapshotPath: String { "\(path)/\(Self.snapshotName)" }
    package var graveyardPath: String {
        (companion === directory ? path : companionPath) + "/\(Self.graveyardName)"
    }

    /// Removes what an earlier daemon kept for a snapshot: it is over.
    package func discardSnapshot() throws(Errno) {
        // First the journal, so that nobody takes up what is half removed.
        if let kept = try openIfPresent(Self.snapshotName, in: directory) {
            try removeIfPresent(kept, Journal.fileName, 0)
        }
        _ = try removeTree(at: directory, Self.snapshotName)
        _ = try removeTree(at: companion, Self.graveyardName)
    }

    private func openIfPresent(_ name: FileName, in parent: Descriptor) throws(Errno) -> Descriptor? {
        do throws(Errno) {
            return try name.withCString { (string) throws(Errno) in
                try Descriptor.open(at: parent, string, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
            }
        } catch .noSuchFileOrDirectory {
            return nil
        }
    }

    // MARK: The lease

    /// Keeps who holds the snapshot that is about to begin, for the daemon that takes it up after a kill; nil: nobody.
    /// `isDurable`: after a power cut too.
    package func keepLease(_ text: String?, isDurable: Bool) throws(Errno) {
        guard let text else { return try removeIfPresent(directory, Self.leaseName, 0) }
        try removeIfPresent(directory, Self.newLeaseName, 0)
        let file = try Self.newLeaseName.withCString { (name) throws(Errno) in
            try Descriptor.open(at: directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode: 0o600)
        }
        try writeFully(file, Array(text.utf8), at: 0)
        if isDurable { try checked { fsync(file.raw) } }
        try Self.newLeaseName.withCString { (from) throws(Errno) in
            try Self.leaseName.withCString { (to) throws(Errno) in
                try rename(at: directory, from, to: directory, to)
            }
        }
        if isDurable { try checked { fsync(directory.raw) } }
    }

    /// Who held the snapshot that an earlier daemon has left; nil where nobody did.
    package func keptLease() throws(Errno) -> String? {
        let file: Descriptor
        do throws(Errno) {
            file = try Self.leaseName.withCString { (name) throws(Errno) in
                try Descriptor.open(at: directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
            }
        } catch .noSuchFileOrDirectory {
            return nil
        }
        return try Self.readText(file)
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
