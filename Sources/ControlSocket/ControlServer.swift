internal import CLinux
internal import Glibc
internal import LinuxSystem
internal import Synchronization
internal import SystemPackage

/// What a server grants its clients.
package struct ControlLimits: Sendable {
    package var clientsMax = 16
    /// How many of them may be ordinary users, who must not keep root out.
    package var ordinaryClientsMax = 8
    /// How long a client may take to send a request.
    package var requestTimeout = Duration.seconds(10)
    /// How long `close` waits for answers that are due.
    package var closeTimeoutMilliseconds: Int32 = 10_000

    package init() {}
}

/// Answers the control socket of one mount: a thread that accepts, and one for each client.
///
/// A peer that is neither root nor the mounting user is told so and closed, unless the mount admits users (`Requester`
/// says what those may); so is one that sends
/// anything but requests, or nothing at all. None of them keeps the others waiting.
package final class ControlServer: Sendable {
    private let socket: ListeningSocket
    private let owner: UInt32
    private let admitsUsers: Bool
    private let limits: ControlLimits
    private let report: @Sendable (String) -> Void
    /// Wakes the accepting thread.
    private let wake: WakePipe
    /// Wakes `close` when the last thread ends.
    private let drained: WakePipe
    /// Guards who is connected. Spans no call that may wait.
    private let state = Mutex(State())

    private struct State: Sendable {
        var clients: [ClientConnection] = []
        var isAccepting = false
        var isClosing = false

        var hasThreads: Bool { isAccepting || !clients.isEmpty }
    }

    /// Binds and listens: clients may connect from now on, and are answered once `serve` is called.
    /// `owner` is the mounting user; `admitsUsers`: others may take snapshots of their own files. `report` is given what the log should say, on the server's
    /// threads.
    package init(
        mountpoint: String, in directory: consuming SocketDirectory, owner: UInt32 = geteuid(),
        admitsUsers: Bool = false, limits: ControlLimits = ControlLimits(),
        report: @escaping @Sendable (String) -> Void
    ) throws(ControlSocketError) {
        self.admitsUsers = admitsUsers
        socket = try ListeningSocket(directory, mountpoint: mountpoint, mode: admitsUsers ? 0o666 : 0o600)
        do throws(Errno) {
            wake = try WakePipe()
            drained = try WakePipe()
        } catch {
            throw ControlSocketError("cannot make a pipe for the control socket: \(error)")
        }
        self.owner = owner
        self.limits = limits
        self.report = report
    }

    /// The socket's path.
    package var path: String { socket.path }

    /// Answers requests by `controller`, until `close`.
    package func serve(_ controller: any SnapshotController) throws(ControlSocketError) {
        state.withLock { $0.isAccepting = true }
        do throws(Errno) {
            try SystemCalls.detachThread { [self] in
                accept(for: controller)
                threadEnds { $0.isAccepting = false }
            }
        } catch {
            state.withLock { $0.isAccepting = false }
            throw ControlSocketError("cannot start the thread of the control socket: \(error)")
        }
    }

    /// Takes no further request, lets those that are worked on be answered, and removes the socket.
    /// To be called before the process exits, or the answer to `unmount` is lost; never by the
    /// controller, which it waits for.
    package func close() {
        socket.unlinkName()
        let clients = state.withLock { state in
            state.isClosing = true
            return state.hasThreads ? state.clients : nil
        }
        wake.signal()
        guard let clients else { return }
        for client in clients { client.stopReading() }
        if !drained.wait(milliseconds: limits.closeTimeoutMilliseconds) {
            report("a request on the control socket was still not answered at the end")
        }
    }

    private func threadEnds(_ change: (inout State) -> Void) {
        let isLast = state.withLock { state in
            change(&state)
            return state.isClosing && !state.hasThreads
        }
        if isLast { drained.signal() }
    }

    // MARK: The accepting thread

    private func accept(for controller: any SnapshotController) {
        while true {
            let clientCount = sendHeartbeats()
            if !state.withLock({ $0.isClosing }) {
                let milliseconds = clientCount == 0 ? -1 : ControlProtocol.heartbeatMilliseconds
                if waitForClient(milliseconds: milliseconds) { admit(controller) }
            } else if clientCount > 0 {
                // Only the heartbeats of what is still worked on are left to do.
                usleep(Self.closingPauseMicroseconds)
            } else {
                return
            }
        }
    }

    private static let heartbeat = ControlLine.encode(Reply<NoResult>(working: true))

    /// Tells the clients that wait for an answer that it is worked on; how many are connected.
    private func sendHeartbeats() -> Int {
        let clients = state.withLock { $0.clients }
        for client in clients { client.sendHeartbeat(Self.heartbeat) }
        return clients.count
    }

    private static let closingPauseMicroseconds: UInt32 = 20_000

    /// Whether a client has connected; false when the time is over or the server closes.
    private func waitForClient(milliseconds: Int32) -> Bool {
        var entries = [
            pollfd(fd: socket.descriptor.rawValue, events: Int16(POLLIN), revents: 0),
            pollfd(fd: wake.reading.rawValue, events: Int16(POLLIN), revents: 0),
        ]
        let count = poll(&entries, 2, milliseconds)
        return count > 0 && entries[1].revents == 0 && entries[0].revents != 0
    }

    private func admit(_ controller: any SnapshotController) {
        do throws(Errno) {
            let raw = try SpareDescriptors.checked { cl_unix_accept(socket.descriptor.rawValue) }
            let accepted = OwnedDescriptor(raw)
            let peer = try SystemCalls.peer(of: raw)
            let requester = Requester(user: peer.user, owner: owner)
            let client = try ClientConnection(accepted: accepted, process: peer.process, requester)
            if let refusal = refusal(peer) {
                report(refusal.message)
                client.finish(ControlLine.encode(Reply<NoResult>(error: refusal)))
                return
            }
            guard isAdmitted(client) else {
                let failure = ControlFailure(
                    .failed, "too many clients are connected to this mount's daemon; try again later")
                client.finish(ControlLine.encode(Reply<NoResult>(error: failure)))
                return
            }
            do throws(Errno) {
                try SystemCalls.detachThread { [self] in
                    converse(client, controller)
                    client.end()
                    if let snapshot = client.heldSnapshot { controller.connectionEnded(holding: snapshot) }
                    threadEnds { state in state.clients.removeAll { $0 === client } }
                }
            } catch {
                threadEnds { state in state.clients.removeAll { $0 === client } }
                throw error
            }
        } catch {
            report("cannot serve a client of the control socket: \(error)")
            // Out of descriptors or threads, most likely: the client still waits, so that trying
            // again at once is vain.
            _ = wake.wait(milliseconds: Self.admissionPauseMilliseconds)
        }
    }

    private static let admissionPauseMilliseconds: Int32 = 200

    private func isAdmitted(_ client: ClientConnection) -> Bool {
        state.withLock { state in
            guard !state.isClosing, state.clients.count < limits.clientsMax else { return false }
            let isOrdinary = client.requester != .controller
            let ordinary = state.clients.count { $0.requester != .controller }
            if isOrdinary && ordinary >= limits.ordinaryClientsMax { return false }
            state.clients.append(client)
            return true
        }
    }

    private func refusal(_ peer: (user: uid_t, process: pid_t)) -> ControlFailure? {
        if admitsUsers || Self.mayControl(user: peer.user, owner: owner) { return nil }
        return ControlFailure(
            .refused,
            "user \(peer.user) (process \(peer.process)) may not control this mount: only root and "
                + "user \(owner), who mounted it, may")
    }

    static func mayControl(user: UInt32, owner: UInt32) -> Bool {
        Requester(user: user, owner: owner) == .controller
    }

    // MARK: The thread of a client

    private func converse(_ client: ClientConnection, _ controller: any SnapshotController) {
        var lines = LineReader(client.descriptor.rawValue)
        do throws(LineError) {
            while let line = try nextLine(&lines, client) {
                client.beginWork()
                let answer = RequestHandler(controller: controller, client: client).answer(line)
                client.finish(answer.line, answer.descriptors)
                if !answer.keepsConnection { return }
            }
        } catch {
            if let failure = Self.failure(error) {
                client.finish(ControlLine.encode(Reply<NoResult>(error: failure)))
            }
        }
    }

    private func nextLine(
        _ lines: inout LineReader, _ client: ClientConnection
    ) throws(LineError) -> [UInt8]? {
        if client.heldSnapshot != nil { try lines.waitForAny() }
        return try lines.next(within: limits.requestTimeout)
    }

    private static func failure(_ error: LineError) -> ControlFailure? {
        switch error {
        case .tooLong:
            ControlFailure(
                .badRequest, "a request is longer than \(ControlProtocol.lineBytesMax) bytes")
        case .timedOut: ControlFailure(.timedOut, "no request came in time")
        case .truncated: ControlFailure(.badRequest, "the connection ended within a request")
        case .system: nil
        }
    }
}
