import Glibc
import SystemPackage
import TestSupport
import Testing

@Suite(.serialized) struct LockTests {
    @Test("range locks of two descriptors exclude each other where they overlap", arguments: Setting.available)
    func ranges(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(100))
            let (one, other) = (try (place / "file").open(O_RDWR), try (place / "file").open(O_RDWR))
            try one.lockRange(F_WRLCK, at: 0, count: 50)
            try place.cut()
            #expect(throws: Errno.resourceTemporarilyUnavailable) {
                try other.lockRange(F_WRLCK, at: 49, count: 10)
            }
            #expect(throws: Errno.resourceTemporarilyUnavailable) { try other.lockRange(F_RDLCK, at: 0, count: 0) }
            try other.lockRange(F_WRLCK, at: 50, count: 50)
            try one.lockRange(F_UNLCK, at: 0, count: 50)
            try other.lockRange(F_RDLCK, at: 0, count: 50)
            try one.lockRange(F_RDLCK, at: 0, count: 50)
            #expect(throws: Errno.resourceTemporarilyUnavailable) { try one.lockRange(F_WRLCK, at: 0, count: 1) }
        }
    }

    @Test("flock excludes another descriptor until it is closed", arguments: Setting.available)
    func wholeFiles(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            let other = try (place / "file").open(O_RDONLY)
            do {
                let one = try (place / "file").open(O_RDONLY)
                try one.lock(LOCK_EX)
                try place.cut()
                #expect(throws: Errno.resourceTemporarilyUnavailable) { try other.lock(LOCK_SH | LOCK_NB) }
                try one.lock(LOCK_SH)
                try other.lock(LOCK_SH | LOCK_NB)
                #expect(throws: Errno.resourceTemporarilyUnavailable) { try other.lock(LOCK_EX | LOCK_NB) }
            }
            try other.lock(LOCK_EX | LOCK_NB)
        }
    }

    @Test("a process that waits for a lock gets it when the holder lets go", arguments: Setting.available)
    func waiting(_ setting: Setting) throws {
        try setting.run { place in
            let path = place / "file"
            try path.create()
            let holder = try path.open(O_RDWR)
            try holder.lock(LOCK_EX)
            let child = try Child(["flock", path.string, "echo", "locked"])
            try wait("the child to wait in flock") { try isWaiting(child.pid) }
            try holder.lock(LOCK_UN)
            #expect(try child.wait().output == "locked\n")
        }
    }

    @Test("a process that waits for a lock dies of SIGKILL at once", arguments: Setting.available)
    func killed(_ setting: Setting) throws {
        try setting.run { place in
            let path = place / "file"
            try path.create()
            let holder = try path.open(O_RDWR)
            try holder.lock(LOCK_EX)
            let child = try Child(["flock", path.string, "true"])
            try wait("the child to wait in flock") { try isWaiting(child.pid) }
            child.signal(SIGKILL)
            #expect(try child.wait(seconds: 5).code == 128 + SIGKILL)
            try holder.lock(LOCK_UN)
            try holder.lock(LOCK_EX | LOCK_NB)
        }
    }

    /// Whether a process sleeps in flock(2), system call 73 on x86-64 and 32 on arm64.
    private func isWaiting(_ process: Int32) throws -> Bool {
        let text = String(decoding: try Path("/proc/\(process)/syscall").contents(), as: UTF8.self)
        return text.hasPrefix("73 ") || text.hasPrefix("32 ")
    }
}
