internal import ArgumentParser
internal import ControlSocket
internal import Glibc

/// What `ctl start` and `run` take about hooks.
struct HookOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Call FILE with `freeze` before the cut and `thaw` after it; may be given several times.",
            valueName: "file"), completion: .file())
    var hook: [String] = []

    @Option(
        help: ArgumentHelp(
            "Call the hooks in this directory too (default: \(HookDirectory.standardPath), as root).",
            valueName: "dir"), completion: .directory)
    var hooksDir: String?

    @Option(help: ArgumentHelp("For how long a hook may take.", valueName: "seconds"))
    var hookTimeout: Int = HookLimits.timeoutSeconds

    @Option(help: "What a hook's failure means: fail, no snapshot; ignore, a warning.")
    var hookFailure: HookFailureChoice = .fail

    enum HookFailureChoice: String, ExpressibleByArgument, CaseIterable {
        case fail, ignore
    }

    func validate() throws {
        if !(1...HookLimits.timeoutSecondsMax).contains(hookTimeout) {
            throw ValidationError(
                "--hook-timeout needs a number of seconds from 1 to \(HookLimits.timeoutSecondsMax)")
        }
        if hook.contains("") || hooksDir == "" { throw ValidationError("a hook's path is empty") }
        if hook.count > HookLimits.hooksMax {
            throw ValidationError("--hook can be given \(HookLimits.hooksMax) times at the most")
        }
    }

    /// All hooks in the order of their freezing: those of the directory, then those named.
    func resolve() throws(CommandFailure) -> [Hook] {
        var hooks: [Hook] = []
        // Root's hooks are written for root.
        if let path = hooksDir ?? (geteuid() == 0 ? HookDirectory.standardPath : nil) {
            hooks = try HookDirectory.hooks(in: path, mayBeMissing: hooksDir == nil)
            if hooks.count > HookLimits.hooksMax {
                throw CommandFailure("\(path) holds more than \(HookLimits.hooksMax) hooks")
            }
        }
        return hooks + (try Hook.named(hook, .command))
    }

    var ignoresFailures: Bool { hookFailure == .ignore }
}

/// For how long writers may stall at a cut.
struct StallOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "For how long an attempt to freeze the files that are open for writing may stall applications.",
            valueName: "milliseconds"))
    var stallMax: Int = 200

    @Option(help: ArgumentHelp("How often that is tried.", valueName: "number"))
    var attempts: Int = 25

    func validate() throws {
        if !(1...600_000).contains(stallMax) {
            throw ValidationError("--stall-max needs a number of milliseconds from 1 to 600000")
        }
        if !(1...10_000).contains(attempts) {
            throw ValidationError("--attempts needs a number from 1 to 10000")
        }
    }
}
