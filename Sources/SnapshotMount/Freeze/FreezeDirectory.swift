internal import FuseSession
internal import Glibc
internal import LinuxSystem
internal import Synchronization
internal import SystemPackage

/// The hidden directory in the mount's root through which the freeze helper finds files: by the number of their node,
/// since a path may change meanwhile. It is there while a freeze needs it, under a name that nobody can guess, for the
/// helper alone; nobody else takes its lock, so the helper never waits for an application's.
final class FreezeDirectory: Sendable {
    /// FUSE's root is 1, and other nodes have numbers from 2^28 on.
    static let node: UInt64 = 2

    private struct Opening {
        var name: FileName
        var process: Int32
    }

    private let opening = Mutex<Opening?>(nil)
    /// The helper's process; 0 where there is none: what most requests look at.
    private let process = Atomic<Int32>(0)

    /// Names the directory anew; the name under which the helper finds it.
    func open() -> FileName {
        var generator = SystemRandomNumberGenerator()
        let token = String(generator.next(), radix: 36) + String(generator.next(), radix: 36)
        let name = FileName(".fusesnap-freeze-" + token)
        opening.withLock { $0 = Opening(name: name, process: 0) }
        return name
    }

    /// Lets `process` alone in.
    func admit(_ process: Int32) {
        opening.withLock { $0?.process = process }
        self.process.store(process, ordering: .sequentiallyConsistent)
    }

    func close() {
        process.store(0, ordering: .sequentiallyConsistent)
        opening.withLock { $0 = nil }
    }

    /// Whether the request is the helper's.
    func isHelper(_ context: RequestContext) -> Bool {
        let process = process.load(ordering: .relaxed)
        return process != 0 && process == context.process
    }

    /// Whether the helper looks for the directory by this name in the root.
    func isName(_ name: UnsafePointer<CChar>) -> Bool {
        opening.withLock { $0?.name.equals(name) ?? false }
    }

    var attributes: AttributeReply {
        var status = FileStatus()
        status.inode = Self.node
        status.mode = UInt32(S_IFDIR) | 0o500
        status.links = 2
        status.user = geteuid()
        status.group = getegid()
        return AttributeReply(status, timeout: 0)
    }

    var entry: EntryReply { EntryReply(node: Self.node, attributes: attributes, timeout: 0) }

    /// The node that a name in the directory stands for.
    func target(of name: UnsafePointer<CChar>) throws(Errno) -> UInt64 {
        guard let node = UInt64(String(cString: name)) else { throw .noSuchFileOrDirectory }
        return node
    }
}
