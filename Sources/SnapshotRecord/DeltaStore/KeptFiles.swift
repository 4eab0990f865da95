internal import Glibc
package import LinuxSystem
internal import Synchronization
package import SystemPackage

/// The files that lie in a store for a snapshot in preserve, seen once, without changing any: for a daemon that takes it
/// up, and to check them by what the journal says.
package struct KeptFiles: Sendable {
    /// Of delta files and journal; nil where there is none.
    package let directory: Descriptor?
    /// nil where there is none.
    package let graveyard: Descriptor?
    /// The sizes of the delta files, and what they take on the disk.
    private var deltaFiles: [InodeKey: Int64] = [:]
    package private(set) var deltaBytes: UInt64 = 0
    /// The inodes in the graveyard, each under the name that is its own.
    package private(set) var graves: Set<InodeKey> = []
    package private(set) var buriedBytes: UInt64 = 0
    /// Why a part of the snapshot cannot be read, where that has been noted.
    package private(set) var inexactReason: String?
    /// Why an active snapshot has no journal, where that has been noted: it cannot be taken up.
    package private(set) var unjournaledReason: String?
    /// What a snapshot in redirect was asked to be, where that has been noted.
    package private(set) var terms: String?
    /// Names in the directory, and in the graveyard, that say nothing.
    package private(set) var strays: [String] = []
    package private(set) var strayGraves: [String] = []

    private static let inexactName = FileName("inexact")
    private static let unjournaledName = FileName("unjournaled")
    package static let termsName = FileName("terms")
    private static let reasonBytesMax = 4096
    private static let termsBytesMax = 1 << 20

    /// A delta file or a removed file that is not as the journal has it.
    package struct Damage: Sendable, Equatable {
        package let file: String
        /// Whether it lies in the graveyard.
        package let isGrave: Bool
        package let problem: String
    }

    /// `directory` may be that of a layer too.
    package init(directory: Descriptor?, graveyard: Descriptor?) throws(Errno) {
        self.directory = directory
        self.graveyard = graveyard
        try lookAtDeltaFiles()
        try lookAtGraves()
    }

    private mutating func lookAtDeltaFiles() throws(Errno) {
        guard let directory else { return }
        for (name, status) in try Self.list(directory) {
            if let key = InodeKey(fileName: name), status.isRegular {
                deltaFiles[key] = status.size
                deltaBytes += UInt64(clamping: status.blocks) * 512
            } else if name == Self.inexactName {
                inexactReason = try Self.reason(name, in: directory)
            } else if name == Self.unjournaledName {
                unjournaledReason = try Self.reason(name, in: directory)
            } else if name == Self.termsName {
                terms = try Self.text(name, in: directory, bytesMax: Self.termsBytesMax)
            } else if name != Journal.fileName {
                strays.append("\(name)")
            }
        }
    }

    private mutating func lookAtGraves() throws(Errno) {
        guard let graveyard else { return }
        for (name, status) in try Self.list(graveyard) {
            if InodeKey(fileName: name) == InodeKey(status) {
                graves.insert(InodeKey(status))
                buriedBytes += UInt64(clamping: status.blocks) * 512
            } else {
                strayGraves.append("\(name)")
            }
        }
    }

    private static func list(_ directory: Descriptor) throws(Errno) -> [(FileName, FileStatus)] {
        var found: [(FileName, FileStatus)] = []
        var reader = DirectoryReader(try Descriptor.open(at: directory, ".", O_RDONLY | O_DIRECTORY))
        try reader.forEach { (entry) throws(Errno) in
            if !entry.isDot { found.append((FileName(entry.name), try FileStatus(at: directory, entry.name))) }
        }
        return found
    }

    private static func reason(_ name: FileName, in directory: Descriptor) throws(Errno) -> String {
        try text(name, in: directory, bytesMax: reasonBytesMax)
    }

    private static func text(
        _ name: FileName, in directory: Descriptor, bytesMax: Int
    ) throws(Errno) -> String {
        let file = try name.withCString { (name) throws(Errno) in
            try Descriptor.open(at: directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
        }
        let room = UnsafeMutableRawBufferPointer.allocate(byteCount: bytesMax, alignment: 1)
        defer { room.deallocate() }
        return String(decoding: room[..<(try readFully(file, into: room, at: 0))], as: UTF8.self)
    }

    /// Keeps the first reason why a part of the snapshot cannot be read.
    package static func noteInexact(_ why: String, in directory: Descriptor) throws(Errno) {
        try note(why, inexactName, in: directory)
    }

    /// Keeps why a snapshot that is active from now on has no journal.
    static func noteUnjournaled(_ why: String, in directory: Descriptor) throws(Errno) {
        try note(why, unjournaledName, in: directory)
    }

    /// The snapshot is over: nobody is to be told of it.
    static func removeUnjournaled(in directory: Descriptor) throws(Errno) {
        do throws(Errno) {
            try unjournaledName.withCString { (name) throws(Errno) in try unlink(at: directory, name) }
        } catch .noSuchFileOrDirectory {
            // It was over before.
        }
    }

    /// Keeps what a snapshot is asked to be; the directory is not synced. Throws EOVERFLOW where that is too long.
    package static func noteTerms(_ terms: String, in directory: Descriptor) throws(Errno) {
        guard terms.utf8.count <= termsBytesMax else { throw .overflow }
        let file = try termsName.withCString { (name) throws(Errno) in
            try Descriptor.open(at: directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode: 0o600)
        }
        try writeFully(file, Array(terms.utf8), at: 0)
        try synchronizeAll(file)
    }

    private static func note(_ why: String, _ name: FileName, in directory: Descriptor) throws(Errno) {
        let file: Descriptor
        do throws(Errno) {
            file = try name.withCString { (name) throws(Errno) in
                try Descriptor.open(at: directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode: 0o600)
            }
        } catch .fileExists {
            return
        }
        let bytes = Array(why.utf8.prefix(reasonBytesMax))
        try writeFully(file, bytes, at: 0)
    }

    /// What is missing of what `map`, the map of a journal, says to be there. What is there beyond it is the remains of a
    /// change that a kill ended before it was recorded.
    package func damage(by map: DeltaMap) -> [Damage] {
        var damage: [Damage] = []
        for record in map.records {
            let contents = record.contents.withLock { $0 }
            var data = contents.blocks
            for run in contents.holes.runs { data.remove(run) }
            let stored = RecordLimits.offset(ofBlock: data.runs.last?.upperBound ?? 0)
            // In redirect the size grows with the data, and may be of another moment.
            let last = stored - RecordLimits.blockBytes + 1
            let needed = map.isRedirect ? last : min(stored, contents.attributes?.status.size ?? .max)
            if stored > 0, needed > 0 {
                let file = "\(record.key.fileName)"
                if let size = deltaFiles[record.key] {
                    if size < needed {
                        damage.append(
                            Damage(
                                file: file, isGrave: false,
                                problem: "it has \(size) bytes, and stored in it were \(needed)"))
                    }
                } else {
                    damage.append(Damage(file: file, isGrave: false, problem: "it is missing"))
                }
            }
            if contents.place == .graveyard, !graves.contains(record.key) {
                damage.append(
                    Damage(
                        file: "\(record.key.fileName)", isGrave: true,
                        problem: "it is missing, a removed file that the snapshot has"))
            }
        }
        return damage
    }
}

extension InodeKey {
    /// Of what the store keeps for an inode; nil for any other name.
    init?(fileName: FileName) {
        let parts = fileName.description.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 2, let inode = UInt64(parts[0], radix: 16), let birth = UInt64(parts[1], radix: 16)
        else { return nil }
        self.init(inode: inode, birth: Int64(bitPattern: birth))
        guard self.fileName == fileName else { return nil }
    }
}
