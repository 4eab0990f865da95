import CLinux
import ControlSocket
import Glibc
import LinuxSystem
import SystemPackage

/// Runs one hook at a time: in a process group of its own, with nothing on its standard input, for a bounded time; of
/// what it says a bounded part is kept.
///
/// A hook is over when its process is: one that leaves a session open in the background, to hold a lock from freeze to
/// thaw, is not waited for and not ended.
struct HookRunner {
    let timeout: Duration
    let variables: [(name: String, value: String)]
    /// What ends a freeze early; nil in the daemon.
    let signals: SignalReceiver?

    struct Finished {
        var result: HookResult
        /// What went wrong, for people; nil after success.
        var problem: String?
    }

    /// `starting` is told the pipe that the hook will write to, by its inode number.
    func run(
        _ hook: Hook, _ action: HookResult.Action, starting: (UInt64) -> Void = { _ in }
    ) -> Finished {
        let began = ContinuousClock.now
        var result = HookResult(
            name: hook.name, origin: hook.origin, action: action, outcome: .notRun, durationMicroseconds: 0)
        var output = OutputTail()
        var error: Errno?
        do throws(Errno) {
            let process = try start(hook, action, starting)
            result.outcome = try awaitEnd(process, began, action, &output)
            let status = try reap(process)
            if status & 0x7f == 0 { result.exitCode = status >> 8 & 0xff } else { result.signal = status & 0x7f }
            if result.outcome == .succeeded && status != 0 { result.outcome = .failed }
        } catch let failure {
            error = failure
        }
        result.durationMicroseconds = (ContinuousClock.now - began).microseconds
        return Finished(result: result, problem: problem(hook, result, error, output))
    }

    private func problem(_ hook: Hook, _ result: HookResult, _ error: Errno?, _ output: OutputTail) -> String? {
        let what: String
        switch result.outcome {
        case .succeeded: return nil
        case .notRun: what = "could not be run: \(error.map { "\($0)" } ?? "unknown")"
        case .timedOut: what = "did not end within \(timeout.components.seconds) s and was killed"
        case .interrupted: what = "was ended by a signal to fusesnap"
        case .failed:
            what =
                result.signal.map { "was killed by signal \($0)" }
                ?? "exited with \(result.exitCode ?? -1)"
        }
        return "the hook \(hook.path) \(what) at \(result.action.rawValue)\(output.text)"
    }

    // MARK: The process

    private struct Process {
        let number: pid_t
        let end: Descriptor
        let output: Descriptor
    }

    private func start(
        _ hook: Hook, _ action: HookResult.Action, _ starting: (UInt64) -> Void
    ) throws(Errno) -> Process {
        var ends: [Int32] = [-1, -1]
        try checked { pipe2(&ends, O_CLOEXEC) }
        let (reading, writing) = (Descriptor(owning: ends[0]), Descriptor(owning: ends[1]))
        var pipe = stat()
        try checked { fstat(writing.raw, &pipe) }
        starting(UInt64(pipe.st_ino))
        try checked { fcntl(reading.raw, F_SETFL, O_NONBLOCK) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, writing.raw, STDOUT_FILENO)
        posix_spawn_file_actions_adddup2(&actions, writing.raw, STDERR_FILENO)
        posix_spawn_file_actions_addclosefrom_np(&actions, 3)
        var attributes = Self.attributes()
        defer { posix_spawnattr_destroy(&attributes) }
        let words: [String] = [hook.path, action.rawValue]
        var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        var environment = CommandEnvironment.adding(variables)
        defer { for case let word? in arguments + environment { free(word) } }
        var child: pid_t = 0
        let failure = withExtendedLifetime(writing) {
            posix_spawn(&child, hook.path, &actions, &attributes, &arguments, &environment)
        }
        if failure != 0 { throw Errno(rawValue: failure) }
        do throws(Errno) {
            let end = Descriptor(owning: try checked { cl_pidfd_open(child) })
            return Process(number: child, end: end, output: reading)
        } catch {
            kill(-child, SIGKILL)
            waitpid(child, nil, 0)
            throw error
        }
    }

