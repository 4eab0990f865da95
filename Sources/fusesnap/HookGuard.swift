internal import ArgumentParser
internal import CLinux
internal import ControlSocket
internal import Glibc
internal import LinuxSystem
internal import SystemPackage

/// Thaws what hooks froze where whoever calls them is killed in between (SIGKILL, out of memory): a process in a session
/// of its own, which is told of each call and acts when the caller's end of the socket closes too early.
final class HookGuard {
    private let socket: Descriptor
    private let process: pid_t

    /// What the guard is told; each is one datagram of a letter and a text.
    fileprivate enum Message: UInt8 {
        /// The hook at this path is about to be asked to freeze; from then on it needs a thaw.
        case freeze
        /// The one that froze last, of those not thawed, is about to be asked to thaw.
        case thaw
        /// The pipe that the process of that call is about to get as its standard output: its inode number. By that
        /// it is found, which has no number yet.
        case output
        /// That call is over.
        case over
    }

    fileprivate static let socketDescriptor: Int32 = 3

    init(timeout: Duration, mountpoint: String) throws(Errno) {
        var ends: [Int32] = [-1, -1]
        try checked { socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue) | O_CLOEXEC, 0, &ends) }
        socket = Descriptor(owning: ends[0])
        process = try Self.launch(
            Descriptor(owning: ends[1]),
            [
                "fusesnap", HookGuardCommand.configuration.commandName ?? "", "\(timeout.components.seconds)",
                Log.standard.isSyslog ? "syslog" : "stderr", mountpoint,
            ])
    }

    private static func launch(_ socket: Descriptor, _ words: [String]) throws(Errno) -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
        // Twice, since a descriptor that is in its place already would keep its O_CLOEXEC.
        posix_spawn_file_actions_adddup2(&actions, socket.raw, socketDescriptor + 1)
        posix_spawn_file_actions_adddup2(&actions, socketDescriptor + 1, socketDescriptor)
        posix_spawn_file_actions_addclosefrom_np(&actions, socketDescriptor + 1)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // What ends its caller is not to end it, from the first instant on: Ctrl-C, a closed terminal, a service manager.
        var blocked = sigset_t()
        sigemptyset(&blocked)
        for number in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] { sigaddset(&blocked, number) }
        posix_spawnattr_setsigmask(&attributes, &blocked)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK))
        var arguments = words.map { strdup($0) } + [nil]
        defer { for case let word? in arguments { free(word) } }
        var child: pid_t = 0
        // By way of /proc, since the program's file may have been replaced.
        let failure = withExtendedLifetime(socket) {
            posix_spawn(&child, "/proc/self/exe", &actions, &attributes, &arguments, Glibc.environ)
        }
        if failure != 0 { throw Errno(rawValue: failure) }
        return child
    }

    func willFreeze(_ hook: Hook) { tell(.freeze, hook.path) }
    func willThaw() { tell(.thaw) }
    func willStart(output: UInt64) { tell(.output, "\(output)") }
    func didEnd() { tell(.over) }

    /// Where the guard has gone, the hooks are called without one.
    private func tell(_ message: Message, _ text: String = "") {
        let bytes = [message.rawValue] + Array(text.utf8)
        send(socket.raw, bytes, bytes.count, Int32(MSG_NOSIGNAL))
    }

    /// All that froze has thawed.
    deinit {
        shutdown(socket.raw, Int32(SHUT_RDWR))
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 && errno == EINTR {}
    }
}

/// The verb under which the guard is started: not for people.
struct HookGuardCommand: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "hook-guard", shouldDisplay: false)

    @Argument var timeoutSeconds: Int
    @Argument var log: String
    @Argument var mountpoint: String

    func run() throws {
        if log == "syslog" { Log.standard.send(to: .syslog) }
        pthread_setname_np(pthread_self(), "fusesnap")
        do throws(Errno) {
            var watch = HookWatch(
                HookRunner(
                    timeout: .seconds(timeoutSeconds), variables: [("FUSESNAP_MOUNTPOINT", mountpoint)],
                    signals: nil),
                mountpoint: mountpoint)
            try watch.run(Descriptor(owning: HookGuard.socketDescriptor))
        } catch {
            throw CommandFailure("hook-guard is started by fusesnap alone: \(error)")
        }
    }
}

