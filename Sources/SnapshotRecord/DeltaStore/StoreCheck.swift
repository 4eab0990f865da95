internal import Glibc
internal import LinuxSystem
internal import Synchronization
internal import SystemPackage

/// What lies in a store, looked at while no daemon uses it, without changing anything: the journals, and whether the
/// files are there that they tell of.
package struct StoreCheck {
    /// One thing that was found.
    package struct Finding: Sendable, Equatable {
        package enum Verdict: Sendable {
            case ok
            /// Nothing is lost by it.
            case note
            /// Damage: the message names the file.
            case problem
        }

        package let verdict: Verdict
        package let message: String
        /// What to do about it.
        package let advice: String?
    }

    package private(set) var findings: [Finding] = []
    private let path: String
    private let directory: Descriptor
    /// The directory of the store that lies in the source; nil where that is not to be reached.
    private let companion: Descriptor?
    private let companionPath: String
    private let root: Descriptor?
    private let boot: BootIdentity?
    private let locks: [Descriptor]

    /// Looks at the store at `path`. Throws where it is none, or in use.
    package init(path: String) throws(StoreError) {
        self.path = path
        let (directory, sourcePath, key, lock) = try Self.open(path)
        self.directory = directory
        let source = Self.openSource(sourcePath, key)
        root = source
        companionPath = sourcePath + "/" + Store.defaultName.description
        var locks = [lock]
        companion = try Self.openCompanion(source, directory, companionPath, &locks)
        self.locks = locks
        boot = try source.map { (source) throws(StoreError) in
            do throws(Errno) {
                return try BootIdentity.current(source: source)
            } catch {
                throw .system(error, action: "tell the boot from", path: sourcePath)
            }
        }
        if source == nil {
            add(
                .note, "its source \(sourcePath) is not there: what lies in the source was not looked at",
                "mount that file system, and check again")
        }
        do throws(Errno) {
            try checkSnapshot(key)
            try checkLayers(key)
        } catch {
            throw .system(error, action: "look at", path: path)
        }
        if findings.allSatisfy({ $0.verdict == .note }) { add(.ok, "\(path): no snapshot, nothing to merge") }
    }

    private mutating func add(_ verdict: Finding.Verdict, _ message: String, _ advice: String? = nil) {
        findings.append(Finding(verdict: verdict, message: message, advice: advice))
    }

    // MARK: Opening

    private static func open(
        _ path: String
    ) throws(StoreError) -> (Descriptor, sourcePath: String, InodeKey, lock: Descriptor) {
        let directory: Descriptor
        do throws(Errno) {
            directory = try FileName(path).withCString { (path) throws(Errno) in
                try Descriptor.open(at: .workingDirectory, path, O_RDONLY | O_DIRECTORY)
            }
        } catch {
            throw .system(error, action: "open the store", path: path)
        }
        let (key, sourcePath) = try Store.readFormat(of: directory, path: path)
        return (directory, sourcePath, key, try takeLock(in: directory, path))
    }

    /// Shared: no daemon begins meanwhile.
    private static func takeLock(in directory: Descriptor, _ path: String) throws(StoreError) -> Descriptor {
        let file: Descriptor
        do throws(Errno) {
            file = try Store.lockName.withCString { (name) throws(Errno) in
                try Descriptor.open(at: directory, name, O_RDONLY | O_NOFOLLOW)
            }
        } catch {
            throw .system(error, action: "open the lock of", path: path)
        }
        if flock(file.raw, LOCK_SH | LOCK_NB) != 0 { throw .inUse(path: path) }
        return file
    }

    private static func openSource(_ path: String, _ key: InodeKey) -> Descriptor? {
        do throws(Errno) {
            let root = try FileName(path).withCString { (path) throws(Errno) in
                try Descriptor.open(at: .workingDirectory, path, O_RDONLY | O_DIRECTORY)
            }
            return InodeKey(try FileStatus(of: root)) == key ? root : nil
        } catch {
            return nil
        }
    }

    private static func openCompanion(
        _ source: Descriptor?, _ store: Descriptor, _ path: String, _ locks: inout [Descriptor]
    ) throws(StoreError) -> Descriptor? {
        guard let source else { return nil }
        let own: Descriptor
        do throws(Errno) {
            own = try Store.defaultName.withCString { (name) throws(Errno) in
                try Descriptor.open(at: source, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
            }
            let (here, there) = (try FileStatus(of: store), try FileStatus(of: own))
            if (here.device, here.inode) == (there.device, there.inode) { return store }
        } catch {
            // A read-only source has none.
            guard error == .noSuchFileOrDirectory else {
                throw .system(error, action: "open", path: path)
            }
            return nil
        }
        locks.append(try takeLock(in: own, path))
        return own
    }

    private func openDirectory(_ name: FileName, in parent: Descriptor?) throws(Errno) -> Descriptor? {
        guard let parent else { return nil }
        do throws(Errno) {
            return try name.withCString { (name) throws(Errno) in
                try Descriptor.open(at: parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
            }
        } catch .noSuchFileOrDirectory {
            return nil
        }
    }

    // MARK: Journals

    /// The journal in a directory; nil where nothing of it can be used: then that has been told.
    private mutating func scan(
        _ directory: Descriptor, _ path: String, _ key: InodeKey, _ advice: String
    ) -> JournalScan? {
        let scan: JournalScan
        do throws(RecordError) {
            guard let found = try JournalScan.read(in: directory, path: path) else {
                add(.note, "\(path): no journal: what is left of one that has ended", "the next mount removes it")
                return nil
            }
            scan = found
        } catch {
            add(.problem, error.description, advice)
            return nil
        }
        guard scan.head.source == key else {
            add(.problem, "\(path)/journal is of another source", advice)
            return nil
        }
        return scan
    }

    private func isOfThisBoot(_ scan: JournalScan) -> Bool { boot.map { $0 == scan.head.boot } ?? true }

    /// Whether it ends as it should, which is told where it does not.
    private mutating func checkEnd(_ scan: JournalScan, _ path: String, _ advice: String) -> Bool {
        guard case .torn(let offset) = scan.end else { return true }
        if scan.isUnfinished {
            add(
                .note,
                "\(path)/journal ends at byte \(offset) with a record that was not finished: nothing is lost")
            return true
        }
        if !isOfThisBoot(scan) {
            add(.note, "\(path)/journal ends at byte \(offset), as a power cut leaves it")
            return true
        }
        add(.problem, "\(path)/journal is damaged at byte \(offset): what follows is no record", advice)
        return false
    }

    /// The map of a journal, and what is missing of it in `kept`; false where that was told.
    private mutating func checkFiles(
        _ scan: JournalScan, _ counting: JournalScan.Counting, _ kept: KeptFiles, _ path: String, _ advice: String
    ) -> DeltaMap? {
        let map = DeltaMap(isRedirect: scan.head.embodiment == .redirect)
        do throws(RecordError) {
            try scan.replay(counting, into: map)
        } catch {
            add(.problem, error.description, advice)
            return nil
        }
        var isWhole = true
        for damage in kept.damage(by: map) {
            let place = damage.isGrave ? "\(companionPath)/\(Store.graveyardName)" : path
            if damage.isGrave && companion == nil { continue }
            add(.problem, "\(place)/\(damage.file): \(damage.problem)", advice)
            isWhole = false
        }
        return isWhole ? map : nil
    }

    private mutating func noteStrays(_ names: [String], _ path: String) {
        for name in names where name != "journal.new" {
            add(.note, "\(path)/\(name) belongs to nothing", "it goes with the snapshot")
        }
    }

    // MARK: Preserve

    private static let preserveAdvice = """
        the live files are not affected; look for errors of the disk. The next mount discards the snapshot, as \
        `fusesnap recover --discard` does
        """

    private mutating func checkSnapshot(_ key: InodeKey) throws(Errno) {
        let graveyard = try openDirectory(Store.graveyardName, in: companion)
        guard let snapshot = try openDirectory(Store.snapshotName, in: directory) else {
            if graveyard != nil {
                add(.note, "\(companionPath)/\(Store.graveyardName) is of a snapshot that has ended")
            }
            return
        }
        let path = "\(path)/\(Store.snapshotName)"
        let kept = try KeptFiles(directory: snapshot, graveyard: graveyard)
        noteStrays(kept.strays, path)
        noteStrays(kept.strayGraves, "\(companionPath)/\(Store.graveyardName)")
        if let why = kept.unjournaledReason {
            return add(
                .note, "\(path): a snapshot in preserve that cannot be taken up: \(why)",
                "the next mount discards it")
        }
        guard let scan = scan(snapshot, path, key, Self.preserveAdvice) else { return }
        if scan.isDiscarded || scan.lastMarkSequence == nil {
            return add(
                .note, "\(path): what is left of a snapshot that has ended, or had not begun",
                "the next mount removes it"
            )
        }
        guard checkEnd(scan, path, Self.preserveAdvice),
            let map = checkFiles(scan, .all, kept, path, Self.preserveAdvice)
        else { return }
        let inexact = kept.inexactReason.map { "; it is not exact: \($0)" } ?? ""
        let future =
            isOfThisBoot(scan)
            ? "the next mount goes on with it"
            : "the next mount discards it: the machine or the source's file system was started anew since"
        add(
            .ok,
            "\(path): a snapshot in preserve with \(map.changedAreas) changed areas, whole\(inexact); \(future)")
    }

    // MARK: Redirect

    private static let redirectAdvice = """
        look for errors of the disk; if there is a copy of the file, put it back. Otherwise what was changed since the \
        snapshot's start is lost in part: `fusesnap recover --discard` gives the tree as it was at the start
        """

    private mutating func checkLayers(_ key: InodeKey) throws(Errno) {
        let numbers = try Store.layerNumbers(in: directory)
        let newFiles = try openDirectory(Store.newName, in: companion)
        var isAboveSealed = false
        for number in numbers {
            let path = Store.layerPath(number, in: path)
            guard let layer = try openDirectory(Store.layerName(number), in: directory),
                let scan = scan(layer, path, key, Self.redirectAdvice)
            else { continue }
            if scan.isDiscarded {
                add(.note, "\(path): it was thrown away", "the next mount removes what is left of it")
                continue
            }
            let kept = try KeptFiles(directory: layer, graveyard: nil)
            noteStrays(kept.strays, path)
            let isSealed =
                scan.sealedSequence.map { sealed in
                    isOfThisBoot(scan) || scan.through > sealed
                } ?? false
            let counting: JournalScan.Counting = isOfThisBoot(scan) || isSealed ? .all : .marked
            guard checkEnd(scan, path, Self.redirectAdvice),
                let map = checkFiles(scan, counting, kept, path, Self.redirectAdvice)
            else { continue }
            // A merge moves them to where they belong.
            let areNewThere = isSealed ? true : try checkNewFiles(map, newFiles)
            guard areNewThere else { continue }
            let what =
                isSealed
                ? "is being merged"
                : isAboveSealed || scan.head.isContinued ? "is to be merged" : "is an active snapshot's"
            add(
                .ok,
                "\(path): whole; what it holds (\(map.changedAreas) areas) \(what), and the next mount goes on with it"
            )
            isAboveSealed = isSealed
        }
    }

    /// Whether every file is there that was made since the cut.
    private mutating func checkNewFiles(_ map: DeltaMap, _ newFiles: Descriptor?) throws(Errno) -> Bool {
        guard companion != nil else { return true }
        var isWhole = true
        for record in map.records {
            let isNamed = record.contents.withLock { contents in
                contents.place == .store && (contents.links?.count ?? contents.attributes?.status.links ?? 0) > 0
            }
            if isNamed, try !isThere(record.key, in: newFiles) {
                add(
                    .problem,
                    "\(companionPath)/\(Store.newName)/\(record.key.fileName): it is missing, a file made since"
                        + " the snapshot's start", Self.redirectAdvice)
                isWhole = false
            }
        }
        return isWhole
    }

    private func isThere(_ key: InodeKey, in directory: Descriptor?) throws(Errno) -> Bool {
        guard let directory else { return false }
        do throws(Errno) {
            return try key.fileName.withCString { (name) throws(Errno) in
                InodeKey(try FileStatus(at: directory, name)) == key
            }
        } catch .noSuchFileOrDirectory {
            return false
        }
    }
}
