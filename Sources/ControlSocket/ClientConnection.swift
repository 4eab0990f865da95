internal import Glibc
internal import LinuxSystem
internal import Synchronization
internal import SystemPackage

/// One client, as the server sees it.
final class ClientConnection: Sendable {
    let descriptor: OwnedDescriptor
    /// The process that connected; nil where it is of another process namespace.
    let process: pid_t?
    let requester: Requester
    /// Guards who writes to the socket, and whether a request is being worked on. May span a send,
    /// which is bounded.
    private let isWorking = Mutex(false)

    /// The number of the snapshot that ends with this connection.
    private let held = Mutex<UInt64?>(nil)

    /// A client who does not read what it asked for is cut off.
    private static let sendTimeoutSeconds = 10

    init(accepted: consuming OwnedDescriptor, process: pid_t, _ requester: Requester) throws(Errno) {
        try SystemCalls.boundSending(accepted.rawValue, seconds: Self.sendTimeoutSeconds)
        self.requester = requester
        self.process = process > 0 ? process : nil
        descriptor = accepted
    }

    /// A client who holds a snapshot may say nothing for as long as it likes.
    func hold(_ snapshot: UInt64?) {
        held.withLock { $0 = snapshot }
    }

    var heldSnapshot: UInt64? { held.withLock { $0 } }

    /// From now on heartbeats go out.
    func beginWork() {
        isWorking.withLock { $0 = true }
    }

    /// Sends the last line of an answer, and descriptors with it; no heartbeat follows it.
    func finish(_ line: [UInt8], _ descriptors: [Descriptor] = []) {
        isWorking.withLock { isWorking in
            isWorking = false
            _ = withExtendedLifetime(descriptors) { sendOrCut(line, descriptors.map(\.raw)) }
        }
    }

    func sendProgress(_ line: [UInt8]) {
        isWorking.withLock { isWorking in
            if isWorking { sendOrCut(line) }
        }
    }

    /// Sends a line before the last one of an answer; false where the client takes no more.
    func sendPart(_ line: [UInt8]) -> Bool {
        isWorking.withLock { isWorking in
            guard isWorking else { return false }
            isWorking = sendOrCut(line)
            return isWorking
        }
    }

    /// Says that the request is still worked on, unless somebody else is just sending.
    func sendHeartbeat(_ line: [UInt8]) {
        _ = isWorking.withLockIfAvailable { isWorking in
            guard isWorking else { return }
            do throws(Errno) {
                if try !SystemCalls.sendAtOnce(descriptor.rawValue, line) { end() }
            } catch .resourceTemporarilyUnavailable {
                // It has not read yet what was sent: it knows that the request is worked on.
            } catch {
                end()
            }
        }
    }

    /// Takes no further request; an answer that is due still goes out.
    func stopReading() {
        shutdown(descriptor.rawValue, Int32(SHUT_RD))
    }

    /// Ends the connection, although others may still hold it for a moment.
    func end() {
        shutdown(descriptor.rawValue, Int32(SHUT_RDWR))
    }

    /// A line that does not go out whole would spoil the next one, so that was the last.
    @discardableResult
    private func sendOrCut(_ line: [UInt8], _ descriptors: [Int32] = []) -> Bool {
        do throws(Errno) {
            try SystemCalls.sendAll(descriptor.rawValue, line, descriptors: descriptors)
            return true
        } catch {
            end()
            return false
        }
    }
}
