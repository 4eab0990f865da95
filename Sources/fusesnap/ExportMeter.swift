internal import ControlSocket
internal import FusesnapReader
internal import Glibc
internal import LinuxSystem
internal import Synchronization
internal import SystemPackage

/// Shows on a terminal how far an export is: against all that there is, once that has been counted, which a thread does
/// meanwhile. Of one thread, but for that one.
final class ExportMeter: Sendable {
    private let isTerminal = isatty(STDERR_FILENO) == 1
    private let bytes = Atomic<UInt64>(0)
    private let files = Atomic<UInt64>(0)
    /// 0 while it is not known.
    private let bytesTotal = Atomic<UInt64>(0)
    private let isOver = Atomic<Bool>(false)
    private let lastShown = Mutex<ContinuousClock.Instant?>(nil)

    private static let interval = Duration.milliseconds(200)

    private struct Over: Error {}

    init(_ reader: SnapshotReader) {
        guard isTerminal else { return }
        do throws(Errno) {
            try LinuxSystem.Thread.start { [self] in
                var sum: UInt64 = 0
                do {
                    try reader.root().visit { node in
                        if isOver.load(ordering: .relaxed) { throw Over() }
                        if node.kind == .file { sum += UInt64(clamping: try node.attributes().size) }
                    }
                    bytesTotal.store(sum, ordering: .relaxed)
                } catch {
                    // The export meets the same, and tells it; or it is over.
                }
            }
        } catch {
            // Then it is shown how much has been done, and not of how much.
        }
    }

    func count(bytes: Int, files: Int) {
        self.bytes.add(UInt64(bytes), ordering: .relaxed)
        self.files.add(UInt64(files), ordering: .relaxed)
        if isTerminal { show() }
    }

    private func show() {
        let now = ContinuousClock.now
        let isDue = lastShown.withLock { last in
            if let last, now - last < Self.interval { return false }
            last = now
            return true
        }
        if isDue { StandardError.writeText("\r\(text)\u{1b}[K") }
    }

    private var text: String {
        let (done, total) = (bytes.load(ordering: .relaxed), bytesTotal.load(ordering: .relaxed))
        if total >= max(done, 1) {
            return ProgressText(StopProgress(bytesDone: done, bytesTotal: total)).bar("exporting")
        }
        return "exporting: \(files.load(ordering: .relaxed)) files, \(ByteSize(bytes: done).text)"
    }

    /// Wipes the line.
    func end() {
        if isOver.exchange(true, ordering: .relaxed) { return }
        if lastShown.withLock({ $0 != nil }) { StandardError.writeText("\r\u{1b}[K") }
    }
}
