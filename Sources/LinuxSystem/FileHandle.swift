internal import CLinux
internal import Glibc
package import SystemPackage

/// A file handle: names an inode for as long as it lives, wherever it is moved, without holding it open.
///
/// Kept inline, since the daemon holds one for each inode that the kernel remembers. Handles longer than
/// `bytesMax` exist (network file systems); a source that needs them is served without handles.
package struct FileHandle: Hashable, Sendable {
    package static let bytesMax = 24

    private var bytes: (UInt64, UInt64, UInt64) = (0, 0, 0)
    private var kind: Int32 = 0
    private var length: UInt32 = 0

    /// No handle: of an inode in a source without them.
    package init() {}

    package var isEmpty: Bool { length == 0 }

    /// name_to_handle_at(2) of what `descriptor` refers to. Throws EOPNOTSUPP where the file system has no
    /// handles, EOVERFLOW where they are too long.
    package init(of descriptor: Descriptor) throws(Errno) {
        var room = UInt32(Self.bytesMax)
        var type: Int32 = 0
        var empty: CChar = 0
        var words: (UInt64, UInt64, UInt64) = (0, 0, 0)
        try checked {
            withUnsafeMutableBytes(of: &words) { buffer in
                cl_name_to_handle_at(
                    descriptor.raw, &empty, buffer.baseAddress?.assumingMemoryBound(to: UInt8.self),
                    &room, &type, AT_EMPTY_PATH)
            }
        }
        bytes = words
        kind = type
        length = room
    }

    /// The handle that the kernel gave in another way (fanotify). nil where it is too long.
    package init?(kind: Int32, bytes handle: UnsafeRawBufferPointer) {
        guard handle.count <= Self.bytesMax else { return nil }
        withUnsafeMutableBytes(of: &bytes) { $0.copyMemory(from: handle) }
        self.kind = kind
        length = UInt32(handle.count)
    }

    /// Calls `body` with the handle's type and bytes, as `init(kind:bytes:)` takes them.
    package func withBytes<Result>(_ body: (Int32, UnsafeRawBufferPointer) -> Result) -> Result {
        withUnsafeBytes(of: bytes) { body(kind, UnsafeRawBufferPointer(rebasing: $0[..<Int(length)])) }
    }

    /// How often a handle is tried again that the kernel says it has no memory for, and how long after each.
    private static let (attemptsMax, pauseNanoseconds) = (1_000, 1_000_000)

    /// open_by_handle_at(2); `mount` is any descriptor on the file system that is not O_PATH. Needs
    /// CAP_DAC_READ_SEARCH. Throws ESTALE where the inode is gone.
    ///
    /// ext4 answers ENOMEM while the inode's number is being given to a new file (its `ext4_iget` takes any failure of
    /// `iget_locked` for that, and this one meets an inode that is I_CREATING). The kernel has nothing to wait for that
    /// with, so this tries again until the answer is another, for a second at the most: the handle of an inode that is
    /// gone is then stale, and callers rely on being told so.
    package func open(mount: Descriptor, _ flags: Int32) throws(Errno) -> Descriptor {
        for _ in 1..<Self.attemptsMax {
            do throws(Errno) {
                return try openOnce(mount: mount, flags)
            } catch .noMemory {
                var pause = timespec(tv_sec: 0, tv_nsec: Self.pauseNanoseconds)
                nanosleep(&pause, nil)
            }
        }
        return try openOnce(mount: mount, flags)
    }

    private func openOnce(mount: Descriptor, _ flags: Int32) throws(Errno) -> Descriptor {
        var words = bytes
        let raw = try SpareDescriptors.checked {
            withUnsafeMutableBytes(of: &words) { buffer in
                cl_open_by_handle_at(
                    mount.raw, buffer.baseAddress?.assumingMemoryBound(to: UInt8.self), length, kind,
                    flags | O_CLOEXEC)
            }
        }
        return Descriptor(owning: raw)
    }

    package static func == (left: FileHandle, right: FileHandle) -> Bool {
        left.kind == right.kind && left.length == right.length && left.bytes == right.bytes
    }

    package func hash(into hasher: inout Hasher) {
        hasher.combine(bytes.0)
        hasher.combine(bytes.1)
    }
}
