package import CTestSupport
package import Glibc
package import SystemPackage

/// The calls that take a path: each throws what the call of its name left in errno.
extension Path {
    package func open(_ flags: Int32, mode: UInt32 = 0o644) throws(Errno) -> File {
        let raw = try withCString { (path) throws(Errno) in
            try check(ts_openat(AT_FDCWD, path, flags | O_CLOEXEC, mode))
        }
        return File(raw: raw)
    }

    package func mkdir(mode: mode_t = 0o755) throws(Errno) {
        _ = try withCString { (path) throws(Errno) in try check(Glibc.mkdir(path, mode)) }
    }

    package func rmdir() throws(Errno) {
        _ = try withCString { (path) throws(Errno) in try check(Glibc.rmdir(path)) }
    }

    package func unlink() throws(Errno) {
        _ = try withCString { (path) throws(Errno) in try check(Glibc.unlink(path)) }
    }

    package func mkfifo(mode: mode_t = 0o644) throws(Errno) {
        _ = try withCString { (path) throws(Errno) in try check(Glibc.mkfifo(path, mode)) }
    }

    package func mknod(mode: mode_t, device: UInt64 = 0) throws(Errno) {
        _ = try withCString { (path) throws(Errno) in try check(Glibc.mknod(path, mode, UInt(device))) }
    }

    /// Binds a Unix socket to the name.
    package func makeSocket() throws(Errno) {
        _ = try withCString { (path) throws(Errno) in try check(ts_bind_socket(path)) }
    }

    package func symlink(to target: Path) throws(Errno) {
        _ = try target.withCString { (target) throws(Errno) in
            try withCString { (path) throws(Errno) in try check(Glibc.symlink(target, path)) }
        }
    }

    package func link(to new: Path) throws(Errno) {
        _ = try withCString { (old) throws(Errno) in
            try new.withCString { (new) throws(Errno) in try check(Glibc.link(old, new)) }
        }
    }

    package func rename(to new: Path, flags: Int32 = 0) throws(Errno) {
        _ = try withCString { (old) throws(Errno) in
            try new.withCString { (new) throws(Errno) in
                try check(renameat2(AT_FDCWD, old, AT_FDCWD, new, UInt32(flags)))
            }
        }
    }

    package func readlink() throws(Errno) -> Path {
        var room = [CChar](repeating: 0, count: 4096)
        let count = try withCString { (path) throws(Errno) in try check(Glibc.readlink(path, &room, room.count)) }
        return Path(room[..<count].map { UInt8(bitPattern: $0) })
    }

    package func chmod(_ mode: mode_t) throws(Errno) {
        _ = try withCString { (path) throws(Errno) in try check(Glibc.chmod(path, mode)) }
    }

    /// lchown(2); nil leaves the one or the other as it is.
    package func chown(user: UInt32? = nil, group: UInt32? = nil) throws(Errno) {
        _ = try withCString { (path) throws(Errno) in
            try check(lchown(path, user ?? .max, group ?? .max))
        }
    }

    package func truncate(_ size: Int) throws(Errno) {
        _ = try withCString { (path) throws(Errno) in try check(Glibc.truncate(path, size)) }
    }

    /// utimensat(2), of a symbolic link itself; nil is UTIME_OMIT.
    package func setTimes(accessed: Timestamp?, modified: Timestamp?) throws(Errno) {
        let (accessed, modified) = (accessed ?? .omit, modified ?? .omit)
        _ = try withCString { (path) throws(Errno) in
            try check(
                ts_utimensat(
                    path, accessed.seconds, accessed.nanoseconds, modified.seconds, modified.nanoseconds))
        }
    }

    package func lstat() throws(Errno) -> Status {
        var raw = Glibc.stat()
        _ = try withCString { (path) throws(Errno) in try check(fstatat(AT_FDCWD, path, &raw, AT_SYMLINK_NOFOLLOW))
        }
        return Status(raw)
    }

    package func stat() throws(Errno) -> Status {
        var raw = Glibc.stat()
        _ = try withCString { (path) throws(Errno) in try check(fstatat(AT_FDCWD, path, &raw, 0)) }
        return Status(raw)
    }

    package func fileSystem() throws(Errno) -> statvfs {
        var raw = statvfs()
        _ = try withCString { (path) throws(Errno) in try check(statvfs(path, &raw)) }
        return raw
    }

    package func access(_ mode: Int32) throws(Errno) {
        _ = try withCString { (path) throws(Errno) in try check(Glibc.access(path, mode)) }
    }

    package var exists: Bool {
        do throws(Errno) {
            _ = try lstat()
            return true
        } catch {
            return false
        }
    }

