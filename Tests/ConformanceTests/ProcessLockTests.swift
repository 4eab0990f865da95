import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Locks that belong to a process, leases, and how kinds of locks change into each other.
@Suite(.serialized) struct ProcessLockTests {
    private func lock(_ type: Int32, _ start: Int, _ count: Int) -> flock {
        var lock = flock()
        (lock.l_type, lock.l_whence) = (Int16(type), Int16(SEEK_SET))
        (lock.l_start, lock.l_len) = (start, count)
        return lock
    }

    @Test("another process's lock is found with its range, kind and owner", arguments: Setting.available)
    func owner(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(100))
            try (place / "ready").mkfifo()
            try place.cut()
            let program = """
                import fcntl, sys, time
                file = open(sys.argv[1], "r+b")
                fcntl.lockf(file, fcntl.LOCK_EX, 20, 10)
                open(sys.argv[2], "w").write("x")
                time.sleep(60)
                """
            let child = try Child([
                "/usr/bin/python3", "-c", program, (place / "file").string, (place / "ready").string,
            ])
            defer {
                child.signal(SIGKILL)
                _ = try? child.wait()
            }
            #expect(try (place / "ready").open(O_RDONLY).read(1) == [UInt8(ascii: "x")])
            let file = try (place / "file").open(O_RDWR)
            var found = lock(F_WRLCK, 0, 0)
            #expect(fcntl(file.raw, F_GETLK, &found) == 0)
            #expect(found.l_pid == child.pid)
            #expect(found.l_type == Int16(F_WRLCK) && found.l_start == 10 && found.l_len == 20)
            var (wanted, free) = (lock(F_RDLCK, 29, 1), lock(F_WRLCK, 30, 0))
            #expect(fcntl(file.raw, F_SETLK, &wanted) == -1)
            #expect(currentErrno == .resourceTemporarilyUnavailable)
            #expect(fcntl(file.raw, F_SETLK, &free) == 0)
            child.signal(SIGKILL)
            _ = try child.wait()
            #expect(fcntl(file.raw, F_SETLK, &wanted) == 0)
        }
    }

    @Test("a process's locks go with the first descriptor that it closes", arguments: Setting.available)
    func closing(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(100))
            let holder = try (place / "file").open(O_RDWR)
            var mine = lock(F_WRLCK, 0, 0)
            #expect(fcntl(holder.raw, F_SETLK, &mine) == 0)
            try place.cut()
            let other = try (place / "file").open(O_RDWR)
            #expect(throws: Errno.resourceTemporarilyUnavailable) { try other.lockRange(F_RDLCK, at: 0, count: 1) }
            do { _ = try (place / "file").open(O_RDONLY) }
            try other.lockRange(F_WRLCK, at: 0, count: 100)
        }
    }

    @Test("locks need the right access mode, and a range that makes sense", arguments: Setting.available)
    func refusals(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try (place / "file").create(bytes(100))
            try place.cut()
            for flags in [O_RDONLY, O_WRONLY, O_RDWR, O_PATH] {
                let file = try (place / "file").open(flags)
                for type in [F_RDLCK, F_WRLCK, F_UNLCK, 9] {
                    for (start, count) in [(0, 0), (10, -5), (0, -1), (Int.max, 10)] {
                        var wanted = lock(type, start, count)
                        let result = fcntl(file.raw, F_SETLK, &wanted)
                        transcript.state(
                            "\(flags) \(type) \(start) \(count)", result == 0 ? "locked" : "\(currentErrno)")
                    }
                }
                for operation in [LOCK_SH, LOCK_EX, LOCK_UN, LOCK_SH | LOCK_EX, 0] {
                    transcript.note("flock \(flags) \(operation)") { try file.lock(operation | LOCK_NB) }
                }
            }
        }
    }

    @Test(
        "flock is raised and lowered, losing what it had where it cannot be raised", arguments: Setting.available)
    func raising(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try (place / "file").create()
            try place.cut()
            let files = try (0..<3).map { _ in try (place / "file").open(O_RDWR) }
            let steps: [(Int, Int32)] = [
                (0, LOCK_SH), (1, LOCK_SH), (0, LOCK_EX), (2, LOCK_EX), (1, LOCK_EX), (0, LOCK_SH), (1, LOCK_SH),
                (0, LOCK_SH), (2, LOCK_SH), (1, LOCK_UN), (0, LOCK_UN), (2, LOCK_EX), (0, LOCK_SH),
            ]
            for (number, operation) in steps {
                transcript.note("\(number) \(operation)") { try files[number].lock(operation | LOCK_NB) }
            }
        }
    }

    @Test("locks of the three kinds do not mix but where Linux mixes them", arguments: Setting.available)
    func kinds(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try (place / "file").create(bytes(100))
            try place.cut()
            let (one, other) = (try (place / "file").open(O_RDWR), try (place / "file").open(O_RDWR))
            try one.lockRange(F_WRLCK, at: 0, count: 10)
            transcript.note("flock beside a range") { try other.lock(LOCK_EX | LOCK_NB) }
            var wanted = lock(F_WRLCK, 5, 1)
            transcript.state("process beside description", fcntl(other.raw, F_SETLK, &wanted))
            wanted = lock(F_WRLCK, 0, 0)
            transcript.state("asking", fcntl(other.raw, F_GETLK, &wanted))
            transcript.state("found", "\(wanted.l_type) \(wanted.l_start) \(wanted.l_len) \(wanted.l_pid)")
        }
    }

    /// A FUSE file system that keeps no leases of its own (all of them) refuses them: EINVAL. Docs/Semantics.md.
    @Test("leases are granted as on the source, or refused", arguments: Setting.available)
    func leases(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create()
            try place.cut()
            let file = try (place / "file").open(O_RDONLY)
            let granted = fcntl(file.raw, F_SETLEASE, F_RDLCK)
            if granted != 0 { #expect(place.mount != nil && currentErrno == .invalidArgument) }
            if granted == 0 { #expect(fcntl(file.raw, F_GETLEASE) == F_RDLCK) }
            #expect(throws: Never.self) { _ = try (place / "file").open(O_RDONLY) }
            if granted == 0 { #expect(fcntl(file.raw, F_SETLEASE, F_UNLCK) == 0) }
            let writer = try (place / "file").open(O_RDWR)
            #expect(fcntl(file.raw, F_SETLEASE, F_RDLCK) == -1)
            _ = try writer.write([1])
        }
    }
}
