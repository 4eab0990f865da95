import ArgumentParser

/// What `-o` asks for.
struct MountOptions: Equatable {
    /// How data move between applications and the source.
    enum InputOutput: String, CaseIterable {
        case writeThrough = "write-through"
    }

    var inputOutput = InputOutput.writeThrough
    /// The name of the hidden directory in the mount's root.
    var snapshotDirectory = ".snapshot"
    var attributeSeconds: Double?
    var entrySeconds: Double?
    var negativeSeconds: Double?
    var threadsMax: UInt32 = 10
    var usesFileHandles = true
    var logsDebug = false
    var allowsOther = false
    var isReadOnly = false
    var fileSystemName: String?
    /// Options that go to the kernel's mount as they are.
    var kernelOptions: [String] = []

    /// Options of the kernel's mount.
    private static let kernelWords: Set<String> = [
        "default_permissions", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime",
        "atime", "sync", "async", "dirsync",
    ]
    /// Words of /etc/fstab that mean something to others.
    private static let passedOver: Set<String> = [
        "defaults", "auto", "noauto", "user", "nouser", "users", "nofail", "_netdev", "relatime",
    ]

    init() {}

    /// Reads the words of every `-o`, each a list with commas. Throws what is wrong with a word.
    init(_ lists: [String]) throws {
        for word in lists.flatMap({ $0.split(separator: ",") }) {
            let parts = word.split(separator: "=", maxSplits: 1)
            guard let name = parts.first else { continue }
            try take(String(name), value: parts.count > 1 ? String(parts[1]) : nil)
        }
    }

    private mutating func take(_ name: String, value: String?) throws {
        if Self.passedOver.contains(name) || name.hasPrefix("x-") { return }
        if Self.kernelWords.contains(name), value == nil {
            kernelOptions.append(name)
            return
        }
        switch (name, value) {
        case ("allow_other", nil): allowsOther = true
        case ("ro", nil): isReadOnly = true
        case ("debug", nil): logsDebug = true
        case ("no_file_handles", nil): usesFileHandles = false
        case ("fsname", let value?): fileSystemName = value
        case ("subtype", _?): break  // ours: the mount's type is fuse.fusesnap
        case ("io", let value?): inputOutput = try Self.inputOutput(value)
        case ("snapshot_dir", let value?): snapshotDirectory = try Self.name(value)
        case ("attr_timeout", let value?): attributeSeconds = try Self.seconds(name, value)
        case ("entry_timeout", let value?): entrySeconds = try Self.seconds(name, value)
        case ("negative_timeout", let value?): negativeSeconds = try Self.seconds(name, value)
        case ("max_threads", let value?): threadsMax = try Self.threads(value)
        case ("allow_root", _):
            throw ValidationError(
                "-o allow_root is not offered: use allow_other, with the directory's modes.")
        case ("auto_unmount", _):
            throw ValidationError(
                "-o auto_unmount is not offered: a daemon that is killed must not uncover the bare source, "
                    + "where writes would escape the snapshot.")
        default:
            throw ValidationError("Unknown mount option '\(name)\(value.map { "=" + $0 } ?? "")' in -o.")
        }
    }

    private static func inputOutput(_ value: String) throws -> InputOutput {
        guard let policy = InputOutput(rawValue: value) else {
            let known = InputOutput.allCases.map(\.rawValue).joined(separator: ", ")
            throw ValidationError("Unknown I/O policy '\(value)' in -o io=: there is \(known).")
        }
        return policy
    }

    private static func name(_ value: String) throws -> String {
        guard !value.isEmpty, value != ".", value != "..", !value.contains("/"),
            value.utf8.count <= 255
        else {
            throw ValidationError("'\(value)' in -o snapshot_dir= is not the name of a directory entry.")
        }
        return value
    }

    private static func seconds(_ name: String, _ value: String) throws -> Double {
        guard let seconds = Double(value), seconds >= 0, seconds.isFinite else {
            throw ValidationError("'\(value)' in -o \(name)= is not a number of seconds.")
        }
        return seconds
    }

    private static func threads(_ value: String) throws -> UInt32 {
        guard let number = UInt32(value), (1...256).contains(number) else {
            throw ValidationError("'\(value)' in -o max_threads= is not a number from 1 to 256.")
        }
        return number
    }
}

/// A number of bytes as people write it: 4096, 64K, 10M, 2G, 1T.
struct ByteCount: ExpressibleByArgument, Equatable {
    let bytes: UInt64

    init?(argument: String) {
        let units: [Character: UInt64] = ["K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40]
        var digits = Substring(argument)
        var unit: UInt64 = 1
        if let last = argument.last, let known = units[Character(last.uppercased())] {
            unit = known
            digits = digits.dropLast()
        }
        guard let number = UInt64(digits) else { return nil }
        let (bytes, overflow) = number.multipliedReportingOverflow(by: unit)
        if overflow { return nil }
        self.bytes = bytes
    }
}
