internal import CLinux
internal import ControlSocket
internal import Glibc
internal import LinuxSystem
internal import SystemPackage

/// What `doctor` asks of the machine.
struct MachineChecks {
    private let isRoot = geteuid() == 0

    func findings() -> [Finding] {
        [kernel(), fuse(), mounting(), fusermount(), othersAllowed()]
            + AppArmorRule.finding(isRoot: isRoot) + [descriptors(), reclaim(), sockets()]
    }

    /// The first kernel whose FUSE has all that is used when nothing is chosen by name.
    private static let kernelMin = (5, 4)
    static let passthroughKernelMin = (6, 9)

    static var kernelRelease: (text: String, numbers: (Int, Int))? {
        var names = utsname()
        guard uname(&names) == 0 else { return nil }
        let release = withUnsafeBytes(of: names.release) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        let numbers = release.split { !$0.isNumber }.prefix(2).compactMap { Int($0) }
        return numbers.count == 2 ? (release, (numbers[0], numbers[1])) : nil
    }

    private func kernel() -> Finding {
        guard let release = Self.kernelRelease else {
            return Finding("kernel", .warning, "the kernel's version is not known")
        }
        if release.numbers < Self.kernelMin {
            return Finding(
                "kernel", .problem, "Linux \(release.text) is too old",
                "use Linux 5.4 or later; 6.9 has passthrough")
        }
        let passes = release.numbers >= Self.passthroughKernelMin
        let more = passes ? "" : "; io=passthrough needs 6.9"
        return Finding("kernel", passes ? .ok : .note, "Linux \(release.text)\(more)")
    }

    private func fuse() -> Finding {
        let raw = open("/dev/fuse", O_RDWR | O_CLOEXEC)
        if raw >= 0 {
            close(raw)
            return Finding("fuse_device", .ok, "/dev/fuse can be opened")
        }
        let error = Errno(rawValue: errno)
        let isMissing = [.noSuchFileOrDirectory, .noSuchAddressOrDevice, Errno(rawValue: ENODEV)].contains(error)
        return Finding(
            "fuse_device", .problem, "/dev/fuse cannot be opened: \(error)",
            isMissing
                ? "load the module with `modprobe fuse`; give a container the device (docker: --device /dev/fuse)"
                : "the user needs read and write access to it (`ls -l /dev/fuse`); a container must be allowed the device"
        )
    }

    private static let administration: UInt64 = 1 << 21
    private static let resources: UInt64 = 1 << 24

    private func mounting() -> Finding {
        if !isRoot { return Finding("mounting", .ok, "mounts are made by fusermount3, for you alone") }
        if cl_permitted_capabilities() & Self.administration != 0 {
            return Finding("mounting", .ok, "root may mount, for all users")
        }
        return Finding(
            "mounting", .problem, "this root may not mount: it lacks CAP_SYS_ADMIN",
            "give the container the capability (docker: --cap-add SYS_ADMIN)")
    }

    private func fusermount() -> Finding {
        let kind: Finding.Verdict = isRoot ? .note : .problem
        let without = isRoot ? ": ordinary users cannot mount" : ", by which ordinary users mount"
        guard let path = MountChecks.pathOfCommand("fusermount3") else {
            return Finding("fusermount3", kind, "fusermount3 is missing\(without)", "apt install fuse3")
        }
        var status = stat()
        guard stat(path, &status) == 0 else {
            return Finding("fusermount3", kind, "\(path) cannot be looked up: \(Errno(rawValue: errno))")
        }
        var attribute: UInt8 = 0
        let hasCapabilities = getxattr(path, "security.capability", &attribute, 0) > 0
        if status.st_uid == 0 && status.st_mode & S_ISUID != 0 || hasCapabilities {
            return Finding("fusermount3", .ok, "\(path) may mount for ordinary users")
        }
        return Finding(
            "fusermount3", kind, "\(path) is not set-user-id root\(without)",
            "chmod u+s \(path), or `apt install --reinstall fuse3`")
    }

    private func othersAllowed() -> Finding {
        do throws(Errno) {
            if MountChecks.allowsOthers(configuration: try FileContents.read("/etc/fuse.conf")) {
                return Finding("user_allow_other", .ok, "ordinary users may mount for others (-o allow_other)")
            }
        } catch {
            if error != .noSuchFileOrDirectory {
                return Finding("user_allow_other", .note, "/etc/fuse.conf cannot be read: \(error)")
            }
        }
        return Finding(
            "user_allow_other", isRoot ? .ok : .note,
            "ordinary users may not mount for others (-o allow_other)"
                + (isRoot ? ", root may" : ": root and other users cannot read such a mount"),
            isRoot ? nil : "where that is wanted, have the line user_allow_other put into /etc/fuse.conf")
    }

    /// Beyond this the daemon and its freeze helper hold the files that busy machines have open.
    private static let descriptorsMin: rlim_t = 20_000

    private func descriptors() -> Finding {
        var limit = rlimit()
        let resource = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
        guard getrlimit(resource, &limit) == 0 else {
            return Finding(
                "descriptors", .warning, "the limit of open files is not known: \(Errno(rawValue: errno))")
        }
        if limit.rlim_max >= Self.descriptorsMin || cl_permitted_capabilities() & Self.resources != 0 {
            return Finding("descriptors", .ok, "the daemon may have \(limit.rlim_max) files open, or raises that")
        }
        return Finding(
            "descriptors", .warning,
            "the daemon may have only \(limit.rlim_max) files open: a start fails with more open for writing than about a"
                + " third of that", "raise it: LimitNOFILE= of the service, or nofile in /etc/security/limits.conf"
        )
    }

