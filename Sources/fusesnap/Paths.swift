internal import Glibc
internal import SystemPackage

/// Paths as strings.
enum Paths {
    /// Whether `path` is `directory` or lies in it; both absolute, without "." and "..".
    static func contains(_ directory: String, _ path: String) -> Bool {
        path == directory || path.hasPrefix(directory == "/" ? "/" : directory + "/")
    }

    /// realpath(3).
    static func canonical(_ path: String) throws(Errno) -> String {
        guard let resolved = realpath(path, nil) else { throw Errno(rawValue: errno) }
        defer { free(resolved) }
        return String(cString: resolved)
    }

    /// The path from the root, with "." and ".." taken away as text: nothing is looked up, so that
    /// a mount whose daemon hangs can be named.
    static func absolute(_ path: String) -> String {
        guard !path.hasPrefix("/") else { return normalized(path) }
        guard let current = getcwd(nil, 0) else { return normalized("/" + path) }
        defer { free(current) }
        return normalized(String(cString: current) + "/" + path)
    }

    private static func normalized(_ path: String) -> String {
        var names: [Substring] = []
        for name in path.split(separator: "/") where name != "." {
            if name == ".." { _ = names.popLast() } else { names.append(name) }
        }
        return "/" + names.joined(separator: "/")
    }
}

enum FileContents {
    /// All of a file that is small, or of /proc.
    static func read(_ path: String) throws(Errno) -> [UInt8] {
        let raw = open(path, O_RDONLY | O_CLOEXEC)
        if raw < 0 { throw Errno(rawValue: errno) }
        defer { close(raw) }
        var contents: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 16 << 10)
        while true {
            let count = Glibc.read(raw, &chunk, chunk.count)
            if count == 0 { return contents }
            if count < 0 && errno != EINTR { throw Errno(rawValue: errno) }
            if count > 0 { contents.append(contentsOf: chunk[..<count]) }
        }
    }
}
