internal import ArgumentParser
internal import ControlSocket

struct ControlStatus: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Tell what a mount and its snapshot are doing.",
        discussion: """
            With --watch it goes on telling, with the rates of what changes, until Ctrl-C or until the mount goes: on a \
            terminal in place, otherwise (and with --json) in one line each time.
            """)

    @Flag(help: "Print the status as JSON.")
    var json = false

    @Flag(help: "Go on telling.")
    var watch = false

    @Option(help: ArgumentHelp("How long --watch waits in between (default: 1).", valueName: "seconds"))
    var interval: Double?

    @Argument(help: "The mount.", completion: .directory)
    var mountpoint: String

    private static let intervalSeconds = 0.1...86_400

    func validate() throws {
        guard let interval else { return }
        if !watch { throw ValidationError("--interval is for --watch") }
        if !Self.intervalSeconds.contains(interval) {
            throw ValidationError("--interval needs a number of seconds from 0.1 to 86400")
        }
    }

    func run() throws {
        let target = try MountTarget(mountpoint, "cannot get the status of \(mountpoint)")
        if watch {
            var watching = StatusWatch(target, interval: .seconds(interval ?? 1), isJSON: json)
            return try watching.run()
        }
        let status = try Self.status(of: target)
        try StandardOutput.writeLine(json ? status.jsonText : StatusSummary(status).text)
    }

    static func status(of target: MountTarget) throws(CommandFailure) -> Status {
        try target.request("cannot get the status of \(target.path)") {
            client throws(ControlClientError) in
            try client.status()
        }
    }
}
