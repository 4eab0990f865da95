internal import ControlSocket
internal import Glibc
internal import LinuxSystem

/// A status in words, for people.
struct StatusSummary {
    private let status: Status
    private let now: Double

    init(_ status: Status, now: Double = Instant.secondsNow) {
        self.status = status
        self.now = now
    }

    var text: String { Self.table(rows()) }

    /// The rows, with what `rates` says of the time since another status.
    func rows(_ rates: StatusRates? = nil) -> [(String, String)] {
        var rows = [("Mount point", status.mountpoint)]
        if status.source != status.mountpoint { rows.append(("Source", status.source)) }
        rows += [
            ("Store", status.store),
            ("Mode", "\(status.mode), io=\(status.io)" + (status.ioRequested == "auto" ? " (auto)" : "")),
            ("State", stateText),
        ]
        switch status.state {
        case .idle: break
        case .merging: rows += mergeRows(rates)
        case .active, .overflowed: rows += snapshotRows(rates)
        }
        if let stall = status.lastStallMicroseconds {
            rows.append(("Last stall", "\(stall / 1000).\(stall % 1000 / 100) ms"))
        }
        if let reason = status.inexactReason { rows.append(("Not exact", reason)) }
        rows.append(("Daemon", "process \(status.pid), version \(status.version)"))
        return rows
    }

    /// The state, and what it means.
    private var stateText: String {
        switch status.state {
        case .idle: "idle: no snapshot is active"
        case .active where status.inexactReason != nil: "active, but not exact any more"
        case .active: "active: the snapshot can be read"
        case .merging where status.mergeProblem != nil:
            "merging failed (\(status.mergeProblem ?? "")): nothing is lost; try again with `fusesnap ctl stop`"
        case .merging: "merging: what changed since the start is put in its place"
        case .overflowed: "overflowed: the snapshot cannot be read any more; end it with `fusesnap ctl stop`"
        }
    }

    /// When the snapshot began.
    private var startedRows: [(String, String)] {
        guard let started = status.started else { return [] }
        let age = Instant.seconds(started).map { " (\(Instant.span(now - $0)) ago)" } ?? ""
        return [("Started", started + age)]
    }

    /// Of a snapshot that ends: it cannot be read any more.
    private func mergeRows(_ rates: StatusRates?) -> [(String, String)] {
        var rows = startedRows
        if let merge = status.merge {
            rows.append(("Merged", ProgressText(merge).text + rate(rates?.mergedBytes, isBytes: true)))
        }
        rows.append(("Delta", deltaText))
        return rows
    }

    private func snapshotRows(_ rates: StatusRates?) -> [(String, String)] {
        var rows: [(String, String)] = []
        if let directory = status.snapshotDirectory { rows.append(("Snapshot", directory)) }
        rows += startedRows
        if let whose = ScopeOptions.text(users: status.users, groups: status.groups) {
            rows.append(("Only", whose))
        }
        if let lease = status.lease { rows.append(("Lease", lease.text(now: now))) }
        rows.append(("Delta", deltaText + rate(rates?.deltaBytes, isBytes: true)))
        rows.append(("Changed areas", "\(status.changedAreas)" + rate(rates?.changedAreas, isBytes: false)))
        rows.append(
            (
                "Snapshot read",
                ByteSize(bytes: status.snapshotBytesRead).text + rate(rates?.snapshotBytesRead, isBytes: true)
            ))
        if let released = status.releasedBytes {
            rows.append(
                ("Released", "\(ByteSize(bytes: released).text) read, and not kept any more (single pass)"))
        }
        if status.sourceWatched == false {
            rows.append(("Not watched", "changes of the source past the mount are not seen"))
        }
        return rows
    }

    private var deltaText: String {
        let stored = ByteSize(bytes: status.deltaBytes).text
        guard let most = status.deltaBytesMax, most > 0 else { return stored }
        let percent = min(100, Int(Double(status.deltaBytes) / Double(most) * 100))
        return "\(stored) of \(ByteSize(bytes: most).text) (\(percent) %)"
    }

