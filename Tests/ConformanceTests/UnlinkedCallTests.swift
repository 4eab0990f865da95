import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Every call on the descriptor of a file that has no name any more, by removal, by replacement, or from birth.
@Suite(.serialized) struct UnlinkedCallTests {
    private enum Way: String, CaseIterable {
        case unlinked, replaced, temporary, path
    }

    private func open(_ way: Way, _ place: Place) throws -> File {
        let path = place / "file"
        if way == .temporary {
            let file = try place.root.open(O_RDWR | O_TMPFILE, mode: 0o644)
            try file.writeAll(bytes(10_000))
            try place.cut()
            return file
        }
        try path.create(bytes(10_000))
        try path.setAttribute("user.old", bytes(10))
        try place.cut()
        let file = try path.open(way == .path ? O_PATH : O_RDWR)
        if way == .replaced {
            try (place / "new").create()
            try (place / "new").rename(to: path)
        } else {
            try path.unlink()
        }
        return file
    }

    @Test("calls by descriptor and through /proc", arguments: Setting.available)
    func calls(_ setting: Setting) throws {
        for way in Way.allCases {
            try setting.compare { place, transcript in
                let file = try open(way, place)
                let magic = Path("/proc/self/fd/\(file.raw)")
                func note<Result>(_ what: String, _ call: () throws -> Result) {
                    transcript.note("\(way.rawValue): \(what)", call)
                }
                note("links") { try file.stat().links }
                note("fchmod") { try file.chmod(0o600) }
                note("chmod") { try magic.chmod(0o640) }
                note("fchown") { try check(fchown(file.raw, 12, 34)) }
                note("futimens") {
                    try check(
                        futimens(file.raw, [timespec(tv_sec: 5, tv_nsec: 6), timespec(tv_sec: 7, tv_nsec: 8)]))
                }
                note("ftruncate") { try file.truncate(5_000) }
                note("truncate") { try magic.truncate(6_000) }
                note("fsetxattr") { try check(fsetxattr(file.raw, "user.a", [1, 2], 2, 0)) }
                note("fgetxattr") { try check(fgetxattr(file.raw, "user.a", nil, 0)) }
                note("flistxattr") { try check(flistxattr(file.raw, nil, 0)) }
                note("fremovexattr") { try check(fremovexattr(file.raw, "user.a")) }
                note("fallocate") { try file.allocate(at: 0, count: 20_000) }
                note("punch") { try file.allocate(0x3, at: 0, count: 4_096) }
                note("write") { try file.write(bytes(100, seed: 2), at: 3_000) }
                note("read") { try file.read(10, at: 3_000) }
                note("seek") { try file.seek(0, SEEK_DATA) }
                note("fsync") { try file.sync() }
                note("open again") { try magic.open(O_RDWR).read(10, at: 3_000) }
                note("open to truncate") { _ = try magic.open(O_RDWR | O_TRUNC) }
                note("link") { try file.link(to: place / "back") }
                note("link by descriptor") {
                    try check(linkat(file.raw, "", AT_FDCWD, (place / "again").string, AT_EMPTY_PATH))
                }
                note("lock") { try file.lock(LOCK_EX | LOCK_NB) }
                note("statvfs") {
                    try check(
                        {
                            var status = statvfs(); return fstatvfs(file.raw, &status)
                        }())
                }
                note("map") { try file.map(4_096).read(10, at: 3_000) }
                note("copy") { try file.copyRange(from: file, at: 0, to: 30_000, count: 4_000) }
                let status = try file.stat()
                note("after") {
                    "\(status.links) \(status.size) \(String(status.mode, radix: 8)) \(status.user):\(status.group)"
                }
                note("left") { try place.root.entries().sorted { "\($0)" < "\($1)" } }
            }
        }
    }

    @Test("a temporary file is linked by AT_EMPTY_PATH, never with O_EXCL, once", arguments: Setting.available)
    func linking(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try (place / "d").mkdir()
            try place.cut()
            for flags in [0, O_EXCL] {
                let file = try place.root.open(O_RDWR | O_TMPFILE | flags, mode: 0o600)
                try file.writeAll(bytes(5_000))
                for name in ["one-\(flags)", "d/two-\(flags)", "one-\(flags)"] {
                    let target = (place / Path(name)).string
                    transcript.note(name) { try check(linkat(file.raw, "", AT_FDCWD, target, AT_EMPTY_PATH)) }
                    transcript.note("links") { try file.stat().links }
                }
                transcript.note("read") { try (place / Path("d/two-\(flags)")).contents() == bytes(5_000) }
                try? (place / Path("one-\(flags)")).unlink()
                try? (place / Path("d/two-\(flags)")).unlink()
                transcript.note("links at last") { try file.stat().links }
            }
        }
    }

    @Test("links are counted at once through every name and descriptor", arguments: Setting.available)
    func counts(_ setting: Setting) throws {
        try setting.run { place in
            let names = (0..<20).map { "name-\($0)".path }
            try (place / names[0]).create(bytes(100))
            try place.cut()
            let open = try (place / names[0]).open(O_RDONLY)
            for count in 1..<20 {
                try (place / names[count - 1]).link(to: place / names[count])
                for name in names[...count] { #expect(try (place / name).lstat().links == UInt64(count + 1)) }
            }
            for count in (0..<20).reversed() {
                #expect(try open.stat().links == UInt64(count + 1))
                if count % 2 == 0 || count == 19 {
                    try (place / names[count]).unlink()
                } else {
                    try (place / "other").create()
                    try (place / "other").rename(to: place / names[count])
                }
                for name in names[..<count] { #expect(try (place / name).lstat().links == UInt64(count)) }
            }
            #expect(try open.stat().links == 0)
        }
    }
}
