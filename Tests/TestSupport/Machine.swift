internal import Glibc
internal import SystemPackage

/// What tests need of the machine they run on.
package enum Machine {
    package static let isRoot = geteuid() == 0
    package static let hasFuse = access("/dev/fuse", R_OK | W_OK) == 0
    package static let canMount = hasFuse && (isRoot || has("fusermount3"))

    /// Whether ordinary users may open /dev/fuse, as they may wherever udev sets its mode.
    package static let usersMayMount = has("fusermount3") && deviceMode & 0o006 == 0o006

    private static let deviceMode: UInt32 = {
        var status = stat()
        return stat("/dev/fuse", &status) == 0 ? status.st_mode : 0
    }()

    /// Whether PATH has a command of that name.
    package static func has(_ command: String) -> Bool {
        let path = environmentValue("PATH") ?? "/usr/bin:/bin"
        return path.split(separator: ":").contains { access($0 + "/" + command, X_OK) == 0 }
    }

    package static let needsRoot = "needs root"
    package static let needsMount = "needs /dev/fuse, and root or fusermount3 (apt-get install fuse3)"

    /// The program under test: FUSESNAP_BINARY, else what the package's build made.
    package static let binary: String =
        environmentValue("FUSESNAP_BINARY") ?? buildDirectory + "/fusesnap"

    /// The modes of a mount.
    package enum Mode: String, CaseIterable, Sendable, CustomStringConvertible {
        case preserve, redirect

        package var description: String { rawValue }

        /// Those that a test runs in: redirect has only its own I/O policy, and finds files by handles, which root may.
        package static var available: [Mode] {
            Machine.isRoot && Machine.mountOptions.isEmpty ? allCases : [.preserve]
        }
    }

    /// The load that cuts are tested with.
    package static let cutload: String = buildDirectory + "/cutload"
    /// The example of the library `FusesnapReader`.
    package static let example: String = buildDirectory + "/snapshot-sizes"

    /// Options for every mount of a test: -o with what FUSESNAP_TEST_MOUNT_OPTIONS says, to run all under another policy.
    package static let mountOptions: [String] =
        environmentValue("FUSESNAP_TEST_MOUNT_OPTIONS").map { ["-o", $0] } ?? []

    /// How changes are kept from a snapshot where a test does not say: FUSESNAP_TEST_MODE, to run all in mode redirect.
    package static let mode = environmentValue("FUSESNAP_TEST_MODE").flatMap { Mode(rawValue: $0) } ?? .preserve

    /// Whether the kernel has times of change of its own: then they differ from the source's.
    package static let kernelOwnsTimes = mountOptions.contains("io=writeback")

    /// Whether the kernel writes to the source by itself: then files are preserved in whole.
    package static let preservesWholeFiles = mountOptions.contains("io=passthrough")

    /// The directory of the test bundle, which the runner is given by its path.
    private static var buildDirectory: String {
        for argument in CommandLine.arguments {
            if let end = argument.range(of: ".xctest") {
                return directory(of: String(argument[..<end]))
            }
        }
        let package = directory(of: directory(of: directory(of: #filePath)))
        return package + "/.build/debug"
    }

    private static func directory(of path: String) -> String {
        String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)])
    }
}

extension String {
    fileprivate func range(of text: String) -> String.Index? {
        indices.first { self[$0...].hasPrefix(text) }
    }
}
