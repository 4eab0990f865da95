internal import LinuxSystem
internal import SystemPackage

/// A device as the kernel numbers it. Of btrfs that of the whole file system, not that of a subvolume, which is
/// what stat(2) tells.
struct Device: Hashable, Sendable {
    var major: UInt64
    var minor: UInt64
}

/// A mount: a line of /proc/PID/mountinfo.
struct MountLine: Hashable, Sendable {
    var id: UInt64
    var parent: UInt64
    var device: Device
    /// The directory of the file system that is mounted, as its path inside the file system. It may be a file.
    var root: [UInt8]
    /// Where it is mounted, in its mount namespace.
    var point: [UInt8]
    var isReadOnly: Bool
    /// The group of mounts that it shares what is mounted in it with, and the one that it takes that from; 0:
    /// none.
    var shared: UInt64 = 0
    var master: UInt64 = 0
    /// The namespace it is in: the text of the link /proc/PID/ns/mnt.
    var namespace: [UInt8] = []
}

/// The mounts of all mount namespaces that have a process, by their ids, which are the machine's.
struct MountTable: Sendable {
    private(set) var lines: [UInt64: MountLine] = [:]

    subscript(id: UInt64) -> MountLine? { lines[id] }

    /// Adds what /proc/PID/mountinfo says. `top` is the process's root directory, which the paths in it begin at.
    /// A mount that is known already stays as it is.
    mutating func add(mountinfo: [UInt8], top: [UInt8], namespace: [UInt8]) {
        for text in mountinfo.split(separator: UInt8(ascii: "\n")) {
            guard var line = MountLine(parsing: text), lines[line.id] == nil else { continue }
            line.point = joined(top, line.point)
            line.namespace = namespace
            lines[line.id] = line
        }
    }

    /// The groups in which a mount made in `mount` arrives: its own, those that take from it, and so on.
    func groups(reachedFrom mount: MountLine) -> Set<UInt64> {
        guard mount.shared != 0 else { return [] }
        var reached: Set<UInt64> = [mount.shared]
        while true {
            let more = lines.values.filter {
                $0.shared != 0 && reached.contains($0.master) && !reached.contains($0.shared)
            }
            if more.isEmpty { return reached }
            reached.formUnion(more.map(\.shared))
        }
    }
}

extension MountLine {
    /// A line: id, parent, device, root, mount point, options, optional fields, "-", type, source, options.
    init?(parsing text: ArraySlice<UInt8>) {
        let words = text.split(separator: UInt8(ascii: " "))
        guard words.count > 6, let id = number(words[0]), let parent = number(words[1]) else { return nil }
        let device = words[2].split(separator: UInt8(ascii: ":"))
        guard device.count == 2, let major = number(device[0]), let minor = number(device[1]) else { return nil }
        self.init(
            id: id, parent: parent, device: Device(major: major, minor: minor), root: unescaped(words[3]),
            point: unescaped(words[4]),
            isReadOnly: words[5].split(separator: UInt8(ascii: ",")).contains { $0 == "ro" })
        for word in words[6...] {
            if word == "-" { break }
            shared = value(of: "shared:", in: word) ?? shared
            master = value(of: "master:", in: word) ?? master
        }
    }
}

private func value(of name: String, in word: ArraySlice<UInt8>) -> UInt64? {
    word.starts(with: name.utf8) ? number(word.dropFirst(name.utf8.count)) : nil
}

private func == (word: ArraySlice<UInt8>, text: String) -> Bool { word.elementsEqual(text.utf8) }

/// Blanks, line breaks and backslashes stand as `\` and three octal digits.
func unescaped(_ word: ArraySlice<UInt8>) -> [UInt8] {
    var bytes: [UInt8] = []
    var rest = word
    while let byte = rest.popFirst() {
        if byte == UInt8(ascii: "\\"), let value = number(rest.prefix(3), radix: 8), value < 256 {
            bytes.append(UInt8(value))
            rest = rest.dropFirst(3)
        } else {
            bytes.append(byte)
        }
    }
    return bytes
}

/// What the digits say; nil where there is something else, or nothing.
func number(_ digits: some Sequence<UInt8>, radix: UInt64 = 10) -> UInt64? {
    var result: UInt64?
    for digit in digits {
        guard let value = hexadecimalValue(digit), value < radix else { return nil }
        let (product, isTooLarge) = (result ?? 0).multipliedReportingOverflow(by: radix)
        if isTooLarge { return nil }
        result = product &+ value
    }
    return result
}

private func hexadecimalValue(_ digit: UInt8) -> UInt64? {
    switch digit {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): UInt64(digit - UInt8(ascii: "0"))
    case UInt8(ascii: "a")...UInt8(ascii: "f"): UInt64(digit - UInt8(ascii: "a")) + 10
    default: nil
    }
}

// MARK: Paths as bytes: absolute, without «.» and «..»

/// What of `path` follows `directory`: "" for the directory itself, "/name" for what lies in it; nil where it does
/// not.
func rest(of path: [UInt8], after directory: [UInt8]) -> [UInt8]? {
    let slash = UInt8(ascii: "/")
    if directory == [slash] { return path == directory ? [] : path }
    guard path.starts(with: directory) else { return nil }
    let rest = path.dropFirst(directory.count)
    return rest.isEmpty || rest.first == slash ? Array(rest) : nil
}

func joined(_ directory: [UInt8], _ rest: [UInt8]) -> [UInt8] {
    if rest.isEmpty || rest == [UInt8(ascii: "/")] { return directory }
    return directory == [UInt8(ascii: "/")] ? rest : directory + rest
}
