internal import CLinux
internal import Glibc
internal import LinuxSystem
internal import SystemPackage

// The few system calls of the control channel. Each throws the Errno of the call that its comment
// names.

/// A descriptor that is closed when it goes.
struct OwnedDescriptor: ~Copyable, Sendable {
    let rawValue: Int32

    init(_ rawValue: Int32) {
        self.rawValue = rawValue
    }

    deinit {
        close(rawValue)
    }
}

enum SystemCalls {
    /// Passes a call's result on, or throws errno where it is -1. A call that a signal interrupted
    /// is made again.
    @discardableResult
    static func checked<Result: SignedInteger>(_ call: () -> Result) throws(Errno) -> Result {
        while true {
            let result = call()
            if result != -1 { return result }
            let error = Errno(rawValue: errno)
            if error != .interrupted { throw error }
        }
    }

    /// pipe2(2): both ends close on exec and never block.
    static func pipe() throws(Errno) -> (reading: Int32, writing: Int32) {
        var ends: [Int32] = [-1, -1]
        try checked { pipe2(&ends, O_CLOEXEC | O_NONBLOCK) }
        return (ends[0], ends[1])
    }

    /// poll(2): whether `descriptor` has something to read, or has ended, before the time is over.
    static func waitReadable(_ descriptor: Int32, milliseconds: Int32) throws(Errno) -> Bool {
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        return try checked { poll(&entry, 1, milliseconds) } > 0
    }

    /// recv(2): appends what has come to `buffer`; false at the end of the stream.
    static func receive(_ socket: Int32, into buffer: inout [UInt8]) throws(Errno) -> Bool {
        try withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 1) { chunk throws(Errno) in
            let count = try checked { recv(socket, chunk.baseAddress, chunk.count, 0) }
            buffer.append(contentsOf: chunk[..<count])
            return count > 0
        }
    }

    /// recvmsg(2): as `receive`; the descriptors that came with it are added to `descriptors`.
    static func receive(
        _ socket: Int32, into buffer: inout [UInt8], descriptors: inout [Descriptor]
    ) throws(Errno) -> Bool {
        var chunk = [UInt8](repeating: 0, count: 4096)
        var came = [Int32](repeating: -1, count: Int(CL_DESCRIPTORS_MAX))
        var number: Int32 = 0
        let count = try checked { cl_receive_descriptors(socket, &chunk, chunk.count, &came, &number) }
        descriptors += came[..<Int(number)].map { Descriptor(owning: $0) }
        buffer.append(contentsOf: chunk[..<count])
        return count > 0
    }

    /// send(2) until all of `bytes` is sent, of which there is at least one; `descriptors` go with the first. Never SIGPIPE.
    static func sendAll(_ socket: Int32, _ bytes: [UInt8], descriptors: [Int32] = []) throws(Errno) {
        var sent = 0
        if !descriptors.isEmpty {
            sent = try checked {
                cl_send_descriptors(socket, bytes, bytes.count, descriptors, Int32(descriptors.count))
            }
        }
        while sent < bytes.count {
            sent += try checked {
                bytes.withUnsafeBytes { raw in
                    let rest = UnsafeRawBufferPointer(rebasing: raw[sent...])
                    return send(socket, rest.baseAddress, rest.count, Int32(MSG_NOSIGNAL))
                }
            }
        }
    }

    /// send(2), which does not wait; whether all of `bytes` went out. Throws EAGAIN where nothing did.
    static func sendAtOnce(_ socket: Int32, _ bytes: [UInt8]) throws(Errno) -> Bool {
        let count = try checked {
            send(socket, bytes, bytes.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
        }
        return count == bytes.count
    }

    /// setsockopt(SO_SNDTIMEO): bounds a send, and a connect to a socket whose backlog is full.
    static func boundSending(_ socket: Int32, seconds: Int) throws(Errno) {
        var limit = timeval(tv_sec: seconds, tv_usec: 0)
        let size = socklen_t(MemoryLayout<timeval>.size)
        try checked { setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, size) }
    }

    /// getsockopt(SO_PEERCRED): who made the other end.
    static func peer(of socket: Int32) throws(Errno) -> (user: uid_t, process: pid_t) {
        var user: UInt32 = 0
        var process: Int32 = 0
        try checked { cl_peer_user(socket, &user, &process) }
        return (user, process)
    }

    /// Starts a thread that receives no signal: those are for the main thread.
    static func detachThread(_ body: @escaping @Sendable () -> Void) throws(Errno) {
        final class Box {
            let body: @Sendable () -> Void
            init(_ body: @escaping @Sendable () -> Void) { self.body = body }
        }
        var all = sigset_t()
        var before = sigset_t()
        sigfillset(&all)
        pthread_sigmask(SIG_BLOCK, &all, &before)
        defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
        let box = Unmanaged.passRetained(Box(body))
        var thread = pthread_t()
        let failure = pthread_create(
            &thread, nil,
            { argument in
                if let argument { Unmanaged<Box>.fromOpaque(argument).takeRetainedValue().body() }
                return nil
            }, box.toOpaque())
        if failure != 0 {
            box.release()
            throw Errno(rawValue: failure)
        }
        pthread_detach(thread)
    }
}
