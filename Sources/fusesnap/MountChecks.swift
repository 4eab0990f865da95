internal import CLinux
internal import Glibc
internal import SystemPackage

/// Looks before anything is changed whether a mount can be made, and says what stands in its way.
struct MountChecks {
    private let source: String
    private let mountpoint: String
    private let options: MountOptions
    private let isRoot: Bool
    private let table: MountTable

    /// The canonical paths of the source and the mount point; throws where the mount cannot be
    /// made.
    static func resolve(
        source: String, mountpoint: String?, options: MountOptions
    ) throws(CommandFailure) -> (source: String, mountpoint: String) {
        let table = try MountTable.current()
        try refuseMounted(mountpoint ?? source, in: table)
        try refuseNested(source, in: table)
        try refuseOwnAutomount(source, mountpoint, in: table)
        let attempt = "cannot mount \(source)"
        let canonicalSource = try canonicalDirectory(source, "\(attempt): the source")
        let canonicalPoint = try mountpoint.map { path throws(CommandFailure) in
            try canonicalDirectory(path, "\(attempt) at \(path): the mount point")
        }
        // Before the daemon of that mount is told to be one that uses the source.
        if let other = table.entries.first(where: { $0.isFusesnap && $0.source == canonicalSource }) {
            throw CommandFailure(
                "\(attempt): it is mounted already, at \(other.mountpoint); unmount that first with `fusesnap unmount"
                    + " \(other.mountpoint)`")
        }
        let checks = MountChecks(
            source: canonicalSource, mountpoint: canonicalPoint ?? canonicalSource,
            options: options,
            isRoot: geteuid() == 0, table: table)
        try checks.run()
        return (checks.source, checks.mountpoint)
    }

    private var attempt: String { "cannot mount \(source) at \(mountpoint)" }

    private func run() throws(CommandFailure) {
        try checkSourceIsPlain()
        try checkNesting()
        try checkMountpointIsFree()
        try checkSourceReadable()
        try checkSnapshotName()
        try checkFuse()
        if !isRoot { try checkUserMayMount() }
    }

    /// By text alone, since a mount whose daemon is dead or hangs cannot be looked into.
    private static func refuseMounted(
        _ path: String, in table: MountTable
    ) throws(CommandFailure) {
        let absolute = Paths.absolute(path)
        guard table.mount(at: absolute)?.isFusesnap == true else { return }
        throw alreadyMounted(absolute)
    }

    private static func refuseNested(
        _ path: String, in table: MountTable
    ) throws(CommandFailure) {
        guard let containing = table.mount(containing: Paths.absolute(path)), containing.isFusesnap
        else { return }
        throw nested(path, containing)
    }

    /// By text: looking into it would wait for this very mount.
    private static func refuseOwnAutomount(
        _ source: String, _ mountpoint: String?, in table: MountTable
    ) throws(CommandFailure) {
        let point = Paths.absolute(mountpoint ?? source)
        guard table.mount(at: point)?.isAutomount == true, Paths.contains(point, Paths.absolute(source)) else {
            return
        }
        throw CommandFailure(
            "cannot mount \(source) at \(point): the source lies behind the automount (x-systemd.automount) that waits at"
                + " \(point) for this mount; leave that option out, or mount at another place than the source's")
    }

    private static func nested(_ source: String, _ containing: MountEntry) -> CommandFailure {
        CommandFailure(
            "cannot mount \(source): it lies in the fusesnap mount \(containing.mountpoint), and "
                + "mounts are not nested; "
                + (containing.source == containing.mountpoint
                    ? "unmount that first"
                    : "name the directory behind it (\(containing.source)), or unmount that first"))
    }

    private static func alreadyMounted(_ path: String) -> CommandFailure {
        CommandFailure(
            "cannot mount: a fusesnap mount is already at \(path); unmount it first with "
                + "`fusesnap unmount \(path)`, which also removes the mount of a dead daemon")
    }

    private static func canonicalDirectory(
        _ path: String, _ what: String
    ) throws(CommandFailure) -> String {
        do throws(Errno) {
            let canonical = try Paths.canonical(path)
            var status = stat()
            if stat(canonical, &status) != 0 { throw Errno(rawValue: errno) }
            if status.st_mode & S_IFMT != S_IFDIR { throw Errno.notDirectory }
            return canonical
        } catch {
            switch error {
            case .noSuchFileOrDirectory:
                throw CommandFailure(
                    "\(what) \(path) does not exist; make it with mkdir, or mend the path")
            case .notDirectory:
                throw CommandFailure("\(what) \(path) is not a directory; name one")
            case .permissionDenied:
                throw CommandFailure(
                    "\(what) \(path) cannot be looked up: permission denied; run as a user who may "
                        + "search the "
                        + "directories above it")
            default:
                throw CommandFailure("\(what) \(path) cannot be looked up: \(error)")
            }
        }
    }

    private func checkSourceIsPlain() throws(CommandFailure) {
        guard let containing = table.mount(containing: source), containing.isFusesnap else {
            return
        }
        if source == mountpoint && containing.mountpoint == source {
            throw Self.alreadyMounted(source)
        }
        throw Self.nested(source, containing)
    }

