internal import CLinux
internal import Glibc
package import LinuxSystem
internal import Synchronization
package import SystemPackage

/// The freeze helper: a process of its own that opens, through the mount, the files that are open for writing, and
/// calls fsync on all of them at once, a thread for each, since each call waits until the daemon answers.
///
/// It is a process, not threads of the daemon, and has no descriptor of /dev/fuse: so when the daemon is killed the
/// kernel ends the connection, and with it every call that waits. It opens what it needs when it starts, keeps the
/// mount busy only while a snapshot is being started, and ends when its socket is closed.
package struct FreezeHelperProcess {
    private final class File: Sendable {
        let node: UInt64
        let descriptor: Descriptor
        let result = Atomic<Int32>(0)

        init(_ node: UInt64, _ descriptor: Descriptor) {
            self.node = node
            self.descriptor = descriptor
        }
    }

    /// The rounds of fsync calls: `round` is a futex that all threads wait for.
    private final class Rounds: Sendable {
        let round = Futex()
        let left = Atomic<Int>(0)
        let isOver = Futex()
    }

    private let socket: Descriptor
    private let directory: Descriptor
    private let rounds = Rounds()
    private var files: [File] = []

    /// Serves the daemon at the other end of `socket` until that is closed. `name` is the hidden directory of the
    /// freeze in the mount's root.
    package static func run(_ socket: Descriptor, mountpoint: FileName, name: FileName) throws(Errno) {
        let root = try mountpoint.withCString { (path) throws(Errno) in
            try Descriptor.open(at: .workingDirectory, path, O_PATH | O_DIRECTORY)
        }
        let directory = try name.withCString { (name) throws(Errno) in
            try Descriptor.open(at: root, name, O_PATH | O_DIRECTORY | O_NOFOLLOW)
        }
        var helper = FreezeHelperProcess(socket: socket, directory: directory)
        try helper.serve()
    }

    private init(socket: Descriptor, directory: Descriptor) {
        self.socket = socket
        self.directory = directory
    }

    private mutating func serve() throws(Errno) {
        while let frame = FreezeFrame.receive(from: socket) {
            switch frame.kind {
            case .node: try open(frame.node)
            case .opened: try FreezeFrame.send([FreezeFrame(kind: .opened)], to: socket)
            case .synchronized: try synchronize()
            }
        }
    }

    private mutating func open(_ node: UInt64) throws(Errno) {
        do throws(Errno) {
            let file = File(node, try openFile(node))
            try startThread(file)
            files.append(file)
            // Without the inode's lock, so that nobody waits; the fsync then has little left to write.
            try flushPages(file.descriptor)
        } catch {
            try report(node, error)
        }
    }

    private func openFile(_ node: UInt64) throws(Errno) -> Descriptor {
        try FileName(String(node)).withCString { (name) throws(Errno) in
            let flags = O_NOFOLLOW | O_NONBLOCK
            do throws(Errno) {
                return try Descriptor.open(at: directory, name, O_RDONLY | flags)
            } catch .permissionDenied {
                // An ordinary user's file that its owner may write but not read.
                return try Descriptor.open(at: directory, name, O_WRONLY | flags)
            }
        }
    }

    private func report(_ node: UInt64, _ error: Errno) throws(Errno) {
        try FreezeFrame.send([FreezeFrame(kind: .node, error: error.rawValue, node: node)], to: socket)
    }

    private func startThread(_ file: File) throws(Errno) {
        let before = rounds.round.value
        try Thread.start(stackBytes: Self.stackBytes) { [rounds] in
            var seen = before
            while true {
                rounds.round.wait(whileEqualTo: seen)
                if rounds.round.value == seen { continue }
                seen = rounds.round.value
                let isDone = fsync(file.descriptor.raw) == 0
                file.result.store(isDone ? 0 : errno, ordering: .relaxed)
                if rounds.left.subtract(1, ordering: .sequentiallyConsistent).newValue == 0 {
                    rounds.isOver.advance()
                }
            }
        }
    }

    private static let stackBytes = 64 << 10

    private func synchronize() throws(Errno) {
        let before = rounds.isOver.value
        rounds.left.store(files.count, ordering: .sequentiallyConsistent)
        if !files.isEmpty {
            rounds.round.advance()
            while rounds.isOver.value == before { rounds.isOver.wait(whileEqualTo: before) }
        }
        for file in files where file.result.load(ordering: .relaxed) != 0 {
            try report(file.node, Errno(rawValue: file.result.load(ordering: .relaxed)))
        }
        try FreezeFrame.send([FreezeFrame(kind: .synchronized)], to: socket)
    }
}

/// A number for which threads wait until it changes, by futex(2): thousands wake without meeting in a lock.
private final class Futex: @unchecked Sendable {
    private let word = UnsafeMutablePointer<Atomic<UInt32>>.allocate(capacity: 1)

    init() {
        word.initialize(to: Atomic(0))
    }

    deinit {
        word.deinitialize(count: 1)
        word.deallocate()
    }

    var value: UInt32 { word.pointee.load(ordering: .sequentiallyConsistent) }

    func wait(whileEqualTo value: UInt32) {
        cl_futex_wait(UnsafeMutableRawPointer(word), value)
    }

    /// Changes the number and wakes all who wait.
    func advance() {
        word.pointee.add(1, ordering: .sequentiallyConsistent)
        cl_futex_wake(UnsafeMutableRawPointer(word))
    }
}
