internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

// The data of the cut: blocks of the delta file where the map has them, else of the primary.
extension OverlayView {
    private static let block = RecordLimits.blockBytes

    /// Where bytes of the cut are.
    private enum Place {
        case primary
        case delta
        /// Nowhere: they were read before, in a single pass, and have been given up.
        case gone
    }

    /// The run of bytes that begins at `offset`: where they are, and where the run ends.
    private func run(_ key: InodeKey, from offset: Int64, limit: Int64) throws(Errno) -> (Place, Int64) {
        guard let record = try record(of: key) else { return (.primary, limit) }
        let (place, end) = record.contents.withLock { contents -> (Place, UInt64) in
            let (first, last) = (UInt64(offset / Self.block), RecordLimits.blockCount(limit))
            let (isStored, end) = contents.blocks.run(from: first, limit: last)
            if isStored || contents.gone.isEmpty { return (isStored ? .delta : .primary, end) }
            let (isGone, goneEnd) = contents.gone.run(from: first, limit: end)
            return (isGone ? .gone : .primary, goneEnd)
        }
        return (place, min(RecordLimits.offset(ofBlock: end), limit))
    }

    private func stored() -> DeltaFiles {
        guard let files else { preconditionFailure("a map that has blocks has a store") }
        return files
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
            let (place, runEnd) = try run(key, from: at, limit: end)
            let piece = UnsafeMutableRawBufferPointer(
                rebasing: buffer[Int(at - offset)..<Int(runEnd - offset)])
            switch place {
            case .gone: throw .ioError
            case .delta:
                try stored().read(of: key, into: piece, at: at)
                // Another reader may have come by it meanwhile, so that it was given up.
                let (placeNow, keptEnd) = try run(key, from: at, limit: runEnd)
                if placeNow == .delta { at = keptEnd }
                continue
            case .primary: break
            }
            guard let primary else { throw .ioError }
            let count = try readFully(primary, into: piece, at: at)
            let isDoubtful = try wasChangedUnseen(primary)
            // What a writer has stored meanwhile may have been changed before it was read: again, from the delta.
            let (placeNow, unchangedEnd) = try run(key, from: at, limit: runEnd)
            if placeNow != .primary { continue }
            try checkReadable(key)
            if isDoubtful, map.record(of: key) == nil { throw .ioError }
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
            let (place, end) = try run(key, from: at, limit: size)
            if place == .gone {
                // It counts as data, whose reading fails.
                if whence == SEEK_DATA { return at }
                at = end
                continue
            }
            let isStored = place == .delta
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
                let (placeNow, unchangedEnd) = try run(key, from: at, limit: end)
                if placeNow != .primary || unchangedEnd < end { continue }
                try checkReadable(key)
            }
            let next: Int64? =
                whence == SEEK_DATA ? (found ?? nil) : (found.map { $0 ?? at } ?? at)
            if let next, next < end { return next }
            at = end
        }
        if whence == SEEK_HOLE { return size }
        throw .noSuchAddressOrDevice
    }
}
