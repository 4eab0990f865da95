internal import CLinux
internal import ControlSocket
internal import Glibc
internal import Synchronization

/// Set by a signal handler.
private let isInterrupted = Atomic<Bool>(false)

/// `ctl status --watch`: tells the status again and again, until Ctrl-C or until the mount goes.
struct StatusWatch {
    private let target: MountTarget
    private let interval: Duration
    private let isJSON: Bool
    private let isTerminal: Bool
    private var linesDrawn = 0

    /// How long an unmount may take from when its daemon does not answer any more.
    private static let unmountTimeout = Duration.seconds(10)

    init(_ target: MountTarget, interval: Duration, isJSON: Bool) {
        self.target = target
        self.interval = interval
        self.isJSON = isJSON
        isTerminal = !isJSON && isatty(STDOUT_FILENO) == 1
    }

    mutating func run() throws {
        let interruption = Interruption()
        var last: (status: Status, at: ContinuousClock.Instant)?
        while true {
            guard let status = try currentStatus() else {
                if !isJSON { try StandardOutput.writeLine("\(target.path) is unmounted") }
                return
            }
            let now = ContinuousClock.now
            let rates = last.flatMap { StatusRates(from: $0.status, to: status, after: now - $0.at) }
            try show(status, rates)
            last = (status, now)
            if try interruption.wait(until: now + interval, or: { try !isMounted }) { return }
        }
    }

    private var isMounted: Bool {
        get throws(CommandFailure) { try MountTable.current().mount(at: target.mountpoint)?.isFusesnap == true }
    }

    /// nil where the mount has gone.
    private func currentStatus() throws(CommandFailure) -> Status? {
        guard try isMounted else { return nil }
        do throws(CommandFailure) {
            return try ControlStatus.status(of: target)
        } catch {
            // The daemon of a mount that is being unmounted answers no more.
            if try MountTable.waitUntilUnmounted(target.mountpoint, within: Self.unmountTimeout) { return nil }
            throw error
        }
    }

    private mutating func show(_ status: Status, _ rates: StatusRates?) throws(CommandFailure) {
        if isJSON { return try StandardOutput.writeLine(status.jsonLine) }
        if !isTerminal { return try StandardOutput.writeLine(Self.line(status, rates)) }
        let size = Self.terminalSize
        let rows = StatusSummary(status).rows(rates).prefix(max(1, size.rows - 1))
        let text = rows.map { ($0.0, Self.cut($0.1, size.columns)) }
        var output = linesDrawn > 0 ? "\u{1b}[\(linesDrawn)A" : ""
        // Each line is wiped behind its end, and what was below them before.
        for line in StatusSummary.table(text).split(separator: "\n") { output += line + "\u{1b}[K\n" }
        try StandardOutput.write((output + "\u{1b}[J").utf8)
        linesDrawn = text.count
    }

    /// Without bounds where the terminal does not tell.
    private static var terminalSize: (rows: Int, columns: Int) {
        var size = winsize()
        guard ioctl(STDOUT_FILENO, UInt(TIOCGWINSZ), &size) == 0 else { return (.max, .max) }
        return (size.ws_row > 0 ? Int(size.ws_row) : .max, size.ws_col > 0 ? Int(size.ws_col) : .max)
    }

    /// Shortened to what fits on a line: what wraps, or scrolls, could not be drawn over.
    private static func cut(_ text: String, _ columns: Int) -> String {
        let room = max(8, columns - 17)
        return text.count <= room ? text : text.prefix(room - 1) + "…"
    }

    /// What changes, on one line.
    static func line(_ status: Status, _ rates: StatusRates?) -> String {
        let state = status.state.rawValue + (status.inexactReason == nil ? "" : " (not exact)")
        guard status.state != .idle else { return "\(Instant.textNow)  \(state)" }
        func bytes(_ number: UInt64, _ rate: Double?) -> String {
            ByteSize(bytes: number).text + (rate.map { " (+\(ByteSize(bytes: UInt64($0)).text)/s)" } ?? "")
        }
        if let merge = status.merge {
            let rate = rates?.mergedBytes.map { " (+\(ByteSize(bytes: UInt64($0)).text)/s)" } ?? ""
            return "\(Instant.textNow)  \(state)  \(ProgressText(merge).text)\(rate)"
        }
        let areas = "\(status.changedAreas)" + (rates.map { " (+\(Int($0.changedAreas))/s)" } ?? "")
        return "\(Instant.textNow)  \(state)  delta \(bytes(status.deltaBytes, rates?.deltaBytes))"
            + "  changed areas \(areas)  read \(bytes(status.snapshotBytesRead, rates?.snapshotBytesRead))"
    }
}

/// SIGINT, SIGTERM and SIGHUP as an end that is in order.
private struct Interruption {
    private let before: sigset_t

    /// Blocks the signals outside of `wait`.
    init() {
        var signals = sigset_t()
        var before = sigset_t()
        sigemptyset(&signals)
        for number in [SIGINT, SIGTERM, SIGHUP] {
            signal(number) { _ in isInterrupted.store(true, ordering: .sequentiallyConsistent) }
            sigaddset(&signals, number)
        }
        pthread_sigmask(SIG_BLOCK, &signals, &before)
        for number in [SIGINT, SIGTERM, SIGHUP] { sigdelset(&before, number) }
        self.before = before
    }

    /// Waits until a point in time, or until `isOver`, which is asked whenever the mounts change; whether a signal came.
    func wait(until end: ContinuousClock.Instant, or isOver: () throws -> Bool) throws -> Bool {
        let table = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC)
        defer { if table >= 0 { close(table) } }
        var mask = before
        while try !isOver() {
            let left = (end - ContinuousClock.now).components
            if left.seconds < 0 || left.attoseconds < 0 { return false }
            var time = timespec(tv_sec: Int(left.seconds), tv_nsec: Int(left.attoseconds / 1_000_000_000))
            // POLLPRI comes with each change of the table.
            var entry = pollfd(fd: table, events: Int16(POLLPRI), revents: 0)
            _ = ppoll(&entry, 1, &time, &mask)
            if isInterrupted.load(ordering: .sequentiallyConsistent) { return true }
        }
        return false
    }
}
