internal import Glibc
internal import LinuxSystem
internal import SnapshotCore
internal import SnapshotRecord
internal import Synchronization
internal import SystemPackage

/// A file that an application holds open in the live view.
///
/// Where reads and writes are passed through, `descriptor` is open for reading only, since a descriptor for writing
/// could not be told from an application's (`hasUnseenWriters`); `writer` opens one for the moment.
///
/// Where the daemon has too many descriptors (`DescriptorBudget`), the file is opened anew for each operation: all
/// users of the mount together may hold more files open than one process may.
final class OpenFile: Sendable {
    private let access: Access
    let reference: InodeReference
    let isReadable: Bool
    let isWritable: Bool
    /// Of a file that is open for writing: what the kernel says of its times.
    let times: WrittenTimes?
    /// Whether the kernel reads and writes the source's file by itself.
    let isPassedThrough: Bool

    enum Access {
        case kept(Descriptor, DescriptorBudget.Share)
        case anew(@Sendable () throws(Errno) -> Descriptor)
    }

    init(
        _ access: Access, _ reference: InodeReference, isReadable: Bool, isWritable: Bool,
        times: WrittenTimes?, isPassedThrough: Bool
    ) {
        self.access = access
        self.reference = reference
        self.isReadable = isReadable
        self.isWritable = isWritable
        self.times = times
        self.isPassedThrough = isPassedThrough
    }

    func descriptor() throws(Errno) -> Descriptor {
        switch access {
        case .kept(let descriptor, _): descriptor
        case .anew(let open): try open()
        }
    }

    /// A descriptor to change the data with.
    func writer(_ descriptor: Descriptor) throws(Errno) -> Descriptor {
        isPassedThrough ? try Descriptor.reopen(descriptor, O_RDWR | O_NONBLOCK) : descriptor
    }

    func target() throws(Errno) -> ChangeTarget {
        ChangeTarget(reference, try descriptor(), isReadable: isReadable)
    }
}

/// How many open files of applications may have a descriptor each; the rest of what the process may open is for the
/// work itself. Safe for use by all threads.
final class DescriptorBudget: Sendable {
    /// Given back when it goes.
    final class Share: Sendable {
        private let budget: DescriptorBudget
        fileprivate init(_ budget: DescriptorBudget) { self.budget = budget }
        deinit { budget.taken.subtract(1, ordering: .relaxed) }
    }

    private static let reserve = 2048
    private let max: Int
    private let taken = Atomic<Int>(0)

    init() {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        let all = Int(clamping: limit.rlim_cur)
        max = all - min(Self.reserve, all / 2)
    }

    /// nil where none is left.
    func take() -> Share? {
        if taken.add(1, ordering: .relaxed).oldValue < max { return Share(self) }
        taken.subtract(1, ordering: .relaxed)
        return nil
    }

    /// Beyond the bound, where a file has to be kept open.
    func overdraw() -> Share {
        taken.add(1, ordering: .relaxed)
        return Share(self)
    }
}

/// A directory that an application lists in the live view.
///
/// Two threads that share the handle share its position in the block that was read: `lock` guards `reader`, and is
/// held while a block of the listing is read. It is taken before no other lock.
final class OpenDirectory: @unchecked Sendable {
    let descriptor: Descriptor
    /// Who opened it.
    let process: Int32
    let lock = Monitor()
    var reader: DirectoryReader

    init(_ descriptor: Descriptor, of process: Int32) {
        self.descriptor = descriptor
        self.process = process
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
