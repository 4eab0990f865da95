internal import Glibc
package import LinuxSystem
package import SystemPackage
internal import Synchronization

/// The delta files of one generation: one for each inode whose data changed, sparse, at the file's own offsets, so that
/// the map needs only to say which blocks are there. Counts what is stored, and bounds it.
///
/// Safe for use by all threads; two that write one inode's delta file must keep apart (`InodeRecord.firstChange`).
package final class DeltaFiles: Sendable {
    package let directory: Descriptor
    private let files = DescriptorCache<InodeKey>(capacity: RecordLimits.openDeltaFilesMax)
    private let bytes = Atomic<UInt64>(0)
    private let bytesMax: UInt64
    /// Whether a name was made since names were made durable; true at first, for those of a daemon that was killed.
    private let hasMade = Atomic<Bool>(true)

    /// Those in `directory`; `bytesMax` bounds what may be stored.
    package init(in directory: Descriptor, bytesMax: UInt64?) {
        self.directory = directory
        self.bytesMax = bytesMax ?? .max
    }

    /// Bytes counted in.
    package var storedBytes: UInt64 { bytes.load(ordering: .relaxed) }

    /// Whether more is stored than allowed.
    package var isOverBound: Bool { storedBytes > bytesMax }

    /// Counts `number` bytes in; throws ENOSPC where that is over the bound, and counts them all the same.
    package func reserve(_ number: UInt64) throws(Errno) {
        let (_, sum) = bytes.add(number, ordering: .relaxed)
        if sum > bytesMax { throw .noSpace }
    }

    /// Counts bytes in whatever the bound is.
    package func count(_ number: UInt64) {
        bytes.add(number, ordering: .relaxed)
    }

    /// Counts `number` bytes out: they were not stored after all, or have been given back.
    package func release(_ number: UInt64) {
        bytes.subtract(number, ordering: .relaxed)
    }

    /// Counts out `number` bytes, as the file system tells them, as far as there are so many: it may tell more than
    /// were counted in.
    func release(atMost number: UInt64) {
        var now = storedBytes
        while true {
            let (isExchanged, original) = bytes.compareExchange(
                expected: now, desired: now - min(now, number), ordering: .relaxed)
            if isExchanged { return }
            now = original
        }
    }

    /// Counts all out. Returns what was counted in.
    func releaseAll() -> UInt64 { bytes.exchange(0, ordering: .relaxed) }

    /// The delta file of an inode. `owner` is given where it is to be made if there is none: it counts in that user's
    /// quota then.
    package func file(
        of key: InodeKey, createFor owner: @autoclosure () -> (user: UInt32, group: UInt32)?
    ) throws(Errno) -> Descriptor {
        if let open = files.descriptor(for: key) { return open }
        let opened = try key.fileName.withCString { (name) throws(Errno) -> Descriptor in
            do throws(Errno) {
                return try Descriptor.open(at: directory, name, O_RDWR | O_NOFOLLOW)
            } catch .noSuchFileOrDirectory {
                guard let owner = owner() else { throw .noSuchFileOrDirectory }
                let made = try Descriptor.open(at: directory, name, O_RDWR | O_CREAT, mode: 0o600)
                // Not before the name is there: whoever makes names durable in between would miss it.
                hasMade.store(true, ordering: .sequentiallyConsistent)
                if owner.user != geteuid() || owner.group != getegid() {
                    do throws(Errno) {
                        try changeOwner(made, user: owner.user, group: owner.group)
                    } catch .notPermitted {
                        // An ordinary user's daemon: all that it stores counts in that user's quota.
                    }
                }
                return made
            }
        }
        files.keep(opened, for: key)
        return opened
    }

    /// The delta file of an inode; nil where none was ever made: then all its blocks are holes.
    package func existingFile(of key: InodeKey) throws(Errno) -> Descriptor? {
        do throws(Errno) {
            return try file(of: key, createFor: nil)
        } catch .noSuchFileOrDirectory {
            return nil
        }
    }

    /// Reads from the delta file; what it does not hold are zeros.
    package func read(
        of key: InodeKey, into buffer: UnsafeMutableRawBufferPointer, at offset: Int64
    ) throws(Errno) {
        let count =
            if let file = try existingFile(of: key) { try readFully(file, into: buffer, at: offset) } else { 0 }
        // Behind the delta file's last data there are holes.
        if count < buffer.count {
            UnsafeMutableRawBufferPointer(rebasing: buffer[count...])
                .initializeMemory(as: UInt8.self, repeating: 0)
        }
    }

    /// Makes the names of delta files durable that were made since the last time.
    package func synchronizeNames() throws(Errno) {
        guard hasMade.exchange(false, ordering: .sequentiallyConsistent) else { return }
        do throws(Errno) {
            try synchronizeAll(directory)
        } catch {
            hasMade.store(true, ordering: .sequentiallyConsistent)
            throw error
        }
    }

    /// Lets go of the descriptors that are kept for speed.
    package func releaseDescriptors() {
        files.removeAll()
    }
}
