import ArgumentParser

/// The version of this build: what `--version` and `status` show.
let fusesnapVersion = "0.1.0"

@main
struct Fusesnap: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "fusesnap",
        abstract: "Consistent, point-in-time snapshots of any directory, for backups.",
        discussion: """
            Mount a directory through fusesnap; then, from `fusesnap ctl start` to `fusesnap ctl stop`, the hidden \
            directory .snapshot in the mount shows the whole tree exactly as it was at the start, while applications \
            go on writing.
            """,
        version: fusesnapVersion,
        subcommands: [MountCommand.self, UnmountCommand.self, ControlCommand.self])
}

struct ControlCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ctl", abstract: "Start, stop and inspect the snapshot of a mount.",
        subcommands: [StartCommand.self, StopCommand.self, StatusCommand.self])
}
