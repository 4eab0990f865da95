package import LinuxSystem

// What `FusesnapReader` asks of a daemon. `Docs/Control.md` is its description.

package struct ReaderOptions: Codable, Sendable, Equatable {
    /// Whether only the report is wanted, to see what became of the snapshot, and no descriptors.
    package var looks: Bool?

    package init(looks: Bool? = nil) {
        self.looks = looks
    }
}

/// A snapshot, and whether it can be read from source and store. Then two descriptors come with it: of the source's root, and
/// of the directory that holds the journal and delta files.
package struct ReaderReport: Codable, Sendable, Equatable {
    package struct Time: Codable, Sendable, Equatable {
        package var seconds: Int64
        package var nanoseconds: UInt32

        package init(_ time: Timestamp) {
            seconds = time.seconds
            nanoseconds = time.nanoseconds
        }

        package var timestamp: Timestamp { Timestamp(seconds: seconds, nanoseconds: nanoseconds) }
    }

    package struct Inode: Codable, Sendable, Equatable {
        package var inode: UInt64
        package var birth: Int64

        package init(inode: UInt64, birth: Int64) {
            self.inode = inode
            self.birth = birth
        }
    }

    /// From when to when nobody recorded changes, and whether some are known: of a snapshot that was taken up after a kill.
    package struct Absence: Codable, Sendable, Equatable {
        package var cut: Time
        package var end: Time

        package init(cut: Time, end: Time) {
            self.cut = cut
            self.end = end
        }
    }

    /// The number of the snapshot among those of this daemon.
    package var snapshot: UInt64
    package var mode: String
    package var cut: Time
    /// Why it is not exact any more; nil where it is.
    package var inexactReason: String?
    /// Where `.snapshot` is.
    package var snapshotDirectory: String
    /// Why it can only be read through the mount; nil where it can be read directly.
    package var whyNotDirect: String?
    /// Of the directory with the journal, for messages.
    package var directory: String?
    /// What the mount does not show.
    package var hidden: [Inode]?
    package var absence: Absence?

    package init(snapshot: UInt64, mode: String, cut: Time, inexactReason: String?, snapshotDirectory: String) {
        self.snapshot = snapshot
        self.mode = mode
        self.cut = cut
        self.inexactReason = inexactReason
        self.snapshotDirectory = snapshotDirectory
    }

    package var isDirect: Bool { whyNotDirect == nil }

    mutating func refuse(_ why: String) {
        if whyNotDirect == nil { whyNotDirect = why }
        (hidden, absence, directory) = (nil, nil, nil)
    }

    enum CodingKeys: String, CodingKey {
        case snapshot, mode, cut, directory, hidden, absence
        case inexactReason = "inexact_reason"
        case snapshotDirectory = "snapshot_directory"
        case whyNotDirect = "why_not_direct"
    }
}

/// What a daemon gives to who reads a snapshot directly.
package struct ReaderAccess: Sendable {
    package var report: ReaderReport
    package var descriptors: [Descriptor]

    package init(_ report: ReaderReport, _ descriptors: [Descriptor]) {
        self.report = report
        self.descriptors = descriptors
    }
}
