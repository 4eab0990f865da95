internal import ArgumentParser

/// The options that `mount -o` was given.
struct MountOptions: Equatable, Sendable {
    /// What a write waits for.
    enum InputOutputPolicy: String, CaseIterable, Sendable {
        case writeThrough = "write-through"
        case writeBack = "writeback"
        case passthrough
        case automatic = "auto"
    }

    /// Options of the kernel's mount, in the order given: they go to FUSE as they are.
    var kernelOptions: [String] = []
    var policy = InputOutputPolicy.writeThrough
    /// The name of the hidden directory in the root of the mount.
    var snapshotDirectory = ".snapshot"
    /// How long the kernel may keep attributes, names and the absence of names; nil: the daemon's
    /// choice.
    var attributeTimeoutSeconds: Double?
    var entryTimeoutSeconds: Double?
    var negativeTimeoutSeconds: Double?
    /// Requests served at once, at the most; nil: the daemon's choice.
    var threadsMax: UInt32?
    /// Whether inodes may be found by file handles; else by parent and name.
    var usesFileHandles = true
    /// Whether ordinary users may take snapshots of their own files.
    var admitsUsers = false
    /// Whether libfuse logs every request to standard error.
    var logsRequests = false
    /// Whether the status tells how many requests of each kind came.
    var countsRequests = false
    /// The name of the source in the mount table; nil: the source's path.
    var sourceName: String?

    /// What --mode, --store and --max-delta mean, for fstab, which has no other place for them.
    var mode: Mode?
    var store: String?
    var maxDelta: ByteSize?

    /// Whether others than the mounting user are served.
    var allowsOthers: Bool { kernelOptions.contains("allow_other") }
    var readsQuietly: Bool { kernelOptions.last { $0 == "noatime" || $0 == "atime" } == "noatime" }
    var isReadOnly: Bool { kernelOptions.last { $0 == "ro" || $0 == "rw" } == "ro" }

    /// An option that cannot be had, and why.
    struct Refusal: Error, Equatable {
        var message: String
    }

    static let threadsLimit: UInt32 = 1024
    private static let timeoutSecondsMax = 1e9
    private static let nameBytesMax = 255

    init() {}

    /// Takes the values of all `-o`, each a list with commas (`\,` is a comma within a value).
    init(parsing lists: [String]) throws(Refusal) {
        for list in lists {
            for option in Self.split(list) where !option.isEmpty { try take(option) }
        }
    }

    private static let kernelFlags: Set<String> = [
        "allow_other", "default_permissions", "ro", "rw", "nosuid", "suid", "nodev", "dev",
        "noexec", "exec",
        "noatime", "atime", "dirsync", "sync",
    ]

    /// What fstab and mount(8) mean for themselves, and what is so anyway.
    private static let ignoredFlags: Set<String> = [
        "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail",
        "_netdev", "_rnetdev", "async", "relatime",
    ]

    private static let refusedFlags: [String: String] = [
        "allow_root":
            "allow_root is not supported, since file systems with it cannot tell users apart; use "
            + "allow_other, with "
            + "which permissions are checked as on the source",
        "auto_unmount":
            "auto_unmount is not supported: when the daemon is killed, applications must not write "
            + "to the bare source "
            + "past the snapshot; `fusesnap unmount` cleans up after a dead daemon",
    ]

    private mutating func take(_ option: String) throws(Refusal) {
        if let reason = Self.refusedFlags[option] { throw Refusal(message: reason) }
        if Self.kernelFlags.contains(option) {
            kernelOptions.append(option)
        } else if option == "no_file_handles" {
            usesFileHandles = false
        } else if option == "user_snapshots" {
            admitsUsers = true
        } else if option == "debug" {
            logsRequests = true
        } else if option == "count_requests" {
            countsRequests = true
        } else if !Self.ignoredFlags.contains(option) && !option.hasPrefix("x-") && !option.hasPrefix("X-") {
            guard let equals = option.firstIndex(of: "=") else {
                throw Refusal(message: "\(Self.unknown) '\(option)'; see fusesnap mount --help")
            }
            let name = String(option[..<equals])
            try take(name, String(option[option.index(after: equals)...]), option)
        }
    }

