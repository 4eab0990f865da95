import CLinux
import Glibc
import SystemPackage

@testable import ControlSocket

/// A server in a directory of its own, and bytes to throw at it.
final class ServerUnderTest {
    let controller = FakeController()
    let directory: String
    let server: ControlServer

    init(limits: ControlLimits = ControlLimits(), mountpoint: String = "/mnt") throws {
        directory = try temporaryDirectory()
        server = try ControlServer(
            mountpoint: mountpoint, in: SocketDirectory.open(directory, owner: geteuid()),
            limits: limits, report: { _ in })
        try server.serve(controller)
    }

    func end() {
        server.close()
        removeDirectory(directory)
    }

    func client(_ mountpoint: String = "/mnt") throws -> ControlClient {
        try ControlClient(mountpoint: mountpoint, owner: geteuid(), directories: [directory])
    }

    /// Connects without the client's manners.
    func rawConnection() throws -> RawConnection {
        try RawConnection(server.path)
    }
}

func temporaryDirectory() throws -> String {
    var template = Array("/tmp/fusesnap-control-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw Errno(rawValue: errno) }
    return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

func removeDirectory(_ path: String) {
    for name in ["lock", SocketDirectory.socketName(mountpoint: "/mnt")] {
        unlink("\(path)/\(name)")
    }
    rmdir(path)
}

func pauseBriefly() {
    usleep(1_000)
}

/// A connection that sends whatever it is told to.
final class RawConnection {
    private let descriptor: Int32

    init(_ path: String) throws {
        descriptor = cl_unix_socket()
        if cl_unix_connect(descriptor, path) != 0 { throw Errno(rawValue: errno) }
    }

    deinit { close(descriptor) }

    /// False once the server does not take any more.
    @discardableResult
    func send(_ bytes: [UInt8]) -> Bool {
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            if count < 0 { return false }
            rest = rest.dropFirst(count)
        }
        return true
    }

    @discardableResult
    func send(_ text: String) -> Bool { send(Array(text.utf8)) }

    func endSending() { shutdown(descriptor, Int32(SHUT_WR)) }

    /// All that comes until the server closes.
    func receiveAll() -> String {
        var received: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = recv(descriptor, &chunk, chunk.count, 0)
            if count <= 0 { return String(decoding: received, as: UTF8.self) }
            received.append(contentsOf: chunk[..<count])
        }
    }
}
