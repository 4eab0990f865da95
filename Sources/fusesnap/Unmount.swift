internal import ArgumentParser
internal import ControlSocket

struct Unmount: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "unmount",
        abstract: "Unmount; also where the daemon is dead.",
        discussion:
            "An active snapshot ends, which is told by a warning and exit code 1 unless --force is given."
    )

    @Flag(help: "Do not mind that an active snapshot ends.")
    var force = false

    @Argument(help: "The mount.", completion: .directory)
    var mountpoint: String

    private static let daemonEndTimeoutMilliseconds: Int32 = 30_000
    private static let mountEndTimeout = Duration.seconds(10)

    func run() throws {
        let attempt = "cannot unmount \(mountpoint)"
        let target = try MountTarget(mountpoint, attempt)
        let report: UnmountReport
        let daemonHasEnded: Bool
        do throws(ControlClientError) {
            var client = try target.connect()
            let daemon = ProcessWatch(client.daemonProcess)
            report = try client.unmount(UnmountOptions(force: force))
            daemonHasEnded =
                daemon?.waitForEnd(milliseconds: Self.daemonEndTimeoutMilliseconds) ?? true
        } catch {
            switch error {
            case .noDaemon, .closed:
                // Dead, or dying: its socket lives as long as its last thread.
                return try StaleMount(target).remove(force: force)
            default:
                throw target.failure(attempt, error)
            }
        }
        if !daemonHasEnded {
            throw CommandFailure(
                "\(mountpoint) is unmounted, but its daemon still runs; see the system log")
        }
        if try !MountTable.waitUntilUnmounted(target.mountpoint, within: Self.mountEndTimeout) {
            throw CommandFailure("\(attempt): the daemon has ended, but the mount is still there")
        }
        if report.endedSnapshot && !force {
            StandardError.write(
                "warning: \(mountpoint) is unmounted, which ended the snapshot that was active; a "
                    + "backup that was "
                    + "reading it is not complete")
            throw ExitCode.failed
        }
    }
}
