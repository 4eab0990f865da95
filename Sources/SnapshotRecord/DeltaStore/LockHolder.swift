internal import CLinux
internal import Glibc
internal import LinuxSystem
internal import SystemPackage

/// The process that holds a lock of flock(2), by /proc/locks. Of a daemon that was killed the lock is held until its last
/// thread has ended, which may be waiting for a disk.
struct LockHolder {
    private let process: Int32

    /// nil where nobody holds one, or it cannot be told who.
    init?(of file: Descriptor) {
        guard let inode = Self.attempt({ () throws(Errno) in try FileStatus(of: file).inode }),
            let table = Self.contents("/proc/locks")
        else { return nil }
        // «1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF»
        for line in table.split(separator: "\n") {
            let fields = line.split(separator: " ")
            guard fields.count >= 6, fields[1] == "FLOCK", fields[5].hasSuffix(":\(inode)"),
                let process = Int32(fields[4]), process > 0
            else { continue }
            self.process = process
            return
        }
        return nil
    }

    /// Whether it has been killed, or has exited, and only what is left of it holds the lock.
    private var isEnding: Bool {
        guard let text = Self.contents("/proc/\(process)/stat"), let end = text.lastIndex(of: ")") else { return true }
        let state = text[text.index(after: end)...].first { $0 != " " }
        return state == "Z" || state == "X"
    }

    /// Waits for the end of a process that is ending; false where it is not, or not at an end within that time.
    func waitForEnd(milliseconds: Int32) -> Bool {
        guard isEnding else { return false }
        guard let end = Self.attempt({ () throws(Errno) in Descriptor(owning: try checked { cl_pidfd_open(process) }) })
        else { return true }
        var wait = pollfd(fd: end.raw, events: Int16(POLLIN), revents: 0)
        return poll(&wait, 1, milliseconds) == 1
    }

    private static func contents(_ path: String) -> String? {
        attempt { () throws(Errno) in
            let file = try FileName(path).withCString { (path) throws(Errno) in
                try Descriptor.open(at: .workingDirectory, path, O_RDONLY)
            }
            var bytes: [UInt8] = []
            let room = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 << 10, alignment: 1)
            defer { room.deallocate() }
            while true {
                let count = try checked { read(file.raw, room.baseAddress, room.count) }
                if count == 0 { return String(decoding: bytes, as: UTF8.self) }
                bytes += room[..<count]
            }
        }
    }

    private static func attempt<Result>(_ body: () throws(Errno) -> Result) -> Result? {
        do throws(Errno) {
            return try body()
        } catch {
            return nil  // Not known then.
        }
    }
}
