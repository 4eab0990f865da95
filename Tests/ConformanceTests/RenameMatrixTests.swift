import Glibc
import SystemPackage
import TestSupport
import Testing

/// renameat2(2) of every kind of file over every other, with each flag, within a directory and between two.
@Suite(.serialized) struct RenameMatrixTests {
    private static let flags: [Int32] = [0, 1, 2, 4, 5]

    @Test("every kind over every kind, with each flag", arguments: Setting.available)
    func kinds(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try (place / "a").mkdir()
            try (place / "b").mkdir()
            for source in FileKind.available {
                for target in FileKind.available.map(Optional.init) + [nil] {
                    for flags in Self.flags {
                        let other: Path = flags == 0 || target == .full ? "b" : "a"
                        let (from, to) = (place / "a/from", place / other / "to")
                        try source.make(from)
                        try target?.make(to)
                        try place.cutOnce()
                        let what = "\(source) over \(target?.rawValue ?? "nothing") with \(flags)"
                        transcript.note(what) { try from.rename(to: to, flags: flags) }
                        for name: Path in ["a", "b"] { transcript.state(what, try listing(place / name)) }
                        for name in try (place / "a").entries() { (place / "a" / name).remove() }
                        for name in try (place / "b").entries() { (place / "b" / name).remove() }
                    }
                }
            }
        }
    }

    private func listing(_ directory: Path) throws -> [String] {
        try directory.entries().map { name in
            let status = try (directory / name).lstat()
            return "\(name) \(status.kind) \(status.links) \(status.kind == .directory ? 0 : status.size)"
        }.sorted()
    }

    @Test("rename stamps what it moves, swaps and replaces, and both directories", arguments: Setting.available)
    func stamps(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            for kind in FileKind.available {
                for flags: Int32 in [0, 1, 2] {
                    for between in [true, false] {
                        let (a, b) = (place / "a", place / "b")
                        try a.mkdir()
                        try b.mkdir()
                        let (from, to) = (a / "from", (between ? b : a) / "to")
                        try kind.make(from)
                        if flags != 1 {
                            try (kind == .empty || kind == .full ? FileKind.empty : FileKind.linked).make(to)
                        }
                        let link = to.appending(".link")
                        try place.cut()
                        let before = try [from, a, b].map { try $0.lstat() }
                        let replaced = flags == 1 ? nil : try to.lstat()
                        try waitForClockTick()
                        try from.rename(to: to, flags: flags)
                        let after = try [to, a, b].map { try $0.lstat() }
                        let what = "\(kind) with \(flags), between directories: \(between)"
                        transcript.state(what, zip(before, after).map { changes($0, $1) })
                        if let replaced, flags == 2 { transcript.state(what, changes(replaced, try from.lstat())) }
                        if let replaced, flags == 0, link.exists {
                            transcript.state("\(what): replaced", changes(replaced, try link.lstat()))
                        }
                        a.remove()
                        b.remove()
                    }
                }
            }
        }
    }

    private func changes(_ before: Status, _ after: Status) -> String {
        [
            before.inode == after.inode ? nil : "another inode",
            before.modified == after.modified ? nil : "mtime", before.changed == after.changed ? nil : "ctime",
            before.links == after.links ? nil : "links",
        ].compactMap { $0 }.joined(separator: " ")
    }
}
