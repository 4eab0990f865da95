import ArgumentParser
import Glibc
import TestSupport

struct Run: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Run the load, and check snapshots of it.")

    @OptionGroup var options: LoadOptions

    @Option(help: "Replays the choices of a run (default: a random one, which is printed).")
    var seed: UInt64?

    @Option(help: "End after this time.")
    var seconds: Double?

    @Option(help: "End after so many snapshots.")
    var starts: Int?

    @Option(help: ArgumentHelp("Shell command that starts a snapshot.", valueName: "command"))
    var startCommand: String?

    @Option(help: ArgumentHelp("Shell command that ends it.", valueName: "command"))
    var stopCommand: String?

    @Option(help: ArgumentHelp("Where the snapshot of DIRECTORY is to be seen.", valueName: "directory"))
    var snapshot: String?

    @Option(help: ArgumentHelp("Milliseconds at most, before each start and each stop.", valueName: "number"))
    var interval = 100

    @ArgumentParser.Flag(
        help: "Go on after a violation, and say at the end in which stations how many snapshots were wrong.")
    var keepGoing = false

    @ArgumentParser.Flag(help: "A start command that fails is counted, and nothing more.")
    var startsMayFail = false

    func validate() throws {
        guard seconds != nil || starts != nil else { throw ValidationError("give --seconds or --starts") }
        let commands = [startCommand, stopCommand, snapshot].compactMap { $0 }.count
        guard commands == 3 || commands == 0 && starts == nil else {
            throw ValidationError("--start-command, --stop-command and --snapshot go together")
        }
        guard interval >= 0 else { throw ValidationError("--interval is negative") }
    }

    func run() throws {
        let seed = seed ?? UInt64.random(in: 1...999_999)
        let load = try options.load(seed: seed)
        say("cutload: seed \(seed), stations \(load.stations.map(\.name).joined(separator: ","))")
        if !load.absent.isEmpty { say("not on this machine: \(load.absent.joined(separator: ","))") }
        let code: Int32
        do {
            let controller = try Controller(load, self, seed: seed)
            try controller.run()
            say(controller.summary)
            code = controller.wrong.isEmpty ? 0 : 1
        } catch let error as LoadFailure {
            say("failed: seed \(seed): \(error)")
            code = 2
        }
        throw ExitCode(code)
    }

    /// The words for a process of the load.
    func work(seed: UInt64, station: Int, actor: Int, shared: String) -> [String] {
        ["/proc/self/exe", "work"] + options.words
            + [
                "--seed", "\(seed)", "--shared", shared, "--station", "\(station)", "--actor", "\(actor)",
            ]
    }
}

/// What makes a run worthless: a call or a command that failed.
struct LoadFailure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// A line of output, at once: a reader of it may wait for it, and a run may end at any place.
func say(_ line: String) {
    let bytes = Array((line + "\n").utf8)
    _ = write(STDOUT_FILENO, bytes, bytes.count)
}
