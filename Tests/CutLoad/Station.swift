import Glibc
import SystemPackage
import TestSupport

/// One kind of operation: how it is done at full speed, and how to tell from a tree how far it had come.
protocol Station: Sendable {
    var name: String { get }
    /// The names of its lanes, with which operations are reported.
    var lanes: [String] { get }
    /// Processes, each of which calls `work`.
    var actors: Int { get }
    /// Whether what is in does not show that the operation counts: see `LaneHistory`.
    var isBestEffort: Bool { get }

    /// Makes what is there before the first operation.
    func prepare(_ root: Path) throws
    /// Does operations until the load is over.
    func work(_ actor: Actor) throws
    /// For each lane, the number of the last operation that is in the tree; nil where nothing is to be told. Throws
    /// where an operation is in in part, or one that came after another without it.
    func find(_ root: Path) throws -> [Found]?
}

extension Station {
    var lanes: [String] { [name] }
    var actors: Int { 1 }
    var isBestEffort: Bool { false }
}

/// A process of a station.
struct Actor: Sendable {
    let index: Int
    /// All lanes of the station; those that this process writes are the station's affair.
    let lanes: [Lane]
    let root: Path
    let shared: SharedState
    let pauseMicroseconds: UInt32

    /// Whether to do one more operation; waits before it where that is wanted.
    var goesOn: Bool {
        if pauseMicroseconds > 0 { usleep(pauseMicroseconds) }
        return shared.phase == .running
    }
}

/// Calls `body`, and says of what call on what path an error is.
func naming<Result>(_ call: String, _ path: Path, _ body: () throws(Errno) -> Result) throws -> Result {
    do throws(Errno) {
        return try body()
    } catch {
        throw TestFailure("\(call) \(path): \(error)")
    }
}

/// The numbers that a directory's entries are named by, in their order; other names but `other` are a fault.
func numbers(in directory: Path, other: String? = nil) throws -> [Int] {
    try naming("listing", directory, { () throws(Errno) in try directory.entries() }).filter { $0.string != other }
        .map { name in
            guard let number = Int(name.string) else { throw TestFailure("\(directory): unknown name \(name)") }
            return number
        }.sorted()
}

func / (directory: Path, number: Int) -> Path { directory / Path("\(number)") }
