internal import ArgumentParser
internal import ControlSocket
internal import Glibc
internal import SystemPackage

/// A fusesnap mount that a command was asked to control.
struct MountTarget {
    /// As the user wrote it.
    let path: String
    /// As the mount table and the daemon name it.
    let mountpoint: String
    /// Who mounted it.
    let owner: UInt32

    /// `attempt` words what is to be done with it, for the message of a failure.
    init(_ path: String, _ attempt: String) throws(CommandFailure) {
        self.path = path
        let table = try MountTable.current()
        let mountpoint = try Self.locate(path, attempt, in: table)
        guard let entry = table.mount(at: mountpoint), entry.isFusesnap else {
            throw CommandFailure(
                "\(attempt): it is not a fusesnap mount: \(Self.description(mountpoint, in: table))")
        }
        self.mountpoint = mountpoint
        owner = entry.user ?? 0
        let caller = geteuid()
        // Root's daemon may admit users (-o user_snapshots): it says so itself.
        if caller != 0 && caller != owner && owner != 0 {
            throw CommandFailure(
                "\(attempt): it was mounted by user \(owner), and user \(caller) may not control it; run as that user or"
                    + " as root")
        }
    }

    /// The path of a mount is taken as text, since looking it up may wait for a daemon that hangs.
    private static func locate(
        _ path: String, _ attempt: String, in table: MountTable
    ) throws(CommandFailure) -> String {
        let hasParents = path.split(separator: "/").contains("..")
        let absolute = Paths.absolute(path)
        if !hasParents && table.mount(at: absolute)?.isFusesnap == true { return absolute }
        do throws(Errno) {
            return try Paths.canonical(path)
        } catch {
            throw CommandFailure("\(attempt): it is not a fusesnap mount: \(error); \(listAdvice)")
        }
    }

    private static func description(_ path: String, in table: MountTable) -> String {
        if let entry = table.mount(at: path) {
            return "a mount of type \(entry.type) is there; \(listAdvice)"
        }
        guard let containing = table.mount(containing: path), containing.isFusesnap else {
            return "nothing is mounted there; mount it with `fusesnap mount \(path)`; \(listAdvice)"
        }
        return "it lies in the one at \(containing.mountpoint); name that"
    }

    private static let listAdvice = "`fusesnap ctl list` shows those that there are"

    /// Connects to the daemon.
    func connect() throws(ControlClientError) -> ControlClient {
        try ControlClient(mountpoint: mountpoint, owner: owner)
    }

    /// Makes one request. `attempt` words what was tried, for the message of a failure.
    func request<Report>(
        _ attempt: String, _ body: (inout ControlClient) throws(ControlClientError) -> Report
    ) throws(CommandFailure) -> Report {
        do throws(ControlClientError) {
            var client = try connect()
            return try body(&client)
        } catch {
            throw failure(attempt, error)
        }
    }

    func failure(_ attempt: String, _ error: ControlClientError) -> CommandFailure {
        let problem: String
        switch error {
        case .noDaemon(let tried):
            problem =
                "its daemon does not answer: no socket at \(tried.joined(separator: " or ")); if "
                + "it is dead, "
                + "`fusesnap unmount \(path)` removes the mount, and it can be mounted again"
        case .denied(let socket):
            problem =
                "no permission for the control socket \(socket); run as the mounting user or as root, or have it mounted"
                + " with -o user_snapshots, with which users may take snapshots of their own files"
        case .unresponsive(let socket):
            problem =
                "its daemon says nothing on \(socket); if it hangs, end it with `kill -9 PID`, "
                + "then "
                + "`fusesnap unmount \(path)` and mount again"
        case .closed(let socket):
            problem =
                "its daemon closed the connection \(socket) without an answer, or died; see "
                + "`fusesnap ctl status \(path)` and the system log"
        case .malformedReply(let socket):
            problem =
                "the answer on \(socket) cannot be understood; use the fusesnap command of the "
                + "daemon's version"
        case .system(let error, let socket):
            problem = "the control socket \(socket) fails: \(error)"
        case .failure(let failure):
            return CommandFailure(
                "\(attempt): \(failure.message)\(advice(failure.code))",
                exitCode: failure.code == .inexact ? .inexact : .failed)
        }
        return CommandFailure("\(attempt): \(problem)")
    }

    private func advice(_ code: ControlFailureCode) -> String {
        guard code == .busy else { return "" }
        return
            "; see who uses it with `fuser -vm \(path)` or `lsof +f -- \(path)`, end that and try again"
    }
}
