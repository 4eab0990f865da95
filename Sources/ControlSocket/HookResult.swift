/// What became of one call of a hook.
package struct HookResult: Codable, Sendable, Equatable {
    package enum Action: String, Codable, Sendable {
        case freeze, thaw
    }

    /// Who named the hook.
    package enum Origin: String, Codable, Sendable {
        /// The directory of hooks.
        case directory
        /// --hook of `ctl start` or `run`.
        case command
        /// --hook of `mount`: run by the daemon.
        case mount
    }

    package enum Outcome: String, Codable, Sendable {
        case succeeded
        /// It exited with another code than 0, or was killed by somebody.
        case failed
        /// It took too long and was killed.
        case timedOut = "timed_out"
        /// A signal to fusesnap ended it.
        case interrupted
        /// It could not be run.
        case notRun = "not_run"
    }

    /// The file's name, without its directory.
    package var name: String
    package var origin: Origin
    package var action: Action
    package var outcome: Outcome
    package var exitCode: Int32?
    /// The signal that ended it.
    package var signal: Int32?
    package var durationMicroseconds: Int

    package init(
        name: String, origin: Origin, action: Action, outcome: Outcome, exitCode: Int32? = nil,
        signal: Int32? = nil, durationMicroseconds: Int
    ) {
        self.name = name
        self.origin = origin
        self.action = action
        self.outcome = outcome
        self.exitCode = exitCode
        self.signal = signal
        self.durationMicroseconds = durationMicroseconds
    }

    enum CodingKeys: String, CodingKey {
        case name, origin, action, outcome, signal
        case exitCode = "exit_code"
        case durationMicroseconds = "duration_microseconds"
    }

    /// What the results amount to: hooks were run, each froze and thawed, and none failed.
    package static func level(_ results: [HookResult]) -> StopReport.Level {
        let freezes = results.count { $0.action == .freeze }
        let areWhole = freezes > 0 && freezes * 2 == results.count
        return areWhole && results.allSatisfy { $0.outcome == .succeeded } ? .application : .crash
    }
}

/// What the client tells after a start: all results of the hooks that it ran.
package struct HooksOptions: Codable, Sendable, Equatable {
    package var snapshot: UInt64
    package var hooks: [HookResult]

    package init(snapshot: UInt64, hooks: [HookResult]) {
        self.snapshot = snapshot
        self.hooks = hooks
    }
}

struct HooksReport: Codable {
    var noted = true
}
