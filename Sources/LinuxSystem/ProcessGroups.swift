internal import Glibc
internal import SystemPackage

/// The supplementary groups of a process or thread, as /proc tells; none where it cannot be asked (another PID
/// namespace, or gone).
package func supplementaryGroups(of process: Int32) -> [UInt32] {
    (statusField("Groups:", of: process) ?? "").split(separator: " ").compactMap {
        UInt32(String($0).filter { $0.isNumber })
    }
}

/// Whether a process or thread has CAP_SYS_ADMIN where this one lives, not in a user namespace of its own. Where /proc
/// cannot be asked, root has it.
package func mayAdminister(_ process: Int32, as user: UInt32) -> Bool {
    guard let field = statusField("CapEff:", of: process),
        let capabilities = UInt64(field.filter { $0.isHexDigit }, radix: 16)
    else { return user == 0 }
    guard capabilities & administratorCapability != 0 else { return false }
    do throws(Errno) {
        return try userNamespace(of: "/proc/\(process)/ns/user") == userNamespace(of: "/proc/self/ns/user")
    } catch {
        return user == 0
    }
}

/// CAP_SYS_ADMIN.
private let administratorCapability: UInt64 = 1 << 21

/// The inode that stands for a user namespace.
private func userNamespace(of link: String) throws(Errno) -> UInt64 {
    try FileName(link).withCString { (path) throws(Errno) in
        try FileStatus(at: .workingDirectory, path, 0).inode
    }
}

/// What follows a field's name in /proc/PID/status; nil where there is none.
private func statusField(_ name: String, of process: Int32) -> String? {
    guard process > 0 else { return nil }
    let room = UnsafeMutableRawBufferPointer.allocate(byteCount: statusBytesMax, alignment: 1)
    defer { room.deallocate() }
    do throws(Errno) {
        let file = try Descriptor.open(at: .workingDirectory, "/proc/\(process)/status", O_RDONLY)
        let text = room[..<(try readFully(file, into: room, at: 0))]
        for line in text.split(separator: UInt8(ascii: "\n")) where line.starts(with: name.utf8) {
            return String(decoding: line.dropFirst(name.utf8.count), as: UTF8.self)
        }
        return nil
    } catch {
        return nil
    }
}

/// A process may be in 65,536 groups, of ten digits each.
private let statusBytesMax = 1 << 20
