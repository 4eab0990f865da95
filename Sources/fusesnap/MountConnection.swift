import ControlSocket
import Glibc
import LinuxSystem
import SystemPackage

/// The daemon behind a mount point that a command was given.
struct MountConnection {
    /// Canonical.
    let mountpoint: String
    let client: ControlClient

    /// Finds the mount and connects to its daemon.
    init(_ path: String) throws(CommandFailure) {
        mountpoint = try Self.mountpoint(path)
        let address = try Self.address(mountpoint)
        do throws(ControlClientError) {
            client = try ControlClient(address)
        } catch {
            throw CommandFailure(Self.message(error, mountpoint))
        }
    }

    /// The canonical path of a fusesnap mount.
    static func mountpoint(_ path: String) throws(CommandFailure) -> String {
        guard let canonical = canonicalMountpoint(path) else {
            throw CommandFailure("\(path): \(currentErrno()); give the mount point of a fusesnap mount")
        }
        guard let mount = try MountTable().mount(at: canonical), mount.isFusesnap else {
            throw CommandFailure(
                "\(path): is not a fusesnap mount; `findmnt -t fuse.fusesnap` lists those of this machine")
        }
        return canonical
    }

    static func address(_ mountpoint: String) throws(CommandFailure) -> ControlAddress {
        let owner = try MountTable().mount(at: mountpoint)?.user ?? geteuid()
        return ControlAddress(mountpoint: mountpoint, user: owner)
    }

    /// Sends a request; what the daemon refuses, and why it did not answer, is thrown in words.
    func send(_ request: Request) throws(CommandFailure) -> Reply {
        do throws(ControlClientError) {
            return try client.send(request)
        } catch {
            throw CommandFailure(Self.message(error, mountpoint))
        }
    }

    static func message(_ error: ControlClientError, _ mountpoint: String) -> String {
        switch error {
        case .notListening(.permissionDenied):
            "\(mountpoint): only root and the user who mounted may control this mount"
        case .notListening(let errno):
            "\(mountpoint): the daemon of this mount does not answer (\(errno));"
                + " if it is dead, `fusesnap unmount \(mountpoint)` removes the mount"
        case .noAnswer(let why):
            "\(mountpoint): the daemon of this mount gave no answer: \(why)"
        case .failure(let failure): failure.message
        }
    }
}