    private func checkNesting() throws(CommandFailure) {
        if source == mountpoint { return }
        if Paths.contains(source, mountpoint) {
            throw CommandFailure(
                "\(attempt): the mount point lies in the source, so that the mount would contain "
                    + "itself; choose one "
                    + "outside, or leave it out to mount over the source")
        }
        if Paths.contains(mountpoint, source) {
            throw CommandFailure(
                "\(attempt): the source lies in the mount point, which would hide it; choose "
                    + "another mount point, or "
                    + "leave it out to mount over the source")
        }
    }

    private func checkMountpointIsFree() throws(CommandFailure) {
        guard let mounted = table.mount(at: mountpoint) else { return }
        if mounted.isFusesnap { throw Self.alreadyMounted(mountpoint) }
        // What waits at an automount is for this mount.
        if source == mountpoint || mounted.isAutomount { return }
        throw CommandFailure(
            "\(attempt): something is mounted there already (\(mounted.source), type "
                + "\(mounted.type)); unmount it "
                + "or choose another mount point")
    }

    private func checkSourceReadable() throws(CommandFailure) {
        let raw = open(source, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard raw >= 0, access(source, X_OK) == 0 else {
            let error = Errno(rawValue: errno)
            if raw >= 0 { close(raw) }
            throw CommandFailure(
                "\(attempt): the source cannot be read: \(error); run as its owner or as root")
        }
        close(raw)
    }

    private func checkSnapshotName() throws(CommandFailure) {
        let name = options.snapshotDirectory
        var status = stat()
        guard lstat("\(source)/\(name)", &status) == 0 else {
            if errno == ENOENT { return }
            let error = Errno(rawValue: errno)
            throw CommandFailure("\(attempt): \(source)/\(name) cannot be looked up: \(error)")
        }
        throw CommandFailure(
            "\(attempt): the source has an entry named \(name), which the snapshot would hide; "
                + "choose another name "
                + "for the snapshot with -o snapshot_dir=NAME, or rename the entry")
    }

    private func checkFuse() throws(CommandFailure) {
        let raw = open("/dev/fuse", O_RDWR | O_CLOEXEC)
        if raw >= 0 {
            close(raw)
            return
        }
        let error = Errno(rawValue: errno)
        let advice: String
        switch error {
        case .noSuchFileOrDirectory, .noSuchAddressOrDevice, Errno(rawValue: ENODEV):
            advice =
                "load the module with `modprobe fuse`; give a container the device (docker: --device /dev/fuse)"
        default:
            advice =
                "the user needs read and write access to it; in a container the device must be allowed"
        }
        throw CommandFailure("\(attempt): /dev/fuse cannot be opened: \(error); \(advice)")
    }

    private func checkUserMayMount() throws(CommandFailure) {
        if options.admitsUsers {
            throw CommandFailure(
                "\(attempt): user_snapshots is for root's mounts; an ordinary user's is controlled by that user and root"
            )
        }
        guard Self.findInPath("fusermount3") else {
            throw CommandFailure(
                "\(attempt): fusermount3, by which ordinary users mount, is missing; install it "
                    + "with "
                    + "`apt install fuse3`, or run as root")
        }
        if access(mountpoint, W_OK) != 0 {
            throw CommandFailure(
                "\(attempt): ordinary users mount only where they may write, and you may not write "
                    + "to \(mountpoint); "
                    + "choose another mount point or run as root")
        }
        if options.allowsOthers && !Self.othersMayBeAllowed() {
            throw CommandFailure(
                "\(attempt): ordinary users may use the option allow_other only where root permits "
                    + "it; have the line "
                    + "user_allow_other put into /etc/fuse.conf, or leave the option out")
        }
    }

    private static func findInPath(_ name: String) -> Bool { pathOfCommand(name) != nil }

    /// Where a command is that PATH, or else a usual directory, has.
    static func pathOfCommand(_ name: String) -> String? {
        let path = getenv("PATH").map { String(cString: $0) } ?? ""
        let directories =
            path.split(separator: ":").map(String.init) + ["/usr/bin", "/bin", "/usr/local/bin"]
        return directories.map { "\($0)/\(name)" }.first { access($0, X_OK) == 0 }
    }

    /// Whether /etc/fuse.conf has the line; fusermount3 decides, where it cannot be read.
    private static func othersMayBeAllowed() -> Bool {
        do throws(Errno) {
            return allowsOthers(configuration: try FileContents.read("/etc/fuse.conf"))
        } catch {
            return error != .noSuchFileOrDirectory
        }
    }

    static func allowsOthers(configuration: [UInt8]) -> Bool {
        configuration.split(separator: UInt8(ascii: "\n")).contains { line in
            let text = line.prefix { $0 != UInt8(ascii: "#") }
            return text.split { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\t") }
                .elementsEqual([ArraySlice("user_allow_other".utf8)])
        }
    }
}
