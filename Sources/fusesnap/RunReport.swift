import ControlSocket
import Glibc
import LinuxSystem
import SystemPackage

/// What `run --report` writes: the fields of `ctl stop --json`, and those of the command. `Docs/Json.md` is its
/// description.
struct RunReport: Encodable {
    private let mountpoint: String
    private let command: [String]
    private var started: StartReport?
    private var outcome: CommandRun.Outcome?
    var snapshot: StopReport?
    /// What `run` exits with.
    var exitCode: Int32 = 125
    /// Why there is no report of the snapshot's end.
    private var failure: String?

    init(mountpoint: String, command: [String]) {
        self.mountpoint = mountpoint
        self.command = command
    }

    mutating func began(_ report: StartReport) { started = report }
    mutating func ended(_ result: CommandRun.Outcome) { outcome = result }
    mutating func failed(_ message: String) { failure = message }

    private enum Key: String, CodingKey {
        case schema, exact, reason, mountpoint, command, version, cut, hooks
        case commandExitCode = "command_exit_code"
        case commandSignal = "command_signal"
        case commandStarted = "command_started"
        case commandEnded = "command_ended"
        case exitCode = "exit_code"
        case inPlace = "in_place"
    }

    func encode(to encoder: any Encoder) throws {
        var fields = encoder.container(keyedBy: Key.self)
        if let snapshot {
            try snapshot.encode(to: encoder)
        } else {
            // Nothing is known to be in order.
            try fields.encode(StopReport.currentSchema, forKey: .schema)
            try fields.encode(false, forKey: .exact)
            try fields.encode(failure ?? "the snapshot's end is not known", forKey: .reason)
            try fields.encode(Version.text, forKey: .version)
            try fields.encode(mountpoint, forKey: .mountpoint)
            try fields.encodeIfPresent(started?.started, forKey: .cut)
            try fields.encodeIfPresent(started?.hooks, forKey: .hooks)
        }
        try fields.encode(command, forKey: .command)
        try fields.encode(exitCode, forKey: .exitCode)
        guard let outcome, outcome.hasRun else { return }
        try fields.encode(outcome.isInPlace, forKey: .inPlace)
        if outcome.signal == nil { try fields.encode(outcome.exitCode, forKey: .commandExitCode) }
        try fields.encodeIfPresent(outcome.signal, forKey: .commandSignal)
        try fields.encode(outcome.began.rfc3339Nanoseconds, forKey: .commandStarted)
        try fields.encode(outcome.ended.rfc3339Nanoseconds, forKey: .commandEnded)
    }
}

/// A file that is there whole or not at all: written under another name beside it, then renamed.
struct ReportFile {
    private let path: String

    /// Makes sure that it can be written, as far as that can be known before.
    init(_ path: String) throws(CommandFailure) {
        self.path = Paths.absolute(path)
        var status = stat()
        if stat(self.path, &status) == 0, status.st_mode & S_IFMT == S_IFDIR {
            throw Self.failure(path, "it is a directory")
        }
        do throws(Errno) {
            let (_, name) = try makeTemporary()
            try checked { unlink(name) }
        } catch {
            throw Self.failure(path, "\(error)")
        }
    }

    private static func failure(_ path: String, _ problem: String) -> CommandFailure {
        CommandFailure("the report \(path) cannot be written: \(problem)")
    }

    /// mkostemp(3): mode 0600.
    private func makeTemporary() throws(Errno) -> (Descriptor, String) {
        var template = Array("\(path).XXXXXX".utf8CString)
        let raw = try checked { mkostemp(&template, O_CLOEXEC) }
        let name = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return (Descriptor(owning: raw), name)
    }

    private func store(_ bytes: [UInt8], in file: Descriptor) throws(Errno) {
        var stored = 0
        while stored < bytes.count {
            stored += try checked {
                bytes[stored...].withUnsafeBytes { Glibc.write(file.raw, $0.baseAddress, $0.count) }
            }
        }
    }

    func write(_ report: RunReport) throws(CommandFailure) {
        do throws(Errno) {
            let (file, name) = try makeTemporary()
            do throws(Errno) {
                let bytes = Array((report.jsonText + "\n").utf8)
                try store(bytes, in: file)
                try checked { fsync(file.raw) }
                try checked { rename(name, path) }
            } catch {
                unlink(name)
                throw error
            }
        } catch {
            throw Self.failure(path, "\(error)")
        }
    }
}
