import ArgumentParser
import ControlSocket
import Glibc
import SystemPackage

struct UnmountCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "unmount", abstract: "Unmount a fusesnap mount, and wait until its daemon has ended.",
        discussion:
            "A snapshot that is active ends with the mount; then the exit code is 1, unless --force is given.")

    @Flag(help: "Count the end of an active snapshot as success.")
    var force = false

    @Argument(help: "The mount point.", completion: .directory)
    var mountpoint: String

    func run() throws {
        try exiting { () throws(CommandFailure) in
            let canonical = try MountConnection.mountpoint(mountpoint)
            let address = try MountConnection.address(canonical)
            let client: ControlClient
            do throws(ControlClientError) {
                client = try ControlClient(address)
            } catch {
                if case .notListening(let errno) = error,
                    errno == .noSuchFileOrDirectory || errno == .connectionRefused
                {
                    return try removeDead(canonical)
                }
                throw CommandFailure(MountConnection.message(error, canonical))
            }
            let reply: Reply
            do throws(ControlClientError) {
                reply = try client.send(Request(.unmount))
            } catch {
                throw CommandFailure(MountConnection.message(error, canonical))
            }
            client.waitForEnd()
            if reply.unmounted?.endedSnapshot == true {
                let message = "\(canonical): a snapshot was active: it has ended with the mount"
                if !force { throw CommandFailure(message) }
                complain("warning: " + message)
            }
        }
    }

    /// A mount whose daemon was killed.
    private func removeDead(_ canonical: String) throws(CommandFailure) {
        if let problem = Unmounting.unmount(canonical) { throw CommandFailure(problem.message) }
        complain("warning: \(canonical): the daemon of this mount was dead; its mount is removed")
    }
}
