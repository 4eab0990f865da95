internal import CLinux
internal import Glibc
package import LinuxSystem
package import SystemPackage

/// Who can change the directory `source` without going through a mount that is put over it: looks at every process
/// in /proc but `processes`, where the caller names itself. Changes nothing and asks no file system anything, so
/// that a FUSE mount whose daemon hangs does not hold it up. As an ordinary user it sees that user's processes
/// only.
///
/// What lies in the source is decided by the file system and the path inside it, for each mount of it, in whatever
/// namespace. Uses `.mount` and `.mountNamespace` are for a mount over the source itself; beside a mount elsewhere
/// every process can go to the source.
///
/// What it does not find:
/// - a process that gets there between the scan and the mount, one that opens a file while the scan passes it by,
///   and what ends and is passed on meanwhile: scan again when the mount is made;
/// - what is held by no process: descriptors on their way through a socket (SCM_RIGHTS), files registered with an
///   io_uring or open in the kernel itself (loop devices, swap, an NFS server, the upper directory of an overlay),
///   mount namespaces kept alive by a bind mount or a descriptor of theirs, processes of another PID namespace
///   than /proc's;
/// - files that are open for reading only, which their process may open again for writing (/proc/self/fd);
/// - a file in the source that is open by the name of a hard link outside;
/// - who may mount: root sees the source's file system again by mounting its device, by file handles, or on the
///   device;
/// A file without a name is reported, though it may never have one again. Subvolumes of btrfs count as directories
/// of their file system. It is not for a caller in a chroot, to whom the kernel tells other paths.
package func holders(
    of source: Descriptor, except processes: Set<Int32>
) throws(Errno) -> HolderScan {
    var census = try Census(source: source)
    try census.takeMounts(except: processes)
    for process in try census.processes() where !processes.contains(process) {
        census.look(at: process)
    }
    census.lookAtMounts()
    return census.result
}

/// A scan in progress.
private struct Census {
    private var table = MountTable()
    private let source: SourcePlace
    private let proc: Descriptor
    private let ownNamespace: [UInt8]
    /// The processes of each mount namespace.
    private var inhabitants: [[UInt8]: [Int32]] = [:]
    private var known: Set<Holder> = []
    private(set) var result = HolderScan()

    init(source descriptor: Descriptor) throws(Errno) {
        proc = try Descriptor.open(at: .workingDirectory, "/proc", O_PATH | O_DIRECTORY)
        let own = try ProcessFiles("/proc/self")
        ownNamespace = try own.link("ns/mnt")
        table.add(mountinfo: try own.contents("mountinfo"), top: [UInt8(ascii: "/")], namespace: ownNamespace)
        source = try SourcePlace(of: descriptor, in: table)
    }

    func processes() throws(Errno) -> [Int32] {
        let list = try Descriptor.open(at: proc, ".", O_RDONLY | O_DIRECTORY)
        return try directoryNumbers(list).compactMap { Int32($0) }
    }

    // MARK: Mounts

    /// Reads the mounts of every namespace, and of every root directory in it: a process sees what is below its
    /// own.
    mutating func takeMounts(except excepted: Set<Int32>) throws(Errno) {
        var seen: Set<[[UInt8]]> = [[ownNamespace, [UInt8(ascii: "/")]]]
        for process in try processes() {
            do throws(Errno) {
                let files = try ProcessFiles(at: proc, String(process))
                let (namespace, top) = (try files.link("ns/mnt"), try files.link("root"))
                if !excepted.contains(process) { inhabitants[namespace, default: []].append(process) }
                guard seen.insert([namespace, top]).inserted else { continue }
                table.add(mountinfo: try files.contents("mountinfo"), top: top, namespace: namespace)
            } catch {
                // It has ended, or is not ours to see: `look` counts it.
            }
        }
    }

    mutating func lookAtMounts() {
        let reached = table.groups(reachedFrom: source.mount)
        let open = table.lines.values.filter { isWay($0, reached) }.sorted { $0.id < $1.id }
        var told: Set<[UInt8]> = []
        for line in open {
            let inside = rest(of: source.path, after: line.root) ?? []
            let path = String(decoding: joined(line.point, inside), as: UTF8.self)
            if line.namespace == ownNamespace {
                add(Holder(process: 0, command: "", use: .mount, path: path))
            } else if told.insert(line.namespace).inserted, let found = inhabitant(of: line.namespace) {
                add(Holder(process: found.process, command: found.command, use: .mountNamespace, path: path))
            }
        }
    }

