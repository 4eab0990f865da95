internal import Glibc
internal import SystemPackage

/// A mount, as /proc/self/mountinfo tells.
struct MountEntry: Equatable, Sendable {
    var mountpoint: String
    var type: String
    var source: String
    /// The user who mounted it, where it is a FUSE file system.
    var user: UInt32?
    /// The options of the file system, not those of this mount of it.
    var fileSystemOptions: [String] = []

    /// A place at which a mount is made when somebody looks into it.
    var isAutomount: Bool { type == "autofs" }

    var isFusesnap: Bool { type == "fuse.\(MountOptions.subtype)" }
}

/// The mounts of this mount name space, in the order in which they were made.
struct MountTable: Sendable {
    var entries: [MountEntry]

    /// /proc/self/mountinfo, as it is now.
    static func current() throws(CommandFailure) -> MountTable {
        do throws(Errno) {
            return MountTable(parsing: try FileContents.read("/proc/self/mountinfo"))
        } catch {
            throw CommandFailure("cannot read the mount table /proc/self/mountinfo: \(error)")
        }
    }

    init(parsing bytes: [UInt8]) {
        entries = bytes.split(separator: UInt8(ascii: "\n")).compactMap(Self.parseLine)
    }

    /// Its line: id, parent, device, root, mount point, options, optional fields, "-", type,
    /// source, options.
    private static func parseLine(_ line: ArraySlice<UInt8>) -> MountEntry? {
        let words = line.split(separator: UInt8(ascii: " "))
        guard let dash = words.firstIndex(where: { $0.elementsEqual("-".utf8) }),
            words.count > dash + 3
        else { return nil }
        let options = words[dash + 3].split(separator: UInt8(ascii: ",")).map {
            String(decoding: $0, as: UTF8.self)
        }
        let user = options.first { $0.hasPrefix("user_id=") }.flatMap { UInt32($0.dropFirst(8)) }
        return MountEntry(
            mountpoint: unescape(words[4]), type: unescape(words[dash + 1]),
            source: unescape(words[dash + 2]), user: user, fileSystemOptions: options)
    }

    /// Blanks, line breaks and backslashes stand as `\` and three octal digits.
    private static func unescape(_ word: ArraySlice<UInt8>) -> String {
        var bytes: [UInt8] = []
        var rest = word
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

    /// The mount at exactly this path; of several the topmost.
    func mount(at path: String) -> MountEntry? {
        entries.last { $0.mountpoint == path }
    }

    /// The mount that a path lies in.
    func mount(containing path: String) -> MountEntry? {
        var found: MountEntry?
        for entry in entries where Paths.contains(entry.mountpoint, path) {
            if entry.mountpoint.utf8.count >= found?.mountpoint.utf8.count ?? 0 { found = entry }
        }
        return found
    }

    /// Waits until nothing of type fuse.fusesnap is mounted at `path`; false when the time is over
    /// first.
    static func waitUntilUnmounted(
        _ path: String, within limit: Duration
    ) throws(CommandFailure) -> Bool {
        let raw = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC)
        defer { if raw >= 0 { close(raw) } }
        let deadline = ContinuousClock.now + limit
        while try current().mount(at: path)?.isFusesnap == true {
            let left = deadline - ContinuousClock.now
            if left <= .zero { return false }
            // POLLPRI comes with each change of the table.
            var entry = pollfd(fd: raw, events: Int16(POLLPRI), revents: 0)
            poll(&entry, 1, Int32(clamping: left.components.seconds * 1000 + 100))
        }
        return true
    }
}
