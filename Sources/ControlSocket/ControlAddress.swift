internal import Glibc

/// Where the control socket of a mount is: in the runtime directory of the user who mounted, under a name made from
/// the mount point's path, which may be longer than a socket's name can be.
package struct ControlAddress: Sendable {
    package let directory: String
    package let path: String

    /// The address of the mount at `mountpoint`, a canonical path, mounted by `user`.
    package init(mountpoint: String, user: UInt32) {
        directory = Self.directory(of: user)
        path = directory + "/" + Self.hash(mountpoint) + ".sock"
    }

    private static func directory(of user: UInt32) -> String {
        if user == 0 { return "/run/fusesnap" }
        if user == getuid(), let given = getenv("XDG_RUNTIME_DIR") {
            let runtime = String(cString: given)
            if runtime.hasPrefix("/") { return runtime + "/fusesnap" }
        }
        let runtime = "/run/user/\(user)"
        if access(runtime, F_OK) == 0 { return runtime + "/fusesnap" }
        return "/tmp/fusesnap-\(user)"
    }

    /// FNV-1a, 64 bits, in hexadecimal.
    static func hash(_ text: String) -> String {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in text.utf8 {
            hash ^= UInt64(byte)
            hash = hash &* 0x0000_0100_0000_01b3
        }
        let digits = String(hash, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