    /// Whether the source, or a part of it, is seen by way of this mount after another was put over the source.
    private func isWay(_ line: MountLine, _ reached: Set<UInt64>) -> Bool {
        guard line.device == source.mount.device, line.id != source.mount.id, !line.isReadOnly else {
            return false
        }
        if isHidden(line) { return false }
        // A mount of a part of the source has no place where the mount over the source could arrive.
        let isPart = rest(of: line.root, after: source.path) != nil && line.root != source.path
        if isPart { return true }
        guard rest(of: source.path, after: line.root) != nil else { return false }
        return !(reached.contains(line.shared) || reached.contains(line.master))
    }

    /// Whether it is mounted inside the source, so that the mount over that hides it.
    private func isHidden(_ line: MountLine) -> Bool {
        var line = line
        while line.parent != line.id, let parent = table[line.parent] {
            if parent.id == source.mount.id { return rest(of: line.point, after: source.name) != nil }
            line = parent
        }
        return false
    }

    /// A process that is in this mount namespace still, and its command. Where all have ended since they were met,
    /// the namespace has gone too.
    private func inhabitant(of namespace: [UInt8]) -> (process: Int32, command: String)? {
        for process in inhabitants[namespace, default: []] {
            do throws(Errno) {
                let files = try ProcessFiles(at: proc, String(process))
                let summary = ProcessSummary(parsing: try files.contents("stat"))
                // One that has ended, and waits to be asked how, is in no namespace.
                if let summary, try files.link("ns/mnt") == namespace { return (process, summary.command) }
            } catch {
                // It has ended.
            }
        }
        return nil
    }

    // MARK: Processes

    private mutating func add(_ holder: Holder) {
        if known.insert(holder).inserted { result.holders.append(holder) }
    }

    /// Adds what a process holds; one that ends meanwhile holds nothing.
    mutating func look(at process: Int32) {
        do throws(Errno) {
            let files = try ProcessFiles(at: proc, String(process))
            guard let summary = ProcessSummary(parsing: try files.contents("stat")) else { return }
            // Kernel threads have all of init's directories, and use none.
            if summary.isKernelThread { return }
            try lookAtThreads(of: process, files, summary.command)
        } catch {
            if isDenied(error) { result.unseen += 1 }
        }
    }

    /// Threads share descriptors, directories and memory, as a rule: those that do not are looked at for
    /// themselves.
    private mutating func lookAtThreads(
        of process: Int32, _ files: ProcessFiles, _ command: String
    ) throws(Errno) {
        for thread in try threads(of: process, files) {
            let isFirst = thread == process
            let own = isFirst ? files : try ProcessFiles(at: proc, String(thread))
            if isFirst || differ(process, thread, CL_SAME_DESCRIPTORS) {
                try unlessEnded { () throws(Errno) in try lookAtDescriptors(own, process, command) }
            }
            if isFirst || differ(process, thread, CL_SAME_DIRECTORIES) {
                try unlessEnded { () throws(Errno) in try lookAtDirectories(own, process, command) }
            }
            // Threads of one process have one memory, but the first may have ended, and has none then.
            if isFirst || differ(process, thread, CL_SAME_MEMORY) {
                try unlessEnded { () throws(Errno) in try lookAtMappings(own, process, command) }
            }
        }
    }

    /// The first one first.
    private func threads(of process: Int32, _ files: ProcessFiles) throws(Errno) -> [Int32] {
        [process] + (try files.numbers(in: "task")).compactMap { Int32($0) }.filter { $0 != process }
    }

    /// Also where the kernel cannot tell.
    private func differ(_ process: Int32, _ thread: Int32, _ resource: some BinaryInteger) -> Bool {
        cl_compare_threads(process, thread, Int32(resource)) != 0
    }

    private mutating func lookAtDescriptors(
        _ files: ProcessFiles, _ process: Int32, _ command: String
    ) throws(Errno) {
        for number in try files.numbers(in: "fd") {
            try unlessEnded { () throws(Errno) in
                if let (use, path) = try held("fd/" + number, info: "fdinfo/" + number, in: files) {
                    add(Holder(process: process, command: command, use: use, path: path))
                }
            }
        }
    }

