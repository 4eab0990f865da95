internal import ArgumentParser
internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotMount
internal import SnapshotRecord
internal import SystemPackage

struct Recover: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "recover",
        abstract: "Finish without a mount what a daemon has left that did not end in order.",
        discussion: """
            What was redirected (--mode redirect) is merged into SOURCE, which ends its snapshot. A snapshot in preserve has \
            nothing to merge: it stays, and the next mount goes on with it, unless it cannot be known to be exact. Says \
            what it found.
            """)

    @Flag(
        help: ArgumentHelp(
            "Discard the snapshot instead: in redirect SOURCE is again what it was at the start, unless a merge has begun."
        ))
    var discard = false

    @Option(help: "Where the mount kept what changed (default: SOURCE/.fusesnap).", completion: .directory)
    var store: String?

    @Argument(help: "The directory that was mounted.", completion: .directory)
    var source: String

    func validate() throws {
        if source.isEmpty || store?.isEmpty == true {
            throw ValidationError("a path is empty; name a directory")
        }
    }

    func run() throws {
        try RecoveryWithoutMount(source: source, store: store.map(Paths.absolute), discards: discard).run()
    }
}

/// The parts of a daemon that recovery needs, without a mount.
private struct RecoveryWithoutMount {
    let source: String
    let store: String?
    let discards: Bool

    private var attempt: String { "cannot recover \(source)" }

    func run() throws(CommandFailure) {
        raiseDescriptorLimit()
        let (root, path) = try openSource()
        let store = try openStore(root, path)
        defer { store.close() }
        let lifecycle: SnapshotLifecycle
        do throws(Errno) {
            lifecycle = SnapshotLifecycle(
                source: try SourceTree(root: root, hidden: store.hidden), store: store,
                credentials: try Credentials(), deltaBytesMax: nil, boot: try BootIdentity.current(source: root))
        } catch {
            throw CommandFailure("\(attempt): the source cannot be used: \(error)")
        }
        var hasFound = false
        do throws(RecordError) {
            try lifecycle.recoverWithoutMount(discards: discards) { found in
                hasFound = true
                print("\(store.path): \(Self.text(found))")
            }
        } catch {
            throw CommandFailure("\(attempt): \(error.description)")
        }
        if !hasFound { print("\(store.path): nothing to recover") }
    }

    private static func text(_ found: SnapshotLifecycle.Recovered) -> String {
        switch found {
        case .kept(let cut):
            "a snapshot in preserve, since \(cut.rfc3339): it stays, and the next mount goes on with it; --discard removes it"
        case .discarded(let why?): "discarded the snapshot: \(why); the live files are not affected"
        case .discarded(nil): "removed what was left of a snapshot that had ended"
        case .discardedKept: "discarded the snapshot in preserve; the live files are not affected"
        case .merged(let cut):
            "merged what was changed since \(cut.rfc3339), the start of its snapshot, which has ended"
        case .mergeFinished: "finished a merge that had begun"
        case .thrownAway(let cut): "threw away what was changed since \(cut.rfc3339): the source is as it was then"
        case .damagedThrownAway(sourceChanged: false):
            "threw away what was changed since the snapshot's start, whose record is damaged: the source is as it was then"
        case .damagedThrownAway(sourceChanged: true):
            "threw away what of the changes since the snapshot's start was in the store, whose record is damaged; what went straight"
                + " to the source (the snapshot was of some users' files, or for a single pass) is there"
        }
    }

    private func openSource() throws(CommandFailure) -> (Descriptor, String) {
        // By text alone, since a mount whose daemon is dead cannot be looked into.
        let absolute = Paths.absolute(source)
        if try MountTable.current().mount(containing: absolute)?.isFusesnap == true {
            throw CommandFailure(
                "\(attempt): it is, or lies in, a fusesnap mount; unmount that first with `fusesnap unmount`, which also"
                    + " removes the mount of a dead daemon")
        }
        do throws(Errno) {
            let path = try Paths.canonical(source)
            let root = try FileName(path).withCString { (path) throws(Errno) in
                try Descriptor.open(at: .workingDirectory, path, O_RDONLY | O_DIRECTORY)
            }
            return (root, path)
        } catch {
            throw CommandFailure("\(attempt): it cannot be opened as a directory: \(error)")
        }
    }

    private func openStore(_ root: Descriptor, _ path: String) throws(CommandFailure) -> Store {
        do throws(StoreError) {
            return try Store(source: root, sourcePath: path, path: store)
        } catch {
            throw CommandFailure("\(attempt): \(Daemon.message(error))")
        }
    }
}
