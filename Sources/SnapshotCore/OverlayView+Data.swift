internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

// The data of the cut: blocks of the delta file where the map has them, else of the primary.
extension OverlayView {
    private static let block = RecordLimits.blockBytes

    /// The run of bytes that begins at `offset`: whether the delta file has them, and where the run ends.
    private func run(_ key: InodeKey, from offset: Int64, limit: Int64) -> (Bool, Int64) {
        guard let record = map.record(of: key) else { return (false, limit) }
        let (isPresent, end) = record.contents.withLock {
            $0.blocks.run(
                from: UInt64(offset / Self.block), limit: RecordLimits.blockCount(limit))
        }
        return (isPresent, min(RecordLimits.offset(ofBlock: end), limit))
    }

    private func stored() -> DeltaFiles {
        guard let store else { preconditionFailure("a map that has blocks has a store") }
        return store.files
    }

    /// Reads the data of the cut from `offset` on into `buffer`, as far as `size`, the size at the cut, reaches.
    /// `primary` is the inode opened for reading, nil where it is detached. The number of bytes read.
    package func read(
        _ key: InodeKey, primary: Descriptor?, size: Int64,
        into buffer: UnsafeMutableRawBufferPointer, at offset: Int64
    ) throws(Errno) -> Int {
        guard offset < size else { return 0 }
        let end = offset + min(size - offset, Int64(buffer.count))
        var at = offset
        while at < end {
            let (isStored, runEnd) = run(key, from: at, limit: end)
            let piece = UnsafeMutableRawBufferPointer(
                rebasing: buffer[Int(at - offset)..<Int(runEnd - offset)])
            if isStored {
                try stored().read(of: key, into: piece, at: at)
                at = runEnd
                continue
            }
            guard let primary else { throw .ioError }
            let count = try readFully(primary, into: piece, at: at)
            // What a writer has stored meanwhile may have been changed before it was read: again, from the delta.
            let (isStoredNow, unchangedEnd) = run(key, from: at, limit: runEnd)
            if isStoredNow { continue }
            try checkReadable(key)
            let missing = Int(unchangedEnd - at) - count
            if missing > 0 { throw .ioError }  // shorter than at the cut, though nothing was recorded
            at = unchangedEnd
        }
        return Int(end - offset)
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE on the data of the cut. Throws ENXIO where there is no such place.
    package func seek(
        _ key: InodeKey, primary: Descriptor?, size: Int64, _ whence: Int32, from offset: Int64
    ) throws(Errno) -> Int64 {
        guard offset >= 0, offset < size else { throw .noSuchAddressOrDevice }
        var at = offset
        while at < size {
            let (isStored, end) = run(key, from: at, limit: size)
            let file: Descriptor?
            if isStored {
                file = try stored().existingFile(of: key)
            } else {
                guard let primary else { throw .ioError }
                file = primary
            }
            // A delta file that was never made holds nothing but holes.
            let found = try file.map { (file) throws(Errno) in
                try LinuxSystem.seek(file, whence, from: at)
            }
            if !isStored {
                let (isStoredNow, unchangedEnd) = run(key, from: at, limit: end)
                if isStoredNow || unchangedEnd < end { continue }
                try checkReadable(key)
            }
            let place: Int64? =
                whence == SEEK_DATA ? (found ?? nil) : (found.map { $0 ?? at } ?? at)
            if let place, place < end { return place }
            at = end
        }
        if whence == SEEK_HOLE { return size }
        throw .noSuchAddressOrDevice
    }
}
