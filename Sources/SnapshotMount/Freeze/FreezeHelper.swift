internal import Glibc
package import LinuxSystem
package import SystemPackage

/// Starts the freeze helper (`FreezeHelperProcess`): a process that has `socket` and is told the directory's name.
package protocol FreezeHelperLauncher: Sendable {
    /// Returns the process's number.
    func launch(_ socket: Descriptor, _ name: FileName) throws(Errno) -> Int32
}

/// The freeze helper, as the daemon sees it.
///
/// `monitor` guards what a reading thread learns from it. The thread ends, and reaps the process, when the helper has
/// gone; the helper goes when `end` shuts the socket down, and `kill` sees to it that it does.
final class FreezeHelper: @unchecked Sendable {
    let process: Int32
    private let socket: Descriptor
    private let monitor = Monitor()
    private var failures: [UInt64: Errno] = [:]
    private var opened = 0
    private var gone = false
    private let didChange: @Sendable () -> Void

    /// `didChange` is called when a file failed, a round is over, or the helper has gone.
    init(
        _ launcher: some FreezeHelperLauncher, name: FileName, didChange: @escaping @Sendable () -> Void
    ) throws(Errno) {
        var ends: [Int32] = [-1, -1]
        try SpareDescriptors.checked { socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | O_CLOEXEC, 0, &ends) }
        socket = Descriptor(owning: ends[0])
        self.didChange = didChange
        process = try launcher.launch(Descriptor(owning: ends[1]), name)
        do throws(Errno) {
            try Thread.start { [self] in listen() }
        } catch {
            reap()
            throw error
        }
    }

    private func listen() {
        while let frame = FreezeFrame.receive(from: socket) {
            monitor.withLock {
                switch frame.kind {
                case .node: failures[frame.node] = Errno(rawValue: frame.error)
                case .opened: opened += 1
                case .synchronize: break
                }
                monitor.wake()
            }
            didChange()
        }
        // It has gone, or says what is no frame.
        reap()
        monitor.withLock {
            gone = true
            monitor.wake()
        }
        didChange()
    }

    private func reap() {
        Glibc.kill(process, SIGKILL)
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 && errno == EINTR {}
    }

    var isGone: Bool { monitor.withLock { gone } }

    /// The files that could not be opened or synchronised, and why; reading them forgets them.
    func takeFailures() -> [UInt64: Errno] {
        monitor.withLock {
            defer { failures = [:] }
            return failures
        }
    }

    func hasFailure(of nodes: Set<UInt64>) -> Bool {
        monitor.withLock { failures.contains { nodes.contains($0.key) } }
    }

    /// Has the helper open `nodes`; returns when it has: false where it has not at `deadline`, or has gone.
    func open(_ nodes: Set<UInt64>, until deadline: ContinuousClock.Instant) -> Bool {
        var frames = nodes.map { FreezeFrame(kind: .node, node: $0) }
        frames.append(FreezeFrame(kind: .opened))
        let before = monitor.withLock { opened }
        guard isSent(frames) else { return false }
        return monitor.withLock {
            while opened == before, !gone, monitor.wait(until: deadline) {}
            return opened != before
        }
    }

    /// Has the helper synchronise all that it has opened.
    func synchronize() -> Bool {
        isSent([FreezeFrame(kind: .synchronize)])
    }

    private func isSent(_ frames: [FreezeFrame]) -> Bool {
        do throws(Errno) {
            try FreezeFrame.send(frames, to: socket)
            return true
        } catch {
            return false  // It has gone.
        }
    }

    /// Lets the helper end by itself, closing what it has open.
    func end() {
        shutdown(socket.raw, Int32(SHUT_WR))
    }

    func kill() {
        if !isGone { Glibc.kill(process, SIGKILL) }
    }

    /// Waits until the process has ended; false where that is not so at `deadline`.
    @discardableResult
    func waitForEnd(until deadline: ContinuousClock.Instant) -> Bool {
        monitor.withLock {
            while !gone, monitor.wait(until: deadline) {}
            return gone
        }
    }
}
