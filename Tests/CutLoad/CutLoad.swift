import ArgumentParser
import CTestSupport
import Glibc
import TestSupport

@main
struct CutLoad: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "cutload",
        abstract: "Does operations of many kinds at full speed, and checks that snapshots are cut at one instant.",
        discussion: """
            The promise: an operation is in a snapshot in whole or not at all; if B began after A had finished, and B \
            is in, so is A; what finished before the start was called is in, what began after it returned is not. \
            Pages dirtied through a mapping count when msync has returned.

            Exit codes: 0 the promise was kept; 1 it was not; 2 an application's call or a command failed; 64 wrong \
            usage.
            """,
        subcommands: [Run.self, Work.self, List.self])
}

/// What the load is, the same for the controller and for the processes it starts.
struct LoadOptions: ParsableArguments {
    @Argument(help: "Where the load makes its files: a directory of its own in it for each station.")
    var directory: String

    @Option(help: ArgumentHelp("Stations, separated by commas (default: all).", valueName: "names"))
    var stations: String?

    @Option(help: ArgumentHelp("Hold so many more files open for writing.", valueName: "number"))
    var filesOpen = 0

    @Option(help: ArgumentHelp("Keep so much data dirty, such as 512M (K, M, G).", valueName: "bytes"))
    var dirty = "0"

    @Option(help: ArgumentHelp("Microseconds to wait between operations.", valueName: "number"))
    var pause: UInt32 = 0

    func validate() throws {
        guard filesOpen >= 0, dirtyBytes != nil else { throw ValidationError("a number is wrong") }
    }

    private var dirtyBytes: Int? {
        guard let last = dirty.uppercased().last else { return nil }
        let power = ["K", "M", "G"].firstIndex(of: last)
        guard let number = Int(power == nil ? dirty : String(dirty.dropLast())), number >= 0 else { return nil }
        return number << (power.map { 10 * ($0 + 1) } ?? 0)
    }

    func load(seed: UInt64) throws -> Load {
        var chosen = Stations.all(seed: seed)
        if let stations {
            let names = stations.split(separator: ",").map(String.init)
            let known = Set(chosen.map(\.name))
            if let name = names.first(where: { !known.contains($0) }) {
                throw ValidationError("no station is named '\(name)'; see `cutload list`")
            }
            chosen.removeAll { !names.contains($0.name) }
        }
        if filesOpen > 0 { chosen.append(OpenFiles(count: filesOpen)) }
        if let dirtyBytes, dirtyBytes > 0 { chosen.append(DirtyData(bytes: dirtyBytes)) }
        return Load(
            directory: Path(directory), stations: chosen.filter { Stations.isAvailable($0) },
            absent: chosen.filter { !Stations.isAvailable($0) }.map(\.name))
    }

    /// The words that give these options to another process.
    var words: [String] {
        [directory, "--files-open", "\(filesOpen)", "--dirty", dirty, "--pause", "\(pause)"]
            + (stations.map { ["--stations", $0] } ?? [])
    }
}

/// The stations of a run. A lane's place in the shared memory follows from their order.
struct Load: Sendable {
    let directory: Path
    let stations: [any Station]
    /// Stations that this machine cannot run.
    let absent: [String]

    var lanes: Int { stations.map(\.lanes.count).reduce(0, +) }

    func root(_ station: any Station) -> Path { directory / Path(station.name) }

    /// The lanes of each station.
    func lanes(_ shared: SharedState) -> [[Lane]] {
        var next = 0
        return stations.map { station in
            station.lanes.map { name in
                defer { next += 1 }
                return Lane(name, isBestEffort: station.isBestEffort, shared, index: next)
            }
        }
    }
}

/// One process of a station.
struct Work: ParsableCommand {
    static let configuration = CommandConfiguration(shouldDisplay: false)

    private static let niceness: Int32 = 10

    @OptionGroup var options: LoadOptions
    @Option var seed: UInt64
    @Option var shared: String
    @Option var station: Int
    @Option var actor: Int

    func run() throws {
        ts_die_with_parent()
        // On a machine with few processors the file system under test and the checks must have their turn.
        _ = nice(Self.niceness)
        let shared = try SharedState(opening: Path(shared))
        let load = try options.load(seed: seed)
        let station = load.stations[station]
        do {
            try station.work(
                Actor(
                    index: actor, lanes: load.lanes(shared)[self.station], root: load.root(station),
                    shared: shared,
                    pauseMicroseconds: options.pause))
        } catch {
            shared.fail("\(station.name): \(error)")
            throw ExitCode(2)
        }
    }
}

struct List: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "List the stations.")

    func run() {
        for station in Stations.all(seed: 0) {
            print(Stations.isAvailable(station) ? station.name : "\(station.name) (not on this machine)")
        }
    }
}
