internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

// What applications see: the stack of layers over the primary. Nothing here needs the gate.
extension Redirect {
    /// What a name in a directory stands for; nil where no layer says anything, and the primary decides.
    package func entry(in directory: InodeKey, _ name: UnsafePointer<CChar>) -> RecordedEntry? {
        stack.entry(in: directory, name)
    }

    /// The attributes of an inode; `own` are those that it has by itself.
    package func status(
        of key: InodeKey, own: () throws(Errno) -> FileStatus
    ) throws(Errno) -> FileStatus {
        try reading { (stack) throws(Errno) in
            if let status = stack.status(of: key) { return status }
            let status = source.withoutStore(try own())
            return relinked(status, stack)
        }
    }

    /// A status that an inode has by itself, with the names and the time of change that a layer knows of.
    package func relinked(_ status: FileStatus, _ stack: LayerStack) -> FileStatus {
        guard let links = stack.links(of: InodeKey(status)) else { return status }
        var status = status
        status.links = links.count
        status.changed = max(status.changed, links.changed)
        return status
    }

    /// The extended attributes of an inode; nil where those that it has by itself are good.
    package func extendedAttributes(of key: InodeKey) -> ExtendedAttributes? {
        stack.attributes(of: key)?.extended
    }

    /// Whether the data of a file may be elsewhere than in the file itself.
    package func holdsData(of key: InodeKey) -> Bool { stack.hasAttributes(key) }

    /// Whether an inode is a file in the store, read and written as it is.
    package func isNew(_ key: InodeKey) -> Bool { stack.isNew(key) }

    /// Reads a file as it is now: the number of bytes read. `primary` is the inode opened for reading.
    package func read(
        _ key: InodeKey, primary: Descriptor, into buffer: UnsafeMutableRawBufferPointer, at offset: Int64
    ) throws(Errno) -> Int {
        try reading { (stack) throws(Errno) in
            let size = try size(key, primary, stack)
            return try stack.read(key, primary: primary, size: size, into: buffer, at: offset)
        }
    }

    private func size(
        _ key: InodeKey, _ primary: Descriptor, _ stack: LayerStack
    ) throws(Errno) -> Int64 {
        if let known = stack.attributes(of: key) { return known.status.size }
        return try FileStatus(of: primary).size
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE; throws ENXIO where there is no such place.
    package func seek(
        _ key: InodeKey, primary: Descriptor, _ whence: Int32, from offset: Int64
    ) throws(Errno) -> Int64 {
        let found = try reading { (stack) throws(Errno) in
            try stack.seek(
                key, primary: primary, size: try size(key, primary, stack), whence, from: offset)
        }
        guard let found else { throw .noSuchAddressOrDevice }
        return found
    }

    /// The directory that holds the name of a directory, where a layer has given it that name. Looks at all names that have
    /// changed: only file handles of forgotten directories ask.
    package func recordedParent(of directory: InodeKey) -> InodeReference? {
        let stack = stack
        for layer in stack.layers {
            for record in layer.map.records {
                let names = record.contents.withLock { contents in
                    contents.entries.compactMap { (name, entry) -> FileName? in
                        if case .present(let reference) = entry, reference.key == directory { return name }
                        return nil
                    }
                }
                for name in names {
                    let entry = name.withCString { stack.entry(in: record.key, $0) }
                    if case .present(let now) = entry, now.key == directory { return record.reference }
                }
            }
        }
        return nil
    }

    /// The names in a directory of which the layers say something.
    package func entries(of directory: InodeKey) -> [FileName: RecordedEntry] {
        stack.entries(of: directory)
    }

    /// Whether a directory holds a name. `directory` is a descriptor of it.
    func isEmpty(_ directory: ChangeTarget, _ stack: LayerStack) throws(Errno) -> Bool {
        let known = stack.entries(of: directory.key)
        for case .present in known.values { return false }
        var isEmpty = true
        var reader = DirectoryReader(
            try Descriptor.open(at: directory.descriptor, ".", O_RDONLY | O_DIRECTORY | O_NOATIME))
        while try reader.next({ entry in
            if !entry.isDot && !source.hides(entry) && known[FileName(entry.name)] == nil { isEmpty = false }
            return isEmpty
        }) {}
        return isEmpty
    }
}
