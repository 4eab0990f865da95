import Glibc
import LinuxSystem
import SystemPackage
import TestSupport

/// A child process that does what a Python script says, and then holds what it has until the test ends it.
final class HoldingChild: Sendable {
    private let child: Child

    var pid: Int32 { child.pid }

    /// Calls `body` once the script has run to its end. `prefix` is a command that runs python3, without a fork.
    static func with<Result>(
        _ script: String, prefix: [String] = [], top: Path, arguments: [Path] = [],
        _ body: (HoldingChild) throws -> Result
    ) throws -> Result {
        let holding = try HoldingChild(script, prefix: prefix, top: top, arguments: arguments)
        defer { holding.end() }
        return try body(holding)
    }

    private init(_ script: String, prefix: [String], top: Path, arguments: [Path]) throws {
        let ready = Path("\(top.string)/ready-\(UInt64.random(in: 0 ... .max))")
        try ready.create(mode: 0o666)
        try ready.chmod(0o666)
        // Debian's own, where it is there: another may lie where other users may not look.
        let python = access("/usr/bin/python3", X_OK) == 0 ? "/usr/bin/python3" : "python3"
        let words = prefix + [python, "-c", Self.prelude + script + Self.end, ready.string]
        child = try Child(words + arguments.map(\.string), in: "/")
        let (pid, program) = (child.pid, child)
        do {
            try wait("the child's readiness") {
                if try ready.stat().size > 0 { return true }
                // An ended child stays a zombie until it is waited for.
                if try Path("/proc/\(pid)/stat").contents().split(separator: UInt8(ascii: ")")).last?.prefix(2)
                    .elementsEqual(" Z".utf8) == true, !script.contains("pthread_exit")
                {
                    throw TestFailure(try program.wait().description)
                }
                return false
            }
        } catch {
            kill(pid, SIGKILL)
            throw error
        }
    }

    private func end() {
        child.signal(SIGKILL)
        do { _ = try child.wait() } catch { preconditionFailure("a killed child does not end: \(error)") }
    }

    private static let prelude = """
        import ctypes, os, signal, socket, sys, threading
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        ready = os.open(sys.argv[1], os.O_WRONLY)
        a = sys.argv[2:]
        def done():
            os.write(ready, b'x')
            while True: signal.pause()
        def must(result):
            if result in (-1, None, 2**64 - 1): raise OSError(ctypes.get_errno(), 'failed')
        def map(path, flags, protection, sharing):
            file = os.open(path, flags)
            must(libc.mmap(None, 4096, protection, sharing, file, 0))
            os.close(file)

        """

    private static let end = "\ndone()\n"
}

func openDirectory(_ path: Path) throws(Errno) -> Descriptor {
    try FileName(bytes: path.bytes).withCString { (name) throws(Errno) in
        try Descriptor.open(at: .workingDirectory, name, O_RDONLY | O_DIRECTORY)
    }
}

func openPath(_ path: Path) throws(Errno) -> Descriptor {
    try FileName(bytes: path.bytes).withCString { (name) throws(Errno) in
        try Descriptor.open(at: .workingDirectory, name, O_PATH)
    }
}
