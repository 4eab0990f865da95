import CLinux
import Glibc
import LinuxSystem
import SystemPackage

/// What the kernel caches for a mount: how far it reads ahead in its files, and how much written data it gathers for it
/// (`io=writeback`). Set in /sys/class/bdi, which root may.
struct BackingDevice: Sendable {
    private let directory: String

    /// By default it is 128 KiB, so that a file that is read from one end to the other comes in as many small requests.
    private static let readAheadKibibytes = 1024
    /// In hundredths of what the machine may have of written data in all. By default it is one, for file systems that never
    /// write them: a program that writes to some tens of megabytes here and there then waits for each write.
    private static let gatheredShare = 20
    private static let gatheredShareWhileFreezing = 1

    /// That of the mount at `mountpoint`, once the kernel has agreed on the session; nil where it is not to be set. No request
    /// is sent to the mount.
    init?(_ mountpoint: String) {
        guard geteuid() == 0 else { return nil }
        var place = cl_place()
        guard cl_find_place(AT_FDCWD, mountpoint, 0, &place) == 0 else {
            Log.standard.debug("\(mountpoint): its backing device is not found: \(currentErrno())")
            return nil
        }
        directory = "/sys/class/bdi/\(place.device_major):\(place.device_minor)"
    }

    func raise() {
        set("read_ahead_kb", Self.readAheadKibibytes)
        gather(isFreezing: false)
    }

    /// `isFreezing`: whoever writes more than is flushed waits from now on, so that a cut finds little to be flushed.
    func gather(isFreezing: Bool) {
        set("max_ratio", isFreezing ? Self.gatheredShareWhileFreezing : Self.gatheredShare)
    }

    private func set(_ name: String, _ value: Int) {
        let path = "\(directory)/\(name)"
        let file = open(path, O_WRONLY | O_CLOEXEC)
        defer { if file >= 0 { close(file) } }
        // In a container /sys may be read-only: then the mount is slower, and nothing else.
        if file < 0 || "\(value)".withCString({ write(file, $0, strlen($0)) }) < 0 {
            Log.standard.debug("\(path): cannot be set: \(currentErrno())")
        }
    }
}
