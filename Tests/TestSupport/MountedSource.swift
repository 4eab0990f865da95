internal import CTestSupport
internal import Glibc
internal import SystemPackage

/// A source with a fusesnap mount over or beside it, driven by the real program as a child process.
package final class MountedSource: Sendable {
    package let top: Path
    package let source: Path
    /// The live view.
    package let mountpoint: Path
    package let daemon: Int32
    package let mode: Machine.Mode
    private let options: [String]
    private let connection: UInt64

    package var snapshot: Path { mountpoint / ".snapshot" }

    /// A test that hangs in the mount fails after this time: the daemon is killed. A campaign takes longer.
    private static let hangSeconds = environmentValue("FUSESNAP_TEST_HANG_SECONDS").flatMap { Double($0) } ?? 240.0

    private init(
        top: Path, source: Path, mountpoint: Path, mode: Machine.Mode, options: [String],
        descriptorsMax: Int? = nil
    ) throws {
        self.mode = mode
        self.options = options
        self.top = top
        self.source = source
        self.mountpoint = mountpoint
        let words =
            ["mount", "--mode", mode.rawValue] + Machine.mountOptions + options + [
                source.string, mountpoint.string,
            ]
        // The hard limit: the daemon raises the other.
        let limited = descriptorsMax.map { ["sh", "-c", "ulimit -n \($0) && exec \"$0\" \"$@\""] } ?? []
        try succeed(limited + [Machine.binary] + words, seconds: 30)
        guard try isMounted(mountpoint) else {
            throw TestFailure("mount exited with 0, and nothing is mounted on \(mountpoint)")
        }
        connection = try mountpoint.stat().device
        daemon = try Self.status(mountpoint).pid
    }

    /// Mounts a new source, calls `body`, unmounts and removes all, whatever `body` throws. `prepare` is called with
    /// the source before it is mounted. `descriptorsMax`: how many files the daemon may have open.
    package static func with<Result>(
        mode: Machine.Mode = Machine.mode, options: [String] = [], overItself: Bool = false,
        descriptorsMax: Int? = nil, prepare: (Path) throws -> Void = { _ in },
        _ body: (MountedSource) throws -> Result
    ) throws -> Result {
        try TemporaryDirectory.with { top in
            try (top / "source").mkdir()
            try (top / "mnt").mkdir()
            try prepare(top / "source")
            let mount = try MountedSource(
                top: top, source: top / "source", mountpoint: overItself ? top / "source" : top / "mnt",
                mode: mode, options: options, descriptorsMax: descriptorsMax)
            return try mount.serve(body)
        }
    }

    /// Kills the daemon, mounts the source again, and calls `body` with that mount, which is unmounted afterwards.
    package func killed<Result>(_ body: (MountedSource) throws -> Result) throws -> Result {
        kill(daemon, SIGKILL)
        try waitForEnd()
        try succeed([Machine.binary, "unmount", mountpoint.string])
        let again = try MountedSource(
            top: top, source: source, mountpoint: mountpoint, mode: mode, options: options)
        return try again.serve(body)
    }

    private func serve<Result>(_ body: (MountedSource) throws -> Result) throws -> Result {
        let isOver = Flag()
        let watchdog = try Worker { [self] in
            let end = ContinuousClock.now + .seconds(Self.hangSeconds)
            while !isOver.isSet {
                if ContinuousClock.now > end {
                    abort()
                    throw TestFailure("hung for \(Self.hangSeconds) s: the daemon was killed")
                }
                usleep(5000)
            }
        }
        do {
            let result = try body(self)
            if try isMounted(mountpoint), isAlive { try unmount() }
            isOver.set()
            try watchdog.join()
            if isAlive { throw TestFailure("the daemon \(daemon) lives on after unmount") }
            return result
        } catch {
            isOver.set()
            abort()
            try watchdog.join()
            throw error
        }
    }

    /// Kills the daemon; what waits for it in the kernel fails.
    private func abort() {
        if isAlive { kill(daemon, SIGKILL) }
        do {
            try abortConnection()
        } catch {
            // No such connection any more, or not ours: nothing waits for it.
        }
    }

    /// Ends the connection with the kernel, as an administrator may.
    package func abortConnection() throws {
        var directory = Path("/sys/fs/fuse/connections")
        if !(directory / Path("\(ts_minor(connection))")).exists {
            directory = top / "fusectl"
            try directory.mkdir()
            try succeed(["mount", "-t", "fusectl", "fusectl", directory.string])
        }
        try (directory / Path("\(ts_minor(connection))") / "abort").open(O_WRONLY).writeAll([UInt8(ascii: "1")])
    }

    package var isAlive: Bool { isRunning(daemon) }

    // MARK: The program's verbs

    package func control(_ words: String..., seconds: Double = 120) throws -> Finished {
        try run([Machine.binary, "ctl"] + words + [mountpoint.string], seconds: seconds)
    }

    private func require(_ finished: Finished) throws {
        if finished.code != 0 { throw TestFailure(finished.description) }
    }

    package func start() throws { try require(control("start")) }
    package func stop() throws { try require(control("stop")) }
    package func discard() throws { try require(control("stop", "--discard")) }
    package func status() throws -> MountStatus { try Self.status(mountpoint) }

    private static func status(_ mountpoint: Path) throws -> MountStatus {
        MountStatus(
            json: try succeed([Machine.binary, "ctl", "status", "--json", mountpoint.string], seconds: 30))
    }

    /// Ends a snapshot that is active, then unmounts; the daemon has ended afterwards.
    package func unmount() throws {
        if try status().state == "active" { try stop() }
        // Whoever looks at all processes' descriptors (another mount's start, lsof) holds them for a moment.
        var finished = try run([Machine.binary, "unmount", mountpoint.string], seconds: 60)
        for _ in 0..<20 where finished.code != 0 && finished.errors.contains("busy") {
            usleep(100_000)
            finished = try run([Machine.binary, "unmount", mountpoint.string], seconds: 60)
        }
        try require(finished)
        if try isMounted(mountpoint) { throw TestFailure("unmount exited with 0: \(mountpoint) is still mounted") }
        try waitForEnd()
    }

    package func waitForEnd() throws {
        try wait("the daemon's end") { !isAlive }
    }
}

/// Whether a process runs: a zombie does not, which stays where the first process collects no orphans.
package func isRunning(_ process: Int32) -> Bool {
    do {
        let text = String(decoding: try Path("/proc/\(process)/stat").contents(), as: UTF8.self)
        return !(text.split(separator: ")").last?.hasPrefix(" Z") ?? true)
    } catch {
        return false
    }
}

/// What `ctl status --json` says.
package struct MountStatus: Sendable {
    package let json: String

    package init(json: String) { self.json = json }

    package var pid: Int32 { Int32(number("pid")) }
    package var state: String { text("state") }
    package var deltaBytes: Int { number("delta_bytes") }
    package var changedAreas: Int { number("changed_areas") }

    package func has(_ field: String) -> Bool { value(field) != nil }

    package func text(_ field: String) -> String {
        value(field).map { String($0.drop { $0 == "\"" }.prefix { $0 != "\"" }) } ?? ""
    }

    package func number(_ field: String) -> Int { value(field).flatMap { Int($0) } ?? -1 }

    /// What follows a field's name, up to the next comma: no value in a status holds one.
    private func value(_ field: String) -> Substring? {
        let parts = json.split(separator: "\"\(field)\"", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2 else { return nil }
        return parts[1].drop { $0 == ":" || $0 == " " }.prefix { $0 != "," && $0 != "}" && $0 != "\n" }
    }
}
