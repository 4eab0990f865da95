import ArgumentParser
import CLinux
import ControlSocket
import Glibc
import LinuxSystem
import SystemPackage

/// Runs the command of `run`, in a namespace where the snapshot lies over the mount point, and passes signals on.
struct CommandRun {
    private let arguments: Run
    private let target: MountTarget
    private let started: StartReport
    private let signals: SignalReceiver

    struct Outcome {
        /// What `run` exits with for it.
        var exitCode: Int32
        /// What ended it, where a signal did.
        var signal: Int32?
        /// Whether the command was executed.
        var hasRun = true
        /// What went wrong, for people.
        var problem: String?
        var isInPlace = false
        var began = Timestamp.current
        var ended = Timestamp.current
    }

    init(_ arguments: Run, _ target: MountTarget, _ started: StartReport, _ signals: SignalReceiver) {
        self.arguments = arguments
        self.target = target
        self.started = started
        self.signals = signals
    }

    private var snapshot: String { started.snapshotDirectory ?? "\(target.mountpoint)/.snapshot" }
    private var name: String { arguments.command.first ?? "" }

    func run() -> Outcome {
        let began = Timestamp.current
        var outcome: Outcome
        do throws(Failure) {
            let process = try start()
            outcome = wait(process)
            outcome.isInPlace = arguments.inPlace != .never
        } catch {
            outcome = Outcome(exitCode: error.code.rawValue, hasRun: false, problem: error.message)
        }
        outcome.began = began
        outcome.ended = .current
        return outcome
    }

    // MARK: The start

    private struct Failure: Error {
        var code: ExitCode
        var message: String
    }

    private enum Way { case plain, mountNamespace, userNamespace }

    private struct Obstacle: Error {
        let stage: cl_stage
        let error: Errno
    }

    private func start() throws(Failure) -> Int32 {
        if arguments.inPlace == .never { return try start(.plain) }
        let maySetUp = cl_permitted_capabilities() & Self.administers != 0
        if maySetUp {
            do throws(Obstacle) {
                return try attempt(.mountNamespace)
            } catch {
                // A container may forbid the one and allow the other.
                if !Self.isAboutPrivilege(error) { throw failure(error) }
            }
        } else if arguments.inPlace == .auto {
            StandardError.write(
                "note: without root, files of other users and groups show as those of nobody to the command; give"
                    + " --in-place=always where that does not matter, or --in-place=never")
        }
        return try start(.userNamespace)
    }

    /// CAP_SYS_ADMIN.
    private static let administers: UInt64 = 1 << 21

    private static func isAboutPrivilege(_ obstacle: Obstacle) -> Bool {
        switch obstacle.stage {
        case CL_USER_NAMESPACE, CL_MOUNT_NAMESPACE, CL_PROPAGATION: true
        case CL_BINDING: obstacle.error == .notPermitted || obstacle.error == .permissionDenied
        default: false
        }
    }

    private func start(_ way: Way) throws(Failure) -> Int32 {
        do throws(Obstacle) {
            return try attempt(way)
        } catch {
            throw failure(error)
        }
    }

    private func attempt(_ way: Way) throws(Obstacle) -> Int32 {
        let seen = way == .plain ? snapshot : target.mountpoint
        let environment = CommandEnvironment.adding([
            ("FUSESNAP_SNAPSHOT", seen), ("FUSESNAP_MOUNTPOINT", target.mountpoint),
            ("FUSESNAP_STARTED", started.started),
        ])
        defer { for case let word? in environment { free(word) } }
        let words = Run.rawWords(arguments.command.count)
        let directory = way == .plain ? nil : workingDirectory
        var process: Int32 = 0
        var stage = CL_STARTING
        let error = snapshot.withCString { snapshot in
            target.mountpoint.withCString { mountpoint in
                withOptionalCString(directory) { directory in
                    withUnsafePointer(to: signals.maskBefore) { mask in
                        var command = cl_command()
                        return words.withUnsafeBufferPointer { words in
                            environment.withUnsafeBufferPointer { environment in
                                (signals.ignoredBefore + [0]).withUnsafeBufferPointer { ignored in
                                    command.arguments = words.baseAddress
                                    command.environment = environment.baseAddress
                                    command.bind_source = snapshot
                                    command.bind_target = way == .plain ? nil : mountpoint
                                    command.in_user_namespace = way == .userNamespace ? 1 : 0
                                    command.directory = directory
                                    command.mask = mask
                                    command.ignored = ignored.baseAddress
                                    return cl_start_command(&command, &process, &stage)
                                }
                            }
                        }
                    }
                }
            }
        }
        if error != 0 { throw Obstacle(stage: stage, error: Errno(rawValue: error)) }
        return process
    }

