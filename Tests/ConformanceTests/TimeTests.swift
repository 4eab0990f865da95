import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

@Suite(.serialized) struct TimeTests {
    @Test(
        "times before 1970 and up to 2446, of each kind of file, as the source keeps them",
        arguments: Setting.available)
    func range(_ setting: Setting) throws {
        // Those that ext4 can hold, and those that it cannot; a kernel that owns the times keeps the latter.
        let held: [Int64] = [-2_147_483_648, -1, 0, 2_147_483_647, 2_147_483_648, 4_294_967_296, 13_569_465_600]
        let other: [Int64] = [-5_000_000_000, -2_147_483_649, 15_032_385_535, 15_032_385_536, 1 << 40]
        let seconds = Machine.kernelOwnsTimes ? Array(held.dropFirst()) : held + other
        try setting.compare { place, transcript in
            let kinds = [FileKind.file, .empty, .symlink, .fifo]
            for kind in kinds { try kind.make(place / Path(kind.rawValue)) }
            try place.cut()
            for kind in kinds {
                let path = place / Path(kind.rawValue)
                for second in seconds {
                    for nanosecond: Int64 in [0, 1, 999_999_999] {
                        let time = Timestamp(second, nanosecond)
                        transcript.note("\(kind) \(time)") { try path.setTimes(accessed: time, modified: time) }
                        let status = try path.lstat()
                        transcript.state("\(kind) \(time)", "\(status.accessed) \(status.modified)")
                    }
                }
                transcript.note("\(kind) nonsense") {
                    try path.setTimes(accessed: Timestamp(0, -1), modified: nil)
                }
            }
        }
    }

    @Test("what is cached and what is asked for anew agree on a time", arguments: Setting.available)
    func remounted(_ setting: Setting) throws {
        try setting.run { place in
            let file = place / "file"
            try file.create()
            try place.cut()
            let time = Timestamp(-1_000_000_000, 987_654_321)
            try file.setTimes(accessed: time, modified: time)
            try dropCaches()
            #expect(try file.lstat().modified == time)
            #expect(try file.lstat().accessed == time)
        }
    }

    @Test("each call stamps what it stamps on the source", arguments: Setting.available)
    func stamps(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            let file = place / "d/file"
            let calls: [(String, () throws -> Void)] = [
                ("read", { _ = try file.contents() }), ("write", { try file.write([1], at: 0) }),
                ("write of nothing", { try file.write([], at: 0) }), ("append", { try file.append([1]) }),
                ("truncate", { try file.truncate(10) }),
                ("truncate to the same size", { try file.truncate(10_000) }),
                ("ftruncate to the same size", { try file.open(O_RDWR).truncate(10_000) }),
                ("open", { _ = try file.open(O_RDWR) }),
                ("open with O_TRUNC", { _ = try file.open(O_RDWR | O_TRUNC) }),
                ("chmod to the same mode", { try file.chmod(0o644) }), ("chown to the same", { try file.chown() }),
                ("fallocate", { try file.open(O_RDWR).allocate(at: 0, count: 20_000) }),
                ("fallocate within", { try file.open(O_RDWR).allocate(0x1, at: 0, count: 100) }),
                ("punch a hole", { try file.open(O_RDWR).allocate(0x3, at: 0, count: 4_096) }),
                (
                    "copy_file_range",
                    {
                        try file.open(O_RDWR).copyRange(from: file.open(O_RDONLY), at: 0, to: 20_000, count: 10)
                    }
                ),
                ("setxattr", { try file.setAttribute("user.a", [1]) }),
                ("fsync", { try file.open(O_RDWR).sync() }),
                ("utimensat of nothing", { try file.setTimes(accessed: nil, modified: nil) }),
                ("link", { try file.link(to: place / "d/other") }),
                ("rename to itself", { try file.rename(to: file) }),
                ("failing create", { try? file.create() }), ("failing rmdir", { try? file.rmdir() }),
                ("failing rename", { try? file.rename(to: place / "none/x") }),
                ("lock", { try file.open(O_RDWR).lock(LOCK_EX) }),
                ("mkdir", { try (place / "d/sub").mkdir() }),
            ]
            // Where the kernel gathers writes, a truncation to the same size moves no time: Docs/Semantics.md.
            for (name, call) in calls where !(Machine.kernelOwnsTimes && name == "truncate to the same size") {
                (place / "d").remove()
                try (place / "d").mkdir()
                try file.create(bytes(10_000))
                let cut = try file.open(O_RDONLY)
                try cut.sync()
                try place.cut()
                let before = try [file.lstat(), (place / "d").lstat()]
                try waitForClockTick()
                try call()
                let after = try [file.lstat(), (place / "d").lstat()]
                transcript.state(
                    name,
                    zip(before, after).map { before, after in
                        // A kernel that gathers writes has a ctime of its own.
                        let showsChange = before.changed != after.changed && !Machine.kernelOwnsTimes
                        return "\(before.modified == after.modified ? "" : "mtime")\(showsChange ? " ctime" : "")"
                    })
            }
        }
    }
}
