internal import CLinux
internal import Glibc
package import SystemPackage

// What tells one start of the machine, and one mount, from another.

/// /proc/sys/kernel/random/boot_id: 16 bytes, other ones whenever the machine has started. Throws EIO where it does
/// not read as such.
package func bootNumber() throws(Errno) -> (UInt64, UInt64) {
    // A `Descriptor` that does not leave this function is put on the stack by the optimizer of Swift 6.3.1, without its
    // header, and then freed by it: a crash, or none, by what the stack held before.
    let file = try checked { open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC) }
    defer { _ = close(file) }
    var text = [UInt8](repeating: 0, count: 64)
    let length = try checked { read(file, &text, text.count) }
    let digits = text[..<length].compactMap { byte -> UInt64? in
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): UInt64(byte - UInt8(ascii: "0"))
        case UInt8(ascii: "a")...UInt8(ascii: "f"): UInt64(byte - UInt8(ascii: "a") + 10)
        default: nil
        }
    }
    guard digits.count == 32 else { throw .ioError }
    return (digits[..<16].reduce(0) { $0 << 4 | $1 }, digits[16...].reduce(0) { $0 << 4 | $1 })
}

/// The number of the mount on which `descriptor` was opened: of STATX_MNT_ID_UNIQUE, else of STATX_MNT_ID, which a
/// later mount may have too; 0 where the kernel tells neither.
package func mountNumber(of descriptor: Descriptor) throws(Errno) -> UInt64 {
    var number: UInt64 = 0
    try checked { cl_mount_number(descriptor.raw, &number) }
    return number
}

/// fdatasync(2).
package func synchronizeData(_ file: Descriptor) throws(Errno) {
    try Steps.step("fdatasync") { () throws(Errno) -> Void in try checked { fdatasync(file.raw) } }
}

/// fsync(2).
package func synchronizeAll(_ file: Descriptor) throws(Errno) {
    try Steps.step("fsync") { () throws(Errno) -> Void in try checked { fsync(file.raw) } }
}

/// syncfs(2) of the file system that holds what `descriptor` refers to.
package func synchronizeFileSystem(_ descriptor: Descriptor) throws(Errno) {
    try Steps.step("syncfs") { () throws(Errno) -> Void in try checked { syncfs(descriptor.raw) } }
}
