import Glibc
import LinuxSystem
import SystemPackage

/// The mounts that this process sees: /proc/self/mountinfo.
struct MountTable {
    struct Entry {
        let mountpoint: String
        let type: String
        /// The user who made a FUSE mount.
        let user: UInt32?

        var isFusesnap: Bool { type == "fuse.fusesnap" }
    }

    /// In the order of mounting.
    let entries: [Entry]

    init() throws(CommandFailure) {
        guard let text = readWholeFile("/proc/self/mountinfo") else {
            throw CommandFailure("cannot read /proc/self/mountinfo: is /proc mounted?")
        }
        entries = text.split(separator: "\n").compactMap { Self.entry($0) }
    }

    private static func entry(_ line: Substring) -> Entry? {
        // id parent major:minor root mountpoint options [tags] - type source superoptions
        let fields = line.split(separator: " ")
        guard fields.count > 6, let dash = fields.firstIndex(of: "-"), dash + 3 < fields.count + 1
        else { return nil }
        let options = fields.last.map { $0.split(separator: ",") } ?? []
        let user = options.first { $0.hasPrefix("user_id=") }.flatMap { UInt32($0.dropFirst(8)) }
        return Entry(
            mountpoint: unescaped(fields[4]), type: String(fields[dash + 1]), user: user)
    }

    /// Space, tab, newline and backslash stand as three octal digits behind a backslash.
    private static func unescaped(_ field: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(field.utf8)[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            if byte == UInt8(ascii: "\\"), digits.count == 3,
                let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 8)
            {
                bytes.append(value)
                rest = rest.dropFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// The mount on top at exactly this path.
    func mount(at path: String) -> Entry? {
        entries.last { $0.mountpoint == path }
    }

    /// The mount in which a path lies.
    func mount(holding path: String) -> Entry? {
        var best: Entry?
        for entry in entries where isWithin(path, entry.mountpoint) {
            if entry.mountpoint.utf8.count >= best?.mountpoint.utf8.count ?? 0 { best = entry }
        }
        return best
    }
}

/// Whether `path` is `directory` or below it; both canonical.
func isWithin(_ path: String, _ directory: String) -> Bool {
    path == directory || path.hasPrefix(directory == "/" ? "/" : directory + "/")
}

/// realpath(3); nil where it fails, with errno.
func canonicalPath(_ path: String) -> String? {
    guard let resolved = realpath(path, nil) else { return nil }
    defer { free(resolved) }
    return String(cString: resolved)
}

/// The canonical path of a mount point, also of one whose daemon is dead, so that the kernel does not resolve it.
func canonicalMountpoint(_ path: String) -> String? {
    if let canonical = canonicalPath(path) { return canonical }
    guard currentErrno() == .socketNotConnected || currentErrno() == .ioError else { return nil }
    var parts = path.split(separator: "/", omittingEmptySubsequences: true)
    guard let last = parts.popLast(), last != "..", last != "." else { return nil }
    let parent = (path.hasPrefix("/") ? "/" : "./") + parts.joined(separator: "/")
    return canonicalPath(parent).map { $0 == "/" ? "/\(last)" : "\($0)/\(last)" }
}

/// What a file of /proc or /etc holds; nil where it cannot be read.
func readWholeFile(_ path: String) -> String? {
    guard let file = fopen(path, "re") else { return nil }
    defer { fclose(file) }
    var bytes: [UInt8] = []
    var room = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = fread(&room, 1, room.count, file)
        if count == 0 { break }
        bytes += room[..<count]
    }
    return String(decoding: bytes, as: UTF8.self)
}
