internal import ControlSocket

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

    init(_ hooks: [Hook], _ runner: HookRunner, ignoresFailures: Bool) {
        self.hooks = hooks
        self.runner = runner
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
        for hook in hooks {
            frozen.append(hook)
            call(hook, .freeze)
            if hasFailed { return }
        }
    }

    mutating func thaw() {
        while let hook = frozen.popLast() { call(hook, .thaw) }
    }

    private mutating func call(_ hook: Hook, _ action: HookResult.Action) {
        let finished = runner.run(hook, action)
        results.append(finished.result)
        if let problem = finished.problem { problems.append(problem) }
    }
}