    private func held(
        _ link: String, info: String, in files: ProcessFiles
    ) throws(Errno) -> (Holder.Use, String)? {
        let path = try linkPath(link, in: files)
        // Pipes, sockets and the like have no path.
        if let path, path.first != UInt8(ascii: "/") { return nil }
        let info = DescriptorInfo(parsing: try files.contents(info))
        guard let name = try name(of: link, in: files, path: path, mount: info.mount) else { return nil }
        switch try files.place(link).mode {
        case UInt32(S_IFDIR): return (.directory, name)
        case UInt32(S_IFREG): return info.isForWriting ? (.descriptor, name) : nil
        default: return nil
        }
    }

    private mutating func lookAtDirectories(
        _ files: ProcessFiles, _ process: Int32, _ command: String
    ) throws(Errno) {
        for (link, use) in [("cwd", Holder.Use.workingDirectory), ("root", .rootDirectory)] {
            let path = try linkPath(link, in: files)
            do throws(Errno) {
                let mount = try files.place(link).mount
                guard let name = try name(of: link, in: files, path: path, mount: mount) else { continue }
                add(Holder(process: process, command: command, use: use, path: name))
            } catch .permissionDenied {
                // On a FUSE mount of another user's: that is not the source, which the caller has open.
            }
        }
    }

    private mutating func lookAtMappings(
        _ files: ProcessFiles, _ process: Int32, _ command: String
    ) throws(Errno) {
        for line in try files.contents("maps").split(separator: UInt8(ascii: "\n")) {
            guard let mapping = SharedMapping(parsing: line), mapping.device == source.mount.device else {
                continue
            }
            try unlessEnded { () throws(Errno) in
                guard let name = try name(of: mapping, in: files) else { return }
                add(Holder(process: process, command: command, use: .mapping, path: name))
            }
        }
    }

    private func name(of mapping: SharedMapping, in files: ProcessFiles) throws(Errno) -> String? {
        let link = "map_files/" + mapping.name
        do throws(Errno) {
            if !mapping.isWritable, !(try files.isOpenForWriting(link)) { return nil }
            let path = try linkPath(link, in: files)
            return try name(of: link, in: files, path: path, mount: try files.place(link).mount)
        } catch {
            guard isDenied(error) else { throw error }
            // Ordinary users may not follow these links: the path must do, on whichever mount it fits best.
            return mapping.isWritable ? nameByPath(mapping.path) : nil
        }
    }

    private func nameByPath(_ path: [UInt8]) -> String? {
        let lines = table.lines.values.filter {
            $0.device == source.mount.device && rest(of: path, after: $0.point) != nil
        }
        guard let line = lines.max(by: { ($0.point.count, $0.id) < ($1.point.count, $1.id) }),
            case .inside(let name) = source.name(of: path, on: line)
        else { return nil }
        return String(decoding: name, as: UTF8.self)
    }

    // MARK: Places

    /// nil where the path is too long to be told.
    private func linkPath(_ link: String, in files: ProcessFiles) throws(Errno) -> [UInt8]? {
        do throws(Errno) { return try files.link(link) } catch .fileNameTooLong { return nil }
    }

    /// What a link leads to, as a person would name it; nil where that is not in the source.
    private func name(
        of link: String, in files: ProcessFiles, path: [UInt8]?, mount: UInt64
    ) throws(Errno) -> String? {
        var verdict = SourcePlace.Verdict.undecided
        if let path, let line = table[mount] { verdict = source.name(of: path, on: line) }
        if verdict == .undecided { verdict = try source.name(of: link, in: files, path: path ?? []) }
        guard case .inside(let name) = verdict else { return nil }
        return String(decoding: name, as: UTF8.self)
    }
}

private func isDenied(_ error: Errno) -> Bool { error == .permissionDenied || error == .notPermitted }

/// Calls `body`; what has gone meanwhile, a process, a descriptor or a mapping, is no error.
private func unlessEnded(_ body: () throws(Errno) -> Void) throws(Errno) {
    do throws(Errno) {
        try body()
    } catch {
        if isDenied(error) { throw error }
    }
}
