internal import Glibc
internal import LinuxSystem
internal import SnapshotRecord
internal import Synchronization
package import SystemPackage

// Inodes that lose a name, maybe their last.
extension Preserve {
    /// What becomes of an inode whose name is taken away.
    private enum Fate {
        /// It keeps another name, or the snapshot does not need it.
        case stays
        /// It is moved to the graveyard.
        case buried
        /// It goes, since all that the snapshot needs of it is recorded.
        case detached
    }

    /// unlink(2) or rmdir(2) of a name, with what the snapshot needs preserved. Throws what the call throws. False where
    /// so much has to be copied first that a cut must be let through: nothing is removed yet, and it is to be called
    /// again.
    package func unlink(
        in directory: ChangeTarget, _ name: UnsafePointer<CChar>, victim: ChangeTarget,
        _ flags: Int32
    ) throws(Errno) -> Bool {
        willChangeAttributes(of: victim)
        if concerns(victim) {
            willChangeEntry(in: directory, name, now: .present(victim.reference))
        } else {
            willChangeAttributes(of: directory)
        }
        func plainly() throws(Errno) {
            try LinuxSystem.unlink(at: directory.descriptor, name, flags)
        }
        guard let record = record(of: victim) else {
            try plainly()
            return true
        }
        return try removing(victim, record) { (fate) throws(Errno) -> Bool in
            guard case .buried = fate else {
                try plainly()
                return true
            }
            return try bury(victim, record, from: directory, name)
        }
    }

    /// Takes a name of `victim` away with `remove`, under the record's `firstChange`. `remove` gets what is to
    /// become of the inode, and answers false where it cannot be buried; then all its data are copied first, in slices
    /// (false: call again), and `remove` is called again.
    private func removing(
        _ victim: ChangeTarget, _ record: InodeRecord, _ remove: (Fate) throws(Errno) -> Bool
    ) throws(Errno) -> Bool {
        preserveTarget(of: victim, record)
        func attempt(_ decide: () throws(Errno) -> Fate) throws(Errno) -> Bool {
            try record.firstChange.withLock { (_) throws(Errno) -> Bool in
                let fate = try decide()
                guard case .detached = fate else { return try remove(fate) }
                // Said before, so that one that goes past the mount is told from it; whether it went, recovery looks.
                note([.place(record.key, .detached)])
                do throws(Errno) {
                    guard try remove(fate) else { return false }
                } catch {
                    note([.place(record.key, .source)])
                    throw error
                }
                record.contents.withLock { $0.place = .detached }
                return true
            }
        }
        if try attempt({ () throws(Errno) in try fate(of: victim, record) }) { return true }
        guard willChangeData(of: victim, 0..<Int64.max) else { return false }
        return try attempt { .detached }
    }

    /// Moves the name to the graveyard; false where the inode must be copied instead.
    private func bury(
        _ victim: ChangeTarget, _ record: InodeRecord, from directory: ChangeTarget,
        _ name: UnsafePointer<CChar>
    ) throws(Errno) -> Bool {
        let bytes = try FileStatus(of: victim.descriptor).blocks * 512
        do throws(Errno) {
            try store.bury(
                record.key, bytes: UInt64(bytes), from: directory.descriptor, name)
        } catch {
            // Another quota project, or no space for the name. Anything else unlink would say too.
            guard Self.graveyardIsClosed(error) else { throw error }
            return false
        }
        record.contents.withLock { $0.place = .graveyard }
        note([.place(record.key, .graveyard)])
        if store.isOverBound { becomeInexact(Self.overBound) }
        return true
    }

    private static func graveyardIsClosed(_ error: Errno) -> Bool {
        switch error {
        case .improperLink, .noSpace, .diskQuotaExceeded, .tooManyLinks: true
        default: false
        }
    }

    /// What a rename moves, from where to where.
    package struct Move {
        let moved: ChangeTarget
        /// What the new name stands for before.
        let replaced: ChangeTarget?
        let flags: UInt32
        /// In a source without handles: the directories above the old name and the new one, themselves included.
        let ancestors: [Ancestor]

        package init(
            _ moved: ChangeTarget, replacing replaced: ChangeTarget?, flags: UInt32,
            ancestors: [Ancestor]
        ) {
            self.moved = moved
            self.replaced = replaced
            self.flags = flags
            self.ancestors = ancestors
        }

        var isExchange: Bool { flags & UInt32(RENAME_EXCHANGE) != 0 }
    }

