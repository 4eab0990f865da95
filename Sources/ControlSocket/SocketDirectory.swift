internal import Glibc
internal import SystemPackage

/// Why the control channel of a mount could not be set up.
package struct ControlSocketError: Error, Equatable, CustomStringConvertible {
    /// What was attempted, on what, what went wrong, what to do.
    package let description: String

    package init(_ description: String) {
        self.description = description
    }
}

/// A directory of control sockets. Sockets are named by way of its descriptor, once its owner has
/// been verified: so nobody can put another directory in its place, and its path may be longer than
/// a socket address.
package struct SocketDirectory: ~Copyable, Sendable {
    package let path: String
    let descriptor: OwnedDescriptor

    /// Root's directory.
    package static let systemPath = "/run/fusesnap"

    /// Where `user` may have its sockets, the best first. The environment counts for the caller's
    /// own only. The root of a user namespace, who is `outside` beyond it, has no part of /run.
    package static func candidates(
        user: UInt32, caller: UInt32 = geteuid(), runtimeDirectory: String? = environmentDirectory(),
        outside: UInt32? = UserNamespace.rootOutside
    ) -> [String] {
        if user == 0, let outside {
            return candidates(
                user: outside, caller: caller == 0 ? outside : caller, runtimeDirectory: runtimeDirectory,
                outside: nil)
        }
        if user == 0 { return [systemPath] }
        var paths: [String] = []
        if user == caller, let runtimeDirectory, runtimeDirectory.hasPrefix("/") {
            paths.append("\(runtimeDirectory)/fusesnap")
        }
        for path in ["/run/user/\(user)/fusesnap", "/tmp/fusesnap-\(user)"]
        where !paths.contains(path) {
            paths.append(path)
        }
        return paths
    }

    /// `XDG_RUNTIME_DIR`, where it is set.
    package static func environmentDirectory() -> String? {
        getenv("XDG_RUNTIME_DIR").map { String(cString: $0) }
    }

    /// The name of the socket of a mount: the FNV-1a hash of the canonical path of its mount point.
    package static func socketName(mountpoint: String) -> String {
        let hash = fnv1a64(mountpoint.utf8)
        let digits = String(hash, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits + ".sock"
    }

    static func fnv1a64(_ bytes: some Sequence<UInt8>) -> UInt64 {
        bytes.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x0000_0100_0000_01b3 }
    }

    /// Opens the directory that a daemon of the calling user keeps its sockets in, and makes it where it is missing.
    /// Root's may be searched by everybody, whatever the umask of the daemon that made it: each socket's own mode says who
    /// may connect (`-o user_snapshots`).
    package static func openForDaemon() throws(ControlSocketError) -> SocketDirectory {
        let user = geteuid()
        let paths = candidates(user: user)
        for (index, path) in paths.enumerated() {
            let isLast = index == paths.count - 1
            if mkdir(path, user == 0 ? 0o755 : 0o700) != 0, errno != EEXIST {
                // The runtime directory itself is missing: the next choice.
                if !isLast && (errno == ENOENT || errno == EACCES) { continue }
                let error = Errno(rawValue: errno)
                throw ControlSocketError(
                    "cannot make the directory for control sockets \(path): \(error)")
            }
            let directory = try open(path, owner: user)
            if user == 0 && fchmod(directory.descriptor.rawValue, 0o755) != 0 {
                let error = Errno(rawValue: errno)
                throw ControlSocketError("cannot set the mode of \(path): \(error)")
            }
            return directory
        }
        preconditionFailure("there is always a last choice, which returns or throws")
    }

    /// Opens a directory and verifies that it belongs to `owner` and that nobody else may write to
    /// it.
    package static func open(
        _ path: String, owner: UInt32
    ) throws(ControlSocketError) -> SocketDirectory {
        let raw = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        guard raw >= 0 else {
            let error = Errno(rawValue: errno)
            throw ControlSocketError(
                "cannot open the directory for control sockets \(path): \(error)")
        }
        let directory = SocketDirectory(path: path, descriptor: OwnedDescriptor(raw))
        try directory.verify(owner: owner)
        return directory
    }

    private init(path: String, descriptor: consuming OwnedDescriptor) {
        self.path = path
        self.descriptor = descriptor
    }

    private func verify(owner: UInt32) throws(ControlSocketError) {
        var status = stat()
        guard fstat(descriptor.rawValue, &status) == 0 else {
            let error = Errno(rawValue: errno)
            throw ControlSocketError("cannot read the attributes of \(path): \(error)")
        }
        guard status.st_uid == owner, status.st_mode & 0o022 == 0 else {
            throw ControlSocketError(
                "the directory for control sockets \(path) must belong to user \(owner) and be "
                    + "writable by no one else, but it belongs to user \(status.st_uid) with mode "
                    + "\(String(status.st_mode & 0o7777, radix: 8)); remove it and try again")
        }
    }

    /// A control socket's place.
    package struct Entry: Hashable, Sendable {
        package let directory: String
        package let name: String

        package var path: String { "\(directory)/\(name)" }
    }

    /// The control sockets in the directories of `user`. A directory that is not there, or not to be trusted, has none.
    package static func sockets(user: UInt32) -> [Entry] {
        candidates(user: user).flatMap { path -> [Entry] in
            guard let directory = try? open(path, owner: user),
                let stream = opendir(directory.address("."))
            else { return [] }
            defer { closedir(stream) }
            var entries: [Entry] = []
            while let entry = readdir(stream) {
                let name = withUnsafeBytes(of: entry.pointee.d_name) {
                    String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
                }
                if name.hasSuffix(".sock") && !name.hasPrefix(".") {
                    entries.append(Entry(directory: path, name: name))
                }
            }
            return entries
        }
    }

    /// Removes the socket that a dead daemon of `owner` has left behind for a mount. Only while the
    /// dead mount is still there, which keeps a new daemon from taking the name.
    package static func removeStaleSocket(mountpoint: String, owner: UInt32) {
        for path in candidates(user: owner) {
            guard let directory = try? open(path, owner: owner) else { continue }
            unlinkat(directory.descriptor.rawValue, socketName(mountpoint: mountpoint), 0)
        }
    }

    /// A path for a socket in the directory that fits a socket address, whatever the directory's
    /// own path.
    func address(_ name: String) -> String {
        "/proc/self/fd/\(descriptor.rawValue)/\(name)"
    }
}
