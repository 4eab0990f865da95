internal import ControlSocket
internal import SystemPackage

/// The hooks around one cut. Whatever was called with `freeze` is called with `thaw`, in reverse order, also where it
/// failed: it may have got half-way.
struct HookSession {
    private let hooks: [Hook]
    private let runner: HookRunner
    /// --hook-failure=ignore.
    private let ignoresFailures: Bool
    private var frozen: [Hook] = []
    private(set) var results: [HookResult] = []
    private(set) var problems: [String] = []
    /// Thaws where this process is killed.
    private var guardian: HookGuard?
    private let mountpoint: String

    init(_ hooks: [Hook], mountpoint: String, timeout: Duration, signals: SignalReceiver?, ignoresFailures: Bool) {
        self.hooks = hooks
        self.mountpoint = mountpoint
        runner = HookRunner(
            timeout: timeout, variables: [("FUSESNAP_MOUNTPOINT", mountpoint)], signals: signals)
        self.ignoresFailures = ignoresFailures
    }

    /// Whether what happened so far stands in the way of the snapshot.
    var hasFailed: Bool {
        // A signal is not the hook's failure: the user wants no snapshot any more.
        results.contains { $0.outcome == .interrupted } || (!ignoresFailures && !problems.isEmpty)
    }

    /// What went wrong, for people; bounded, since it goes over the control channel.
    var message: String {
        let shown = problems.prefix(Self.problemsShownMax)
        let more = problems.count - shown.count
        return shown.joined(separator: "\n") + (more > 0 ? "\nand \(more) more" : "")
    }

    private static let problemsShownMax = 4

    mutating func freeze() {
        if hooks.isEmpty { return }
        do throws(Errno) {
            guardian = try HookGuard(timeout: runner.timeout, mountpoint: mountpoint)
        } catch {
            problems.append("no process can be started that would thaw them if this one were killed: \(error)")
            if hasFailed { return }
        }
        for hook in hooks {
            guardian?.willFreeze(hook)
            frozen.append(hook)
            call(hook, .freeze)
            if hasFailed { return }
        }
    }

    mutating func thaw() {
        while let hook = frozen.popLast() {
            guardian?.willThaw()
            call(hook, .thaw)
        }
        guardian = nil
    }

    private mutating func call(_ hook: Hook, _ action: HookResult.Action) {
        let guardian = guardian
        let finished = runner.run(hook, action) { guardian?.willStart(output: $0) }
        guardian?.didEnd()
        results.append(finished.result)
        if let problem = finished.problem { problems.append(problem) }
    }
}
