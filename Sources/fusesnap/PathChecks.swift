internal import CLinux
internal import ControlSocket
internal import Glibc
internal import LinuxSystem
internal import SourceWatch
internal import SystemPackage

/// What `doctor` asks of a directory that is to be mounted. Nothing is changed in it.
struct PathChecks {
    private let path: String
    private let isRoot = geteuid() == 0

    init(_ path: String) {
        self.path = path
    }

    func findings() -> [Finding] {
        let table: MountTable
        do throws(CommandFailure) {
            table = try MountTable.current()
        } catch {
            return [Finding("path", .problem, error.message)]
        }
        // By text first, since a mount whose daemon hangs cannot be looked into.
        let absolute = Paths.absolute(path)
        if table.mount(at: absolute)?.isFusesnap == true { return [mounted(absolute)] }
        let canonical: String
        do throws(Errno) {
            canonical = try Paths.canonical(path)
        } catch {
            return [
                Finding(
                    "path", .problem, "\(path) cannot be looked up: \(error)", "name a directory that is there")
            ]
        }
        if let mount = table.mount(containing: canonical), mount.isFusesnap {
            if mount.mountpoint == canonical { return [mounted(canonical)] }
            return [
                Finding(
                    "path", .problem, "\(canonical) lies in the fusesnap mount \(mount.mountpoint)",
                    "mounts are not nested: name that")
            ]
        }
        do throws(Errno) {
            let directory = try FileName(canonical).withCString { (name) throws(Errno) in
                try Descriptor.open(at: .workingDirectory, name, O_RDONLY | O_DIRECTORY)
            }
            return findings(canonical, directory, table)
        } catch {
            return [
                Finding(
                    "path", .problem, "\(canonical) cannot be opened as a directory: \(error)",
                    "run as its owner or as root")
            ]
        }
    }

    private func mounted(_ point: String) -> Finding {
        do throws(CommandFailure) {
            let status = try ControlStatus.status(of: try MountTarget(point, "cannot look at \(point)"))
            if let reason = status.inexactReason {
                return Finding(
                    "path", .problem, "\(point) is mounted, and its snapshot is not exact any more: \(reason)",
                    "end it with `fusesnap ctl stop \(point)`, and make another")
            }
            return Finding(
                "path", .ok, "\(point) is mounted, and its daemon answers: it is \(status.state.rawValue)")
        } catch {
            return Finding("path", .problem, "\(point) is a fusesnap mount, and \(error.message)")
        }
    }

    private func findings(_ path: String, _ directory: Descriptor, _ table: MountTable) -> [Finding] {
        let type = table.mount(containing: path)?.type ?? "unknown"
        var findings = [Finding("path", .ok, "\(path) is a directory, on a file system of type \(type)")]
        findings += space(path) + [clones(directory, type), handles(directory), watch(directory, path)]
        findings += apparmor(path) + below(path, table) + names(path) + leftovers(path) + users(path, directory)
        return findings
    }

    // MARK: The file system

    private static let spareBytes: UInt64 = 1 << 30
    private static let spareShare: UInt64 = 20  // One part in 20.

    private func space(_ path: String) -> [Finding] {
        var status = statvfs()
        guard statvfs(path, &status) == 0 else {
            return [Finding("space", .warning, "the free space is not known: \(Errno(rawValue: errno))")]
        }
        if status.f_flag & UInt(ST_RDONLY) != 0 {
            return [
                Finding(
                    "space", .warning, "the file system is read-only: there is nothing to take snapshots for",
                    "a store must be elsewhere: --store DIR")
            ]
        }
        let free = UInt64(status.f_bavail) * UInt64(status.f_frsize)
        let text = ByteSize(bytes: free).text
        if free < Self.spareBytes || UInt64(status.f_bavail) < UInt64(status.f_blocks) / Self.spareShare {
            return [
                Finding(
                    "space", .warning, "only \(text) are free: a snapshot ends when what changes does not fit",
                    "make room, or give a store on another file system: --store DIR")
            ]
        }
        if status.f_files > 0 && status.f_favail == 0 {
            return [
                Finding("space", .warning, "no inode is free: nothing can be kept for a snapshot", "remove files")
            ]
        }
        return [Finding("space", .ok, "\(text) are free for what a snapshot keeps")]
    }

    /// Clones a block between two files that have no name.
    private func clones(_ directory: Descriptor, _ type: String) -> Finding {
        do throws(Errno) {
            let flags = O_TMPFILE | O_RDWR
            let original = try Descriptor.open(at: directory, ".", flags, mode: 0o600)
            let block = [UInt8](repeating: 1, count: 4096)
            try block.withUnsafeBytes { (bytes) -> Result<Void, Errno> in
                do throws(Errno) {
                    try writeFully(original, bytes, at: 0)
                    return .success(())
                } catch {
                    return .failure(error)
                }
            }.get()
            let clone = try Descriptor.open(at: directory, ".", flags, mode: 0o600)
            try cloneRange(original, to: clone, 0..<4096)
        } catch .permissionDenied {
            return Finding(
                "passthrough", .note, "whether files can be cloned is not known: you may not write there")
        } catch {
            return Finding(
                "passthrough", .note, "files cannot be cloned on \(type) (\(error)): io=passthrough cannot be had")
        }
        let isNew = MachineChecks.kernelRelease.map { $0.numbers >= MachineChecks.passthroughKernelMin } ?? false
        if isRoot && isNew { return Finding("passthrough", .ok, "files can be cloned: io=passthrough can be had") }
        return Finding("passthrough", .note, "files can be cloned, but io=passthrough needs root and Linux 6.9")
    }

