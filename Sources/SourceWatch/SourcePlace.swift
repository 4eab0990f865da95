internal import CLinux
internal import Glibc
internal import LinuxSystem
internal import SystemPackage

/// Where the source lies: in which file system, and where in that.
struct SourcePlace {
    let mount: MountLine
    /// Its path inside its file system.
    let path: [UInt8]
    /// Its path in this mount namespace.
    let name: [UInt8]
    /// The device that stat(2) tells of it, which is another than the file system's on btrfs.
    private let visibleDevice: UInt64
    /// nil where the caller may not have one: then what cannot be decided by paths counts as inside.
    private let privateMount: PrivateMount?

    init(of source: Descriptor, in table: MountTable) throws(Errno) {
        var place = cl_place()
        try checked { cl_find_place(source.raw, "", AT_EMPTY_PATH, &place) }
        guard place.mode == UInt32(S_IFDIR) else { throw .notDirectory }
        name = try linkTarget(of: source)
        guard let mount = table[place.mount], let below = rest(of: name, after: mount.point) else {
            throw .noSuchFileOrDirectory
        }
        self.mount = mount
        path = joined(mount.root, below)
        visibleDevice = place.device
        do throws(Errno) { privateMount = try PrivateMount(of: source) } catch { privateMount = nil }
    }

    /// The name of what lies at `path` of the mount, from the source's own name on; nil where it is not in the
    /// source.
    func name(of path: [UInt8], on line: MountLine) -> Verdict {
        guard line.device == mount.device else { return .outside }
        guard let below = rest(of: path, after: line.point) else { return .undecided }
        guard let inside = rest(of: joined(line.root, below), after: self.path) else { return .outside }
        return .inside(joined(name, inside))
    }

    enum Verdict: Equatable {
        case inside([UInt8])
        case outside
        case undecided
    }

    /// Decides for a link in /proc whose path says nothing: it is too long, or of a mount that is in no namespace
    /// any more (umount -l, open_tree). Follows the link to the inode, which asks the file system nothing.
    func name(of link: String, in files: ProcessFiles, path: [UInt8]) throws(Errno) -> Verdict {
        guard try files.place(link).device == visibleDevice else { return .outside }
        guard let privateMount else { return .inside(path) }
        let inode = try Descriptor.open(at: files.directory, link, O_PATH)
        switch privateMount.place(of: try FileHandle(of: inode)) {
        case .inside(let rest): return .inside(joined(name, rest))
        // It is held open, so that the kernel knows its name.
        case .outside, .unnamed: return .outside
        case .gone, .unknown: return .inside(path)
        }
    }
}
