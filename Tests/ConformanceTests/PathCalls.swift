import CTestSupport
import Glibc
import SystemPackage
import TestSupport

/// The system calls that take a path, so that each can be tried on every kind of path.
enum PathCalls {
    typealias Call = (name: String, call: @Sendable (Path) throws -> String)

    /// Those that need the file to be there.
    static let ofFiles: [Call] = [
        ("lstat", { "\(try $0.lstat().kind)" }),
        ("stat", { "\(try $0.stat().kind)" }),
        ("access", { try done($0.access(F_OK)) }),
        ("chmod", { try done($0.chmod(0o700)) }),
        ("lchown", { try done($0.chown(user: geteuid())) }),
        ("truncate", { try done($0.truncate(10)) }),
        ("utimensat", { try done($0.setTimes(accessed: Timestamp(5), modified: Timestamp(6))) }),
        ("readlink", { "\(try $0.readlink())" }),
        ("open to read", { try done($0.open(O_RDONLY | O_NONBLOCK)) }),
        ("open to write", { try done($0.open(O_WRONLY | O_NONBLOCK)) }),
        ("open to append", { try done($0.open(O_RDWR | O_APPEND | O_NONBLOCK)) }),
        ("open to truncate", { try done($0.open(O_RDWR | O_TRUNC | O_NONBLOCK)) }),
        ("open as path", { try done($0.open(O_PATH)) }),
        ("open without following", { try done($0.open(O_RDONLY | O_NOFOLLOW | O_NONBLOCK)) }),
        ("open as directory", { try done($0.open(O_RDONLY | O_DIRECTORY)) }),
        ("list", { "\(try $0.entries().count)" }),
        ("statvfs", { "\(try $0.fileSystem().f_namemax)" }),
        ("lgetxattr", { "\(try $0.attribute("user.none"))" }),
        ("lsetxattr", { try done($0.setAttribute("user.set", [1])) }),
        ("llistxattr", { "\(try $0.attributeNames().sorted())" }),
        ("lremovexattr", { try done($0.removeAttribute("user.set")) }),
        ("temporary file", { try done($0.open(O_RDWR | O_TMPFILE, mode: 0o600)) }),
        ("connect", { try done($0.connect()) }),
        ("inotify", { try done($0.watch()) }),
    ]

    /// Those that make a name.
    static let ofNewNames: [Call] = [
        ("create", { try done($0.open(O_WRONLY | O_CREAT | O_NONBLOCK, mode: 0o644)) }),
        ("create anew", { try done($0.create()) }),
        ("mkdir", { try done($0.mkdir()) }),
        ("mkfifo", { try done($0.mkfifo()) }),
        ("mknod", { try done($0.mknod(mode: S_IFREG | 0o644)) }),
        ("mknod of a device", { try done($0.mknod(mode: S_IFCHR | 0o600, device: 259)) }),
        ("symlink", { try done($0.symlink(to: "target")) }),
        ("bind", { try done($0.makeSocket()) }),
    ]

    /// Those that take a name away.
    static let ofRemoval: [Call] = [
        ("unlink", { try done($0.unlink()) }),
        ("rmdir", { try done($0.rmdir()) }),
    ]

    static let all = ofFiles + ofNewNames + ofRemoval

    private static func done<Result>(_ result: Result) -> String { "done" }
}

extension Path {
    fileprivate func connect() throws(Errno) {
        _ = File(raw: try withCString { (path) throws(Errno) in try check(ts_connect(path)) })
    }

    fileprivate func watch() throws(Errno) {
        let queue = File(raw: try check(inotify_init1(Int32(O_CLOEXEC))))
        _ = try withCString { (path) throws(Errno) in
            try check(inotify_add_watch(queue.raw, path, UInt32(IN_MODIFY)))
        }
    }

    /// Removes whatever the name stands for; it may be nothing.
    func remove() {
        if exists { removeTree(self) }
    }
}