    /// A group of its own, and the signals as a program expects them.
    private static func attributes() -> posix_spawnattr_t {
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        var none = sigset_t()
        var defaults = sigset_t()
        sigemptyset(&none)
        sigemptyset(&defaults)
        for number in [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGCHLD, SIGIO, SIGXFSZ] {
            sigaddset(&defaults, number)
        }
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &defaults)
        posix_spawnattr_setpgroup(&attributes, 0)
        let flags = POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF
        posix_spawnattr_setflags(&attributes, Int16(flags))
        return attributes
    }

    /// Waits for the end of the process, and brings it about where that does not come in time.
    private func awaitEnd(
        _ process: Process, _ began: ContinuousClock.Instant, _ action: HookResult.Action,
        _ output: inout OutputTail
    ) throws(Errno) -> HookResult.Outcome {
        // A thaw is not cut short: nothing else brings the application back.
        let signals = action == .freeze ? signals : nil
        let outcome: HookResult.Outcome
        switch try wait(process, until: began + timeout, signals, &output) {
        case .ended:
            try output.drain(process.output)
            return .succeeded
        case .timeIsOver: outcome = .timedOut
        case .signal: outcome = .interrupted
        }
        kill(-process.number, SIGTERM)
        let grace = ContinuousClock.now + .milliseconds(HookLimits.killGraceMilliseconds)
        _ = try wait(process, until: grace, nil, &output)
        // Not reaped yet: the number is still that of this group.
        kill(-process.number, SIGKILL)
        return outcome
    }

    private enum Event { case ended, timeIsOver, signal }

    private func wait(
        _ process: Process, until deadline: ContinuousClock.Instant, _ signals: SignalReceiver?,
        _ output: inout OutputTail
    ) throws(Errno) -> Event {
        var isOpen = true
        while true {
            let left = deadline - ContinuousClock.now
            if left <= .zero { return .timeIsOver }
            var entries = [
                pollfd(fd: process.end.raw, events: Int16(POLLIN), revents: 0),
                pollfd(fd: isOpen ? process.output.raw : -1, events: Int16(POLLIN), revents: 0),
                pollfd(fd: signals?.descriptor.raw ?? -1, events: Int16(POLLIN), revents: 0),
            ]
            try checked { poll(&entries, 3, Int32(clamping: left.milliseconds + 1)) }
            if entries[1].revents != 0 { isOpen = try output.drain(process.output) }
            if entries[0].revents != 0 { return .ended }
            if entries[2].revents != 0 { return .signal }
        }
    }

    private func reap(_ process: Process) throws(Errno) -> Int32 {
        var status: Int32 = 0
        try checked { waitpid(process.number, &status, 0) }
        return status
    }
}

/// The end of what a hook says.
struct OutputTail {
    private var bytes: [UInt8] = []
    private var isCut = false

    /// Takes what has come, at most some pages at once so that a hook that never stops does not hold its reader;
    /// false at the end of the stream.
    @discardableResult
    mutating func drain(_ descriptor: Descriptor) throws(Errno) -> Bool {
        var chunk = [UInt8](repeating: 0, count: 64 << 10)
        for _ in 0..<16 {
            let count: Int
            do throws(Errno) {
                count = try checked { read(descriptor.raw, &chunk, chunk.count) }
            } catch .resourceTemporarilyUnavailable {
                return true
            }
            if count == 0 { return false }
            bytes.append(contentsOf: chunk[..<count])
            if bytes.count > HookLimits.outputBytesMax {
                bytes.removeFirst(bytes.count - HookLimits.outputBytesMax)
                isCut = true
            }
        }
        return true
    }

    /// For the end of a message.
    var text: String {
        let text = String(decoding: bytes, as: UTF8.self)
        let lines = text.split(whereSeparator: \.isNewline).map { line in
            "\n  | " + String(String.UnicodeScalarView(line.unicodeScalars.map { $0.value < 0x20 ? " " : $0 }))
        }
        if lines.isEmpty { return "" }
        let isCut = isCut || lines.count > HookLimits.outputLinesMax
        return (isCut ? "; the end of what it said:" : "; it said:")
            + lines.suffix(HookLimits.outputLinesMax).joined()
    }
}

/// The environment of this process, and more.
enum CommandEnvironment {
    /// NULL at the end; the words are the caller's to free.
    static func adding(_ variables: [(name: String, value: String)]) -> [UnsafeMutablePointer<CChar>?] {
        var words: [UnsafeMutablePointer<CChar>?] = []
        var at: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?> = Glibc.environ
        while let entry = at.pointee {
            let isReplaced = variables.contains { variable in
                let prefix = variable.name + "="
                return strncmp(entry, prefix, prefix.utf8.count) == 0
            }
            if !isReplaced { words.append(strdup(entry)) }
            at += 1
        }
        return words + variables.map { strdup("\($0.name)=\($0.value)") } + [nil]
    }
}
