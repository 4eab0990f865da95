internal import ArgumentParser
internal import ControlSocket
internal import Glibc
internal import SystemPackage

struct ControlStart: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "start",
        abstract: "Begin a snapshot.",
        discussion: """
            Returns when the cut is made: the snapshot is there until `ctl stop`, or until its lease is over. Hooks \
            are called around the cut, as the caller; if one fails there is no snapshot.
            """)

    @Flag(help: "Print the report as JSON.")
    var json = false

    @OptionGroup var stall: StallOptions

    @OptionGroup var scope: ScopeOptions

    @OptionGroup(title: "Hooks") var hooks: HookOptions

    @Option(help: ArgumentHelp("End the snapshot when this process ends.", valueName: "pid"))
    var lease: Int32?

    @Option(
        help: ArgumentHelp("End the snapshot after this time: 90s, 15m, 6h, 2d.", valueName: "duration"),
        transform: LeaseTime.parse)
    var ttl: LeaseTime?

    @Argument(help: "The mount.", completion: .directory)
    var mountpoint: String

    func validate() throws {
        if let lease, lease < 1 { throw ValidationError("--lease needs the number of a process") }
    }

    func run() throws {
        let signals: SignalReceiver
        do throws(Errno) {
            signals = try SignalReceiver()
        } catch {
            throw CommandFailure("cannot start a snapshot of \(mountpoint): no descriptor for signals: \(error)")
        }
        let target = try MountTarget(mountpoint, "cannot start a snapshot of \(mountpoint)")
        var start = try SnapshotStart(target, stall, hooks, signals)
        start.options = try scope.resolve(start.options)
        start.options.ttlSeconds = ttl?.seconds
        // Held until the daemon has bound the process too: until then its number cannot become another's.
        let holder = try boundHolder()
        start.options.leaseProcess = lease
        start.options.leaseProcessStart = holder?.start
        var client = try connect(target)
        var report = try start.start(&client)
        withExtendedLifetime(holder) {}
        report.schema = report.schema ?? StartReport.currentSchema
        let place = report.snapshotDirectory ?? "\(target.mountpoint)/.snapshot"
        let whose = ScopeOptions.text(users: report.users, groups: report.groups).map { " of \($0)" } ?? ""
        do throws(CommandFailure) {
            try StandardOutput.writeLine(
                json ? report.jsonText : "Snapshot\(whose) started at \(report.started); read it at \(place)")
        } catch {
            // An exit code other than 0 means that there is none.
            start.end(&client, report)
            throw CommandFailure("\(error.message); the snapshot has been ended again")
        }
    }

    private func boundHolder() throws(CommandFailure) -> ProcessIdentity? {
        guard let lease else { return nil }
        do throws(LeaseProblem) {
            return try ProcessIdentity(lease)
        } catch {
            throw CommandFailure("cannot start a snapshot of \(mountpoint): --lease: \(error.text(lease))")
        }
    }

    private func connect(_ target: MountTarget) throws(CommandFailure) -> ControlClient {
        do throws(ControlClientError) {
            return try target.connect()
        } catch {
            throw target.failure("cannot start a snapshot of \(mountpoint)", error)
        }
    }
}

/// For how long a snapshot may last.
struct LeaseTime: Equatable, Sendable {
    let seconds: Int

    private static let units: [Character: Int] = ["s": 1, "m": 60, "h": 3600, "d": 86_400]
    private static let secondsMax = 366 * 86_400

    /// A number of seconds, or of what a letter after it says.
    static func parse(_ text: String) throws -> LeaseTime {
        let unit = text.last.flatMap { units[$0] }
        let digits = unit == nil ? Substring(text) : text.dropLast()
        guard !digits.isEmpty, digits.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }),
            let count = Int(digits), count > 0, count <= secondsMax / (unit ?? 1)
        else {
            throw ValidationError(
                "'\(text)' is no duration; write for example 90s, 15m, 6h or 2d, a year at the most")
        }
        return LeaseTime(seconds: count * (unit ?? 1))
    }
}
