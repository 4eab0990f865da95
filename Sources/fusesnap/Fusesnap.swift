internal import ArgumentParser
internal import Glibc

/// The command. Each verb has a file of its own.
@main
struct Fusesnap: ParsableCommand {
    // Each command has its name written out: to make it of its type's name takes a millisecond of every run.
    static let configuration = CommandConfiguration(
        commandName: "fusesnap",
        abstract: "Consistent snapshots of any directory, by a file system mounted over it.",
        discussion: """
            Between `ctl start` and `ctl stop` a hidden directory .snapshot in the mount shows the tree as it was \
            at the start, while applications go on reading and writing.

            Exit codes: 0 done; 3 the snapshot was not exact to its end; 64 wrong usage; 1 anything else. `run` has \
            those of its command, and 125 to 127.
            """,
        version: Version.text,
        subcommands: [
            Mount.self, Unmount.self, Run.self, Control.self, Export.self, Doctor.self, Check.self, Recover.self,
            FreezeHelperCommand.self, HookGuardCommand.self,
        ])

    /// `-oNAME=VALUE`, as mount(8) takes it, in two words: the parser would see an option named `oNAME`.
    static func words(_ arguments: some Sequence<String>) -> [String] {
        var isOver = false  // After `--` nothing is an option.
        return arguments.flatMap { word in
            isOver = isOver || word == "--"
            guard !isOver, word.hasPrefix("-o"), word.count > 2 else { return [word] }
            return ["-o", String(word.dropFirst(2))]
        }
    }

    static func main() {
        StandardDescriptors.fill()
        if MountHelper.isMeant(CommandLine.arguments.first ?? "") { Glibc.exit(MountHelper.run()) }
        do {
            var command = try parseAsRoot(words(CommandLine.arguments.dropFirst()))
            try command.run()
        } catch let failure as CommandFailure {
            StandardError.write(failure.message)
            Glibc.exit(failure.exitCode.rawValue)
        } catch {
            exit(withError: error)
        }
    }
}

enum Version {
    static let text = "0.1.0"
}
