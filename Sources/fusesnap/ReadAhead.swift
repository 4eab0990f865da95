import CLinux
import Glibc
import LinuxSystem
import SystemPackage

/// How far the kernel reads ahead in the files of a mount. By default it is 128 KiB, so that a file that is read from one
/// end to the other comes in as many small requests.
enum ReadAhead {
    private static let kibibytes = 1024

    /// For the mount at `mountpoint`; as root, once the kernel has agreed on the session. No request is sent to it.
    static func raise(_ mountpoint: String) {
        guard geteuid() == 0 else { return }
        var place = cl_place()
        guard cl_find_place(AT_FDCWD, mountpoint, 0, &place) == 0 else {
            return Log.standard.debug("\(mountpoint): not found for its read-ahead: \(currentErrno())")
        }
        let path = "/sys/class/bdi/\(place.device_major):\(place.device_minor)/read_ahead_kb"
        let file = open(path, O_WRONLY | O_CLOEXEC)
        defer { if file >= 0 { close(file) } }
        // In a container /sys may be read-only: files are read as well, in more requests.
        let value = "\(kibibytes)"
        if file < 0 || value.withCString({ write(file, $0, strlen($0)) }) < 0 {
            Log.standard.debug("\(path): cannot be set: \(currentErrno())")
        }
    }
}
