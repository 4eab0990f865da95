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
package final class FreezeHelperProcess: Sendable {
    private let socket: Descriptor
    private let directory: Descriptor
    /// Counts the rounds of fsync calls; all threads wait for the next. One that still waits in the call of an earlier
    /// round (for the lock of a file that an application holds) makes that do where its answer is withheld, and calls
    /// again where it was not.
    private let round = Futex()
    /// Frames are sent by one thread at a time.
    private let sending = Mutex<Void>(())

    /// Serves the daemon at the other end of `socket` until that is closed. `name` is the hidden directory of the
    /// freeze in the mount's root.
    package static func run(_ socket: Descriptor, mountpoint: FileName, name: FileName) throws(Errno) {
        // Everybody waits for what it does, for a moment.
        _ = ThreadInterruption.hurry(ThreadInterruption.ownThread)
        let root = try mountpoint.withCString { (path) throws(Errno) in
            try Descriptor.open(at: .workingDirectory, path, O_PATH | O_DIRECTORY)
        }
        let directory = try name.withCString { (name) throws(Errno) in
            try Descriptor.open(at: root, name, O_PATH | O_DIRECTORY | O_NOFOLLOW)
        }
        let helper = FreezeHelperProcess(socket: socket, directory: directory)
        try helper.serve()
    }

    private init(socket: Descriptor, directory: Descriptor) {
        self.socket = socket
        self.directory = directory
    }

    private func serve() throws(Errno) {
        while let frame = FreezeFrame.receive(from: socket) {
            switch frame.kind {
            case .node: try open(frame.node)
            case .opened: try send(FreezeFrame(kind: .opened))
            case .synchronize: round.advance()
            }
        }
    }

    private func send(_ frame: FreezeFrame) throws(Errno) {
        try sending.withLock { (_) throws(Errno) in try FreezeFrame.send([frame], to: socket) }
    }

    private func open(_ node: UInt64) throws(Errno) {
        do throws(Errno) {
            let file = try openFile(node)
            // Without the inode's lock, so that nobody waits; the fsync then has little left to write.
            try flushPages(file)
            try startThread(file, node)
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
        try send(FreezeFrame(kind: .node, error: error.rawValue, node: node))
    }

    private func startThread(_ file: Descriptor, _ node: UInt64) throws(Errno) {
        let before = round.value
        try Thread.start(stackBytes: Self.stackBytes) { [self] in
            var seen = before
            while true {
                round.wait(whileEqualTo: seen)
                if round.value == seen { continue }
                seen = round.value
                do throws(Errno) {
                    do throws(Errno) {
                        try checked { fsync(file.raw) }
                    } catch {
                        try report(node, error)
                    }
                } catch {
                    return  // The daemon has gone; so will this process.
                }
            }
        }
    }

    private static let stackBytes = 64 << 10
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
