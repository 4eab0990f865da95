internal import LinuxSystem
internal import SnapshotRecord
internal import SystemPackage

/// What a snapshot was asked to be, other than of everybody's files, all kept until the stop.
///
/// In redirect the layer's directory keeps it as a text, so that a daemon that takes the snapshot up knows it too.
package struct SnapshotTerms: Sendable, Equatable {
    /// Whose files it is of; nil: everybody's.
    package var scope: SnapshotScope?
    /// Whether the backup reads every file once, so that what it has read need not be kept.
    package var isSinglePass: Bool
    /// The ordinary user who began it, and may end it; nil: who controls the mount.
    package var requester: UInt32?

    package init(scope: SnapshotScope? = nil, isSinglePass: Bool = false, requester: UInt32? = nil) {
        self.scope = scope
        self.isSinglePass = isSinglePass
        self.requester = requester
    }

    /// Whether some changes go straight to the source in redirect: then they cannot be thrown away with the rest.
    package var changesSource: Bool { scope != nil || isSinglePass }

    // MARK: As a text

    private static let begin = "fusesnap terms 1"
    private static let end = "end"

    /// A line each, with the last to tell that it is whole.
    package var text: String {
        var lines = [Self.begin]
        if let scope {
            lines += scope.users.sorted().map { "user \($0)" } + scope.groups.sorted().map { "group \($0)" }
        }
        if isSinglePass { lines.append("single-pass") }
        if let requester { lines.append("by \(requester)") }
        return (lines + [Self.end]).joined(separator: "\n") + "\n"
    }

    /// nil where it is not whole, or says what this version does not know.
    package init?(text: String) {
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        guard lines.first == Self.begin[...], lines.suffix(2) == [Self.end[...], ""] else { return nil }
        var (users, groups): (Set<UInt32>, Set<UInt32>) = ([], [])
        isSinglePass = false
        for line in lines.dropFirst().dropLast(2) {
            let words = line.split(separator: " ")
            switch (words.first, words.count == 2 ? UInt32(words[1]) : nil) {
            case ("user", let number?): users.insert(number)
            case ("group", let number?): groups.insert(number)
            case ("by", let number?): requester = number
            case ("single-pass", nil) where words.count == 1: isSinglePass = true
            default: return nil
            }
        }
        scope = users.isEmpty && groups.isEmpty ? nil : SnapshotScope(users: users, groups: groups)
    }

    /// Keeps them in the directory of a layer, durably; nothing where there are none.
    func keep(in directory: Descriptor) throws(Errno) {
        if changesSource { try KeptFiles.noteTerms(text, in: directory) }
    }
}
