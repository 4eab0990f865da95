internal import Glibc
internal import LinuxSystem
package import SnapshotCore
internal import SnapshotRecord
package import SourceWatch
internal import Synchronization
internal import SystemPackage

/// Watches, while a snapshot is active, for changes of the source that do not come through the mount, and marks the
/// snapshot: what such a change concerns reads EIO where it is not recorded. Only a root daemon can.
///
/// A change is told a moment after it was made; `finish` waits for all that were made before it.
package final class ForeignChanges: Sendable {
    private let mount: PrivateMount
    private let source: SourceTree
    private let watch = Mutex<ChangeWatch?>(nil)

    private let isKnown = MutexBox<(@Sendable (FileStatus) -> Bool)?>(nil)

    package init(_ mount: PrivateMount, _ source: SourceTree) {
        self.mount = mount
        self.source = source
    }

    /// `isKnown` says whether an inode has been looked up by way of the mount.
    func ask(_ isKnown: @escaping @Sendable (FileStatus) -> Bool) {
        self.isKnown.mutex.withLock { $0 = isKnown }
    }

    /// Makes a watch that tells `cut`. Where the file system cannot be watched, there is none.
    func prepare(_ cut: SnapshotCut) {
        do throws(Errno) {
            let made = try ChangeWatch(source: mount, ownProcess: getpid()) { [source, isKnown] change in
                Self.tell(change, source, cut) { status in
                    isKnown.mutex.withLock { $0 }?(status) ?? false
                }
            }
            watch.withLock { $0 = made }
        } catch {
            watch.withLock { $0 = nil }
        }
    }

    /// At the cut: what is changed from now on counts.
    func begin() {
        do throws(Errno) {
            try watch.withLock { $0 }?.begin()
        } catch {
            watch.withLock { $0 = nil }
        }
    }

    /// Whether changes are seen.
    var isWatching: Bool { watch.withLock { $0 != nil } }

    /// Returns when all that was changed before has been told.
    func finish() {
        watch.withLock { $0 }?.catchUp()
    }

    func end() {
        let ended = watch.withLock { watch in
            defer { watch = nil }
            return watch
        }
        ended?.stop()
    }

    private static func tell(
        _ change: ForeignChange, _ source: SourceTree, _ cut: SnapshotCut,
        _ isKnown: @Sendable (FileStatus) -> Bool
    ) {
        if change.kinds.contains(.lost) {
            return cut.becomeInexact(
                "the source was changed past the mount, so fast that it was not seen what")
        }
        var concerned: [FileHandle] = []
        if change.kinds.contains(.entry), let directory = change.directory { concerned.append(directory) }
        if let object = change.object { concerned.append(object) }
        for handle in concerned {
            do throws(Errno) {
                let inode = try handle.open(mount: source.root, O_PATH)
                let status = try FileStatus(of: inode)
                if change.kinds == .data && cut.isPlainlyOthers(status) { continue }
                // A file of which nobody knows the name may be one that lies elsewhere: not, if it came by this mount.
                cut.didChangeBeside(
                    InodeKey(status), marks: change.isCertain || isKnown(status), message(change))
            } catch {
                // It is gone, so that the snapshot cannot open it either; its directory is concerned too.
                if change.isCertain { cut.becomeIncomplete(message(change)) }
            }
        }
    }

    private static func message(_ change: ForeignChange) -> String {
        "\(change.path) was changed past the mount"
            + (change.process == 0 ? "" : " by process \(change.process)\(command(of: change.process))")
    }

    /// « (name)», where the process still runs.
    private static func command(of process: Int32) -> String {
        do throws(Errno) {
            let file = try FileName("/proc/\(process)/comm").withCString { (path) throws(Errno) in
                try Descriptor.open(at: .workingDirectory, path, O_RDONLY)
            }
            let buffer = WorkerThread.buffer(64)
            let count = try readFully(file, into: buffer, at: 0)
            let name = String(decoding: buffer[..<count].prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
            return " (\(name))"
        } catch {
            return ""
        }
    }
}
