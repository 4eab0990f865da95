import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Programs in the mount, descriptors of paths, sockets and pipes by name.
@Suite(.serialized) struct ExecutionTests {
    /// A program that exits with 7, and one that the kernel hands to an interpreter.
    private func make(_ place: Place) throws {
        let file = try (place / "program").open(O_WRONLY | O_CREAT, mode: 0o755)
        try file.writeAll(try Path("/bin/true").contents())
        try (place / "script").create(Array("#!/bin/sh\nexit 7\n".utf8), mode: 0o755)
        try (place / "text").create(Array("nothing\n".utf8), mode: 0o755)
        try (place / "closed").create(Array("#!/bin/sh\nexit 7\n".utf8), mode: 0o644)
    }

    @Test("programs run by name and by descriptor, and what is none is refused", arguments: Setting.available)
    func running(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try make(place)
            try place.cut()
            for name in ["program", "script", "text", "closed"] {
                for flags in [O_RDONLY, O_PATH, O_RDWR] {
                    let file = try (place / Path(name)).open(flags)
                    transcript.note("\(name) by a descriptor, \(flags)") { try check(ts_execute(file.raw)) }
                }
                transcript.note("\(name) by name") { try? run([(place / Path(name)).string]).code }
            }
        }
    }

    @Test(
        "a program that runs cannot be written to, one that is written to does not run",
        arguments: Setting.available)
    func busy(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            let program = place / "program"
            try program.create(try Path("/bin/sleep").contents(), mode: 0o755)
            try place.cut()
            let child = try Child([program.string, "60"])
            transcript.note("write") { _ = try program.open(O_WRONLY) }
            transcript.note("truncate") { try program.truncate(5) }
            transcript.note("open to truncate") { _ = try program.open(O_RDWR | O_TRUNC) }
            transcript.note("rename") { try program.rename(to: place / "moved") }
            transcript.note("unlink") { try (place / "moved").unlink() }
            child.signal(SIGKILL)
            transcript.state("end", try child.wait().code)
            try (place / "other").create(try Path("/bin/true").contents(), mode: 0o755)
            let writer = try (place / "other").open(O_WRONLY | O_APPEND)
            let reader = try (place / "other").open(O_RDONLY)
            transcript.note("run while written") { try check(ts_execute(reader.raw)) }
            _ = writer.raw
        }
    }

    @Test("a descriptor of a path alone: what it serves and what not", arguments: Setting.available)
    func paths(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            for kind in FileKind.available { try kind.make(place / kind.rawValue.path) }
            try place.cut()
            for kind in FileKind.available {
                let file = try (place / kind.rawValue.path).open(O_PATH | O_NOFOLLOW)
                let magic = Path("/proc/self/fd/\(file.raw)")
                transcript.note("\(kind): stat") { try file.stat().kind }
                transcript.note("\(kind): read") { try file.read(1) }
                transcript.note("\(kind): write") { try file.write([1]) }
                transcript.note("\(kind): fchmod") { try file.chmod(0o600) }
                transcript.note("\(kind): fchownat") { try check(fchownat(file.raw, "", 5, 6, AT_EMPTY_PATH)) }
                transcript.note("\(kind): ftruncate") { try file.truncate(1) }
                transcript.note("\(kind): sync") { try file.sync() }
                transcript.note("\(kind): fgetxattr") { try check(fgetxattr(file.raw, "user.a", nil, 0)) }
                transcript.note("\(kind): ioctl") { try check(ts_ioctl(file.raw, 0x1234, nil)) }
                transcript.note("\(kind): map") { _ = try file.map(4_096) }
                transcript.note("\(kind): chmod") { try magic.chmod(0o640) }
                transcript.note("\(kind): open") { _ = try magic.open(O_RDONLY | O_NONBLOCK) }
                transcript.note("\(kind): link") {
                    try check(linkat(file.raw, "", AT_FDCWD, (place / "new").string, AT_EMPTY_PATH))
                }
                transcript.state("\(kind)", "\(try file.stat().links) \(try file.stat().user)")
                (place / "new").remove()
            }
        }
    }

    @Test("a socket's name is connected to while somebody listens", arguments: Setting.available)
    func sockets(_ setting: Setting) throws {
        try setting.run { place in
            try place.cut()
            // A path that is too long for a socket's address is not the mount's affair.
            let path = place / "s"
            do {
                let listener = File(raw: try check(ts_listen(path.string)))
                let client = File(raw: try check(ts_connect(path.string)))
                let server = File(raw: try check(ts_accept(listener.raw)))
                _ = try client.write(bytes(100))
                #expect(try server.read(200) == bytes(100))
                #expect(throws: Errno.addressInUse) { try check(ts_listen(path.string)) }
                try path.rename(to: place / "t")
                _ = File(raw: try check(ts_connect((place / "t").string)))
            }
            #expect(throws: Errno.connectionRefused) { try check(ts_connect((place / "t").string)) }
            #expect(throws: Errno.noSuchFileOrDirectory) { try check(ts_connect(path.string)) }
            #expect(throws: Errno.noSuchAddressOrDevice) { _ = try (place / "t").open(O_RDONLY) }
        }
    }

    @Test("two sides of a pipe by name meet, whatever name they came by", arguments: Setting.available)
    func pipes(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "fifo").mkfifo()
            try (place / "fifo").link(to: place / "other")
            try place.cut()
            #expect(throws: Errno.noSuchAddressOrDevice) { try (place / "fifo").open(O_WRONLY | O_NONBLOCK) }
            let reader = try (place / "fifo").open(O_RDONLY | O_NONBLOCK)
            let writer = try (place / "other").open(O_WRONLY)
            try writer.write(bytes(1_000))
            #expect(try reader.read(2_000) == bytes(1_000))
            #expect(throws: Errno.resourceTemporarilyUnavailable) { try reader.read(1) }
            #expect(throws: Errno.illegalSeek) { try reader.seek(0, SEEK_SET) }
            try (place / "fifo").unlink()
            try writer.write([1])
            #expect(try reader.read(5) == [1])
            #expect(try reader.stat().links == 1)
        }
    }
}
