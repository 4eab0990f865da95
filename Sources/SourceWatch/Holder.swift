/// What gives a process a way to change the source that does not lead through a mount over it.
package struct Holder: Hashable, Sendable {
    package enum Use: Hashable, Sendable {
        /// A regular file, open for writing.
        case descriptor
        /// An open directory (O_PATH too), by which all below it can be reached (openat(2)).
        case directory
        /// A shared mapping that can be written to, or made so with mprotect(2), also where its file was closed.
        case mapping
        case workingDirectory
        case rootDirectory
        /// A mount of the source's file system in another mount namespace, which a mount over the source will not
        /// reach. Reported for one process of each namespace.
        case mountNamespace
        /// The same in the mount namespace of the caller, where every process has it: `process` is 0.
        case mount
    }

    package var process: Int32
    /// The process's name as ps(1) shows it: at most 15 bytes, and whatever the process says that it is.
    package var command: String
    package var use: Use
    /// What it holds: named from the source's own path, as it is seen here, followed by « (deleted)» where it has
    /// no name any more. Of a mount, where it is mounted, as its own processes see it.
    package var path: String

    package init(process: Int32, command: String, use: Use, path: String) {
        self.process = process
        self.command = command
        self.use = use
        self.path = path
    }
}

/// What a scan found.
package struct HolderScan: Hashable, Sendable {
    /// Each once, in the order of process numbers.
    package var holders: [Holder] = []
    /// The number of processes that could not be looked at, since they are another user's.
    package var unseen = 0

    package init() {}
}