    private mutating func take(_ name: String, _ value: String, _ option: String) throws(Refusal) {
        if name == "comment" || name == "user" { return }
        guard Self.valueNames.contains(name) else {
            throw Refusal(message: "\(Self.unknown) '\(option)'; see fusesnap mount --help")
        }
        if value.isEmpty { throw Refusal(message: "mount option '\(name)' needs a value: \(name)=...") }
        switch name {
        case "io": policy = try Self.policy(value)
        case "snapshot_dir": snapshotDirectory = try Self.directoryName(value)
        case "attr_timeout": attributeTimeoutSeconds = try Self.seconds(value, option)
        case "entry_timeout": entryTimeoutSeconds = try Self.seconds(value, option)
        case "negative_timeout": negativeTimeoutSeconds = try Self.seconds(value, option)
        case "max_threads": threadsMax = try Self.threads(value, option)
        case "fsname": sourceName = value
        case "store": store = value
        case "mode": mode = try Self.refusing { try Mode.parse(value) }
        case "max_delta": maxDelta = try Self.refusing { try ByteSize.parse(value) }
        default: try Self.checkSubtype(value)
        }
    }

    static let unknown = "unknown mount option"

    private static let valueNames: Set<String> = [
        "io", "snapshot_dir", "attr_timeout", "entry_timeout", "negative_timeout", "max_threads",
        "fsname", "subtype", "mode", "store", "max_delta",
    ]

    /// The parser of an option's value, in the words of a mount option.
    private static func refusing<Value>(_ parse: () throws -> Value) throws(Refusal) -> Value {
        do {
            return try parse()
        } catch {
            throw Refusal(message: (error as? ValidationError)?.message ?? "\(error)")
        }
    }

    /// Splits at the commas that no backslash precedes, and takes the backslashes away.
    static func split(_ list: String) -> [String] {
        var options = [""]
        var isEscaped = false
        for character in list {
            if !isEscaped && character == "\\" {
                isEscaped = true
                continue
            }
            if !isEscaped && character == "," {
                options.append("")
            } else {
                // Only what is special is escaped; another backslash stands for itself.
                if isEscaped && character != "," && character != "\\" {
                    options[options.count - 1].append("\\")
                }
                options[options.count - 1].append(character)
            }
            isEscaped = false
        }
        return options
    }
}

extension MountOptions {
    /// The type in the mount table is how fusesnap finds its mounts.
    static let subtype = "fusesnap"

    /// What goes to libfuse, a `-o` each: what the user chose and what is always so. As root all
    /// users are served, with their permissions as on the source.
    func sessionOptions(source: String, isRoot: Bool) -> [String] {
        var options = kernelOptions
        for option in isRoot ? ["allow_other", "default_permissions"] : ["default_permissions"]
        where !options.contains(option) {
            options.append(option)
        }
        options.append("fsname=\(Self.escape(sourceName ?? source))")
        options.append("subtype=\(Self.subtype)")
        return options
    }

    /// libfuse splits its options at commas, as `-o` does.
    static func escape(_ value: String) -> String {
        value.replacing("\\", with: "\\\\").replacing(",", with: "\\,")
    }

    private static func policy(_ value: String) throws(Refusal) -> InputOutputPolicy {
        if let policy = InputOutputPolicy(rawValue: value) { return policy }
        let known = InputOutputPolicy.allCases.map(\.rawValue).joined(separator: ", ")
        throw Refusal(message: "there is no I/O policy '\(value)' (mount option io); use \(known)")
    }

    private static func directoryName(_ value: String) throws(Refusal) -> String {
        if value.contains("/") || value == "." || value == ".." || value.utf8.count > nameBytesMax {
            throw Refusal(
                message: "mount option 'snapshot_dir' needs the name of a directory, without '/', of at most "
                    + "\(nameBytesMax) bytes; '\(value)' is none")
        }
        return value
    }

    private static func seconds(_ value: String, _ option: String) throws(Refusal) -> Double {
        guard let seconds = Double(value), seconds >= 0, seconds <= timeoutSecondsMax else {
            throw Refusal(
                message:
                    "mount option '\(option)' needs a number of seconds that is not negative, such as 1 or 0.5")
        }
        return seconds
    }

    private static func threads(_ value: String, _ option: String) throws(Refusal) -> UInt32 {
        guard let count = UInt32(value), (1...threadsLimit).contains(count) else {
            throw Refusal(message: "mount option '\(option)' needs a number from 1 to \(threadsLimit)")
        }
        return count
    }

    private static func checkSubtype(_ value: String) throws(Refusal) {
        if value == subtype { return }
        throw Refusal(
            message: "mount option 'subtype=\(value)' is not supported: fusesnap finds its mounts by the type "
                + "fuse.\(subtype); name the source with fsname=")
    }
}