    /// renameat2(2), with what the snapshot needs preserved. Throws what the call throws. False as for `unlink`.
    /// `assume` makes the calling thread the user who asks, right before the call: it may make a whiteout.
    package func rename(
        _ move: Move, from directory: ChangeTarget, _ name: UnsafePointer<CChar>,
        to newDirectory: ChangeTarget, _ newName: UnsafePointer<CChar>, assume: () throws(Errno) -> Void = {}
    ) throws(Errno) -> Bool {
        let moved = move.moved
        let replaced = move.replaced
        willChangeEntries(move, from: directory, name, to: newDirectory, newName)
        func plainly() throws(Errno) -> Bool {
            func rename() throws(Errno) {
                try assume()
                try LinuxSystem.rename(
                    at: directory.descriptor, name, to: newDirectory.descriptor, newName,
                    flags: move.flags)
            }
            if source.usesHandles {
                try rename()
                return true
            }
            var places = [(moved.key, place(newDirectory, newName))]
            if let replaced, move.isExchange {
                places.append((replaced.key, place(directory, name)))
            }
            try locations.move(places, below: move.ancestors, rename)
            return true
        }
        guard let replaced, !move.isExchange, replaced.key != moved.key,
            let record = record(of: replaced)
        else { return try plainly() }
        return try removing(replaced, record) { (fate) throws(Errno) -> Bool in
            if case .buried = fate, !linkIntoGraveyard(replaced, record, newDirectory, newName) {
                return false
            }
            return try plainly()
        }
    }

    /// Before the names and attributes change that a rename changes. A name is recorded where what it stands for, or will
    /// stand for, is shown.
    private func willChangeEntries(
        _ move: Move, from directory: ChangeTarget, _ name: UnsafePointer<CChar>,
        to newDirectory: ChangeTarget, _ newName: UnsafePointer<CChar>
    ) {
        willChangeAttributes(of: move.moved)
        if let replaced = move.replaced { willChangeAttributes(of: replaced) }
        let before = shown(move.moved)
        let beforeNew = move.replaced.map { shown($0) } ?? .absent
        if before.isPresent || move.isExchange && beforeNew.isPresent {
            willChangeEntry(in: directory, name, now: before)
        } else {
            willChangeAttributes(of: directory)
        }
        if before.isPresent || beforeNew.isPresent {
            willChangeEntry(in: newDirectory, newName, now: beforeNew)
        } else {
            willChangeAttributes(of: newDirectory)
        }
    }

    private func place(
        _ directory: ChangeTarget, _ name: UnsafePointer<CChar>
    ) -> LocationTable.Place {
        let isRoot = directory.reference == source.rootReference
        return LocationTable.Place(parent: isRoot ? nil : directory.key, name: FileName(name))
    }

    /// Gives the inode that a rename is about to replace a name in the graveyard; false where the inode must be
    /// copied instead.
    private func linkIntoGraveyard(
        _ victim: ChangeTarget, _ record: InodeRecord, _ directory: ChangeTarget,
        _ name: UnsafePointer<CChar>
    ) -> Bool {
        do throws(Errno) {
            let bytes = try FileStatus(of: victim.descriptor).blocks * 512
            // The count that applications see is corrected from here on: a moment early rather than late.
            record.contents.withLock { $0.place = .graveyard }
            try store.linkIntoGraveyard(
                record.key, bytes: UInt64(bytes), from: directory.descriptor, name)
            note([.place(record.key, .graveyard)])
            if store.isOverBound { becomeInexact(Self.overBound) }
            return true
        } catch {
            // Not allowed for another's file (protected_hardlinks), too many links, another quota project.
            record.contents.withLock { $0.place = .source }
            return false
        }
    }

    /// The target of a symbolic link, before it may go.
    private func preserveTarget(of victim: ChangeTarget, _ record: InodeRecord) {
        guard victim.reference.kind == UInt32(S_IFLNK) else { return }
        if record.contents.withLock({ $0.target != nil }) { return }
        do throws(Errno) {
            let target = try readLink(victim.descriptor)
            try store.record([.target(record.key, target)])
            record.contents.withLock { $0.target = target }
        } catch {
            becomeInexact("a symbolic link's target could not be preserved: \(error)")
        }
    }

    /// Decides under the victim's `firstChange`, so that two names of one inode do not both count as not the last.
    private func fate(of victim: ChangeTarget, _ record: InodeRecord) throws(Errno) -> Fate {
        let status = try FileStatus(of: victim.descriptor)
        if status.isDirectory { return .detached }
        let (place, attributes) = record.contents.withLock { ($0.place, $0.attributes) }
        if place == .graveyard { return .stays }
        let isLast = status.links <= 1
        let hasData = status.isRegular && (attributes?.status.size ?? status.size) > 0
        if hasData, isLast, cut.isReleased(record) { return .detached }
        if !hasData { return isLast || !source.usesHandles ? .detached : .stays }
        // Without handles a file is found only by the name that goes: its grave finds it.
        return isLast || !source.usesHandles ? .buried : .stays
    }
}
