package import SystemPackage

/// Why what a journal says cannot be used, in words for people.
package enum RecordError: Error, Sendable, Equatable {
    /// The file does not begin with a whole head. After a power cut that is a journal of which nothing was promised.
    case noHead(file: String)
    case damaged(file: String, offset: UInt64, problem: String)
    /// What a journal speaks of is not there, or not all of it.
    case incomplete(file: String, problem: String)
    /// Of a later version of the format, or with something in it that this version does not know.
    case newer(file: String, version: UInt32)
    case system(Errno, action: String, path: String)
}

extension RecordError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .noHead(let file):
            """
            \(file) is not a journal, or its beginning is damaged: what it said of the snapshot is lost. Look for \
            errors of the disk; if there is a copy of the file, put it back. Otherwise move the file away: then the \
            snapshot is discarded, and in redirect mode what was changed since it began
            """
        case .damaged(let file, let offset, let problem):
            """
            \(file) is damaged at byte \(offset): \(problem). Look for errors of the disk; if there is a copy of the \
            file, put it back. Otherwise move the file away: then the snapshot is discarded, and in redirect mode what \
            was changed since it began
            """
        case .incomplete(let file, let problem):
            """
            \(file) \(problem): the journal of the snapshot says that it was. Look for errors of the disk; if there is a \
            copy of the file, put it back. Nothing has been changed
            """
        case .newer(let file, let version):
            """
            \(file) was written by a later fusesnap (it says version \(version) of the format, this one knows \
            version \(JournalFormat.version) and what it had then). Use that fusesnap to finish or discard the snapshot
            """
        case .system(let error, let action, let path):
            "cannot \(action) \(path): \(error)"
        }
    }
}
