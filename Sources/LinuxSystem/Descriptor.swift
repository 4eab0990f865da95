internal import CLinux
internal import Glibc
package import SystemPackage

/// An open file descriptor, closed when the last reference to it goes.
///
/// Shared by reference: a cache may drop its reference while a worker still uses the descriptor.
///
/// Calls take the object, never its number: a number does not keep its descriptor open, and one that was closed may
/// mean another file by the time of the call.
package final class Descriptor: Sendable {
    package let raw: Int32

    /// Stands for the working directory: AT_FDCWD.
    package static let workingDirectory = Descriptor(owning: AT_FDCWD)

    /// Takes over `raw`.
    package init(owning raw: Int32) {
        self.raw = raw
    }

    deinit {
        if raw < 0 { return }
        // What close(2) reports of delayed writes was asked for by fsync where it matters.
        _ = close(raw)
    }

    /// openat(2).
    package static func open(
        at directory: Descriptor, _ path: UnsafePointer<CChar>, _ flags: Int32, mode: UInt32 = 0
    ) throws(Errno) -> Descriptor {
        func open() throws(Errno) -> Descriptor {
            Descriptor(
                owning: try SpareDescriptors.checked { cl_openat(directory.raw, path, flags | O_CLOEXEC, mode) })
        }
        let makes = flags & O_CREAT != 0 || flags & O_TMPFILE == O_TMPFILE
        return makes ? try Steps.step("create", open) : try open()
    }

    /// Opens what a descriptor refers to again, with flags of its own, through its link in /proc.
    package static func reopen(_ descriptor: Descriptor, _ flags: Int32) throws(Errno) -> Descriptor {
        try withLink(to: descriptor) { (path) throws(Errno) in
            try open(at: .workingDirectory, path, flags & ~O_NOFOLLOW)
        }
    }
}

extension Descriptor {
    /// `reopen` with O_NOATIME, where that is allowed: it is not for another user's file without privilege, and then
    /// reading shows in the access time.
    package static func reopenQuietly(
        _ descriptor: Descriptor, _ flags: Int32
    ) throws(Errno) -> Descriptor {
        do throws(Errno) {
            return try reopen(descriptor, flags | O_NOATIME)
        } catch .notPermitted {
            return try reopen(descriptor, flags)
        }
    }
}

/// Calls `body` with the path of the link in /proc that leads to what `descriptor` refers to: the way to calls
/// that refuse an O_PATH descriptor. It leads to the inode itself, a symbolic link's too.
package func withLink<Result>(
    to descriptor: Descriptor, _ body: (UnsafePointer<CChar>) throws(Errno) -> Result
) throws(Errno) -> Result {
    // "/proc/self/fd/" and at most ten digits.
    let path: InlineArray<26, CChar> = linkPath(descriptor.raw)
    return try unsafeBody(path, body)
}

private func unsafeBody<Result>(
    _ path: InlineArray<26, CChar>, _ body: (UnsafePointer<CChar>) throws(Errno) -> Result
) throws(Errno) -> Result {
    try withUnsafePointer(to: path) { (pointer) throws(Errno) -> Result in
        try body(UnsafeRawPointer(pointer).assumingMemoryBound(to: CChar.self))
    }
}

private func linkPath(_ descriptor: Int32) -> InlineArray<26, CChar> {
    precondition(descriptor >= 0, "a descriptor that is open is not negative")
    var path = InlineArray<26, CChar>(repeating: 0)
    var length = 0
    for byte in "/proc/self/fd/".utf8 {
        path[length] = CChar(bitPattern: byte)
        length += 1
    }
    var divisor: Int32 = 1
    while descriptor / divisor >= 10 { divisor *= 10 }
    while divisor > 0 {
        path[length] = CChar(48 + (descriptor / divisor) % 10)
        length += 1
        divisor /= 10
    }
    return path
}
