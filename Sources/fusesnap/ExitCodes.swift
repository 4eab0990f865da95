internal import ArgumentParser
internal import Glibc

/// What the command's exit codes mean; 0 is done. Wrong usage is 64, by swift-argument-parser.
extension ExitCode {
    /// Anything that went wrong and is not one of the others.
    static let failed = ExitCode(1)
    /// The snapshot was not exact to its end: overflowed, or written to past the mount.
    static let inexact = ExitCode(3)
    /// Of `run`, as of env(1): its own failure, a command that cannot be executed, one that is not found.
    static let runFailed = ExitCode(125)
    static let notExecutable = ExitCode(126)
    static let notFound = ExitCode(127)
}

/// What ends the command: a message that says what was attempted, on what, what went wrong and what
/// to do, and the exit code.
struct CommandFailure: Error, Equatable {
    var message: String
    var exitCode: ExitCode

    init(_ message: String, exitCode: ExitCode = .failed) {
        self.message = message
        self.exitCode = exitCode
    }
}

/// Errors and warnings go to standard error, output for people to standard output.
enum StandardError {
    static func write(_ message: String) {
        guard isJournal else { return writeText("fusesnap: \(message)\n") }
        // Each line is an entry of its own there, and has its level in front (sd-daemon(3)).
        for line in message.split(separator: "\n") { writeText("<\(LOG_ERR)>\(line)\n") }
    }

    /// Whether standard error leads to the journal: $JOURNAL_STREAM holds its device and inode number then.
    static let isJournal: Bool = {
        guard let value = getenv("JOURNAL_STREAM") else { return false }
        var status = stat()
        guard fstat(STDERR_FILENO, &status) == 0 else { return false }
        return String(cString: value) == "\(status.st_dev):\(status.st_ino)"
    }()

    /// As it is, in one write(2) where that takes it whole. An error here has nowhere to be told.
    static func writeText(_ text: String) {
        var rest = ArraySlice(text.utf8)
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes {
                Glibc.write(STDERR_FILENO, $0.baseAddress, $0.count)
            }
            if count < 0 && errno != EINTR { return }
            rest = rest.dropFirst(max(0, count))
        }
    }
}
