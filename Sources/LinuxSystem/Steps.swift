internal import Glibc
internal import Synchronization
package import SystemPackage

/// The one place through which every call goes that changes a file, a name, an attribute, or what of them is durable: so
/// that a test can end the process before, in or after any of them, as a crash does, or let it fail as a disk does. The
/// functions of this module that make such calls go through it by themselves.
///
/// What a test asks for stands in the environment, which is read once; where it says nothing a step costs one comparison.
/// - `FUSESNAP_CRASH_STEP`: a number N, of the step before which the process is killed; «N+», after which; «N/», in the
///   midst of which, where it writes: half of the bytes are written. «count» kills nothing.
/// - `FUSESNAP_FAIL_STEP`: «N:EIO» makes step N fail with that error; «N+:EIO» that step and all later ones.
/// - `FUSESNAP_CRASH_FILE`: where steps are told, a line each: the one that was met, or with «count» all of them.
package enum Steps {
    private enum Plan {
        case none
        case count
        case before(UInt64)
        case within(UInt64)
        case after(UInt64)
        case fail(UInt64, Errno)
        case failFrom(UInt64, Errno)
    }

    private static let plan: Plan = {
        if let word = environmentWord("FUSESNAP_CRASH_STEP") {
            if word == "count" { return .count }
            if word.hasSuffix("+"), let number = UInt64(word.dropLast()) { return .after(number) }
            if word.hasSuffix("/"), let number = UInt64(word.dropLast()) { return .within(number) }
            if let number = UInt64(word) { return .before(number) }
        }
        if let words = environmentWord("FUSESNAP_FAIL_STEP")?.split(separator: ":"), words.count == 2,
            let error = errors[String(words[1])]
        {
            if words[0].hasSuffix("+"), let number = UInt64(words[0].dropLast()) {
                return .failFrom(number, error)
            }
            if let number = UInt64(words[0]) { return .fail(number, error) }
        }
        return .none
    }()

    private static let errors: [String: Errno] = [
        "EIO": .ioError, "ENOSPC": .noSpace, "EDQUOT": .diskQuotaExceeded, "EMFILE": .tooManyOpenFiles,
        "EROFS": .readOnlyFileSystem,
    ]

    private static func environmentWord(_ name: String) -> String? {
        getenv(name).map { String(cString: $0) }
    }

    private static let done = Atomic<UInt64>(0)

    /// Whether steps are watched at all.
    @inline(__always)
    private static var isIdle: Bool {
        if case .none = plan { return true }
        return false
    }

    /// Runs one step.
    @inline(__always)
    package static func step<Result>(
        _ name: StaticString, _ body: () throws(Errno) -> Result
    ) throws(Errno) -> Result {
        if isIdle { return try body() }
        return try watched(done.add(1, ordering: .relaxed).newValue, name, body)
    }

    /// Runs one step that writes `bytes`; half of them where it is ended in its midst.
    @inline(__always)
    static func write(
        _ bytes: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer) throws(Errno) -> Void
    ) throws(Errno) {
        if isIdle { return try body(bytes) }
        try watchedWrite(bytes, body)
    }

    @inline(never)
    private static func watchedWrite(
        _ bytes: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer) throws(Errno) -> Void
    ) throws(Errno) {
        let number = done.add(1, ordering: .relaxed).newValue
        if case .within(number) = plan {
            try body(UnsafeRawBufferPointer(rebasing: bytes[..<(bytes.count / 2)]))
            crash(number, "write", "in")
        }
        try watched(number, "write") { () throws(Errno) in try body(bytes) }
    }

    @inline(never)
    private static func watched<Result>(
        _ number: UInt64, _ name: StaticString, _ body: () throws(Errno) -> Result
    ) throws(Errno) -> Result {
        switch plan {
        case .count: tell("\(number) \(name)\n")
        case .before(number): crash(number, name, "before")
        case .fail(number, let error):
            tell("\(number) \(name) fails\n")
            throw error
        case .failFrom(let first, let error) where number >= first:
            if number == first { tell("\(number) \(name) fails, and what follows\n") }
            throw error
        default: break
        }
        let result = try body()
        if case .after(number) = plan { crash(number, name, "after") }
        return result
    }

    private static func crash(_ number: UInt64, _ name: StaticString, _ when: StaticString) {
        tell("\(number) \(name) \(when)\n")
        kill(getpid(), SIGKILL)
        // Until the signal has come.
        while true { pause() }
    }

    private static func tell(_ line: String) {
        guard let path = getenv("FUSESNAP_CRASH_FILE") else { return }
        let file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
        guard file >= 0 else { return }
        var line = line
        line.withUTF8 { _ = Glibc.write(file, $0.baseAddress, $0.count) }
        close(file)
    }
}
