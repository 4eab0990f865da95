internal import ArchiveFormat
internal import FusesnapReader
internal import Glibc
internal import LinuxSystem

/// Why an export came to no good end.
enum ExportFailure: Error {
    case reading(SnapshotReaderError)
    case writing(ArchiveError, path: String)
}

/// Takes a snapshot from a reader to an archive: directories before what is in them, a file with several names once, and by its
/// further names as links.
final class SnapshotExporter {
    private let meter: ExportMeter
    /// Of inodes with several names: the path of the member with the data.
    private var firstPaths: [UInt64: [UInt8]] = [:]
    private let buffer: UnsafeMutableRawBufferPointer
    private(set) var socketCount = 0

    private static let pieceBytes = 1 << 20

    init(_ meter: ExportMeter) {
        self.meter = meter
        buffer = .allocate(byteCount: Self.pieceBytes, alignment: 4096)
    }

    deinit { buffer.deallocate() }

    /// Throws `reading` also where the snapshot was not exact to the end; then no archive is finished.
    func export(
        _ reader: SnapshotReader, _ open: () throws(ArchiveError) -> ArchiveWriter
    ) throws(ExportFailure) {
        var writer: ArchiveWriter
        do throws(ArchiveError) {
            writer = try open()
        } catch {
            throw .writing(error, path: "the archive")
        }
        try add(reader.root(), at: [UInt8(ascii: ".")], to: &writer)
        try reading { () throws(SnapshotReaderError) in try reader.verify() }
        do throws(ArchiveError) {
            try writer.finish()
        } catch {
            throw .writing(error, path: "the end of the archive")
        }
    }

    private func add(
        _ node: SnapshotNode, at path: [UInt8], to writer: inout ArchiveWriter
    ) throws(ExportFailure) {
        guard node.kind != .socket else {
            socketCount += 1
            return
        }
        let (member, ranges) = try reading { () throws(SnapshotReaderError) in try self.member(node, at: path) }
        try written(path) { () throws(ArchiveError) in try writer.begin(member) }
        for range in ranges { try copy(range, of: node, at: path, to: &writer) }
        meter.count(bytes: 0, files: 1)
        guard node.kind == .directory else { return }
        for name in try reading({ () throws(SnapshotReaderError) in try node.names() }) {
            let child = try reading { () throws(SnapshotReaderError) in try node.child(name) }
            try add(child, at: path + [UInt8(ascii: "/")] + name, to: &writer)
        }
    }

    private func reading<Result>(
        _ body: () throws(SnapshotReaderError) -> Result
    ) throws(ExportFailure) -> Result {
        do throws(SnapshotReaderError) {
            return try body()
        } catch {
            throw .reading(error)
        }
    }

    /// The member, and which data of it are to be written.
    private func member(
        _ node: SnapshotNode, at path: [UInt8]
    ) throws(SnapshotReaderError) -> (ArchiveMember, [Range<Int64>]) {
        let status = try node.status()
        var member = ArchiveMember(path: path, status: status, extended: try node.extended(), content: .none)
        if node.kind != .directory, status.links > 1 {
            if let first = firstPaths[status.inode] {
                member.content = .hardLink(first)
                return (member, [])
            }
            firstPaths[status.inode] = path
        }
        switch node.kind {
        case .file:
            let ranges = try node.dataRanges()
            member.content = .data(ranges)
            return (member, ranges)
        case .symbolicLink:
            member.content = .symbolicLink(try node.target())
        default: break
        }
        return (member, [])
    }

    private func copy(
        _ range: Range<Int64>, of node: SnapshotNode, at path: [UInt8], to writer: inout ArchiveWriter
    ) throws(ExportFailure) {
        var at = range.lowerBound
        while at < range.upperBound {
            let piece = UnsafeMutableRawBufferPointer(
                rebasing: buffer[..<min(buffer.count, Int(range.upperBound - at))])
            let count = try reading { () throws(SnapshotReaderError) in try node.read(into: piece, at: at) }
            let data = UnsafeRawBufferPointer(rebasing: piece[..<count])
            try written(path) { () throws(ArchiveError) in try writer.write(data, at: at) }
            meter.count(bytes: count, files: 0)
            at += Int64(count)
        }
    }

    private func written(
        _ path: [UInt8], _ body: () throws(ArchiveError) -> Void
    ) throws(ExportFailure) {
        do throws(ArchiveError) {
            try body()
        } catch {
            throw .writing(error, path: String(decoding: path, as: UTF8.self))
        }
    }
}