    private func reclaim() -> Finding {
        if !isRoot || cl_permitted_capabilities() & Self.resources != 0 {
            return Finding(
                "memory_reclaim", isRoot ? .ok : .note,
                isRoot
                    ? "the daemon keeps itself out of memory reclaim"
                    : "an ordinary user's daemon cannot keep itself out of memory reclaim (PR_SET_IO_FLUSHER)")
        }
        return Finding(
            "memory_reclaim", .note,
            "the daemon cannot keep itself out of memory reclaim (PR_SET_IO_FLUSHER): CAP_SYS_RESOURCE is missing",
            "give the container the capability (docker: --cap-add SYS_RESOURCE), or memory to spare")
    }

    private func sockets() -> Finding {
        let user = geteuid()
        for path in SocketDirectory.candidates(user: user) {
            var status = stat()
            let isThere = stat(path, &status) == 0
            let parent = path.split(separator: "/").dropLast().map { "/" + $0 }.joined()
            if !isThere && access(parent, W_OK) != 0 { continue }
            if !isThere { return Finding("control_socket", .ok, "control sockets can be made in \(path)") }
            do throws(ControlSocketError) {
                _ = try SocketDirectory.open(path, owner: user)
                return Finding("control_socket", .ok, "control sockets are in \(path)")
            } catch {
                return Finding("control_socket", .problem, error.description)
            }
        }
        return Finding(
            "control_socket", .problem, "no directory for control sockets can be made",
            "set XDG_RUNTIME_DIR to a directory of yours")
    }
}

/// The rule by which AppArmor bounds fusermount3 from Ubuntu 25.04 on: ordinary users may mount only below some places.
struct AppArmorRule {
    /// Mount points that are allowed, as the profile writes them.
    let targets: [String]

    /// Takes the targets of the mount rules of a profile, and what `local/` adds to it.
    init(profile: String) {
        targets = profile.split(separator: "\n").compactMap { line in
            let rule = line.prefix { $0 != "#" }
            guard rule.split(whereSeparator: \.isWhitespace).first == "mount", let arrow = rule.index(of: "->")
            else {
                return nil
            }
            let target = rule[arrow...].dropFirst(2).filter { !$0.isWhitespace }
            let bare = target.hasSuffix(",") ? String(target.dropLast()) : target
            return bare.isEmpty ? nil : bare
        }
    }

    /// Whether a directory lies where the profile allows mounts: below the part of a target before its first pattern.
    func allows(_ path: String) -> Bool {
        targets.contains { target in
            Self.expand(target).contains { prefix in
                let place = prefix.hasSuffix("/") ? String(prefix.dropLast()) : prefix
                return path == place || path.hasPrefix(place + "/")
            }
        }
    }

    /// The plain beginnings that a target stands for.
    private static func expand(_ target: String) -> [String] {
        let homes = ["/home/", "/root/"]
        for (variable, values) in [
            ("@{HOME}", homes), ("@{HOMEDIRS}", homes), ("@{run}", ["/run", "/var/run"]),
            ("@{MOUNTS}", ["/media", "/mnt"]),
        ] where target.hasPrefix(variable) {
            return values.map { plain($0 + target.dropFirst(variable.count)) }
        }
        return target.hasPrefix("/") ? [plain(target)] : []
    }

    private static func plain(_ target: String) -> String {
        let end = target.firstIndex { "*?[{@".contains($0) }
        guard let end else { return target.replacing("//", with: "/") }
        // A pattern within a name is cut with the name.
        let text = target[..<end]
        return String(text[...(text.lastIndex(of: "/") ?? text.startIndex)]).replacing("//", with: "/")
    }

    private static let profilePath = "/etc/apparmor.d/fusermount3"
    static let localPath = "/etc/apparmor.d/local/fusermount3"

    /// The machine's rule; nil where AppArmor is off, or has none for fusermount3.
    static func ofMachine() -> AppArmorRule? {
        func text(_ path: String) -> String? {
            do throws(Errno) {
                return String(decoding: try FileContents.read(path), as: UTF8.self)
            } catch {
                return nil
            }
        }
        guard text("/sys/module/apparmor/parameters/enabled")?.hasPrefix("Y") == true,
            let profile = text(profilePath)
        else { return nil }
        return AppArmorRule(profile: profile + "\n" + (text(localPath) ?? ""))
    }

    static func finding(isRoot: Bool) -> [Finding] {
        guard let rule = ofMachine() else { return [] }
        return [
            Finding(
                "apparmor", isRoot ? .note : .warning,
                "AppArmor lets ordinary users mount only at \(rule.targets.joined(separator: ", "))",
                "for other places add rules to \(localPath), then `apparmor_parser -r \(profilePath)`")
        ]
    }

    /// The rule that allows a directory and what is below it.
    static func advice(_ path: String) -> String {
        "add to \(localPath): mount fstype=@{fuse_types} options=(nosuid,nodev,rw) -> \(path)/{,**/}, and the same with ro,"
            + " and umount \(path)/{,**/}, then `apparmor_parser -r \(profilePath)`"
    }
}

extension Substring {
    fileprivate func index(of text: String) -> String.Index? {
        indices.first { self[$0...].hasPrefix(text) }
    }
}
