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
    /// Who opened it.
    let user: UInt32
    let group: UInt32
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
        _ access: Access, _ reference: InodeReference, user: UInt32, group: UInt32, isReadable: Bool,
        isWritable: Bool, times: WrittenTimes?, isPassedThrough: Bool
    ) {
        self.access = access
        self.reference = reference
        self.user = user
        self.group = group
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

    var isKept: Bool {
        if case .kept = access { return true }
        return false
    }

    /// A descriptor to change the data with.
    func writer(_ descriptor: Descriptor) throws(Errno) -> Descriptor {
        isPassedThrough ? try Descriptor.reopen(descriptor, O_RDWR | O_NONBLOCK) : descriptor
    }

    func target() throws(Errno) -> ChangeTarget {
        ChangeTarget(reference, try descriptor(), isReadable: isReadable)
    }
}

/// What is kept of each node that is open in a view, such as a descriptor: that of the open that was first. Safe for use by all
/// threads; its lock is taken after that of the table of nodes.
final class OpenNodes<Kept: Sendable>: Sendable {
    private struct Entry {
        let kept: Kept
        var opens: Int
    }

    private let entries = Mutex<[UInt64: Entry]>([:])

    /// The nodes that are open.
    var nodes: [UInt64] { entries.withLock { Array($0.keys) } }

    /// What is kept of all of them.
    var all: [Kept] { entries.withLock { $0.values.map(\.kept) } }

    /// Counts an open.
    func add(_ node: UInt64, _ kept: Kept) {
        entries.withLock { $0[node, default: Entry(kept: kept, opens: 0)].opens += 1 }
    }

    /// Counts a release.
    func remove(_ node: UInt64) {
        // Closed after the lock is let go.
        let last: Entry? = entries.withLock { entries in
            guard let entry = entries[node] else { return nil }
            if entry.opens == 1 { return entries.removeValue(forKey: node) }
            entries[node]?.opens -= 1
            return nil
        }
        _ = last
    }

    subscript(node: UInt64) -> Kept? { entries.withLock { $0[node]?.kept } }
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
/// Two threads that share the handle share its position in the block that was read: `lock` guards what may change, and is
/// held while a block of the listing is read. It is taken before no other lock.
final class OpenDirectory: @unchecked Sendable {
    /// Who opened it.
    let process: Int32
    private let lock = Monitor()
    /// nil where the directory is opened anew for each call.
    private var kept: DirectoryReader?
    private let share: DescriptorBudget.Share?
    private let open: @Sendable () throws(Errno) -> Descriptor
    /// Whether a listing has begun, be it in the middle: a position may be another handle's (telldir, NFS).
    private var hasBegun = false
    /// The names of which the layers of a redirect said something when the listing began, and in which order they come.
    private(set) var redirected: [FileName: RecordedEntry] = [:]
    private(set) var redirectedNames: [FileName] = []

    /// One that is kept open.
    init(_ descriptor: Descriptor, _ share: DescriptorBudget.Share, of process: Int32) {
        self.process = process
        kept = DirectoryReader(descriptor)
        self.share = share
        open = { descriptor }
    }

    /// One that `open` opens for each call.
    init(of process: Int32, _ open: @escaping @Sendable () throws(Errno) -> Descriptor) {
        self.process = process
        kept = nil
        share = nil
        self.open = open
    }

    func descriptor() throws(Errno) -> Descriptor { try open() }

    /// Where a listing begins, at `position`: the names of `redirected` are told behind all others. Called by `body` of
    /// `read`.
    func begin(at position: Int64, _ redirected: () -> [FileName: RecordedEntry]) {
        if position != 0 && hasBegun { return }
        hasBegun = true
        self.redirected = redirected()
        // In the same order for each handle, as far as the names are the same.
        redirectedNames = self.redirected.keys.sorted { $0.bytes.lexicographicallyPrecedes($1.bytes) }
    }

    /// Calls `body` with a reader that goes on at `position`, with the lock held.
    func read(
        from position: Int64, _ body: (inout DirectoryReader) throws(Errno) -> Void
    ) throws(Errno) {
        lock.lock()
        defer { lock.unlock() }
        guard var reader = kept.take() else {
            var reader = DirectoryReader(try open())
            try reader.seek(to: position)
            return try body(&reader)
        }
        do throws(Errno) {
            try reader.seek(to: position)
            try body(&reader)
        } catch {
            kept = consume reader
            throw error
        }
        kept = consume reader
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
