import ControlSocket
import Glibc

/// The start of a snapshot, as `ctl start` and `run` make it: the caller's hooks, as the caller, around the daemon's
/// start. Where it throws, no snapshot is left, and every hook that froze has been told to thaw.
struct SnapshotStart {
    let target: MountTarget
    let hooks: [Hook]
    let hookOptions: HookOptions
    let signals: SignalReceiver
    var options: StartOptions

    init(
        _ target: MountTarget, _ stall: StallOptions, _ hookOptions: HookOptions, _ signals: SignalReceiver
    ) throws(CommandFailure) {
        self.target = target
        self.signals = signals
        self.hookOptions = hookOptions
        hooks = try hookOptions.resolve()
        options = StartOptions(stallMaxMilliseconds: stall.stallMax, attemptsMax: stall.attempts)
        options.hookTimeoutSeconds = hookOptions.hookTimeout
        options.ignoresHookFailures = hookOptions.ignoresFailures
    }

    private var attempt: String { "cannot start a snapshot of \(target.path)" }

    /// Starts it over `client`, whose connection may hold it then.
    func start(_ client: inout ControlClient) throws(CommandFailure) -> StartReport {
        try refuseWhereActive(&client)
        var session = HookSession(
            hooks, mountpoint: target.mountpoint, timeout: .seconds(hookOptions.hookTimeout), signals: signals,
            ignoresFailures: hookOptions.ignoresFailures)
        session.freeze()
        if session.hasFailed {
            session.thaw()
            throw CommandFailure("\(attempt): " + session.message)
        }
        var report: StartReport
        do throws(CommandFailure) {
            report = try request(&client, session.results)
        } catch {
            session.thaw()
            for problem in session.problems { StandardError.write("warning: \(problem)") }
            throw error
        }
        session.thaw()
        do throws(CommandFailure) {
            try finish(&client, &report, session)
        } catch {
            end(&client, report)
            throw error
        }
        return report
    }

    private func refuseWhereActive(_ client: inout ControlClient) throws(CommandFailure) {
        // The daemon would refuse too, but an application should not be frozen for that. With a hook that takes long
        // the connection would be closed as idle; so the start is asked for over a new one.
        if hooks.isEmpty { return }
        let status: Status
        do throws(ControlClientError) {
            status = try client.status()
        } catch {
            // To an ordinary user the daemon of root's mount tells nothing but their own.
            if case .failure(let failure) = error, failure.code == .notActive { return }
            throw target.failure(attempt, error)
        }
        if status.state == .idle { return }
        throw CommandFailure(
            "\(attempt): " + ActiveAlready.text(since: status.started, status.lease, target.path))
    }

    private func request(
        _ client: inout ControlClient, _ results: [HookResult]
    ) throws(CommandFailure) -> StartReport {
        do throws(ControlClientError) {
            if !hooks.isEmpty { client = try target.connect() }
            var options = options
            options.hooks = results
            return try client.start(options)
        } catch {
            throw target.failure(attempt, error)
        }
    }

    private func finish(
        _ client: inout ControlClient, _ report: inout StartReport, _ session: HookSession
    ) throws(CommandFailure) {
        if session.hasFailed {
            throw CommandFailure("\(attempt): " + session.message)
        }
        for problem in session.problems { StandardError.write("warning: \(problem)") }
        if signals.isPending { throw CommandFailure("\(attempt): a signal came; the snapshot has been ended") }
        guard let snapshot = report.snapshot, !session.results.isEmpty else { return }
        do throws(ControlClientError) {
            // Thawing may have taken longer than the daemon waits for a request.
            if options.leaseConnection != true { client = try target.connect() }
            try client.report(HooksOptions(snapshot: snapshot, hooks: session.results))
        } catch {
            throw target.failure(attempt, error)
        }
        let all = session.results
        let (freezes, thaws) = (all.filter { $0.action == .freeze }, all.filter { $0.action == .thaw })
        report.hooks = freezes + (report.hooks ?? []) + thaws
    }

    /// Ends a snapshot that nobody will use. Its lease, if it has one, does so where this fails.
    func end(_ client: inout ControlClient, _ report: StartReport) {
        do throws(ControlClientError) {
            if options.leaseConnection != true { client = try target.connect() }
            _ = try client.stop(StopOptions(snapshot: report.snapshot)) { _ in }
        } catch {
            if case .failure(let failure) = error, failure.code == .notActive { return }
            let problem = target.failure("cannot end the snapshot of \(target.path)", error)
            StandardError.write(problem.message)
        }
    }
}
