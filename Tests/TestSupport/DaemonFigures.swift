internal import Glibc
internal import SystemPackage

/// What a daemon takes of the machine.
package struct DaemonFigures: Sendable, CustomStringConvertible {
    package let descriptors: Int
    package let threads: Int
    /// Memory of its own that is resident, in bytes.
    package let memoryBytes: Int

    package var description: String { "\(descriptors) descriptors, \(threads) threads, \(memoryBytes) bytes" }
}

extension MountedSource {
    package func figures() throws -> DaemonFigures {
        let text = String(decoding: try Path("/proc/\(daemon)/status").contents(), as: UTF8.self)
        func number(_ field: String) throws -> Int {
            for line in text.split(separator: "\n") where line.hasPrefix(field + ":") {
                if let number = line.split(whereSeparator: { " \t".contains($0) }).dropFirst().first.flatMap({
                    Int($0)
                }) {
                    return number
                }
            }
            throw TestFailure("no \(field) in /proc/\(daemon)/status")
        }
        return DaemonFigures(
            descriptors: try Path("/proc/\(daemon)/fd").entries().count, threads: try number("Threads"),
            memoryBytes: try number("RssAnon") << 10)
    }

    /// Descriptors at the most from now on.
    package func limitDescriptors(_ number: Int) throws {
        try succeed(["prlimit", "--pid", "\(daemon)", "--nofile=\(number):"])
    }

    /// Makes the kernel forget what nobody uses, until `isEnough`; as root.
    package func dropCaches(
        _ what: String, seconds: Double = 30, until isEnough: () throws -> Bool
    ) throws {
        try wait(what, seconds: seconds) {
            try Path("/proc/sys/vm/drop_caches").open(O_WRONLY).writeAll([UInt8(ascii: "2")])
            return try isEnough()
        }
    }
}
