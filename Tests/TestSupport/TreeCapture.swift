internal import CTestSupport
internal import Glibc
package import SystemPackage

/// What a backup keeps of one file.
package enum Fact: String, CaseIterable, Sendable {
    case kind, mode, owner, size, data, ranges, mtime, ctime, nlink, links, target, device, attributes
}

/// Everything a backup keeps of a tree. Paths are relative to its root, which is `.` itself.
package struct TreeCapture: Sendable {
    package private(set) var files: [Path: [Fact: String]] = [:]
    /// Not compared: a snapshot has numbers of its own.
    package private(set) var inodes: [Path: UInt64] = [:]

    /// Names that a mount's root and its source have on top of the tree.
    private static let hidden: Set<Path> = [".snapshot", ".fusesnap"]

    package init(_ root: Path) throws {
        var groups: [InodeKey: [Path]] = [:]
        try visit(root, ".", &groups)
        for members in groups.values where members.count > 1 {
            let list = members.map(\.description).sorted().joined(separator: " ")
            for member in members { files[member]?[.links] = list }
        }
        // The root's own status change follows the making of the store in it.
        files["."]?[.ctime] = nil
    }

    private struct InodeKey: Hashable {
        let device, inode: UInt64
    }

    private mutating func visit(_ path: Path, _ relative: Path, _ groups: inout [InodeKey: [Path]]) throws {
        let status = try path.lstat()
        var facts: [Fact: String] = [
            .kind: "\(status.kind)", .mode: String(status.permissions, radix: 8),
            .owner: "\(status.user):\(status.group)", .mtime: "\(status.modified)", .ctime: "\(status.changed)",
        ]
        // The kernel tells its own.
        if Machine.kernelOwnsTimes && status.kind == .regular { facts[.ctime] = nil }
        facts[.attributes] = try Self.attributes(path)
        switch status.kind {
        case .regular:
            facts[.size] = "\(status.size)"
            let file = try path.open(O_RDONLY | O_NOFOLLOW)
            facts[.data] = String(try hash(of: file), radix: 16)
            // Nor where the kernel reads pages that were allocated and never written, to gather writes in them.
            if TemporaryDirectory.tellsHolesForGood && !Machine.kernelOwnsTimes {
                facts[.ranges] = try file.dataRanges().map { "\($0)" }.joined(separator: " ")
            }
        case .symlink: facts[.target] = "\(try path.readlink())"
        case .characterDevice, .blockDevice: facts[.device] = "\(status.specialDevice)"
        case .directory, .fifo, .socket: break
        }
        if status.kind != .directory {
            facts[.nlink] = "\(status.links)"
            groups[InodeKey(device: status.device, inode: status.inode), default: []].append(relative)
        }
        files[relative] = facts
        inodes[relative] = status.inode
        if status.kind != .directory { return }
        for name in try path.entries() where relative != "." || !Self.hidden.contains(name) {
            try visit(path / name, relative == "." ? name : relative / name, &groups)
        }
    }

    private static func attributes(_ path: Path) throws -> String {
        var lines: [String] = []
        for name in try attributeNames(path) {
            let value = try path.attribute(name).map { String($0, radix: 16) }
            lines.append("\(name)=\(value.joined(separator: "."))")
        }
        return lines.joined(separator: " ")
    }

    private static func attributeNames(_ path: Path) throws(Errno) -> [String] {
        do throws(Errno) {
            return try path.attributeNames().sorted()
        } catch .notSupported {
            return []
        }
    }

    /// Lines that say how `actual` differs from this; none where it does not.
    package func differences(_ actual: TreeCapture, ignoring: Set<Fact> = []) -> [String] {
        var lines: [String] = []
        for path in Set(files.keys).union(actual.files.keys).sorted(by: { "\($0)" < "\($1)" }) {
            guard let expected = files[path] else {
                lines.append("\(path): should not be there")
                continue
            }
            guard let found = actual.files[path] else {
                lines.append("\(path): missing")
                continue
            }
            for fact in Fact.allCases where !ignoring.contains(fact) && expected[fact] != found[fact] {
                lines.append("\(path): \(fact) is \(found[fact] ?? "none"), should be \(expected[fact] ?? "none")")
            }
        }
        return lines
    }

    /// All but the sockets, which no archive holds.
    package var withoutSockets: TreeCapture {
        var result = self
        result.files = files.filter { $0.value[.kind] != "\(Status.Kind.socket)" }
        return result
    }

    /// What a snapshot of these owners' files shows: the files, directories of theirs, and those that lead there.
    package func limited(to isOwner: (_ user: UInt32, _ group: UInt32) -> Bool) -> TreeCapture {
        var result = self
        var shown: Set<Path> = ["."]
        for (path, facts) in files {
            let numbers = (facts[.owner] ?? "").split(separator: ":").compactMap { UInt32($0) }
            guard numbers.count == 2, isOwner(numbers[0], numbers[1]) else { continue }
            shown.insert(path)
            var parts = path.string.split(separator: "/").dropLast()
            while !parts.isEmpty {
                shown.insert(Path(parts.joined(separator: "/")))
                parts = parts.dropLast()
            }
        }
        result.files = files.filter { shown.contains($0.key) }
        result.inodes = inodes.filter { shown.contains($0.key) }
        return result
    }

    /// Paths that are the same file in both captures, with the times that changed from this one to the later.
    package func changedTimes(_ later: TreeCapture) -> [Path: Set<Fact>] {
        var result: [Path: Set<Fact>] = [:]
        for (path, facts) in files {
            guard let now = later.files[path], inodes[path] == later.inodes[path] else { continue }
            result[path] = Set([.mtime, .ctime].filter { facts[$0] != now[$0] })
        }
        return result
    }
}

/// A hash of all bytes of a file.
package func hash(of file: File) throws(Errno) -> UInt64 {
    var (result, at): (UInt64, Int) = (0, 0)
    while true {
        let piece = try file.read(1 << 20, at: at)
        if piece.isEmpty { return result }
        result = ts_hash(result, piece, piece.count)
        at += piece.count
    }
}

package func hash(of path: Path) throws(Errno) -> UInt64 {
    try hash(of: path.open(O_RDONLY))
}
