internal import ControlSocket
internal import Glibc

/// How far a merge or an export is, in words: for the meters of the commands, for the status and for its watch.
struct ProgressText {
    private let progress: StopProgress

    init(_ progress: StopProgress) {
        self.progress = progress
    }

    /// 100 only when all is done.
    var percent: Int {
        if progress.bytesDone >= progress.bytesTotal { return 100 }
        return min(99, Int(Double(progress.bytesDone) / Double(progress.bytesTotal) * 100))
    }

    /// `12.0 MiB of 1.5 GiB (0 %)`
    var text: String {
        let (done, total) = (ByteSize(bytes: progress.bytesDone), ByteSize(bytes: progress.bytesTotal))
        return "\(done.text) of \(total.text) (\(percent) %)"
    }

    private static let barCharacters = 25

    /// One line of less than 80 columns; `what` is being done.
    func bar(_ what: String) -> String {
        let filled = String(repeating: "#", count: percent * Self.barCharacters / 100)
        return "\(what) [\(filled.padded(to: Self.barCharacters))] \(text)"
    }
}

/// Shows how far the merge of a stop is, on one line of a terminal.
final class ProgressMeter {
    private let isTerminal = isatty(STDERR_FILENO) == 1
    private var isShown = false

    func show(_ progress: StopProgress) {
        guard isTerminal, progress.bytesTotal > 0 else { return }
        StandardError.writeText("\r" + ProgressText(progress).bar("merging") + "\u{1b}[K")
        isShown = true
    }

    /// Wipes the line.
    func end() {
        if isShown { StandardError.writeText("\r\u{1b}[K") }
        isShown = false
    }
}
