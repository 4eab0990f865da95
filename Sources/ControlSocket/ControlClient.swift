internal import CLinux
internal import Glibc
internal import LinuxSystem
package import SystemPackage

/// Why a request got no result.
package enum ControlClientError: Error, Equatable {
    /// No socket of the mount is answered; these were tried.
    case noDaemon(tried: [String])
    /// A socket is there, and the caller may not use it.
    case denied(path: String)
    /// The daemon takes no connection, or says nothing for longer than it may.
    case unresponsive(path: String)
    /// The connection ended before the answer.
    case closed(path: String)
    /// What came is not what this version understands.
    case malformedReply(path: String)
    /// The daemon's own words.
    case failure(ControlFailure)
    case system(Errno, path: String)
}

/// A connection to the daemon of a mount. Every wait is bounded: the daemon of a request that takes
/// long says that it still works on it.
package struct ControlClient: ~Copyable {
    package let path: String
    /// The daemon's process; 0 where it lives in a process name space that is not visible here.
    package let daemonProcess: Int32
    /// Whose process that is.
    package let daemonUser: UInt32
    private let descriptor: OwnedDescriptor
    private var lines: LineReader

    private static let connectTimeoutSeconds = 5
    /// Several times the heartbeat's interval.
    package static let silenceTimeout = Duration.seconds(30)

    /// Connects to the daemon of `mountpoint` (canonical), which `owner` mounted.
    package init(mountpoint: String, owner: UInt32) throws(ControlClientError) {
        try self.init(
            mountpoint: mountpoint, owner: owner,
            directories: SocketDirectory.candidates(user: owner))
    }

    init(mountpoint: String, owner: UInt32, directories: [String]) throws(ControlClientError) {
        let name = SocketDirectory.socketName(mountpoint: mountpoint)
        for directory in directories {
            guard let connection = try Self.connect(directory, name, owner: owner) else { continue }
            path = "\(directory)/\(name)"
            daemonProcess = connection.process
            daemonUser = connection.user
            lines = LineReader(connection.descriptor.rawValue, takesDescriptors: true)
            descriptor = connection.descriptor
            return
        }
        throw .noDaemon(tried: directories.map { "\($0)/\(name)" })
    }

    /// Connects to whatever daemon of `owner` is behind a socket, by the path that `SocketDirectory.sockets` gave.
    package init(socket: SocketDirectory.Entry, owner: UInt32) throws(ControlClientError) {
        guard let connection = try Self.connect(socket.directory, socket.name, owner: owner) else {
            throw .noDaemon(tried: [socket.path])
        }
        path = socket.path
        daemonProcess = connection.process
        daemonUser = connection.user
        lines = LineReader(connection.descriptor.rawValue, takesDescriptors: true)
        descriptor = connection.descriptor
    }

    private struct Connection: ~Copyable {
        let descriptor: OwnedDescriptor
        let process: Int32
        let user: UInt32
    }

    /// nil where no daemon of `owner` answers: no socket, a dead one, or one in a directory that
    /// others may write to.
    private static func connect(
        _ directoryPath: String, _ name: String, owner: UInt32
    ) throws(ControlClientError) -> Connection? {
        let path = "\(directoryPath)/\(name)"
        guard let directory = try? SocketDirectory.open(directoryPath, owner: owner) else {
            return nil
        }
        do throws(Errno) {
            let raw = try SystemCalls.checked { cl_unix_socket() }
            let descriptor = OwnedDescriptor(raw)
            try SystemCalls.boundSending(raw, seconds: connectTimeoutSeconds)
            try SystemCalls.checked { cl_unix_connect(raw, directory.address(name)) }
            let peer = try SystemCalls.peer(of: raw)
            guard peer.user == owner || peer.user == 0 else { return nil }
            return Connection(descriptor: descriptor, process: peer.process, user: peer.user)
        } catch {
            switch error {
            case .noSuchFileOrDirectory, .connectionRefused: return nil
            case .permissionDenied: throw .denied(path: path)
            case .resourceTemporarilyUnavailable: throw .unresponsive(path: path)
            default: throw .system(error, path: path)
            }
        }
    }

    // MARK: Requests

    package mutating func start(_ options: StartOptions) throws(ControlClientError) -> StartReport {
        try request(.start, options) { _ in }
    }

    package mutating func stop(
        _ options: StopOptions, progress: (StopProgress) -> Void
    ) throws(ControlClientError) -> StopReport {
        try request(.stop, options, progress)
    }

    package mutating func report(_ hooks: HooksOptions) throws(ControlClientError) {
        let _: HooksReport = try request(.hooks, hooks) { _ in }
    }

    package mutating func status() throws(ControlClientError) -> Status {
        try request(.status, NoOptions()) { _ in }
    }

    /// Hands what changed since the cut to `item`.
    package mutating func changed(
        _ item: (ChangeItem) -> Void
    ) throws(ControlClientError) -> ChangesReport {
        var pending: ChangeItem?
        return try request(.changed, NoOptions(), { _ in }) { items in
            for next in items {
                // What was split is put together.
                var whole = pending ?? next
                if pending != nil { whole.ranges += next.ranges }
                whole.continues = nil
                pending = next.continues == true ? whole : nil
                if pending == nil { item(whole) }
            }
        }
    }

    /// What there is to read; the descriptors come where the report says that it can be read directly.
    package mutating func reader(_ options: ReaderOptions) throws(ControlClientError) -> ReaderAccess {
        _ = lines.takeDescriptors()  // Of an answer that came to nothing.
        let report: ReaderReport = try request(.reader, options) { _ in }
        return ReaderAccess(report, lines.takeDescriptors())
    }

    package mutating func unmount(
        _ options: UnmountOptions
    ) throws(ControlClientError) -> UnmountReport {
        try request(.unmount, options) { _ in }
    }

    private mutating func request<Options: Codable, Result: Codable>(
        _ command: Command, _ options: Options, _ progress: (StopProgress) -> Void,
        _ changes: ([ChangeItem]) -> Void = { _ in }
    ) throws(ControlClientError) -> Result {
        let line = ControlLine.encode(Request(command: command, options: options))
        do throws(Errno) {
            try SystemCalls.sendAll(descriptor.rawValue, line)
        } catch {
            // A daemon that refuses says why before it closes: its words are still to be read.
            if error != .brokenPipe && error != .connectionReset {
                throw .system(error, path: path)
            }
        }
        while true {
            let reply: Reply<Result> = try nextReply()
            if let failure = reply.error { throw .failure(failure) }
            if let result = reply.result { return result }
            if let done = reply.progress { progress(done) }
            if let items = reply.changes { changes(items) }
        }
    }

    private mutating func nextReply<Result: Codable>() throws(ControlClientError) -> Reply<Result> {
        let line: [UInt8]?
        do throws(LineError) {
            line = try lines.next(within: Self.silenceTimeout)
        } catch {
            switch error {
            case .timedOut: throw .unresponsive(path: path)
            case .tooLong: throw .malformedReply(path: path)
            case .truncated, .system(.connectionReset): throw .closed(path: path)
            case .system(let error): throw .system(error, path: path)
            }
        }
        guard let line else { throw .closed(path: path) }
        do {
            return try ControlLine.decode(Reply<Result>.self, line)
        } catch {
            throw .malformedReply(path: path)
        }
    }
}
