internal import Glibc
package import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// A file, directory, link, ... of a snapshot.
///
/// It keeps at most one descriptor open, as long as it lives; and it keeps the directories above it alive.
public final class SnapshotNode: Sendable {
    /// What kind of file it is.
    public enum Kind: Sendable {
        case file, directory, symbolicLink, fifo, socket, characterDevice, blockDevice
    }

    /// Its attributes at the cut. Times are in seconds since 1970 and nanoseconds.
    public struct Attributes: Sendable, Equatable {
        public struct Time: Sendable, Equatable {
            public let seconds: Int64
            public let nanoseconds: UInt32
        }

        public let kind: Kind
        public let inode: UInt64
        /// The permission bits, with set-id bits and the sticky bit.
        public let permissions: UInt32
        public let links: UInt32
        public let user: UInt32
        public let group: UInt32
        /// In bytes.
        public let size: Int64
        /// Of a device, as makedev(3) puts it together; else 0.
        public let device: UInt64
        public let accessed: Time
        public let modified: Time
        public let changed: Time
    }

    /// The name's bytes; empty for the root.
    public let name: [UInt8]
    private let reader: SnapshotReader
    private let parent: SnapshotNode?
    private let reference: InodeReference
    private let opened = Mutex<Opened>(.not)
    /// Read once: the size bounds all reading.
    private let known = Mutex<FileStatus?>(nil)

    private enum Opened {
        case not
        /// nil: all that there was of it is recorded.
        case opened(Descriptor?)
    }

    init(root reader: SnapshotReader, _ reference: InodeReference) {
        (name, parent) = ([], nil)
        (self.reader, self.reference) = (reader, reference)
    }

    private init(_ name: [UInt8], _ parent: SnapshotNode, _ reference: InodeReference) {
        (self.name, self.parent, self.reference) = (name, parent, reference)
        reader = parent.reader
    }

    private var tree: SnapshotTree { reader.tree }

    /// The path below the root, for messages: bytes that are not UTF-8 are shown as �.
    public var path: String { String(decoding: pathBytes, as: UTF8.self) }

    /// The path below the root, empty for the root itself.
    public var pathBytes: [UInt8] {
        guard let parent else { return [] }
        let above = parent.pathBytes
        return above.isEmpty ? name : above + [UInt8(ascii: "/")] + name
    }

    public var kind: Kind {
        switch mode_t(reference.kind) {
        case S_IFDIR: .directory
        case S_IFLNK: .symbolicLink
        case S_IFIFO: .fifo
        case S_IFSOCK: .socket
        case S_IFCHR: .characterDevice
        case S_IFBLK: .blockDevice
        default: .file
        }
    }

    // MARK: Attributes

    /// Throws `system`, `ended` and `damaged`, as all reading does: EIO where what was there is lost.
    public func attributes() throws(SnapshotReaderError) -> Attributes {
        Attributes(try status(), kind)
    }

    /// The same as statx(2) tells it.
    package func status() throws(SnapshotReaderError) -> FileStatus {
        if let known = known.withLock({ $0 }) { return known }
        var status = try attempt("read the attributes of") { () throws(Errno) in
            try tree.status(of: reference, inode)
        }
        status.inode ^= reader.inodeMask
        known.withLock { $0 = status }
        return status
    }

    /// All extended attributes, ACLs among them, by name.
    public func extendedAttributes() throws(SnapshotReaderError) -> [(name: String, value: [UInt8])] {
        let extended = try extended()
        return try extended.names.map { (name) throws(SnapshotReaderError) in
            (
                "\(name)",
                try attempt("read the extended attributes of") { () throws(Errno) in try extended.value(name) }
            )
        }
    }

    package func extended() throws(SnapshotReaderError) -> ExtendedAttributes {
        try attempt("read the extended attributes of") { () throws(Errno) in
            try tree.extendedAttributes(of: reference, inode)
        }
    }

    /// The target of a symbolic link.
    public func target() throws(SnapshotReaderError) -> [UInt8] {
        try attempt("read the target of") { () throws(Errno) in try tree.target(of: reference, inode) }
    }

    // MARK: Directories

    /// The names in a directory, without `.` and `..`, in the order of inode numbers, in which reading goes quickest.
    public func names() throws(SnapshotReaderError) -> [[UInt8]] {
        let listing = try attempt("list") { () throws(Errno) in
            // By a descriptor of its own: the place in a listing is one descriptor's, whoever lists at the same time.
            let listed = try descriptor().map { (directory) throws(Errno) in
                try Descriptor.open(at: directory, ".", O_RDONLY | O_DIRECTORY)
            }
            return try tree.listing(of: reference, listed)
        }
        var names: [[UInt8]] = []
        names.reserveCapacity(listing.count)
        listing.forEach { name, _, _ in
            names.append(Array(UnsafeRawBufferPointer(start: name, count: strlen(name))))
        }
        return names
    }

