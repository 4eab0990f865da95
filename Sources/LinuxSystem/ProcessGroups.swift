internal import Glibc
internal import SystemPackage

/// The supplementary groups of a process or thread, as /proc tells; none where it cannot be asked (another PID
/// namespace, or gone).
package func supplementaryGroups(of process: Int32) -> [UInt32] {
    guard process > 0 else { return [] }
    let room = UnsafeMutableRawBufferPointer.allocate(byteCount: statusBytesMax, alignment: 1)
    defer { room.deallocate() }
    do throws(Errno) {
        let file = try Descriptor.open(at: .workingDirectory, "/proc/\(process)/status", O_RDONLY)
        let text = room[..<(try readFully(file, into: room, at: 0))]
        for line in text.split(separator: UInt8(ascii: "\n")) where line.starts(with: "Groups:".utf8) {
            return line.dropFirst("Groups:".utf8.count).split(separator: UInt8(ascii: " ")).compactMap {
                UInt32(String(decoding: $0, as: UTF8.self).filter { $0.isNumber })
            }
        }
        return []
    } catch {
        return []
    }
}

/// A process may be in 65,536 groups, of ten digits each.
private let statusBytesMax = 1 << 20