    private func handles(_ directory: Descriptor) -> Finding {
        do throws(Errno) {
            _ = try FileHandle(of: directory).open(mount: directory, O_PATH)
            return Finding("file_handles", .ok, "files are found by their handles")
        } catch {
            return Finding("file_handles", .note, "files are found by their paths (no file handles: \(error))")
        }
    }

    private func watch(_ directory: Descriptor, _ path: String) -> Finding {
        do throws(Errno) {
            let mount = try PrivateMount(of: directory)
            let watch = try ChangeWatch(source: mount, ownProcess: getpid()) { _ in }
            defer { watch.stop() }
            try watch.begin()
            return Finding("watch", .ok, "changes past the mount are seen while a snapshot is active (fanotify)")
        } catch {
            return Finding(
                "watch", .note, "changes past the mount are not seen (\(error))",
                "see to it that nobody uses \(path) but through the mount")
        }
    }

    // MARK: What is there

    private func apparmor(_ path: String) -> [Finding] {
        guard let rule = AppArmorRule.ofMachine(), !rule.allows(path) else { return [] }
        return [
            Finding(
                "apparmor_path", isRoot ? .note : .problem,
                "AppArmor does not let ordinary users mount at \(path)", AppArmorRule.advice(path))
        ]
    }

    private func below(_ path: String, _ table: MountTable) -> [Finding] {
        let points = table.entries.filter { $0.mountpoint != path && Paths.contains(path, $0.mountpoint) }
        if points.isEmpty { return [] }
        let more = points.count > Self.shownMax ? ", and \(points.count - Self.shownMax) more" : ""
        return [
            Finding(
                "nested_mounts", .warning,
                "file systems mounted below it are not in snapshots: "
                    + points.prefix(Self.shownMax).map(\.mountpoint).joined(separator: ", ") + more,
                "mount each by itself, or back it up in another way")
        ]
    }

    private func names(_ path: String) -> [Finding] {
        let name = MountOptions().snapshotDirectory
        var status = stat()
        guard lstat("\(path)/\(name)", &status) == 0 else { return [] }
        return [
            Finding(
                "snapshot_name", .problem, "it has an entry named \(name), which the snapshot would hide",
                "mount with -o snapshot_dir=NAME, or rename the entry")
        ]
    }

    /// A store in a directory that is not mounted.
    private func leftovers(_ path: String) -> [Finding] {
        let store = "\(path)/.fusesnap"
        var status = stat()
        guard lstat(store, &status) == 0 else { return [] }
        let raw = open("\(store)/lock", O_RDONLY | O_NOFOLLOW | O_CLOEXEC)
        if raw < 0 {
            if errno == ENOENT && access("\(store)/format", F_OK) != 0 {
                return [
                    Finding(
                        "store", .problem, "\(store) is there and no store: mount refuses it",
                        "move it away, or give another with --store DIR")
                ]
            }
            return [Finding("store", .warning, "\(store) cannot be looked into: \(Errno(rawValue: errno))")]
        }
        defer { close(raw) }
        if flock(raw, LOCK_SH | LOCK_NB) != 0 {
            return [
                Finding(
                    "store", .problem, "its store is in use: another daemon has it mounted elsewhere",
                    "see `fusesnap ctl list`")
            ]
        }
        let hasSnapshot = access("\(store)/snapshot", F_OK) == 0 || access("\(store)/graveyard", F_OK) == 0
        return [
            Finding(
                "store", hasSnapshot ? .warning : .ok,
                "a daemon that did not end in order left its store" + (hasSnapshot ? " with a snapshot" : "")
                    + ": the next mount takes it up" + (hasSnapshot ? "; see `fusesnap check \(store)`" : ""))
        ]
    }

    private static let shownMax = 5

    private func users(_ path: String, _ directory: Descriptor) -> [Finding] {
        do throws(Errno) {
            let holders = try SourceUsers.scan(path, directory).holders
            if holders.isEmpty { return [Finding("in_use", .ok, "nobody uses it: it can be mounted over")] }
            let list = holders.prefix(Self.shownMax).map(SourceUsers.text).joined(separator: "; ")
            let more = holders.count > Self.shownMax ? "; and \(holders.count - Self.shownMax) more" : ""
            return [
                Finding(
                    "in_use", .warning, "it is in use, and mount refuses to lie over it: \(list)\(more)",
                    "end these first, or mount with --force: then a snapshot is marked where they change something"
                )
            ]
        } catch {
            return [Finding("in_use", .warning, "who uses it could not be found out: \(error)")]
        }
    }
}
