internal import Glibc
internal import Synchronization
package import SystemPackage

/// The one place through which every step goes that changes the journal, the store, or, in a merge, the primary: so that a
/// test can end the process before or after any of them, as a crash does (`FUSESNAP_CRASH_STEP`, read once: a number, of
/// the step before which, or with «+» behind it after which, the process is killed; «count» tells at the end of the process
/// how many there were, into the file that `FUSESNAP_CRASH_FILE` names).
package enum Steps {
    private enum Plan {
        case none
        case count
        case before(UInt64)
        case after(UInt64)
    }

    private static let plan: Plan = {
        guard let text = getenv("FUSESNAP_CRASH_STEP") else { return .none }
        let word = String(cString: text)
        if word == "count" { return .count }
        if word.hasSuffix("+"), let number = UInt64(word.dropLast()) { return .after(number) }
        return UInt64(word).map { .before($0) } ?? .none
    }()

    private static let done = Atomic<UInt64>(0)

    /// How many steps there have been; counted only where a test asked for it.
    package static var count: UInt64 { done.load(ordering: .relaxed) }

    /// Runs one step.
    @inline(__always)
    package static func step<Result>(
        _ name: StaticString, _ body: () throws(Errno) -> Result
    ) throws(Errno) -> Result {
        if case .none = plan { return try body() }
        return try counted(name, body)
    }

    @inline(never)
    private static func counted<Result>(
        _ name: StaticString, _ body: () throws(Errno) -> Result
    ) throws(Errno) -> Result {
        let number = done.add(1, ordering: .relaxed).newValue
        if case .before(number) = plan { crash(number, name, "before") }
        let result = try body()
        if case .after(number) = plan { crash(number, name, "after") }
        return result
    }

    /// Tells the number of steps, where that is asked for.
    package static func tellCount() {
        guard case .count = plan else { return }
        tell("\(count)\n")
    }

    private static func crash(_ number: UInt64, _ name: StaticString, _ when: StaticString) {
        tell("\(number) \(when) \(name)\n")
        kill(getpid(), SIGKILL)
        // Until the signal has come.
        while true { pause() }
    }

    private static func tell(_ line: String) {
        guard let path = getenv("FUSESNAP_CRASH_FILE") else { return }
        let file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
        guard file >= 0 else { return }
        var line = line
        line.withUTF8 { _ = write(file, $0.baseAddress, $0.count) }
        close(file)
    }
}