    /// The names in a directory but `.` and `..`, as it lists them.
    package func entries() throws(Errno) -> [Path] {
        try open(O_RDONLY | O_DIRECTORY).entries()
    }
}

/// Extended attributes: of a symbolic link itself.
extension Path {
    package func setAttribute(_ name: String, _ value: [UInt8], flags: Int32 = 0) throws(Errno) {
        _ = try withCString { (path) throws(Errno) in
            try check(lsetxattr(path, name, value, value.count, flags))
        }
    }

    package func attribute(_ name: String, room: Int = 65536) throws(Errno) -> [UInt8] {
        var value = [UInt8](repeating: 0, count: room)
        let count = try withCString { (path) throws(Errno) in try check(lgetxattr(path, name, &value, room)) }
        return room == 0 ? [] : Array(value[..<count])
    }

    package func removeAttribute(_ name: String) throws(Errno) {
        _ = try withCString { (path) throws(Errno) in try check(lremovexattr(path, name)) }
    }

    package func attributeNames(room: Int = 65536) throws(Errno) -> [String] {
        var list = [CChar](repeating: 0, count: room)
        let count = try withCString { (path) throws(Errno) in try check(llistxattr(path, &list, room)) }
        return list[..<count].split(separator: 0).map {
            String(decoding: $0.map(UInt8.init(bitPattern:)), as: UTF8.self)
        }
    }
}

/// Whole files, in one call.
extension Path {
    /// Makes a file with these bytes; it must not exist.
    package func create(_ data: [UInt8] = [], mode: UInt32 = 0o644) throws(Errno) {
        let file = try open(O_WRONLY | O_CREAT | O_EXCL, mode: mode)
        try file.writeAll(data)
    }

    package func write(_ data: [UInt8], at offset: Int) throws(Errno) {
        try open(O_WRONLY).writeAll(data, at: offset)
    }

    package func append(_ data: [UInt8]) throws(Errno) {
        try open(O_WRONLY | O_APPEND).writeAll(data)
    }

    package func contents() throws(Errno) -> [UInt8] {
        let file = try open(O_RDONLY)
        var data: [UInt8] = []
        while true {
            let piece = try file.read(1 << 16, at: data.count)
            if piece.isEmpty { return data }
            data += piece
        }
    }
}

/// Seconds and nanoseconds.
package struct Timestamp: Hashable, Comparable, Sendable, CustomStringConvertible {
    package var seconds: Int64
    package var nanoseconds: Int64

    package init(_ seconds: Int64, _ nanoseconds: Int64 = 0) {
        self.seconds = seconds
        self.nanoseconds = nanoseconds
    }

    package static let now = Timestamp(0, ts_utime_now)
    package static let omit = Timestamp(0, ts_utime_omit)

    package static func < (left: Timestamp, right: Timestamp) -> Bool {
        (left.seconds, left.nanoseconds) < (right.seconds, right.nanoseconds)
    }

    package var description: String {
        let digits = String(nanoseconds)
        return "\(seconds).\(String(repeating: "0", count: max(0, 9 - digits.count)))\(digits)"
    }
}

/// What stat(2) tells.
package struct Status: Hashable, Sendable {
    package enum Kind: Sendable {
        case regular, directory, symlink, fifo, socket, characterDevice, blockDevice
    }

    package let device: UInt64
    package let inode: UInt64
    package let mode: UInt32
    package let links: UInt64
    package let user: UInt32
    package let group: UInt32
    package let specialDevice: UInt64
    package let size: Int
    package let blocks: Int
    package let accessed: Timestamp
    package let modified: Timestamp
    package let changed: Timestamp

    package init(_ raw: Glibc.stat) {
        device = UInt64(raw.st_dev)
        inode = UInt64(raw.st_ino)
        mode = raw.st_mode
        links = UInt64(raw.st_nlink)
        user = raw.st_uid
        group = raw.st_gid
        specialDevice = UInt64(raw.st_rdev)
        size = Int(raw.st_size)
        blocks = Int(raw.st_blocks)
        accessed = Timestamp(Int64(raw.st_atim.tv_sec), Int64(raw.st_atim.tv_nsec))
        modified = Timestamp(Int64(raw.st_mtim.tv_sec), Int64(raw.st_mtim.tv_nsec))
        changed = Timestamp(Int64(raw.st_ctim.tv_sec), Int64(raw.st_ctim.tv_nsec))
    }

    package var permissions: UInt32 { mode & 0o7777 }

    package var kind: Kind {
        switch mode & S_IFMT {
        case S_IFREG: .regular
        case S_IFDIR: .directory
        case S_IFLNK: .symlink
        case S_IFIFO: .fifo
        case S_IFSOCK: .socket
        case S_IFCHR: .characterDevice
        default: .blockDevice
        }
    }
}
