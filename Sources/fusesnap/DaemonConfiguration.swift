import Glibc
import LinuxSystem
import SystemPackage

/// What a daemon is to do, checked: nothing is changed on the machine before it exists.
struct DaemonConfiguration {
    /// Canonical.
    let source: String
    /// Canonical.
    let mountpoint: String
    let mode: Mode
    /// nil: the default place.
    let store: String?
    let deltaBytesMax: UInt64?
    let options: MountOptions

    /// Whether the mount lies over the source itself, and is the only way to it.
    var isOverSource: Bool { source == mountpoint }

    init(
        source: String, mountpoint: String?, mode: Mode, store: String?, deltaBytesMax: UInt64?,
        options: MountOptions
    ) throws(CommandFailure) {
        self.mode = mode
        self.deltaBytesMax = deltaBytesMax
        self.options = options
        self.source = try Self.directory(source, "source")
        self.mountpoint =
            if let mountpoint { try Self.directory(mountpoint, "mount point") } else { self.source }
        self.store = store.map { Self.absolute($0) }
        try checkPlaces()
        try checkFuse()
        try checkSource()
    }

    private static func directory(
        _ path: String, _ what: String
    ) throws(CommandFailure) -> String {
        guard let canonical = canonicalPath(path) else {
            let error = currentErrno()
            switch error {
            case .noSuchFileOrDirectory:
                throw CommandFailure("\(path): the \(what) does not exist; make the directory first")
            case .socketNotConnected:
                throw CommandFailure(
                    "\(path): a mount whose daemon is dead lies here; remove it with `fusesnap unmount \(path)`")
            default:
                throw CommandFailure("\(path): the \(what) cannot be reached: \(error)")
            }
        }
        var status = stat()
        guard stat(canonical, &status) == 0 else {
            throw CommandFailure("\(path): the \(what) cannot be read: \(currentErrno())")
        }
        guard status.st_mode & S_IFMT == S_IFDIR else {
            throw CommandFailure("\(path): the \(what) is not a directory")
        }
        return canonical
    }

    private static func absolute(_ path: String) -> String {
        if path.hasPrefix("/") { return path }
        guard let current = getcwd(nil, 0) else { return path }
        defer { free(current) }
        return String(cString: current) + "/" + path
    }

    private func checkPlaces() throws(CommandFailure) {
        let mounts = try MountTable()
        if let there = mounts.mount(at: mountpoint) {
            if there.isFusesnap {
                throw CommandFailure(
                    "\(mountpoint): is a fusesnap mount already; see `fusesnap ctl status \(mountpoint)`")
            }
            if !isOverSource {
                throw CommandFailure(
                    "\(mountpoint): something (\(there.type)) is mounted here already; choose an empty directory")
            }
        }
        if let holder = mounts.mount(holding: source), holder.isFusesnap {
            throw CommandFailure(
                "\(source): lies in the fusesnap mount \(holder.mountpoint); give that mount's own source instead")
        }
        if isOverSource { return }
        if isWithin(mountpoint, source) {
            throw CommandFailure(
                "\(mountpoint): lies inside the source \(source), and would contain itself;"
                    + " choose a mount point outside, or mount over the source by leaving it out")
        }
        if isWithin(source, mountpoint) {
            throw CommandFailure(
                "\(mountpoint): the source \(source) lies below this mount point, which would hide it")
        }
    }

    private func checkFuse() throws(CommandFailure) {
        let device = open("/dev/fuse", O_RDWR | O_CLOEXEC)
        if device < 0 {
            let error = currentErrno()
            switch error {
            case .noSuchFileOrDirectory, .noSuchAddressOrDevice:
                throw CommandFailure(
                    "/dev/fuse does not exist: FUSE is not available here; try `modprobe fuse`,"
                        + " or give the container --device /dev/fuse")
            default:
                throw CommandFailure(
                    "/dev/fuse cannot be opened: \(error); it should have mode 0666 (`ls -l /dev/fuse`)")
            }
        }
        close(device)
        if geteuid() == 0 { return }
        let places = ["/bin", "/usr/bin", "/usr/local/bin"]
        guard places.contains(where: { access($0 + "/fusermount3", X_OK) == 0 }) else {
            throw CommandFailure(
                "fusermount3 is not installed, which mounts for ordinary users: `apt-get install fuse3`")
        }
        if options.allowsOther {
            let words = readWholeFile("/etc/fuse.conf")?.split(separator: "\n") ?? []
            guard words.contains(where: { $0.trimmingPrefix { $0 == " " } == "user_allow_other" })
            else {
                throw CommandFailure(
                    "-o allow_other is for root, unless /etc/fuse.conf has a line user_allow_other")
            }
        }
    }

    private func checkSource() throws(CommandFailure) {
        guard access(source, R_OK | X_OK) == 0 else {
            throw CommandFailure("\(source): the source cannot be read: \(currentErrno())")
        }
        var status = stat()
        if lstat(source + "/" + options.snapshotDirectory, &status) == 0 {
            throw CommandFailure(
                "\(source): has an entry named \(options.snapshotDirectory), which the snapshot would hide;"
                    + " pick another name with -o snapshot_dir=NAME")
        }
    }
}
