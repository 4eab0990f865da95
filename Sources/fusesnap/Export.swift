internal import ArgumentParser
internal import ArchiveFormat
internal import ControlSocket
internal import FusesnapReader
internal import Glibc
internal import LinuxSystem
internal import SystemPackage

struct Export: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "export",
        abstract: "Write the snapshot as a tar archive, or copy it to a directory.",
        discussion: """
            Reads the snapshot from source and store directly, without going through the mount, where that can be done (as \
            root or as who mounted, and not of --user, --group and --single-pass), else through the mount. The archive \
            is in pax format, with nanoseconds, links, holes, extended attributes and ACLs: restore it with \
            `tar --xattrs --xattrs-include='*' --acls -xpf FILE` or `bsdtar -xpf FILE`. Sockets are left out. Exits with \
            3 where the snapshot was not exact to the end of the export; what has been written is no backup then.
            """)

    enum Format: String, ExpressibleByArgument, CaseIterable { case tar }

    @Option(help: "The archive's format: tar.")
    var format: Format?

    @Option(
        name: [.short, .long],
        help: ArgumentHelp("Where the archive goes (default: standard output).", valueName: "file"),
        completion: .file())
    var output: String?

    @Option(
        help: ArgumentHelp("Copy to this directory instead, which is made, or empty.", valueName: "dir"),
        completion: .directory)
    var restoreTo: String?

    @Argument(help: "The mount.", completion: .directory)
    var mountpoint: String

    func validate() throws {
        if restoreTo != nil, output != nil || format != nil {
            throw ValidationError("--restore-to makes no archive: leave --output and --format out")
        }
        if restoreTo == nil, output == nil, isatty(STDOUT_FILENO) == 1 {
            throw ValidationError(
                "an archive is not for a terminal: name a file (--output FILE), or a directory (--restore-to DIR), or send"
                    + " the output on (| restic backup --stdin ...)")
        }
    }

    private var attempt: String { "cannot export \(mountpoint)" }

    func run() throws {
        let target = try MountTarget(mountpoint, attempt)
        // One for each directory on the way down.
        raiseDescriptorLimit()
        let reader = try open(target)
        if let restoreTo { return try restore(reader, to: restoreTo) }
        guard let output else {
            return try archive(reader, to: Descriptor(owning: try duplicate(STDOUT_FILENO)))
        }
        let file: OutputFile
        do throws(OutputFile.Problem) {
            file = try OutputFile(output, mode: 0o600)
        } catch {
            throw CommandFailure("\(attempt): \(output): \(error.text)")
        }
        try file.writeStream { descriptor in
            try archive(reader, to: descriptor)
        } failing: { problem in
            CommandFailure("\(attempt): \(output): \(problem.text)")
        }
    }

    private func duplicate(_ descriptor: Int32) throws(CommandFailure) -> Int32 {
        let copy = fcntl(descriptor, F_DUPFD_CLOEXEC, 3)
        if copy < 0 { throw CommandFailure("\(attempt): \(Errno(rawValue: errno))") }
        return copy
    }

    private func open(_ target: MountTarget) throws(CommandFailure) -> SnapshotReader {
        let client: ControlClient
        do throws(ControlClientError) {
            client = try target.connect()
        } catch {
            throw target.failure(attempt, error)
        }
        do throws(SnapshotReaderError) {
            return try SnapshotReader(client, mountPoint: target.mountpoint)
        } catch {
            if case .noDaemon = error { throw CommandFailure("\(attempt): \(error)") }
            throw failure(error)
        }
    }

    private func failure(_ error: SnapshotReaderError) -> CommandFailure {
        switch error {
        case .noSnapshot:
            CommandFailure(
                "\(attempt): no snapshot is active; begin one with `fusesnap ctl start \(mountpoint)`, or let `fusesnap run"
                    + " \(mountpoint) -- fusesnap export ...` do so")
        case .ended, .inexact, .damaged, .noDaemon:
            CommandFailure("\(attempt): \(error); what has been written is no backup", exitCode: .inexact)
        case .system(.ioError, _, _):
            CommandFailure(
                "\(attempt): \(error): it has been lost since the start; what has been written is no backup",
                exitCode: .inexact)
        default:
            CommandFailure("\(attempt): \(error)")
        }
    }

    // MARK: Where it goes

    private func archive(_ reader: SnapshotReader, to descriptor: Descriptor) throws(CommandFailure) {
        try export(reader) { () throws(ArchiveError) in try ArchiveWriter(to: descriptor) }
    }

    private func restore(_ reader: SnapshotReader, to directory: String) throws(CommandFailure) {
        func problem(_ text: String) -> CommandFailure {
            CommandFailure("\(attempt) to \(directory): \(text)")
        }
        if mkdir(directory, 0o700) != 0, errno != EEXIST { throw problem("\(Errno(rawValue: errno))") }
        var isEmpty = true
        do throws(Errno) {
            var entries = DirectoryReader(
                try Descriptor.open(at: .workingDirectory, directory, O_RDONLY | O_DIRECTORY))
            try entries.forEach { if !$0.isDot { isEmpty = false } }
        } catch {
            throw problem("\(error)")
        }
        if !isEmpty { throw problem("it is not empty; name a directory that is, or that is not there yet") }
        // What is written is named from there, however long the path to it is.
        if chdir(directory) != 0 { throw problem("\(Errno(rawValue: errno))") }
        try export(reader) { () throws(ArchiveError) in
            try ArchiveWriter(restoringWithOwners: geteuid() == 0)
        }
    }

    private func export(
        _ reader: SnapshotReader, _ open: () throws(ArchiveError) -> ArchiveWriter
    ) throws(CommandFailure) {
        let meter = ExportMeter(reader)
        defer { meter.end() }
        let exporter = SnapshotExporter(meter)
        do throws(ExportFailure) {
            try exporter.export(reader, open)
        } catch {
            meter.end()
            switch error {
            case .reading(let error): throw failure(error)
            case .writing(let error, let path):
                throw CommandFailure("\(attempt): cannot write \(path): \(error)")
            }
        }
        meter.end()
        if exporter.socketCount > 0 {
            let number = exporter.socketCount == 1 ? "a socket is" : "\(exporter.socketCount) sockets are"
            StandardError.write("\(number) left out: only a process makes them")
        }
    }
}