    private func rate(_ perSecond: Double?, isBytes: Bool) -> String {
        guard let perSecond else { return "" }
        let amount = isBytes ? ByteSize(bytes: UInt64(max(0, perSecond))).text : "\(Int(perSecond))"
        return "  (+\(amount)/s)"
    }

    static func table(_ rows: [(String, String)]) -> String {
        let width = (rows.map(\.0.count).max() ?? 0) + 2
        return rows.map { "\($0.0):".padded(to: width) + $0.1 }.joined(separator: "\n")
    }
}

extension Status.Lease {
    /// What ends the snapshot by itself.
    func text(now: Double = Instant.secondsNow) -> String {
        var ends: [String] = []
        if let process {
            ends.append("with " + ProcessIdentity.describe(process, command))
        } else if connection == true {
            ends.append("with the `fusesnap run` that began it")
        }
        if let expires {
            let rest = Instant.seconds(expires).map { " (in \(Instant.span($0 - now)))" } ?? ""
            ends.append("at \(expires)" + rest)
        }
        return "ends " + ends.joined(separator: ", or ")
    }
}

/// Why a snapshot cannot be started while another is active.
enum ActiveAlready {
    /// Where that ends by itself, a backup may be reading it.
    static func text(since started: String?, _ lease: Status.Lease?, _ mountpoint: String) -> String {
        let since = started.map { ", since \($0)" } ?? ""
        let advice = lease.map { ", and \($0.text()): wait for that, or end it now with" } ?? "; end it with"
        return "one is active already\(since)\(advice) `fusesnap ctl stop \(mountpoint)`"
    }
}

/// How fast what a status counts grows.
struct StatusRates {
    let deltaBytes: Double
    let changedAreas: Double
    let snapshotBytesRead: Double
    /// nil where no merge went on.
    let mergedBytes: Double?

    /// From one status to a later one of the same snapshot; nil where they are of different ones.
    init?(from old: Status, to new: Status, after elapsed: Duration) {
        let seconds = elapsed / .seconds(1)
        guard new.started != nil, old.started == new.started, seconds > 0 else { return nil }
        func rate(_ field: KeyPath<Status, UInt64>) -> Double {
            max(0, Double(new[keyPath: field]) - Double(old[keyPath: field])) / seconds
        }
        deltaBytes = rate(\.deltaBytes)
        changedAreas = rate(\.changedAreas)
        snapshotBytesRead = rate(\.snapshotBytesRead)
        mergedBytes =
            if let before = old.merge, let after = new.merge {
                max(0, Double(after.bytesDone) - Double(before.bytesDone)) / seconds
            } else {
                nil
            }
    }
}

/// Points in time as reports write them.
enum Instant {
    static var secondsNow: Double {
        let now = Timestamp.current
        return Double(now.seconds) + Double(now.nanoseconds) / 1e9
    }

    static var textNow: String { Timestamp.current.rfc3339 }

    /// Seconds since 1970 of an RFC 3339 instant in UTC, as the daemon writes it.
    static func seconds(_ text: String) -> Double? {
        var parts = tm()
        // What strptime(3) returns points into the text.
        let tail = text.withCString { strptime($0, "%Y-%m-%dT%H:%M:%S", &parts).map { String(cString: $0) } }
        guard let tail, tail.hasSuffix("Z") else { return nil }
        let fraction = tail.dropLast()
        guard fraction.isEmpty || fraction.hasPrefix("."), let part = Double("0\(fraction)") else { return nil }
        return Double(timegm(&parts)) + part
    }

    /// A length of time in its two largest units.
    static func span(_ seconds: Double) -> String {
        let whole = Int(max(0, seconds))
        return switch whole {
        case ..<60: "\(whole) s"
        case ..<3600: "\(whole / 60) min \(whole % 60) s"
        case ..<86_400: "\(whole / 3600) h \(whole % 3600 / 60) min"
        default: "\(whole / 86_400) d \(whole % 86_400 / 3600) h"
        }
    }
}
