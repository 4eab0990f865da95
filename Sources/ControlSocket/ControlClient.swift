internal import CLinux
internal import LinuxSystem
package import SystemPackage

/// Why a client got no answer.
package enum ControlClientError: Error {
    /// Nobody listens at this address.
    case notListening(Errno)
    /// The daemon closed the connection without an answer, or sent what this version does not understand.
    case noAnswer(String)
    /// The daemon's own words.
    case failure(ControlFailure)
}

/// A connection to a mount's daemon.
package final class ControlClient {
    private let connection: LineConnection

    /// Connects.
    package init(_ address: ControlAddress) throws(ControlClientError) {
        do throws(Errno) {
            let socket = Descriptor(owning: try checked { cl_unix_socket() })
            try checked { cl_unix_connect(socket.raw, address.path) }
            connection = LineConnection(socket)
        } catch {
            throw .notListening(error)
        }
    }

    /// Sends a request and waits for its reply; `progress` gets what comes before that.
    package func send(
        _ request: Request, progress: (StopProgress) -> Void = { _ in }
    ) throws(ControlClientError) -> Reply {
        do throws(Errno) {
            try connection.write(request)
        } catch {
            throw .noAnswer("\(error)")
        }
        while true {
            let reply: Reply?
            do throws(LineConnection.ReadFailure) {
                reply = try connection.read(Reply.self)
            } catch {
                throw .noAnswer("\(error)")
            }
            guard let reply else { throw .noAnswer("the daemon closed the connection") }
            if let failure = reply.error { throw .failure(failure) }
            guard let step = reply.progress else { return reply }
            progress(step)
        }
    }

    /// Waits until the daemon has ended: its end of the connection closes.
    package func waitForEnd() {
        connection.waitForEnd()
    }
}
