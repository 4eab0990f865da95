internal import ControlSocket
internal import Glibc

/// All fusesnap mounts of this machine that the caller may see: those of the mount table, and those in other mount name
/// spaces whose control sockets the caller has.
struct MountListing: Encodable {
    static let currentSchema = 1

    enum Condition: String, Encodable {
        /// As the daemon's own word for it.
        case idle, active, merging, overflowed
        /// The daemon has ended; the mount is left.
        case dead
        /// The daemon lives, and does not answer.
        case hanging
        /// Another user's.
        case denied
    }

    struct Item: Encodable {
        /// nil where only a socket tells of it, and its daemon does not answer.
        var mountpoint: String?
        var source: String?
        /// Who mounted it.
        var user: UInt32
        var state: Condition
        /// Whether it is in the caller's mount name space.
        var visible: Bool
        /// The control socket where it is all that there is.
        var socket: String?
        /// Why there is no status.
        var problem: String?
        var status: Status?
    }

    var schema = currentSchema
    var mounts: [Item]
    /// The caller's sockets whose daemons have ended in disorder, and whose mounts are gone. They do no harm.
    var staleSockets: [String]

    enum CodingKeys: String, CodingKey {
        case schema, mounts
        case staleSockets = "stale_sockets"
    }

    static func current() throws(CommandFailure) -> MountListing {
        let table = try MountTable.current()
        // Of several mounts at one place the topmost is the one to be seen.
        var points: Set<String> = []
        let entries = table.entries.reversed().filter { $0.isFusesnap && points.insert($0.mountpoint).inserted }
        let caller = geteuid()
        let seen = Set(entries.map { SocketDirectory.socketName(mountpoint: $0.mountpoint) })
        let others = SocketDirectory.sockets(user: caller).filter { !seen.contains($0.name) }
        var listing = MountListing(mounts: entries.reversed().map { item($0, caller) }, staleSockets: [])
        for socket in others {
            if let item = item(socket, caller) {
                listing.mounts.append(item)
            } else {
                listing.staleSockets.append(socket.path)
            }
        }
        return listing
    }

    private static func item(_ entry: MountEntry, _ caller: UInt32) -> Item {
        let user = entry.user ?? 0
        var item = Item(
            mountpoint: entry.mountpoint, source: entry.source, user: user, state: .denied, visible: true)
        if caller != 0 && caller != user {
            item.problem = "it is user \(user)'s"
            return item
        }
        do throws(ControlClientError) {
            var client = try ControlClient(mountpoint: entry.mountpoint, owner: user)
            item.take(try client.status())
        } catch {
            (item.state, item.problem) = verdict(error, entry.mountpoint)
        }
        return item
    }

    private static func verdict(_ error: ControlClientError, _ mountpoint: String) -> (Condition, String) {
        switch error {
        case .noDaemon, .closed:
            switch StaleMount.probe(mountpoint) {
            case .dead: (.dead, "its daemon has ended; `fusesnap unmount \(mountpoint)` removes the mount")
            case .hanging: (.hanging, "its daemon hangs")
            case .alive:
                (.hanging, "its daemon serves files, but its control socket is not found")
            }
        case .denied: (.denied, "its control socket may not be used")
        case .failure(let failure): (.hanging, failure.message)
        case .unresponsive: (.hanging, "its daemon does not answer")
        case .malformedReply: (.hanging, "its daemon's answer is not understood: it is of another version")
        case .system(let error, _): (.hanging, "its control socket fails: \(error)")
        }
    }

    /// nil where nobody is behind the socket.
    private static func item(_ socket: SocketDirectory.Entry, _ caller: UInt32) -> Item? {
        var item = Item(user: caller, state: .hanging, visible: false, socket: socket.path)
        do throws(ControlClientError) {
            var client = try ControlClient(socket: socket, owner: caller)
            item.take(try client.status())
        } catch .noDaemon, .closed {
            return nil
        } catch {
            item.problem = "its daemon does not answer"
        }
        return item
    }
}

extension MountListing.Item {
    fileprivate mutating func take(_ status: Status) {
        mountpoint = status.mountpoint
        source = status.source
        state =
            switch status.state {
            case .idle: .idle
            case .active: .active
            case .merging: .merging
            case .overflowed: .overflowed
            }
        self.status = status
    }
}
