internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// Where moved inodes are now, in a source without file handles: by parent and name, up to an inode that has not
/// moved since the cut, or the root.
///
/// Every move of an inode is noted here while `moves` is held, and with it the places of the directories above its
/// new name: so when one of those moves later, that is noted too, and the way stays good. A reader that loses its
/// way waits for the move that is under way, and looks again.
final class LocationTable: Sendable {
    struct Place: Sendable {
        /// nil: the source's root.
        let parent: InodeKey?
        let name: FileName
    }

    /// Bounds how deep a way is followed; PATH_MAX allows no deeper.
    private static let depthMax = 2048

    private let places = Mutex<[InodeKey: Place]>([:])
    private let moves = Mutex<Void>(())

    /// Runs a move. `moved` are the new places of what moves; `ancestors` the directories above them, noted where
    /// they are not yet.
    func move(
        _ moved: [(InodeKey, Place)], below ancestors: [Ancestor],
        _ body: () throws(Errno) -> Void
    ) throws(Errno) {
        try moves.withLock { (_) throws(Errno) -> Void in
            try body()
            places.withLock { places in
                for directory in ancestors where places[directory.key] == nil {
                    places[directory.key] = Place(parent: directory.parent, name: directory.name)
                }
                for (key, place) in moved { places[key] = place }
            }
        }
    }

    /// Returns when no move is under way that began before.
    func waitForMoves() {
        moves.withLock { _ in }
    }

    /// An O_PATH descriptor of an inode that has moved; nil for one that has not.
    func open(_ key: InodeKey, root: Descriptor) throws(Errno) -> Descriptor? {
        let way: [FileName]? = places.withLock { places in
            guard var place = places[key] else { return nil }
            var names = [place.name]
            while let parent = place.parent, let next = places[parent], names.count < Self.depthMax {
                names.append(next.name)
                place = next
            }
            return names.reversed()
        }
        guard let way else { return nil }
        var at = root
        for name in way {
            at = try name.withCString { (string) throws(Errno) in
                try Descriptor.open(at: at, string, O_PATH | O_NOFOLLOW)
            }
        }
        return at
    }
}

/// A directory on the way to a new name, as the live view knows it.
package struct Ancestor: Sendable {
    let key: InodeKey
    /// nil: the source's root.
    let parent: InodeKey?
    package let name: FileName

    package init(key: InodeKey, parent: InodeKey?, name: FileName) {
        self.key = key
        self.parent = parent
        self.name = name
    }
}
