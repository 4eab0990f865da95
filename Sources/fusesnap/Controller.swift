import ControlSocket
import Glibc
import LinuxSystem
import SnapshotMount
import SystemPackage

/// Carries out what comes over the control socket.
final class Controller: SnapshotController {
    private let configuration: DaemonConfiguration
    let lifecycle: SnapshotLifecycle
    private let storePath: String

    init(_ configuration: DaemonConfiguration, _ lifecycle: SnapshotLifecycle, store: String) {
        self.configuration = configuration
        self.lifecycle = lifecycle
        storePath = store
    }

    private var mountpoint: String { configuration.mountpoint }

    func start(_ options: StartOptions) throws(ControlFailure) -> StartReport {
        var limits = Freezer.Limits()
        if let milliseconds = options.stallMaxMilliseconds {
            limits.stallMax = .milliseconds(milliseconds)
        }
        if let attempts = options.attemptsMax { limits.attemptsMax = attempts }
        do throws(SnapshotLifecycle.StartFailure) {
            let started = try lifecycle.start(limits)
            ServiceManager.standard.tellActive(since: started.cut.rfc3339)
            return StartReport(
                started: started.cut.rfc3339, stallMicroseconds: started.freeze.stall.microseconds,
                attempts: started.freeze.attempts, filesFrozen: started.freeze.files,
                snapshotDirectory: configuration.snapshotPath)
        } catch {
            throw failure(error, limits)
        }
    }

    private func failure(
        _ failure: SnapshotLifecycle.StartFailure, _ limits: Freezer.Limits
    ) -> ControlFailure {
        switch failure {
        case .isActive:
            let since = lifecycle.summary.map { ", since \($0.cut.rfc3339)" } ?? ""
            return ControlFailure(
                .alreadyActive,
                "one is active already\(since); end it with `fusesnap ctl stop \(mountpoint)`")
        case .store(let error):
            return ControlFailure(.failed, "making its place in the store \(storePath): \(error)")
        case .freeze(let obstacle):
            let message = FreezeMessage(mountpoint: mountpoint, limits: limits)
            return ControlFailure(.notFrozen, message.text(obstacle))
        }
    }

    func stop(
        _ options: StopOptions, progress: @escaping @Sendable (StopProgress) -> Void
    ) throws(ControlFailure) -> StopReport {
        if options.discard {
            throw ControlFailure(
                .badRequest,
                "--discard is for mounts in redirect mode; this one preserves, and its live files are"
                    + " never set back")
        }
        do throws(Errno) {
            let summary = try lifecycle.stop()
            ServiceManager.standard.tellIdle(mountpoint: mountpoint, source: configuration.source)
            return StopReport(
                exact: summary.inexactReason == nil, reason: summary.inexactReason,
                deltaBytes: summary.deltaBytes, changedAreas: summary.changedAreas)
        } catch {
            if error == .noData {
                throw ControlFailure(
                    .notActive, "no snapshot is active")
            }
            throw ControlFailure(
                .failed,
                "the snapshot has ended, but what it stored in \(storePath) could not be removed:"
                    + " \(error)")
        }
    }

    func status() -> Status {
        let summary = lifecycle.summary
        let state: Status.State =
            if let summary {
                summary.isOverflowed ? .overflowed : .active
            } else {
                .idle
            }
        return Status(
            pid: getpid(), version: Version.text, source: configuration.source,
            mountpoint: mountpoint, mode: configuration.mode.rawValue, state: state,
            started: summary?.cut.rfc3339, deltaBytes: summary?.deltaBytes ?? 0,
            changedAreas: summary?.changedAreas ?? 0, snapshotBytesRead: summary?.bytesRead ?? 0,
            store: storePath, io: configuration.policy.rawValue,
            ioRequested: configuration.options.policy.rawValue,
            inexactReason: summary?.inexactReason,
            lastStallMicroseconds: lifecycle.lastReport?.stall.microseconds,
            sourceWatched: summary == nil ? nil : lifecycle.isWatchingSource,
            snapshotDirectory: configuration.snapshotPath, deltaBytesMax: configuration.maxDelta?.bytes)
    }

    func unmount(_ options: UnmountOptions) throws(ControlFailure) -> UnmountReport {
        let wasActive = lifecycle.summary != nil
        if let problem = Unmounting.unmount(mountpoint) {
            throw ControlFailure(problem.isBusy ? .busy : .failed, problem.message)
        }
        do throws(Errno) {
            _ = try lifecycle.stop(isServing: false)
        } catch {
            // None was active; or its files could not be removed, which the next mount tries again.
        }
        return UnmountReport(endedSnapshot: wasActive)
    }
}

extension Timestamp {
    /// RFC 3339, UTC, to the microsecond.
    var rfc3339: String {
        var seconds = time_t(self.seconds)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        func padded(_ value: Int32, _ width: Int) -> String {
            let digits = String(value)
            return String(repeating: "0", count: max(0, width - digits.count)) + digits
        }
        let date = [
            padded(parts.tm_year + 1900, 4), padded(parts.tm_mon + 1, 2), padded(parts.tm_mday, 2),
        ]
        let time = [padded(parts.tm_hour, 2), padded(parts.tm_min, 2), padded(parts.tm_sec, 2)]
        return date.joined(separator: "-") + "T" + time.joined(separator: ":") + "."
            + padded(Int32(nanoseconds / 1000), 6) + "Z"
    }
}
