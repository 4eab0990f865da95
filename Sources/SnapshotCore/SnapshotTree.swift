internal import Glibc
package import LinuxSystem
package import SnapshotRecord
package import SystemPackage

/// What `.snapshot` shows: the tree of the cut, read-only.
///
/// Every method asks at its end whether the snapshot still holds, and throws EIO or ESTALE where it does not
/// (`SnapshotEnd`).
package struct SnapshotTree: Sendable {
    /// Inode numbers in a snapshot differ from the source's in this bit.
    package static let inodeBit: UInt64 = 1 << 62

    package let overlay: OverlayView
    private let cut: SnapshotCut
    private var end: SnapshotEnd { cut.end }

    package init(_ cut: SnapshotCut) {
        self.cut = cut
        overlay = cut.overlay
    }

    private func checked<Result>(
        _ body: () throws(Errno) -> Result
    ) throws(Errno) -> Result {
        try end.check()
        let result: Result
        do throws(Errno) {
            result = try body()
        } catch {
            try end.check()
            switch error {
            case .permissionDenied:
                // The kernel has granted this by the modes of the cut; an ordinary user's daemon is refused, since the
                // live ones have changed.
                cut.becomeIncomplete(
                    "a file could not be read: its mode has changed since the cut", tells: false)
                throw .ioError
            case .ioError:
                cut.becomeIncomplete("a file could not be read: \(error)", tells: false)
                throw error
            default: throw error
            }
        }
        try end.check()
        return result
    }

    /// A file system mounted below the source is not covered: it shows as an empty directory.
    private func isCovered(_ reference: InodeReference) -> Bool {
        reference.device == overlay.source.device
    }

    package func open(
        _ reference: InodeReference, _ flags: Int32, find: () throws(Errno) -> Descriptor
    ) throws(Errno) -> Descriptor? {
        if !isCovered(reference) { return nil }
        return try checked { () throws(Errno) in
            try overlay.open(reference, flags, find: find)
        }
    }

    /// `seen`: of the entry, where the name has just been looked at.
    package func status(
        of reference: InodeReference, seen: FileStatus? = nil, _ descriptor: () throws(Errno) -> Descriptor
    ) throws(Errno) -> FileStatus {
        if !isCovered(reference) { return Self.statusOfUncovered(reference) }
        return try checked { () throws(Errno) in
            var status = try overlay.status(of: reference, seen: seen, descriptor)
            status.inode ^= Self.inodeBit
            return status
        }
    }

    /// An empty directory; where a file is mounted, an empty file.
    private static func statusOfUncovered(_ reference: InodeReference) -> FileStatus {
        var status = FileStatus()
        let isDirectory = reference.kind == UInt32(S_IFDIR)
        status.device = reference.device
        status.inode = reference.key.inode ^ inodeBit
        status.mode = isDirectory ? UInt32(S_IFDIR) | 0o555 : UInt32(S_IFREG) | 0o444
        status.links = isDirectory ? 2 : 1
        return status
    }

    package func extendedAttributes(
        of reference: InodeReference, _ descriptor: () throws(Errno) -> Descriptor
    ) throws(Errno) -> ExtendedAttributes {
        if !isCovered(reference) { return ExtendedAttributes() }
        return try checked { () throws(Errno) in
            try overlay.extendedAttributes(of: reference, descriptor)
        }
    }

    package func target(
        of reference: InodeReference, _ descriptor: () throws(Errno) -> Descriptor
    ) throws(Errno) -> [UInt8] {
        try checked { () throws(Errno) in try overlay.target(of: reference, descriptor) }
    }

    package func entry(
        in reference: InodeReference, _ directory: Descriptor?, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> SnapshotEntry {
        if !isCovered(reference) { throw .noSuchFileOrDirectory }
        return try checked { () throws(Errno) in
            guard let scope = cut.scope else { return try overlay.entry(in: reference, directory, name) }
            return try overlay.entry(in: reference, directory, name, scope)
        }
    }

    package func listing(
        of reference: InodeReference, _ directory: Descriptor?
    ) throws(Errno) -> Listing {
        if !isCovered(reference) { return Listing() }
        return try checked { () throws(Errno) in
            guard let scope = cut.scope else { return try overlay.listing(of: reference, directory) }
            return try overlay.listing(of: reference, directory, scope, cut.leading, check: end.check)
        }
    }

    package func read(
        _ key: InodeKey, primary: Descriptor?, size: Int64,
        into buffer: UnsafeMutableRawBufferPointer, at offset: Int64
    ) throws(Errno) -> Int {
        try checked { () throws(Errno) in
            do throws(Errno) {
                return try overlay.read(key, primary: primary, size: size, into: buffer, at: offset)
            } catch .ioError {
                if cut.wasRead(offset..<max(offset, min(size, offset + Int64(buffer.count))), of: key) {
                    cut.becomeIncomplete(
                        "inode \(key.inode) was read again after it had been read and changed: a single pass was asked for"
                    )
                }
                throw .ioError
            }
        }
    }

    /// Whether the backup reads every file once, so that it matters what it has read.
    package var isSinglePass: Bool { cut.singlePass != nil }

    /// Whether it is the tree of this cut.
    package func shows(_ cut: SnapshotCut) -> Bool { self.cut === cut }

    package func seek(
        _ key: InodeKey, primary: Descriptor?, size: Int64, _ whence: Int32, from offset: Int64
    ) throws(Errno) -> Int64 {
        try checked { () throws(Errno) in
            try overlay.seek(key, primary: primary, size: size, whence, from: offset)
        }
    }
}
