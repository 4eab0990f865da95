import CLinux
import Glibc
import Testing

@testable import ControlSocket

@Suite(.timeLimit(.minutes(1)))
struct SocketDirectoryTests {
    @Test func `the hash is FNV-1a of 64 bits`() {
        #expect(SocketDirectory.fnv1a64("".utf8) == 0xcbf2_9ce4_8422_2325)
        #expect(SocketDirectory.fnv1a64("a".utf8) == 0xaf63_dc4c_8601_ec8c)
        #expect(SocketDirectory.fnv1a64("foobar".utf8) == 0x8594_4171_f739_67e8)
        #expect(SocketDirectory.socketName(mountpoint: "a") == "af63dc4c8601ec8c.sock")
    }

    @Test func `root's sockets are in /run, a user's in the runtime directory`() {
        #expect(
            SocketDirectory.candidates(user: 0, caller: 0, runtimeDirectory: "/x") == [
                "/run/fusesnap"
            ])
        #expect(
            SocketDirectory.candidates(user: 7, caller: 7, runtimeDirectory: "/x")
                == ["/x/fusesnap", "/run/user/7/fusesnap", "/tmp/fusesnap-7"])
        #expect(
            SocketDirectory.candidates(user: 7, caller: 0, runtimeDirectory: "/x")
                == ["/run/user/7/fusesnap", "/tmp/fusesnap-7"])
        #expect(
            SocketDirectory.candidates(user: 7, caller: 7, runtimeDirectory: "relative")
                == ["/run/user/7/fusesnap", "/tmp/fusesnap-7"])
    }

    @Test func `a directory that others may write to is refused`() throws {
        let path = try temporaryDirectory()
        defer { rmdir(path) }
        chmod(path, 0o777)
        #expect(throws: ControlSocketError.self) {
            _ = try SocketDirectory.open(path, owner: geteuid())
        }
        chmod(path, 0o755)
        #expect(throws: ControlSocketError.self) {
            _ = try SocketDirectory.open(path, owner: geteuid() + 1)
        }
        #expect(throws: Never.self) { _ = try SocketDirectory.open(path, owner: geteuid()) }
    }

    @Test func `a socket is only its owner's`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        var status = stat()
        #expect(stat(under.server.path, &status) == 0)
        #expect(status.st_mode & 0o7777 == 0o600)
    }

    @Test func `the socket of a dead daemon is replaced, that of a live one is not`() throws {
        let under = try ServerUnderTest()
        defer { under.end() }
        #expect(throws: ControlSocketError.self) {
            _ = try ControlServer(
                mountpoint: "/mnt", in: SocketDirectory.open(under.directory, owner: geteuid()),
                report: { _ in })
        }
        var client = try under.client()
        #expect(try client.status().pid == 42)

        // What a killed daemon leaves behind: a name without a listener.
        let path = try temporaryDirectory()
        defer { removeDirectory(path) }
        let stale = "\(path)/\(SocketDirectory.socketName(mountpoint: "/mnt"))"
        try bindAndAbandon(stale)
        #expect(throws: ControlClientError.noDaemon(tried: [stale])) {
            _ = try ControlClient(mountpoint: "/mnt", owner: geteuid(), directories: [path])
        }
        let server = try ControlServer(
            mountpoint: "/mnt", in: SocketDirectory.open(path, owner: geteuid()), report: { _ in })
        try server.serve(under.controller)
        defer { server.close() }
        var second = try ControlClient(mountpoint: "/mnt", owner: geteuid(), directories: [path])
        #expect(try second.status().pid == 42)
    }

    @Test func `a directory with a long path works`() throws {
        let top = try temporaryDirectory()
        let path = "\(top)/\(String(repeating: "x", count: 200))"
        mkdir(path, 0o700)
        defer {
            removeDirectory(path)
            rmdir(top)
        }
        let server = try ControlServer(
            mountpoint: "/mnt", in: SocketDirectory.open(path, owner: geteuid()), report: { _ in })
        try server.serve(FakeController())
        defer { server.close() }
        var client = try ControlClient(mountpoint: "/mnt", owner: geteuid(), directories: [path])
        #expect(try client.status().state == .idle)
    }

    private func bindAndAbandon(_ path: String) throws {
        let socket = cl_unix_socket()
        defer { close(socket) }
        try #require(cl_unix_bind(socket, path) == 0)
    }
}
