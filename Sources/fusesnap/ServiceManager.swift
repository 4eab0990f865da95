import CLinux
import Glibc
import LinuxSystem
import Synchronization
import SystemPackage

/// Tells the service manager how the daemon is: the protocol of sd_notify(3), datagrams to the socket that
/// $NOTIFY_SOCKET names. Any thread may call it; where there is no such socket, nothing is told.
final class ServiceManager: Sendable {
    static let standard = ServiceManager()

    private let address: String?
    /// Whether a failure has been logged: the rest would fail in the same way.
    private let hasFailed = Atomic<Bool>(false)

    /// Takes the variable out of the environment, since what the daemon starts must not speak in its name. So it is
    /// made first while there is one thread (`adopt`).
    private init() {
        address = getenv("NOTIFY_SOCKET").map { String(cString: $0) }
        unsetenv("NOTIFY_SOCKET")
    }

    /// To be called by the daemon before it makes a thread.
    static func adopt() {
        _ = standard
    }

    /// Sends assignments, one a line.
    func tell(_ assignments: String) {
        guard let address else { return }
        if cl_send_datagram(address, assignments, assignments.utf8.count) == 0 { return }
        let error = currentErrno()
        if hasFailed.exchange(true, ordering: .relaxed) { return }
        Log.standard.warning("the service manager at \(address) cannot be told how the daemon is: \(error)")
    }

    /// The mount answers. The daemon's process is told too: in the background it is not the one that was started.
    func tellReady(mountpoint: String, source: String) {
        tell("READY=1\nMAINPID=\(getpid())\nSTATUS=\(Self.idle(mountpoint, source))")
    }

    /// What the daemon is doing, for `systemctl status`.
    func tellIdle(mountpoint: String, source: String) {
        tell("STATUS=\(Self.idle(mountpoint, source))")
    }

    func tellActive(since cut: String) {
        tell("STATUS=A snapshot is active since \(cut)")
    }

    private static func idle(_ mountpoint: String, _ source: String) -> String {
        let text = mountpoint == source ? "Serving \(mountpoint)" : "Serving \(source) at \(mountpoint)"
        return text.onOneLine
    }
}
