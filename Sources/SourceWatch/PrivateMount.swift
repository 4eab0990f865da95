internal import CLinux
internal import Glibc
package import LinuxSystem
package import SystemPackage

/// A mount of the source alone, with the source as its root, in no mount namespace: nothing is mounted in it, no path
/// leads to it, and only who has its descriptor can use it. Made with open_tree(2), which needs CAP_SYS_ADMIN.
///
/// It is what tells whether an inode lies in the source: the kernel finds one that was opened by its handle on this mount
/// below the mount's root, or not. So neither bind mounts nor renames above the source nor mounts over it make a
/// difference.
package struct PrivateMount: Sendable {
    enum Place: Equatable, Sendable {
        /// In the source, which is "" itself; below it "/name".
        case inside([UInt8])
        case outside
        /// A file outside, or one whose name the kernel does not know: it was not looked up by name since it is in
        /// memory, but opened by its handle, as NFS servers do.
        case unnamed
        /// It has been removed.
        case gone
        /// It could not be found out.
        case unknown
    }

    /// The source's directory on this mount, open for reading.
    package let directory: Descriptor
    /// The source's path where it was opened, for messages.
    let name: [UInt8]
    /// What keeps the mount alive.
    private let mount: Descriptor
    /// The mount that the source was found on, where that is of the whole file system: every file that has a name is
    /// below its root.
    private let wholeMount: Descriptor?

    package init(of source: Descriptor) throws(Errno) {
        mount = Descriptor(owning: try checked { cl_clone_mount(source.raw) })
        name = try linkTarget(of: source)
        directory = try Descriptor.open(at: mount, ".", O_RDONLY | O_DIRECTORY)
        let isWhole = try mountLine(of: source)?.root == rootPath
        wholeMount = isWhole ? try Descriptor.open(at: source, ".", O_RDONLY | O_DIRECTORY) : nil
    }

    func place(of handle: FileHandle) -> Place {
        do throws(Errno) {
            let inode = try handle.open(mount: directory, O_PATH)
            var place = cl_place()
            try checked { cl_find_place(inode.raw, "", AT_EMPTY_PATH, &place) }
            let isDirectory = place.mode == UInt32(S_IFDIR)
            if isDirectory, try !isBelowRoot(inode) { return .outside }
            let path = try linkTarget(of: inode)
            if isDirectory { return .inside(path == rootPath ? [] : path) }
            // What is not below the root has the root's path; one without links is marked.
            return path == rootPath || path == rootPath + Array(" (deleted)".utf8) ? .unnamed : .inside(path)
        } catch {
            return error == .staleNFSFileHandle ? .gone : .unknown
        }
    }

    /// The kernel refuses to go from a directory that is not below the mount's root to its parent; from the root itself
    /// «..» leads nowhere else. It knows every directory's parent.
    private func isBelowRoot(_ inode: Descriptor) throws(Errno) -> Bool {
        var parent = cl_place()
        do throws(Errno) {
            try checked { cl_find_place(inode.raw, "..", 0, &parent) }
            return true
        } catch .noSuchFileOrDirectory {
            return false
        }
    }

    /// Whether the kernel knows the name of an unnamed file, so that it is outside; also where that cannot be told.
    func hasName(_ handle: FileHandle) -> Bool {
        guard let wholeMount else { return true }
        do throws(Errno) {
            return try linkTarget(of: try handle.open(mount: wholeMount, O_PATH)) != rootPath
        } catch {
            return true
        }
    }
}

private let rootPath = [UInt8(ascii: "/")]

/// The line of /proc/self/mountinfo for the mount that `directory` lies in; nil where it is mounted nowhere.
private func mountLine(of directory: Descriptor) throws(Errno) -> MountLine? {
    var place = cl_place()
    try checked { cl_find_place(directory.raw, "", AT_EMPTY_PATH, &place) }
    var table = MountTable()
    table.add(mountinfo: try ProcessFiles("/proc/self").contents("mountinfo"), top: rootPath, namespace: [])
    return table[place.mount]
}
