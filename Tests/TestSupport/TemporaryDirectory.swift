internal import CTestSupport
internal import Glibc
internal import SystemPackage

/// A directory of a test, under FUSESNAP_TEST_BASE where that is set: so any file system can be tested.
package struct TemporaryDirectory: Sendable {
    package let path: Path

    private static var base: String {
        environmentValue("FUSESNAP_TEST_BASE") ?? environmentValue("TMPDIR") ?? "/tmp"
    }

    /// Whether the file system tells the same holes of a file whenever it is asked. XFS does not: it shows space that
    /// it has set aside for data to come as data, until it has written them.
    package static let tellsHolesForGood = ts_file_system_type(base) != xfsType

    private static let xfsType = 0x5846_5342

    private init() throws {
        let base = Self.base
        // A thread that tested credentials before has another.
        umask(0o022)
        var template = Array((base + "/fusesnap-test-XXXXXX").utf8CString)
        guard mkdtemp(&template) != nil else { throw TestFailure("\(base): mkdtemp: \(currentErrno)") }
        path = Path(template.dropLast().map { UInt8(bitPattern: $0) })
        try path.chmod(0o755)
    }

    /// Calls `body` with a new directory, and removes it with all that is mounted in it, whatever `body` throws.
    package static func with<Result>(_ body: (Path) throws -> Result) throws -> Result {
        let directory = try TemporaryDirectory()
        defer { directory.remove() }
        return try body(directory.path)
    }

    private func remove() {
        unmountAll(within: path)
        removeTree(path)
    }
}

/// The mounts of this machine: mount point and type, in the order of mounting.
package func mounts() throws -> [(point: Path, type: String)] {
    try Path("/proc/self/mounts").contents().split(separator: UInt8(ascii: "\n")).compactMap { line in
        let words = line.split(separator: UInt8(ascii: " "))
        guard words.count > 2 else { return nil }
        return (Path(unescaped(words[1])), String(decoding: words[2], as: UTF8.self))
    }
}

/// Blanks, line breaks and backslashes stand as `\` and three octal digits.
private func unescaped(_ word: ArraySlice<UInt8>) -> [UInt8] {
    var bytes: [UInt8] = []
    var rest = word
    while let byte = rest.popFirst() {
        let digits = String(decoding: rest.prefix(3), as: UTF8.self)
        if byte == UInt8(ascii: "\\"), digits.count == 3, let value = UInt8(digits, radix: 8) {
            bytes.append(value)
            rest = rest.dropFirst(3)
        } else {
            bytes.append(byte)
        }
    }
    return bytes
}

package func isMounted(_ path: Path) throws -> Bool { try mounts().contains { $0.point == path } }

private func unmountAll(within top: Path) {
    do {
        for (point, _) in try mounts().reversed() where point.isWithin(top) {
            _ = try point.withCString { (path) throws(Errno) in try check(umount2(path, Int32(MNT_DETACH))) }
        }
    } catch {
        complain("cannot unmount all in \(top): \(error)")
    }
}

/// Removes what it can; a test must not fail for what it leaves.
package func removeTree(_ path: Path) {
    do throws(Errno) {
        if try path.lstat().kind != .directory { return try path.unlink() }
        for name in try path.entries() { removeTree(path / name) }
        try path.rmdir()
    } catch {
        complain("cannot remove \(path): \(error)")
    }
}

private func complain(_ message: String) {
    let line = Array((message + "\n").utf8)
    _ = write(STDERR_FILENO, line, line.count)
}
