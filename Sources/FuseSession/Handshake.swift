internal import CFuseShim
internal import Glibc
internal import Synchronization

/// What is agreed with the kernel at INIT beyond what libfuse 3.14 knows: its answer is amended on the way out.
///
/// FUSE_HANDLE_KILLPRIV_V2: the file system takes set-id bits and file capabilities away where data change; the kernel
/// then need not ask for `security.capability` before each write.
///
/// FUSE_SETXATTR_EXT: an ACL that is set says whether it takes the set-group-id bit away.
///
/// FUSE_DIRECT_IO_ALLOW_MMAP: files that are read and written past the kernel's cache can be mapped shared.
///
/// FUSE_PASSTHROUGH, where it is wanted: the kernel reads and writes the source's files by itself.
final class Handshake: Sendable {
    private struct Offer {
        var unique: UInt64
        var flags: UInt32
        var flags2: UInt32
    }

    /// How many file systems may be stacked below this one and be passed through to; nil: none is.
    private let stackDepth: UInt32?

    private let offer = Mutex<Offer?>(nil)
    /// Whether an answer to INIT is awaited: all other answers pass by after one look.
    private let isAwaited = Atomic<Bool>(false)
    /// Flags of the answer that libfuse does not know.
    private let agreed = Atomic<UInt32>(0)
    private let agreed2 = Atomic<UInt32>(0)

    private let didAgree = Mutex<(@Sendable () -> Void)?>(nil)

    init(stackDepth: UInt32?) {
        self.stackDepth = stackDepth
    }

    /// Calls `body` once the kernel has got the answer to INIT.
    func whenAgreed(_ body: @escaping @Sendable () -> Void) {
        didAgree.withLock { $0 = body }
    }

    /// Whether the kernel says of each change of data if it takes set-id bits away.
    var killsPrivileges: Bool { agreed.load(ordering: .relaxed) & UInt32(FS_INIT_HANDLE_KILLPRIV_V2) != 0 }

    /// Whether files can be passed through.
    var passesThrough: Bool { agreed2.load(ordering: .relaxed) & UInt32(FS_INIT2_PASSTHROUGH) != 0 }

    /// Whether a SETXATTR says if it takes the set-group-id bit away, in words that libfuse does not know.
    var extendsAttributes: Bool { agreed.load(ordering: .relaxed) & UInt32(FS_INIT_SETXATTR_EXT) != 0 }

    func didReceive(_ request: RawRequest) {
        guard let input = request.argument(fs_init_in.self) else { return }
        offer.withLock { $0 = Offer(unique: request.header.unique, flags: input.flags, flags2: input.flags2) }
        isAwaited.store(true, ordering: .sequentiallyConsistent)
    }

    /// Sends an answer, as writev(2) does.
    func send(_ channel: Int32, _ vectors: UnsafeMutablePointer<iovec>?, _ count: Int32) -> Int {
        if isAwaited.load(ordering: .relaxed), let vectors, let answer = amended(vectors, count) {
            let count = answer.withUnsafeBytes { write(channel, $0.baseAddress, $0.count) }
            // The kernel has taken it in when the call returns.
            if count >= 0 { didAgree.withLock { $0 }?() }
            return count
        }
        return writev(channel, vectors, count)
    }

    private func amended(_ vectors: UnsafeMutablePointer<iovec>, _ count: Int32) -> [UInt8]? {
        guard let offer = offer.withLock({ $0 }) else { return nil }
        var bytes: [UInt8] = []
        for vector in UnsafeBufferPointer(start: vectors, count: Int(count)) {
            bytes += UnsafeRawBufferPointer(start: vector.iov_base, count: vector.iov_len)
        }
        let headerSize = MemoryLayout<fs_out_header>.size
        guard bytes.count >= headerSize else { return nil }
        let header = bytes.withUnsafeBytes { $0.loadUnaligned(as: fs_out_header.self) }
        guard header.unique == offer.unique else { return nil }
        isAwaited.store(false, ordering: .sequentiallyConsistent)
        guard header.error == 0, bytes.count >= headerSize + MemoryLayout<fs_init_out>.size else {
            return nil
        }
        bytes.withUnsafeMutableBytes { bytes in
            var output = bytes.loadUnaligned(fromByteOffset: headerSize, as: fs_init_out.self)
            let added = offer.flags & UInt32(FS_INIT_HANDLE_KILLPRIV_V2 | FS_INIT_SETXATTR_EXT)
            output.flags |= added
            agreed.store(added, ordering: .relaxed)
            let offered2 = offer.flags & UInt32(FS_INIT_EXT) != 0 ? offer.flags2 : 0
            if offered2 & UInt32(FS_INIT2_DIRECT_IO_ALLOW_MMAP) != 0 {
                output.flags |= UInt32(FS_INIT_EXT)
                output.flags2 |= UInt32(FS_INIT2_DIRECT_IO_ALLOW_MMAP)
            }
            if let stackDepth, offered2 & UInt32(FS_INIT2_PASSTHROUGH) != 0 {
                output.flags |= UInt32(FS_INIT_EXT)
                output.flags2 |= UInt32(FS_INIT2_PASSTHROUGH)
                output.max_stack_depth = stackDepth
                agreed2.store(UInt32(FS_INIT2_PASSTHROUGH), ordering: .relaxed)
            }
            bytes.storeBytes(of: output, toByteOffset: headerSize, as: fs_init_out.self)
        }
        return bytes
    }
}
