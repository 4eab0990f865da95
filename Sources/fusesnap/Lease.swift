import CLinux
import ControlSocket
import Glibc
import LinuxSystem
import SystemPackage

/// What ends a snapshot when nobody stops it: the end of the process that holds it, or a time.
///
/// The process is bound by a pidfd when the lease is made: another that gets its number later does not hold anything.
final class Lease: Sendable {
    private let holder: Holder?
    private let ttl: Duration?
    private let waking: Descriptor
    private let wake: Descriptor

    /// When the process that holds it began, in ticks since boot; nil where none does, or /proc does not tell.
    var holderStart: UInt64? { holder?.start }

    /// For the status.
    let summary: Status.Lease

    private struct Holder: Sendable {
        let description: String
        let descriptor: Descriptor
        let start: UInt64?
    }

    /// nil where the options name no lease of this kind.
    init?(_ options: StartOptions) throws(ControlFailure) {
        if options.leaseProcess == nil && options.ttlSeconds == nil { return nil }
        if let seconds = options.ttlSeconds, seconds < 1 {
            throw ControlFailure(.badRequest, "a snapshot cannot be kept for \(seconds) s")
        }
        ttl = options.ttlSeconds.map { .seconds($0) }
        var summary = Status.Lease()
        summary.expires = options.ttlSeconds.map { seconds in
            var end = Timestamp.current
            end.seconds += Int64(seconds)
            return end.rfc3339
        }
        var holder: Holder?
        if let process = options.leaseProcess {
            do throws(LeaseProblem) {
                let identity = try ProcessIdentity(process)
                if let start = options.leaseProcessStart, start != identity.start { throw .another }
                holder = Holder(
                    description: identity.description, descriptor: identity.descriptor, start: identity.start)
                (summary.process, summary.command) = (process, identity.command)
            } catch {
                throw ControlFailure(.failed, error.text(process))
            }
        }
        self.holder = holder
        self.summary = summary
        var ends: [Int32] = [-1, -1]
        do throws(Errno) {
            try checked { pipe2(&ends, O_CLOEXEC) }
        } catch {
            throw ControlFailure(.failed, "no pipe for the lease: \(error)")
        }
        (wake, waking) = (Descriptor(owning: ends[0]), Descriptor(owning: ends[1]))
    }

    /// Calls `ended`, once, with what happened, unless `cancel` comes first.
    func watch(_ ended: @escaping @Sendable (String) -> Void) throws(Errno) {
        let deadline = ttl.map { ContinuousClock.now + $0 }
        try Thread.start { [self] in
            if let reason = wait(until: deadline) { ended(reason) }
        }
    }

    func cancel() {
        var byte: UInt8 = 1
        // The pipe is empty, and nobody closes it.
        _ = write(waking.raw, &byte, 1)
    }

    /// poll(2) does not count the time during which the machine sleeps, the clock does.
    private static let pollMillisecondsMax = 60_000

    private func wait(until deadline: ContinuousClock.Instant?) -> String? {
        while true {
            var milliseconds = -1
            if let deadline {
                let left = deadline - ContinuousClock.now
                if left <= .zero { return "its time is over (\(ttl?.components.seconds ?? 0) s)" }
                milliseconds = min(left.milliseconds + 1, Self.pollMillisecondsMax)
            }
            var entries = [
                pollfd(fd: wake.raw, events: Int16(POLLIN), revents: 0),
                pollfd(fd: holder?.descriptor.raw ?? -1, events: Int16(POLLIN), revents: 0),
            ]
            if poll(&entries, 2, Int32(milliseconds)) < 0 && errno != EINTR {
                return "its lease cannot be watched: \(Errno(rawValue: errno))"
            }
            if entries[0].revents != 0 { return nil }
            if entries[1].revents != 0, let holder { return "\(holder.description), which held it, has ended" }
        }
    }
}

enum LeaseProblem: Error {
    case gone
    case another
    case system(Errno)

    func text(_ process: Int32) -> String {
        switch self {
        case .gone: "process \(process), which is to hold the snapshot, does not exist or has ended"
        case .another:
            "process \(process), which is to hold the snapshot, is another for the daemon; is it in another process namespace?"
        case .system(let error): "process \(process), which is to hold the snapshot: \(error)"
        }
    }
}

/// A process that is alive, bound for good: its number may be another's later.
struct ProcessIdentity {
    let number: Int32
    let descriptor: Descriptor
    /// In ticks since boot; nil where /proc does not tell.
    let start: UInt64?
    /// The name of its program; nil where it is hidden from this user.
    let command: String?

    init(_ number: Int32) throws(LeaseProblem) {
        do throws(Errno) {
            descriptor = Descriptor(owning: try checked { cl_pidfd_open(number) })
        } catch {
            throw error == .noSuchProcess || error == .invalidArgument ? .gone : .system(error)
        }
        // What /proc says is this process's if that is still alive afterwards.
        let words = Self.words(number)
        var entry = pollfd(fd: descriptor.raw, events: Int16(POLLIN), revents: 0)
        if poll(&entry, 1, 0) != 0 { throw .gone }
        start = words.fields.count > 19 ? UInt64(words.fields[19]) : nil
        self.number = number
        command = words.command.isEmpty ? nil : words.command
    }

    var description: String { Self.describe(number, command) }

    static func describe(_ number: Int32, _ command: String?) -> String {
        "process \(number)" + (command.map { " (\($0))" } ?? "")
    }

    /// The name of a process's program; nil where it is gone or hidden.
    static func command(_ number: Int32) -> String? {
        let command = words(number).command
        return command.isEmpty ? nil : command
    }

    /// /proc/PID/stat: the command's name is in parentheses, and may hold some itself.
    private static func words(_ number: Int32) -> (command: String, fields: [Substring]) {
        let contents: [UInt8]
        do throws(Errno) {
            contents = try FileContents.read("/proc/\(number)/stat")
        } catch {
            return ("", [])  // Hidden from this user.
        }
        let text = String(decoding: contents, as: UTF8.self)
        guard let open = text.firstIndex(of: "("), let close = text.lastIndex(of: ")") else { return ("", []) }
        let fields = text[text.index(after: close)...].split(separator: " ")
        return (String(text[text.index(after: open)..<close]), fields)
    }
}
