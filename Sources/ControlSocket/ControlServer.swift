internal import CLinux
internal import Glibc
internal import LinuxSystem
package import SystemPackage
internal import Synchronization

/// Listens on the control socket of a mount, and serves each client on a thread of its own.
///
/// A client that sends nothing, too much, or what is not a request gets an error line at most, and loses its
/// connection; others are not affected. Only root and the user who mounted are served.
package final class ControlServer: Sendable {
    private static let clientsMax = 16
    private static let requestTimeoutSeconds = 10

    private let address: ControlAddress
    private let listener: Descriptor
    private let owner: UInt32
    private let clients = Mutex(0)
    private let busy = Monitor()
    private let isClosed = Atomic<Bool>(false)

    /// Makes the socket, in place of one that a dead daemon left.
    package init(_ address: ControlAddress) throws(Errno) {
        self.address = address
        owner = geteuid()
        try Self.makeDirectory(address.directory, owner: owner)
        listener = Descriptor(owning: try checked { cl_unix_socket() })
        let raw = listener.raw
        _ = Glibc.unlink(address.path)
        try checked { cl_unix_bind(raw, address.path) }
        // connect(2) asks for write permission: the owner's alone (root has it anyway).
        try checked { chmod(address.path, 0o600) }
        try checked { listen(raw, Int32(Self.clientsMax)) }
    }

    private static func makeDirectory(_ path: String, owner: UInt32) throws(Errno) {
        if mkdir(path, owner == 0 ? 0o755 : 0o700) != 0 {
            let error = currentErrno()
            guard error == .fileExists else { throw error }
        }
        let status = try path.withFileName { (name) throws(Errno) in
            try FileStatus(at: AT_FDCWD, name)
        }
        guard status.isDirectory else { throw .notDirectory }
        // Somebody else's directory of that name is no place for our socket.
        guard status.user == owner, status.mode & 0o022 == 0 else { throw .permissionDenied }
    }

    /// Serves until `close`.
    package func serve(_ controller: any SnapshotController) {
        Thread.detach { [self] in
            while !isClosed.load(ordering: .sequentiallyConsistent) {
                let raw = cl_unix_accept(listener.raw)
                if raw < 0 {
                    // The listener was shut down, or there is no descriptor to be had: then a client tries again.
                    if isClosed.load(ordering: .sequentiallyConsistent) { return }
                    var pause = pollfd(fd: -1, events: 0, revents: 0)
                    poll(&pause, 1, 50)
                    continue
                }
                let socket = Descriptor(owning: raw)
                let isTaken = clients.withLock { count in
                    if count >= Self.clientsMax { return false }
                    count += 1
                    return true
                }
                guard isTaken else { continue }
                Thread.detach { [self] in
                    serveClient(socket, controller)
                    clients.withLock { $0 -= 1 }
                    busy.withLock { busy.wake() }
                }
            }
        }
    }

    /// Ends serving: removes the socket and waits for the replies that are under way.
    package func close() {
        isClosed.store(true, ordering: .sequentiallyConsistent)
        _ = Glibc.unlink(address.path)
        shutdown(listener.raw, Int32(SHUT_RDWR))
        replying.waitForNone()
    }

    private let replying = ReplyCount()

    private func serveClient(_ socket: Descriptor, _ controller: any SnapshotController) {
        let connection = LineConnection(socket)
        connection.setReadTimeout(seconds: Self.requestTimeoutSeconds)
        do throws(Errno) {
            var user: UInt32 = 0
            var process: Int32 = 0
            try checked { cl_peer_user(socket.raw, &user, &process) }
            guard user == 0 || user == owner else {
                let why = "only root and the user who mounted may control this mount"
                return try connection.write(Reply(ControlFailure(.refused, why)))
            }
            while let request = try read(connection) {
                let isLast = try reply(to: request, connection, controller)
                if isLast {
                    // The client waits for this process to end: it sees the connection close.
                    connection.setReadTimeout(seconds: 0)
                    connection.waitForEnd()
                    return
                }
            }
        } catch {
            // The client is gone, or silent: nobody to tell.
        }
    }

    /// The next request; nil at the end, and after one that is none, which is told to the client.
    private func read(_ connection: LineConnection) throws(Errno) -> Request? {
        let problem: String
        do throws(LineConnection.ReadFailure) {
            guard let request = try connection.read(Request.self) else { return nil }
            if request.protocol == protocolVersion { return request }
            problem = "protocol \(request.protocol) is not spoken here, \(protocolVersion) is"
        } catch {
            switch error {
            case .system(let errno): throw errno
            case .tooLong: problem = "a request has at most \(LineConnection.lineBytesMax) bytes"
            case .malformed: problem = "this is not a request"
            }
        }
        try connection.write(Reply(ControlFailure(.badRequest, problem)))
        return nil
    }

    /// Carries a request out; whether the process ends now.
    private func reply(
        to request: Request, _ connection: LineConnection, _ controller: any SnapshotController
    ) throws(Errno) -> Bool {
        replying.begin()
        defer { replying.end() }
        var reply = Reply()
        do throws(ControlFailure) {
            switch request.command {
            case .status: reply.status = controller.status()
            case .start: reply.started = try controller.start()
            case .stop:
                reply.stopped = try controller.stop(discard: request.discard ?? false) { _ in }
            case .unmount: reply.unmounted = try controller.unmount()
            }
        } catch {
            reply.error = error
        }
        try connection.write(reply)
        return reply.unmounted != nil
    }
}

/// Counts requests between their arrival and their reply.
private final class ReplyCount: @unchecked Sendable {
    private let monitor = Monitor()
    /// Guarded by `monitor`.
    private var count = 0

    func begin() {
        monitor.withLock { count += 1 }
    }

    func end() {
        monitor.withLock {
            count -= 1
            monitor.wake()
        }
    }

    func waitForNone() {
        monitor.withLock {
            while count > 0 { monitor.wait() }
        }
    }
}

extension Reply {
    init(_ failure: ControlFailure) {
        error = failure
    }
}

extension String {
    /// Calls `body` with the path as a C string, with typed errors.
    func withFileName<Result>(
        _ body: (UnsafePointer<CChar>) throws(Errno) -> Result
    ) throws(Errno) -> Result {
        try FileName(self).withCString(body)
    }
}
