internal import ControlSocket
internal import Glibc
internal import SystemPackage

/// A program that puts an application's data in order for a cut: called with `freeze` before it and `thaw` after it,
/// as qemu-ga's fsfreeze hooks are.
struct Hook: Equatable, Sendable {
    var path: String
    var origin: HookResult.Origin

    /// As reports name it: short, and printable.
    var name: String {
        let name = path.split(separator: "/").last.map(String.init) ?? path
        return String(
            String.UnicodeScalarView(
                name.unicodeScalars.prefix(HookLimits.nameCharactersMax).map {
                    (0x20..<0x7f).contains($0.value) && $0 != "\\" && $0 != "\"" ? $0 : "?"
                }))
    }

    /// A hook that the user named: it must be a file that can be executed.
    static func named(_ path: String, _ origin: HookResult.Origin) throws(CommandFailure) -> Hook {
        let absolute = Paths.absolute(path)
        var status = stat()
        guard stat(absolute, &status) == 0 else {
            throw CommandFailure("the hook \(path) cannot be used: \(Errno(rawValue: errno))")
        }
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw CommandFailure("the hook \(path) cannot be used: it is not a file")
        }
        guard access(absolute, X_OK) == 0 else {
            throw CommandFailure(
                "the hook \(path) cannot be used: it is not executable; `chmod +x \(path)` makes it so")
        }
        return Hook(path: absolute, origin: origin)
    }

    static func named(_ paths: [String], _ origin: HookResult.Origin) throws(CommandFailure) -> [Hook] {
        var hooks: [Hook] = []
        for path in paths { hooks.append(try named(path, origin)) }
        return hooks
    }
}

enum HookLimits {
    /// Of each origin, so that what became of them fits into a line of the control channel.
    static let hooksMax = 32
    static let nameCharactersMax = 100
    /// Of what a hook says, the end is shown.
    static let outputBytesMax = 4096
    static let outputLinesMax = 20
    /// Between SIGTERM and SIGKILL.
    static let killGraceMilliseconds: Int32 = 2_000
    static let timeoutSeconds = 60
    static let timeoutSecondsMax = 86_400
}

/// A directory of hooks, as qemu-ga's fsfreeze-hook.d: the executable files in it in the order of their names, without
/// hidden ones and those that editors and package managers leave behind.
enum HookDirectory {
    static let standardPath = "/etc/fusesnap/hooks.d"

    private static let ignoredSuffixes = [
        "~", ".bak", ".orig", ".rpmnew", ".rpmorig", ".rpmsave", ".sample", ".dpkg-old", ".dpkg-new", ".dpkg-tmp",
        ".dpkg-dist", ".dpkg-bak", ".dpkg-backup", ".dpkg-remove",
    ]

    static func isIgnored(_ name: String) -> Bool {
        name.hasPrefix(".") || ignoredSuffixes.contains { name.hasSuffix($0) }
    }

    /// The hooks of a directory; none where it does not exist and `mayBeMissing`. As root, none that another user
    /// could have put there.
    static func hooks(in path: String, mayBeMissing: Bool) throws(CommandFailure) -> [Hook] {
        guard let names = try names(in: path, mayBeMissing: mayBeMissing) else { return [] }
        try checkOwner(path)
        var hooks: [Hook] = []
        for name in names.sorted(by: { $0.utf8.lexicographicallyPrecedes($1.utf8) }) where !isIgnored(name) {
            let file = "\(path)/\(name)"
            var status = stat()
            guard stat(file, &status) == 0, status.st_mode & S_IFMT == S_IFREG, access(file, X_OK) == 0
            else { continue }
            try checkOwner(file)
            hooks.append(Hook(path: Paths.absolute(file), origin: .directory))
        }
        return hooks
    }

    private static func names(
        in path: String, mayBeMissing: Bool
    ) throws(CommandFailure) -> [String]? {
        guard let directory = opendir(path) else {
            let error = Errno(rawValue: errno)
            if mayBeMissing && error == .noSuchFileOrDirectory { return nil }
            throw CommandFailure("the hooks in \(path) cannot be read: \(error)")
        }
        defer { closedir(directory) }
        var names: [String] = []
        while true {
            errno = 0
            guard let entry = readdir(directory) else { break }
            names.append(
                withUnsafeBytes(of: entry.pointee.d_name) {
                    String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
                })
        }
        if errno != 0 {
            throw CommandFailure("the hooks in \(path) cannot be read: \(Errno(rawValue: errno))")
        }
        return names
    }

    private static func checkOwner(_ path: String) throws(CommandFailure) {
        var status = stat()
        guard geteuid() == 0, stat(path, &status) == 0 else { return }
        if status.st_uid == 0 && status.st_mode & 0o022 == 0 { return }
        throw CommandFailure(
            "the hooks are not run: \(path) must belong to root and be writable by no one else, since root runs it"
        )
    }
}
