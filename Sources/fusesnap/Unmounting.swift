import Glibc
import LinuxSystem
import SystemPackage

/// Takes a mount out of the tree of names: by umount2(2) as root, by fusermount3 otherwise.
enum Unmounting {
    struct Problem {
        let isBusy: Bool
        let message: String
    }

    /// nil: it is unmounted.
    static func unmount(_ mountpoint: String) -> Problem? {
        if geteuid() == 0 {
            if umount2(mountpoint, Int32(UMOUNT_NOFOLLOW)) == 0 { return nil }
            let error = currentErrno()
            return Problem(isBusy: error == .resourceBusy, message: "\(error)")
        }
        guard let code = runFusermount(mountpoint) else {
            return Problem(isBusy: false, message: "fusermount3 cannot be run")
        }
        if code == 0 { return nil }
        // fusermount3 does not tell why; what stands in the way of the mount's own user is its use.
        return Problem(isBusy: true, message: "fusermount3 refused")
    }

    /// The exit code of `fusermount3 -u`; nil where it could not be run.
    private static func runFusermount(_ mountpoint: String) -> Int32? {
        let words = ["fusermount3", "-u", "-q", "--", mountpoint]
        var argv: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        defer { for word in argv { free(word) } }
        var child = pid_t()
        guard posix_spawnp(&child, "fusermount3", nil, nil, &argv, environ) == 0 else { return nil }
        var status: Int32 = 0
        while waitpid(child, &status, 0) == -1 {
            if currentErrno() != .interrupted { return nil }
        }
        return status & 0x7f == 0 ? status >> 8 & 0xff : nil
    }
}
