import Glibc
import LinuxSystem
import SnapshotMount

/// Words what kept a snapshot from starting.
struct FreezeMessage {
    let mountpoint: String
    let limits: Freezer.Limits

    func text(_ obstacle: Freezer.Obstacle) -> String {
        let effort =
            "in \(limits.attemptsMax) attempts of at most \(limits.stallMax.milliseconds) ms; applications go on as before."
            + " Try again, or allow more with --stall-max MILLISECONDS"
        switch obstacle {
        case .file(let inode, let error):
            let file = OpenFileSearch(mountpoint: mountpoint).describe(inode: inode)
            let problem = error.map { ": \($0)" } ?? ""
            return "\(file) could not be frozen\(problem), \(effort)"
        case .operation:
            return "an operation on the source did not end \(effort)"
        case .helper(let error?):
            return "the process that freezes files cannot be started: \(error)"
        case .helper(nil):
            return "the process that freezes files ended early, or could not open them all, \(effort)"
        }
    }
}

extension Duration {
    var microseconds: Int {
        Int(components.seconds) * 1_000_000 + Int(components.attoseconds / 1_000_000_000_000)
    }

    var milliseconds: Int { microseconds / 1000 }
}

/// Finds who has a file of the mount open, by /proc, without a call on the mount: that could wait.
struct OpenFileSearch {
    let mountpoint: String

    /// The file of that number as a person would name it, and a process that has it open for writing.
    func describe(inode: UInt64) -> String {
        for process in entries("/proc") where Int(process) != nil {
            let place = "/proc/\(process)"
            for number in entries("\(place)/fd") {
                guard let path = link("\(place)/fd/\(number)"), isBelow(path),
                    isInode(inode, "\(place)/fdinfo/\(number)")
                else { continue }
                let command = text("\(place)/comm").map { " (\($0.prefix { $0 != "\n" }))" } ?? ""
                return "\(path), which process \(process)\(command) has open,"
            }
        }
        return "the file with inode number \(inode)"
    }

    private func isBelow(_ path: String) -> Bool {
        mountpoint == "/" || path.hasPrefix(mountpoint + "/")
    }

    /// fdinfo has a line «ino:» and one «flags:», in octal.
    private func isInode(_ inode: UInt64, _ path: String) -> Bool {
        guard let lines = text(path)?.split(separator: "\n") else { return false }
        func field(_ name: String) -> Substring? {
            lines.first { $0.hasPrefix(name) }?.split(whereSeparator: \.isWhitespace).last
        }
        guard field("ino:") == Substring(String(inode)), let flags = field("flags:") else {
            return false
        }
        return (Int32(flags, radix: 8) ?? 0) & O_ACCMODE != O_RDONLY
    }

    private func entries(_ path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }  // Not ours, or gone.
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            names.append(
                withUnsafeBytes(of: entry.pointee.d_name) {
                    String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
                })
        }
        return names
    }

    private func link(_ path: String) -> String? {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = readlink(path, &buffer, buffer.count)
        return count > 0 ? String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self) : nil
    }

    private func text(_ path: String) -> String? {
        guard let file = fopen(path, "re") else { return nil }
        defer { fclose(file) }
        var buffer = [UInt8](repeating: 0, count: 1024)
        let count = fread(&buffer, 1, buffer.count, file)
        return String(decoding: buffer[..<count], as: UTF8.self)
    }
}
