package import CTestSupport
internal import Glibc
internal import SystemPackage

/// A finished child process.
package struct Finished: Sendable, CustomStringConvertible {
    package let words: [String]
    /// The exit code; 128 and the signal's number where a signal ended it.
    package let code: Int32
    package let output: String
    package let errors: String

    package var wasKilled: Bool { code >= 128 }

    package var description: String {
        "`\(words.joined(separator: " "))`: exit \(code)\n\(output)\(errors)"
    }
}

/// A child process whose output goes to two unnamed files.
package final class Child: Sendable {
    package let pid: pid_t
    private let words: [String]
    private let output: File
    private let errors: File

    /// Starts a command, found by PATH, with nothing on its standard input.
    package init(
        _ words: [String], in directory: Path? = nil, environment: [String: String] = [:],
        input: Path = "/dev/null"
    ) throws {
        self.words = words
        output = try Path("/tmp").open(O_RDWR | O_TMPFILE, mode: 0o600)
        errors = try Path("/tmp").open(O_RDWR | O_TMPFILE, mode: 0o600)
        let standardInput = try input.open(O_RDONLY)
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, standardInput.raw, STDIN_FILENO)
        posix_spawn_file_actions_adddup2(&actions, output.raw, STDOUT_FILENO)
        posix_spawn_file_actions_adddup2(&actions, errors.raw, STDERR_FILENO)
        if let directory { posix_spawn_file_actions_addchdir_np(&actions, directory.string) }
        var argv: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        var envp: [UnsafeMutablePointer<CChar>?] = Self.variables(environment).map { strdup($0) } + [nil]
        defer { for word in argv + envp { free(word) } }
        var child = pid_t()
        // The threads that run tests block signals, which a command must not inherit.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var noSignals = sigset_t()
        sigemptyset(&noSignals)
        posix_spawnattr_setsigmask(&attributes, &noSignals)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
        let result = posix_spawnp(&child, words[0], &actions, &attributes, &argv, &envp)
        guard result == 0 else { throw TestFailure("\(words): \(Errno(rawValue: result))") }
        pid = child
    }

    private static func variables(_ added: [String: String]) -> [String] {
        var result = added.map { $0.key + "=" + $0.value }
        var at = environ
        while let entry = at.pointee {
            let text = String(cString: entry)
            let name = text.prefix { $0 != "=" }
            if added[String(name)] == nil { result.append(text) }
            at += 1
        }
        return result
    }

    package func signal(_ number: Int32) { kill(pid, number) }

    /// Waits for the end; kills the process after `seconds` and throws.
    package func wait(seconds: Double = 120) throws -> Finished {
        var status: Int32 = 0
        let end = ContinuousClock.now + .seconds(seconds)
        while true {
            let result = waitpid(pid, &status, WNOHANG)
            if result == pid { break }
            if result < 0 { throw TestFailure("\(words): waitpid: \(currentErrno)") }
            let rest = (end - ContinuousClock.now) / .milliseconds(1)
            if rest <= 0 {
                kill(pid, SIGKILL)
                waitpid(pid, &status, 0)
                throw TestFailure(
                    "`\(words.joined(separator: " "))`: not ended within \(seconds) s\n\(try text(errors))")
            }
            if ts_await_end(pid, Int32(min(rest, 1e6)) + 1) != 0 {
                throw TestFailure("\(words): pidfd_open: \(currentErrno)")
            }
        }
        let signal = status & 0x7f
        return Finished(
            words: words, code: signal == 0 ? status >> 8 & 0xff : 128 + signal, output: try text(output),
            errors: try text(errors))
    }

    private func text(_ file: File) throws -> String {
        String(decoding: try file.read(try file.stat().size, at: 0), as: UTF8.self)
    }
}

/// Runs a command to its end.
package func run(
    _ words: [String], in directory: Path? = nil, environment: [String: String] = [:], seconds: Double = 120
) throws -> Finished {
    try Child(words, in: directory, environment: environment).wait(seconds: seconds)
}

/// Runs a command that must succeed; its output.
@discardableResult
package func succeed(
    _ words: [String], in directory: Path? = nil, environment: [String: String] = [:], seconds: Double = 120
) throws -> String {
    let finished = try run(words, in: directory, environment: environment, seconds: seconds)
    if finished.code != 0 { throw TestFailure(finished.description) }
    return finished.output
}
