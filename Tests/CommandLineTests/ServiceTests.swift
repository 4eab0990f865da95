import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// What the daemon says to a service manager, and to the journal.
@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct ServiceTests {
    /// A socket as $NOTIFY_SOCKET names one.
    private struct NotifySocket {
        private let socket: File

        init(_ path: Path) throws { socket = File(raw: try check(ts_datagram_socket(path.string))) }

        /// The datagrams that have come by the time that one has `part` in it.
        func messages(until part: String) throws -> [String] {
            var messages: [String] = []
            while !(messages.last?.contains(part) ?? false) {
                var room = [UInt8](repeating: 0, count: 4096)
                let count = ts_receive(socket.raw, &room, room.count, 30_000)
                if count <= 0 { throw TestFailure("no datagram with \(part): \(messages)") }
                messages.append(String(decoding: room[..<count], as: UTF8.self))
            }
            return messages
        }
    }

    private func with(
        _ words: [String], _ body: (Path, NotifySocket, Child) throws -> Void
    ) throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mnt"] { try (top / name).mkdir() }
            let socket = try NotifySocket(top / "notify")
            let child = try Child(
                [Machine.binary, "mount"] + words + [(top / "source").string, (top / "mnt").string],
                environment: ["NOTIFY_SOCKET": (top / "notify").string])
            try body(top, socket, child)
        }
    }

    @Test("the service manager is told: ready, what is active, stopping")
    func foreground() throws {
        try with(["--foreground"]) { top, socket, child in
            defer { child.signal(SIGKILL) }
            let ready = try socket.messages(until: "READY=1")
            #expect(ready.last?.split(separator: "\n").contains("MAINPID=\(child.pid)") == true, "\(ready)")
            #expect(ready.last?.contains("\nSTATUS=Serving ") == true, "\(ready)")
            let point = (top / "mnt").string
            try succeed([Machine.binary, "ctl", "start", point])
            _ = try socket.messages(until: "STATUS=A snapshot is active since 2")
            try succeed([Machine.binary, "ctl", "stop", point])
            _ = try socket.messages(until: "STATUS=Serving ")
            // Nobody stops the second one: its holder dies.
            let holder = try Child(["sleep", "1000"])
            try succeed([Machine.binary, "ctl", "start", "--lease", "\(holder.pid)", point])
            _ = try socket.messages(until: "STATUS=A snapshot is active since 2")
            holder.signal(SIGKILL)
            _ = try holder.wait()
            _ = try socket.messages(until: "STATUS=Serving ")
            child.signal(SIGTERM)
            _ = try socket.messages(until: "STOPPING=1")
            let finished = try child.wait(seconds: 20)
            #expect(finished.code == 0, "\(finished)")
            // The end of the lease is worth a line; normal use is not.
            let lines = finished.errors.split(separator: "\n")
            #expect(finished.output.isEmpty && lines.count == 1, "no noise in normal use: \(finished)")
            #expect(lines.first?.contains("which held it, has ended") == true, "\(finished)")
        }
    }

    @Test("a daemon in the background tells its own process, and what it starts does not inherit the socket")
    func background() throws {
        try with([]) { top, socket, child in
            let finished = try child.wait(seconds: 30)
            #expect(finished.code == 0, "\(finished)")
            let point = (top / "mnt").string
            let status = MountStatus(json: try succeed([Machine.binary, "ctl", "status", "--json", point]))
            let ready = try socket.messages(until: "READY=1")
            #expect(ready.last?.split(separator: "\n").contains("MAINPID=\(status.pid)") == true, "\(ready)")
            try succeed([Machine.binary, "ctl", "start", point])
            for process in try children(of: status.pid) {
                let environment = String(
                    decoding: try Path("/proc/\(process)/environ").contents(), as: UTF8.self)
                #expect(!environment.contains("NOTIFY_SOCKET"))
            }
            try succeed([Machine.binary, "ctl", "stop", point])
            try succeed([Machine.binary, "unmount", point])
            _ = try socket.messages(until: "STOPPING=1")
        }
    }

    private func children(of process: Int32) throws -> [Substring] {
        String(decoding: try Path("/proc/\(process)/task/\(process)/children").contents(), as: UTF8.self)
            .split(separator: " ")
    }

    @Test("each line of the log has journald's level in front where standard error leads to the journal")
    func journal() throws {
        try TemporaryDirectory.with { top in
            let script =
                "exec 2>log; JOURNAL_STREAM=$(stat -c %d:%i log) exec \"$0\" mount --foreground nosuch mnt"
            let finished = try run(["sh", "-c", script, Machine.binary], in: top, seconds: 30)
            #expect(finished.code == 1)
            let log = String(decoding: try (top / "log").contents(), as: UTF8.self)
            #expect(log.hasPrefix("<3>cannot mount nosuch"), "\(log)")
            #expect(log.split(separator: "\n").allSatisfy { $0.hasPrefix("<3>") }, "\(log)")
            // Somebody else's stream: an interactive use within a service's environment.
            let plain = try run(
                [Machine.binary, "mount", "--foreground", "nosuch", "mnt"], in: top,
                environment: ["JOURNAL_STREAM": "8:1"])
            #expect(plain.errors.hasPrefix("fusesnap: cannot mount"), "\(plain)")
        }
    }

    @Test("the daemon may have as many files open as it can be allowed, whatever the shell's limit is")
    func descriptors() throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mnt"] { try (top / name).mkdir() }
            try succeed(
                ["sh", "-c", "ulimit -S -n 256 && exec \"$0\" mount source mnt", Machine.binary], in: top)
            let point = (top / "mnt").string
            let status = MountStatus(json: try succeed([Machine.binary, "ctl", "status", "--json", point]))
            let limits = String(decoding: try Path("/proc/\(status.pid)/limits").contents(), as: UTF8.self)
            let line = limits.split(separator: "\n").first { $0.hasPrefix("Max open files") }
            let numbers = (line?.split(separator: " ") ?? []).compactMap { Int($0) }
            #expect(numbers.count == 2 && numbers[0] == numbers[1] && numbers[0] > 256, "\(limits)")
            try succeed([Machine.binary, "unmount", point])
        }
    }

    /// CAP_SYS_RESOURCE, which containers may lack.
    private static let mayProtectItself: Bool = {
        let text = (try? Path("/proc/self/status").contents()).map { String(decoding: $0, as: UTF8.self) } ?? ""
        let line = text.split(separator: "\n").first { $0.hasPrefix("CapEff:") }
        let mask = line?.split(separator: "\t").last.flatMap { UInt64($0, radix: 16) } ?? 0
        return mask & 1 << 24 != 0
    }()

    @Test(
        "every thread of the daemon is kept out of memory reclaim",
        .enabled(if: mayProtectItself, "needs CAP_SYS_RESOURCE"))
    func reclaim() throws {
        try MountedSource.with { mount in
            try mount.start()
            let tasks = try Path("/proc/\(mount.daemon)/task").entries()
            #expect(tasks.count > 2)
            for task in tasks {
                let text = String(
                    decoding: try (Path("/proc/\(mount.daemon)/task") / task / "stat").contents(), as: UTF8.self)
                let fields = text.split(separator: ")").last?.split(separator: " ") ?? []
                let flags = fields.count > 6 ? UInt64(fields[6]) ?? 0 : 0
                // PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE.
                #expect(flags & 0x180000 == 0x180000, "\(text)")
            }
        }
    }
}