    /// The working directory, where it lies in the mount: it must lead to the snapshot's.
    private var workingDirectory: String? {
        let current = Paths.absolute(".")
        return Paths.contains(target.mountpoint, current) ? current : nil
    }

    private func failure(_ obstacle: Obstacle) -> Failure {
        let attempt = "cannot run \(name)"
        let error = obstacle.error
        switch obstacle.stage {
        case CL_EXECUTING:
            let advice = error == .noSuchFileOrDirectory ? "; is it installed, and its directory in PATH?" : ""
            return Failure(
                code: error == .noSuchFileOrDirectory ? .notFound : .notExecutable,
                message: "\(attempt): \(error)\(advice)")
        case CL_DIRECTORY:
            return Failure(
                code: .runFailed,
                message:
                    "\(attempt) in \(workingDirectory ?? "."), which the snapshot does not show: \(error); change to"
                    + " another directory")
        case CL_USER_NAMESPACE, CL_MOUNT_NAMESPACE, CL_PROPAGATION, CL_BINDING:
            return Failure(
                code: .runFailed,
                message:
                    "\(attempt): the snapshot cannot be shown at \(target.mountpoint): \(Self.action(obstacle.stage)):"
                    + " \(error); run as root, allow user namespaces, or give --in-place=never and let the command read"
                    + " $FUSESNAP_SNAPSHOT")
        default:
            return Failure(code: .runFailed, message: "\(attempt): no process: \(error)")
        }
    }

    private static func action(_ stage: cl_stage) -> String {
        switch stage {
        case CL_USER_NAMESPACE: "no user namespace"
        case CL_MOUNT_NAMESPACE: "no mount namespace"
        case CL_PROPAGATION: "its mounts cannot be kept apart"
        default: "it cannot be mounted there"
        }
    }

    // MARK: Until its end

    private func wait(_ process: Int32) -> Outcome {
        do throws(Errno) {
            let end = Descriptor(owning: try checked { cl_pidfd_open(process) })
            while true {
                var entries = [
                    pollfd(fd: end.raw, events: Int16(POLLIN), revents: 0),
                    pollfd(fd: signals.descriptor.raw, events: Int16(POLLIN), revents: 0),
                ]
                try checked { poll(&entries, 2, -1) }
                while let signal = signals.next() {
                    // Ctrl-C goes to the command too; the word that the terminal has closed only to the session's
                    // first process.
                    if !signal.isFromTerminal || signal.number == SIGHUP { kill(process, signal.number) }
                }
                if entries[0].revents != 0 { break }
            }
            var status: Int32 = 0
            try checked { waitpid(process, &status, 0) }
            return Self.outcome(status, name)
        } catch {
            kill(process, SIGTERM)
            return Outcome(
                exitCode: ExitCode.runFailed.rawValue, problem: "cannot wait for the end of \(name): \(error)")
        }
    }

    private static func outcome(_ status: Int32, _ name: String) -> Outcome {
        let signal = status & 0x7f
        if signal == 0 { return Outcome(exitCode: status >> 8 & 0xff) }
        return Outcome(
            exitCode: 128 + signal, signal: signal, problem: "\(name) was killed by signal \(signal)")
    }
}

private func withOptionalCString<Result>(_ text: String?, _ body: (UnsafePointer<CChar>?) -> Result) -> Result {
    guard let text else { return body(nil) }
    return text.withCString { body($0) }
}