/// What the guard knows of the calls.
private struct HookWatch {
    private let runner: HookRunner
    private let mountpoint: String
    /// Those that need a thaw, in the order of their freezing.
    private var frozen: [Hook] = []
    private var call: (action: HookResult.Action, output: UInt64?)?

    init(_ runner: HookRunner, mountpoint: String) {
        self.runner = runner
        self.mountpoint = mountpoint
    }

    private static let messageBytesMax = Int(PATH_MAX) + 1

    /// Returns when the caller has gone, and nothing is frozen any more.
    mutating func run(_ socket: Descriptor) throws(Errno) {
        var bytes = [UInt8](repeating: 0, count: Self.messageBytesMax)
        while true {
            let count = try checked { recv(socket.raw, &bytes, bytes.count, 0) }
            if count == 0 { break }
            guard let message = HookGuard.Message(rawValue: bytes[0]) else { throw .invalidArgument }
            take(message, String(decoding: bytes[1..<count], as: UTF8.self))
        }
        if frozen.isEmpty { return }
        Log.standard.warning("\(mountpoint): fusesnap was killed between freeze and thaw of hooks; they thaw now")
        endCall()
        while let hook = frozen.popLast() {
            if let problem = runner.run(hook, .thaw).problem { Log.standard.lines(.error, mountpoint, problem) }
        }
    }

    private mutating func take(_ message: HookGuard.Message, _ text: String) {
        switch message {
        case .freeze:
            frozen.append(Hook(path: text, origin: .command))
            call = (.freeze, nil)
        case .thaw: call = (.thaw, nil)
        case .output: call?.output = UInt64(text)
        case .over:
            if call?.action == .thaw { _ = frozen.popLast() }
            call = nil
        }
    }

    /// A freeze that goes on is ended, since nobody waits for it; a thaw is left its time.
    private mutating func endCall() {
        guard let call, let output = call.output else { return }
        let process = HookProcess(output: output)
        if call.action == .freeze || !process.ends(within: runner.timeout) { process.end() }
        if call.action == .thaw { frozen.removeLast() }
    }
}

/// The processes of a hook's call, which somebody else has made: those that hold the pipe made for what it says.
private struct HookProcess {
    let output: UInt64

    /// Ends the call with all that it started, as the runner does.
    func end() {
        signal(SIGTERM)
        if ends(within: .milliseconds(Int64(HookLimits.killGraceMilliseconds))) { return }
        signal(SIGKILL)
        _ = ends(within: .seconds(1))
    }

    /// Whether all of them end within that time, or have already.
    func ends(within time: Duration) -> Bool {
        let deadline = ContinuousClock.now + time
        while let holder = holders().first {
            let left = deadline - ContinuousClock.now
            if left <= .zero { return false }
            var entry = pollfd(fd: holder.descriptor.raw, events: Int16(POLLIN), revents: 0)
            poll(&entry, 1, Int32(clamping: left.milliseconds + 1))
        }
        return true
    }

    private func signal(_ number: Int32) {
        for holder in holders() {
            // One that has not become the leader of its group yet is still in its caller's.
            let isLeader = getpgid(holder.number) == holder.number
            kill(isLeader ? -holder.number : holder.number, number)
        }
    }

    private struct Holder {
        let number: pid_t
        let descriptor: Descriptor
    }

    private func holders() -> [Holder] {
        entries("/proc").compactMap { name in
            guard let number = pid_t(name), holds(number) else { return nil }
            do throws(Errno) {
                let descriptor = Descriptor(owning: try checked { cl_pidfd_open(number) })
                // Asked again: the number may have become another's.
                return holds(number) ? Holder(number: number, descriptor: descriptor) : nil
            } catch {
                return nil  // It has just ended.
            }
        }
    }

    private func holds(_ process: pid_t) -> Bool {
        let wanted = Array("pipe:[\(output)]".utf8)
        return entries("/proc/\(process)/fd").contains { name in
            var target = [CChar](repeating: 0, count: wanted.count + 1)
            let count = readlink("/proc/\(process)/fd/\(name)", &target, target.count)
            return count == wanted.count && target[..<count].elementsEqual(wanted.map { CChar(bitPattern: $0) })
        }
    }

    /// None of a directory that is gone, or another user's.
    private func entries(_ path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            names.append(
                withUnsafeBytes(of: entry.pointee.d_name) {
                    String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
                })
        }
        return names
    }
}
