import Glibc
import LinuxSystem
import SnapshotRecord
import SystemPackage

/// Which I/O policy a mount gets: what was asked for where that is possible, and what `auto` means here.
struct PolicyChoice {
    typealias Policy = MountOptions.InputOutputPolicy

    let configuration: DaemonConfiguration

    /// Throws why the policy that was named cannot be had.
    func resolve(_ store: Store) throws(CommandFailure) -> Policy {
        if configuration.mode == .redirect {
            // Every write must come to the daemon, and want of space to the writer.
            switch configuration.options.policy {
            case .automatic, .writeThrough: return .writeThrough
            case .writeBack, .passthrough:
                throw CommandFailure(
                    "cannot mount \(configuration.source) at \(configuration.mountpoint): mode redirect needs"
                        + " io=write-through (or io=auto), since every write has to come to the daemon")
            }
        }
        switch configuration.options.policy {
        case .automatic: return choose()
        case .passthrough:
            if let problem = obstacleToPassthrough(store) {
                throw CommandFailure(
                    "cannot mount \(configuration.source) at \(configuration.mountpoint): io=passthrough \(problem);"
                        + " use io=auto")
            }
            return .passthrough
        case .writeThrough, .writeBack: return configuration.options.policy
        }
    }

    /// Gathered writes come to an application's notice late when they fail, so they are not chosen where that is to
    /// be feared; nor where the source may change beside the mount, which the kernel would not see.
    private func choose() -> Policy {
        guard configuration.isOverSource, !hasQuotas, hasPlentyOfSpace else { return .writeThrough }
        return .writeBack
    }

    /// Options of the source's file system that mean quotas.
    private static let quotaOptions: Set<String> = [
        "quota", "usrquota", "grpquota", "prjquota", "uquota", "gquota", "pquota", "usrjquota", "grpjquota",
        "uqnoenforce", "gqnoenforce", "pqnoenforce",
    ]

    private var hasQuotas: Bool {
        let table: MountTable
        do throws(CommandFailure) {
            table = try MountTable.current()
        } catch {
            return true  // Not known.
        }
        let options = table.mount(containing: configuration.source)?.fileSystemOptions ?? []
        return options.contains { Self.quotaOptions.contains(String($0.prefix { $0 != "=" })) }
    }

    private static let spareBytesMin: UInt64 = 1 << 30
    private static let spareShareMin: fsblkcnt_t = 20  // One part in 20 of the whole.

    private var hasPlentyOfSpace: Bool {
        var status = statvfs()
        guard statvfs(configuration.source, &status) == 0 else { return false }
        let free = UInt64(status.f_bavail) * UInt64(status.f_frsize)
        return free >= Self.spareBytesMin
            && status.f_bavail >= status.f_blocks / Self.spareShareMin
    }

    private func obstacleToPassthrough(_ store: Store) -> String? {
        if geteuid() != 0 { return "needs root" }
        if !kernelPassesThrough { return "needs Linux 6.9 or later" }
        do throws(Errno) {
            try store.checkClones()
            return nil
        } catch {
            return
                "needs a source and a store on one file system that can clone files, such as XFS or btrfs (\(error))"
        }
    }

    private var kernelPassesThrough: Bool {
        MachineChecks.kernelRelease.map { $0.numbers >= MachineChecks.passthroughKernelMin } ?? false
    }
}
