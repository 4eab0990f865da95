import ControlSocket
import Glibc
import LinuxSystem
import SystemPackage

/// A lease as it lies in the store, for the daemon that takes the snapshot up after a kill: lines of words, for people too.
///
/// A process is known by its number and when it began, in this boot; a time is one of the clock; a connection has ended
/// with the daemon that had it.
struct KeptLease: Equatable {
    var boot: String
    var process: Int32?
    /// In ticks since boot.
    var processStart: UInt64?
    /// In seconds since 1970.
    var expires: Int64?
    var holdsConnection = false

    private static let head = "fusesnap lease 1"

    /// nil where nobody holds the snapshot.
    init?(_ options: StartOptions, _ lease: Lease?) throws(Errno) {
        guard lease != nil || options.leaseConnection == true else { return nil }
        boot = try Self.currentBoot()
        process = options.leaseProcess
        processStart = lease?.holderStart
        expires = options.ttlSeconds.map { Timestamp.current.seconds + Int64($0) }
        holdsConnection = options.leaseConnection == true
    }

    /// nil for what is no lease.
    init?(text: String) {
        let lines = text.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
        guard text.hasPrefix(Self.head + "\n"), text.hasSuffix("\nend\n") else { return nil }
        boot = ""
        for words in lines.dropFirst().dropLast() {
            switch (words.first, words.count) {
            case ("boot", 2): boot = words[1]
            case ("process", 3):
                guard let number = Int32(words[1]) else { return nil }
                process = number
                processStart = UInt64(words[2])
            case ("expires", 2):
                guard let seconds = Int64(words[1]) else { return nil }
                expires = seconds
            case ("connection", 1): holdsConnection = true
            default: return nil
            }
        }
    }

    var text: String {
        var lines = [Self.head, "boot \(boot)"]
        if let process { lines.append("process \(process) \(processStart.map(String.init) ?? "unknown")") }
        if let expires { lines.append("expires \(expires)") }
        if holdsConnection { lines.append("connection") }
        return (lines + ["end", ""]).joined(separator: "\n")
    }

    private static func currentBoot() throws(Errno) -> String {
        let (high, low) = try bootNumber()
        return String(high, radix: 16) + "-" + String(low, radix: 16)
    }

    /// What of it still holds the snapshot, as options of a start. Throws why nothing does.
    func renewed() throws(Ended) -> StartOptions {
        if holdsConnection { throw Ended("the command that held it lost it when its daemon ended") }
        var options = StartOptions()
        if let process {
            let isOfThisBoot: Bool
            do throws(Errno) {
                isOfThisBoot = try Self.currentBoot() == boot
            } catch {
                throw Ended("whether process \(process), which held it, is still there cannot be told: \(error)")
            }
            guard isOfThisBoot, let processStart else {
                throw Ended("process \(process), which held it, is of another start of the machine")
            }
            (options.leaseProcess, options.leaseProcessStart) = (process, processStart)
        }
        if let expires {
            let left = expires - Timestamp.current.seconds
            guard left > 0 else { throw Ended("its time is over") }
            options.ttlSeconds = Int(left)
        }
        return options
    }

    /// Why a snapshot is not held any more.
    struct Ended: Error {
        let reason: String
        init(_ reason: String) { self.reason = reason }
    }
}
