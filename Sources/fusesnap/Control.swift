internal import ArgumentParser

/// `ctl`: what concerns the snapshot of a mount.
struct Control: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ctl",
        abstract: "Start, stop or look at the snapshot of a mount.",
        subcommands: [
            ControlStart.self, ControlStop.self, ControlStatus.self, ControlChanged.self, ControlList.self,
            ControlMetrics.self,
        ])
}
