import ArgumentParser
import ControlSocket
import Glibc

/// What the process exits with, apart from 0 and swift-argument-parser's 64 for wrong usage.
enum ExitStatus {
    static let failed: Int32 = 1
    /// The snapshot was not exact to its end.
    static let inexact: Int32 = 3
}

/// A command that failed: a message that says what was attempted, on what, what went wrong, what to do about it.
struct CommandFailure: Error {
    let message: String
    var status = ExitStatus.failed

    init(_ message: String, status: Int32 = ExitStatus.failed) {
        self.message = message
        self.status = status
    }
}

/// Writes a line for people to standard error.
func complain(_ message: String) {
    let line = "fusesnap: \(message)\n"
    _ = line.withCString { write(STDERR_FILENO, $0, strlen($0)) }
}

extension ParsableCommand {
    /// Runs a command's body, and turns its failure into a message and an exit code.
    func exiting(_ body: () throws(CommandFailure) -> Void) throws {
        do throws(CommandFailure) {
            try body()
        } catch {
            complain(error.message)
            throw ExitCode(error.status)
        }
    }
}
