import ControlSocket
import Glibc
import LinuxSystem
import SourceWatch
import SystemPackage

/// Who uses the source past a mount over it, looked for before the mount is made.
struct SourceUsers {
    let configuration: DaemonConfiguration

    private static let shownMax = 10

    /// Throws, with the list, where there are any and the user did not say --force.
    func refuse(_ source: Descriptor) throws(CommandFailure) {
        guard configuration.isOverSource else { return }
        let scan: HolderScan
        do throws(Errno) {
            // The command that waits for the daemon may stand in the source, and will be gone.
            scan = try Self.scan(configuration.source, source)
        } catch {
            Log.standard.warning("\(configuration.source): who uses it could not be found out: \(error)")
            return
        }
        if scan.holders.isEmpty { return }
        let list = Self.list(scan.holders)
        if configuration.isForced {
            Log.standard.warning(
                "\(configuration.source) is in use past the mount; what is changed so is not preserved:"
                    + list.replacing("\n ", with: ";").dropFirst())
            return
        }
        throw CommandFailure(
            "cannot mount over \(configuration.source): it is in use, and what is changed in that way would go past the"
                + " mount:\n\(list)\nEnd these first, or mount with --force: then a snapshot is marked as not exact"
                + " when they change something")
    }

    /// Who uses a directory, but this process and its parent.
    static func scan(_ path: String, _ directory: Descriptor) throws(Errno) -> HolderScan {
        let deadline = ContinuousClock.now + daemonTimeout
        while true {
            var scan = try holders(of: directory, except: [getpid(), getppid()])
            let daemons = daemons(among: Set(scan.holders.map(\.process)))
            scan.holders.removeAll { holder in
                daemons[holder.process].map { !Paths.contains($0, path) && !Paths.contains(path, $0) } ?? false
            }
            // One that begins or ends just now has no control socket: at boot several begin at once.
            let isClear = scan.holders.allSatisfy { $0.command != "fusesnap" || daemons[$0.process] != nil }
            if isClear || ContinuousClock.now > deadline { return scan }
            poll(nil, 0, scanPauseMilliseconds)
        }
    }

    private static let daemonTimeout = Duration.seconds(5)
    private static let scanPauseMilliseconds: Int32 = 50

    /// Those of the processes that are daemons of other mounts, and their sources. What they hold is on private mounts, to
    /// which no path leads; where this process may not open inodes by their handles (a container without
    /// CAP_DAC_READ_SEARCH), the scan cannot tell that it lies elsewhere.
    private static func daemons(among processes: Set<Int32>) -> [Int32: String] {
        if processes.isEmpty { return [:] }
        var daemons: [Int32: String] = [:]
        for socket in SocketDirectory.sockets(user: geteuid()) {
            do throws(ControlClientError) {
                var client = try ControlClient(socket: socket, owner: geteuid())
                guard processes.contains(client.daemonProcess) else { continue }
                daemons[client.daemonProcess] = try client.status().source
            } catch {
                // Whoever does not answer is not known to be elsewhere.
            }
        }
        return daemons
    }

    private static func list(_ holders: [Holder]) -> String {
        var lines = holders.prefix(shownMax).map { "  " + text($0) }
        if holders.count > shownMax { lines.append("  and \(holders.count - shownMax) more") }
        return lines.joined(separator: "\n")
    }

    static func text(_ holder: Holder) -> String {
        let who = "process \(holder.process) (\(holder.command))"
        return switch holder.use {
        case .descriptor: "\(who) has \(holder.path) open for writing"
        case .directory: "\(who) has the directory \(holder.path) open"
        case .mapping: "\(who) has \(holder.path) mapped"
        case .workingDirectory: "\(who) has the working directory \(holder.path)"
        case .rootDirectory: "\(who) has the root directory \(holder.path)"
        case .mountNamespace: "\(who) sees it at \(holder.path) in a mount namespace of its own"
        case .mount: "it is also mounted at \(holder.path)"
        }
    }

    /// Says which file systems mounted below the source are not covered.
    func tellOfMountsBelow() throws(CommandFailure) {
        for entry in try Self.mountsBelow(configuration.source) {
            Log.standard.warning(
                "\(entry.mountpoint) is a mount of its own: it is not covered, and is an empty directory in a snapshot"
            )
        }
    }

    static func mountsBelow(_ source: String) throws(CommandFailure) -> [MountEntry] {
        try MountTable.current().entries.filter {
            $0.mountpoint != source && Paths.contains(source, $0.mountpoint)
        }
    }
}
