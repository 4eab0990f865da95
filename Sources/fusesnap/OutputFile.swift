import Glibc
import LinuxSystem
import SystemPackage

/// A file that a user named for what a verb tells. A regular one is there whole or not at all: written under another
/// name beside it, then renamed. Anything else, such as /dev/stdout, a pipe or a terminal, is written to as it is: a
/// rename would put a file in its place, as root even in that of /dev/null.
struct OutputFile {
    private let mode: mode_t
    private let place: Place

    private enum Place {
        case file(path: String)
        case stream(Descriptor)
        /// Standard output or error: also where that is a file, since what else goes there must stay.
        case standard(Int32)
    }

    enum Problem: Error {
        case directory
        case noReader
        case system(Errno)

        var text: String {
            switch self {
            case .directory: "it is a directory; name a file"
            case .noReader: "it is a named pipe that nobody reads; start the reader first"
            case .system(.noSuchFileOrDirectory):
                "\(Errno.noSuchFileOrDirectory); make its directory first, or name another file"
            case .system(.permissionDenied):
                "\(Errno.permissionDenied); name a file in a directory that you may write to"
            case .system(let error): "\(error)"
            }
        }
    }

    /// Makes sure that it can be written, as far as that can be known before.
    init(_ path: String, mode: mode_t) throws(Problem) {
        self.mode = mode
        do throws(Errno) {
            place = try Self.place(Paths.absolute(path))
        } catch {
            switch error {
            case .isDirectory: throw .directory
            case .noSuchAddressOrDevice: throw .noReader
            default: throw .system(error)
            }
        }
    }

    private static func place(_ path: String) throws(Errno) -> Place {
        guard let status = try status(path) else { return try filePlace(path) }
        if status.st_mode & S_IFMT == S_IFDIR { throw .isDirectory }
        if let standard = standardDescriptor(status) { return .standard(standard) }
        // A symbolic link stays one.
        if status.st_mode & S_IFMT == S_IFREG { return try filePlace(try Paths.canonical(path)) }
        return .stream(try openStream(path))
    }

    private static func filePlace(_ path: String) throws(Errno) -> Place {
        let (_, name) = try makeTemporary(path)
        try checked { unlink(name) }
        return .file(path: path)
    }

    private static func status(_ path: String) throws(Errno) -> stat? {
        var status = stat()
        if stat(path, &status) == 0 { return status }
        if errno == ENOENT { return nil }
        throw Errno(rawValue: errno)
    }

    private static func standardDescriptor(_ status: stat) -> Int32? {
        [STDOUT_FILENO, STDERR_FILENO].first { descriptor in
            var own = stat()
            return fstat(descriptor, &own) == 0 && own.st_dev == status.st_dev && own.st_ino == status.st_ino
        }
    }

    /// Not waiting for a reader of a named pipe, who may never come.
    private static func openStream(_ path: String) throws(Errno) -> Descriptor {
        let stream = Descriptor(
            owning: try checked { open(path, O_WRONLY | O_APPEND | O_NOCTTY | O_NONBLOCK | O_CLOEXEC) })
        try checked { fcntl(stream.raw, F_SETFL, O_APPEND) }
        return stream
    }

    /// mkostemp(3): mode 0600.
    private static func makeTemporary(_ path: String) throws(Errno) -> (Descriptor, String) {
        var template = Array("\(path).XXXXXX".utf8CString)
        let raw = try checked { mkostemp(&template, O_CLOEXEC) }
        let name = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return (Descriptor(owning: raw), name)
    }

    func write(_ text: String) throws(Problem) {
        do throws(Errno) {
            switch place {
            case .file(let path): try replace(path, Array(text.utf8))
            case .stream(let stream): try Self.store(Array(text.utf8), in: stream.raw)
            case .standard(let descriptor): try Self.store(Array(text.utf8), in: descriptor)
            }
        } catch {
            throw .system(error)
        }
    }

    /// Lets `body` write all of it to a descriptor; where that throws, a file that was there stays as it was. `failing` makes
    /// the error of a problem with the file itself.
    func writeStream<Failure: Error>(
        _ body: (Descriptor) throws(Failure) -> Void, failing: (Problem) -> Failure
    ) throws(Failure) {
        func attempt<Result>(_ call: () throws(Errno) -> Result) throws(Failure) -> Result {
            do throws(Errno) {
                return try call()
            } catch {
                throw failing(.system(error))
            }
        }
        switch place {
        case .file(let path):
            let (file, name) = try attempt { () throws(Errno) in try Self.makeTemporary(path) }
            do throws(Failure) {
                try body(file)
                try attempt { () throws(Errno) in try put(file, name, at: path) }
            } catch {
                unlink(name)
                throw error
            }
        case .stream(let stream): try body(stream)
        case .standard(let descriptor):
            try body(
                try attempt { () throws(Errno) in
                    Descriptor(owning: try checked { fcntl(descriptor, F_DUPFD_CLOEXEC, 3) })
                })
        }
    }

    private func replace(_ path: String, _ bytes: [UInt8]) throws(Errno) {
        let (file, name) = try Self.makeTemporary(path)
        do throws(Errno) {
            try Self.store(bytes, in: file.raw)
            try put(file, name, at: path)
        } catch {
            unlink(name)
            throw error
        }
    }

    /// Puts a temporary file that has been written where it is to be.
    private func put(_ file: Descriptor, _ name: String, at path: String) throws(Errno) {
        try checked { fchmod(file.raw, mode) }
        try checked { fsync(file.raw) }
        try checked { rename(name, path) }
    }

    private static func store(_ bytes: [UInt8], in descriptor: Int32) throws(Errno) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = try checked { rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) } }
            rest = rest.dropFirst(count)
        }
    }
}
