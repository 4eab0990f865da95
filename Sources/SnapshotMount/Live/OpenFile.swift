internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import SystemPackage

/// A file that an application holds open in the live view.
///
/// Where reads and writes are passed through, `descriptor` is open for reading only, since a descriptor for writing
/// could not be told from an application's (`hasUnseenWriters`); `writer` opens one for the moment.
final class OpenFile: Sendable {
    let descriptor: Descriptor
    let reference: InodeReference
    let isReadable: Bool
    let isWritable: Bool
    /// Of a file that is open for writing: what the kernel says of its times.
    let times: WrittenTimes?
    /// Whether the kernel reads and writes the source's file by itself.
    let isPassedThrough: Bool

    init(
        _ descriptor: Descriptor, _ reference: InodeReference, isReadable: Bool, isWritable: Bool,
        times: WrittenTimes?, isPassedThrough: Bool
    ) {
        self.descriptor = descriptor
        self.reference = reference
        self.isReadable = isReadable
        self.isWritable = isWritable
        self.times = times
        self.isPassedThrough = isPassedThrough
    }

    /// A descriptor to change the data with.
    func writer() throws(Errno) -> Descriptor {
        isPassedThrough ? try Descriptor.reopen(descriptor, O_RDWR | O_NONBLOCK) : descriptor
    }

    var target: ChangeTarget { ChangeTarget(reference, descriptor, isReadable: isReadable) }
}

/// A directory that an application lists in the live view.
///
/// Two threads that share the handle share its position in the block that was read: `lock` guards `reader`, and is
/// held while a block of the listing is read. It is taken before no other lock.
final class OpenDirectory: @unchecked Sendable {
    let descriptor: Descriptor
    let lock = Monitor()
    var reader: DirectoryReader

    init(_ descriptor: Descriptor) {
        self.descriptor = descriptor
        reader = DirectoryReader(descriptor)
    }
}

/// The handles that the kernel keeps for us: references to objects. The kernel uses a handle only between the open
/// that made it and its release, so that a handle is always good.
enum Handle {
    static func make(_ object: some AnyObject) -> UInt64 {
        UInt64(UInt(bitPattern: Unmanaged.passRetained(object).toOpaque()))
    }

    static func object<Object: AnyObject>(_ handle: UInt64, as type: Object.Type) -> Object {
        Unmanaged<Object>.fromOpaque(pointer(handle)).takeUnretainedValue()
    }

    static func release<Object: AnyObject>(_ handle: UInt64, as type: Object.Type) {
        Unmanaged<Object>.fromOpaque(pointer(handle)).release()
    }

    private static func pointer(_ handle: UInt64) -> UnsafeRawPointer {
        guard let pointer = UnsafeRawPointer(bitPattern: UInt(handle)) else {
            preconditionFailure("the kernel gives back handles that it got")
        }
        return pointer
    }
}