    /// What a name in a directory stands for. Throws `system` with ENOENT where it stands for nothing.
    public func child(_ name: [UInt8]) throws(SnapshotReaderError) -> SnapshotNode {
        let reference = try attempt("look up a name in") { () throws(Errno) in
            let directory = try descriptor()
            return try FileName(bytes: name).withCString { (string) throws(Errno) in
                try tree.entry(in: self.reference, directory, string).reference
            }
        }
        return SnapshotNode(name, self, reference)
    }

    /// Calls `body` with the node and, where it is a directory, with all below it: directories before what is in them.
    public func visit(_ body: (SnapshotNode) throws -> Void) throws {
        try body(self)
        guard kind == .directory else { return }
        for name in try names() { try child(name).visit(body) }
    }

    // MARK: Data

    /// The parts of a file that hold data, in ascending order; between them are holes, which read as zeros.
    public func dataRanges() throws(SnapshotReaderError) -> [Range<Int64>] {
        let status = try status()
        let size = status.size
        if size == 0 { return [] }
        return try attempt("look for the holes of") { () throws(Errno) in
            let primary = try descriptor()
            var ranges: [Range<Int64>] = []
            var at: Int64 = 0
            while at < size {
                let begin: Int64
                do throws(Errno) {
                    begin = try tree.seek(reference.key, primary: primary, size: size, SEEK_DATA, from: at)
                } catch .noSuchAddressOrDevice {
                    break
                }
                let end = try tree.seek(reference.key, primary: primary, size: size, SEEK_HOLE, from: begin)
                ranges.append(begin..<end)
                at = end
            }
            return ranges
        }
    }

    /// Reads the bytes from `offset` on, in bytes, into `buffer`; how many, which is less than there is room for only at the
    /// end of the file.
    public func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: Int64
    ) throws(SnapshotReaderError) -> Int {
        let size = try status().size
        return try attempt("read") { () throws(Errno) in
            try tree.read(reference.key, primary: try descriptor(), size: size, into: buffer, at: offset)
        }
    }

    // MARK: Descriptors

    private func attempt<Result>(
        _ action: String, _ body: () throws(Errno) -> Result
    ) throws(SnapshotReaderError) -> Result {
        do throws(Errno) {
            return try body()
        } catch {
            throw reader.error(error, action, path)
        }
    }

    /// For attributes: throws where all that there was is recorded, which is not asked then.
    private func inode() throws(Errno) -> Descriptor {
        guard let descriptor = try descriptor() else { throw .staleNFSFileHandle }
        return descriptor
    }

    /// The inode where it is now; nil where it is gone, and all that there was of it is recorded.
    private func descriptor() throws(Errno) -> Descriptor? {
        try opened.withLock { (opened) throws(Errno) -> Descriptor? in
            if case .opened(let descriptor) = opened { return descriptor }
            let descriptor = try open()
            opened = .opened(descriptor)
            return descriptor
        }
    }

    private func open() throws(Errno) -> Descriptor? {
        guard let parent else { return tree.overlay.source.root }
        let flags: Int32
        switch kind {
        case .file: flags = O_RDONLY | O_NONBLOCK
        case .directory: flags = O_RDONLY | O_DIRECTORY
        default: flags = O_PATH
        }
        func open(_ flags: Int32) throws(Errno) -> Descriptor? {
            try tree.open(reference, flags) { () throws(Errno) in
                guard let directory = try parent.descriptor() else { throw .staleNFSFileHandle }
                return try FileName(bytes: name).withCString { (string) throws(Errno) in
                    try Descriptor.open(at: directory, string, O_PATH | O_NOFOLLOW)
                }
            }
        }
        if flags == O_PATH { return try open(O_PATH) }
        do throws(Errno) {
            // Reading is not to show in the source's access times.
            return try open(flags | O_NOATIME)
        } catch .notPermitted {
            return try open(flags)
        }
    }
}

extension SnapshotNode.Attributes {
    init(_ status: FileStatus, _ kind: SnapshotNode.Kind) {
        self.kind = kind
        inode = status.inode
        permissions = status.mode & 0o7777
        (links, user, group, size) = (status.links, status.user, status.group, status.size)
        device = status.specialDevice
        (accessed, modified, changed) = (Time(status.accessed), Time(status.modified), Time(status.changed))
    }
}

extension SnapshotNode.Attributes.Time {
    fileprivate init(_ time: Timestamp) {
        (seconds, nanoseconds) = (time.seconds, time.nanoseconds)
    }
}
