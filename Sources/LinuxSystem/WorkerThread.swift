internal import CLinux
internal import Glibc
package import SystemPackage

/// What belongs to the calling thread: a buffer for payloads, and whose rights it works with.
package enum WorkerThread {
    /// The thread's own buffer, grown to at least `size` bytes; what it holds is lost with the next call.
    /// It goes when the thread ends.
    package static func buffer(_ size: Int) -> UnsafeMutableRawBufferPointer {
        guard let buffer = cl_worker_buffer(size) else {
            preconditionFailure("no memory for a buffer of \(size) bytes")
        }
        return UnsafeMutableRawBufferPointer(start: buffer, count: size)
    }
}

/// In whose name the daemon's threads work on the source.
///
/// A root daemon makes files as the user who asks for them, so that they are theirs from the first instant, and
/// writes as that user, so that quotas and the blocks reserved for root bind them. The thread keeps the
/// capabilities that it has: whether the user may do a thing at all the kernel has decided (default_permissions),
/// with the supplementary groups, which the daemon does not know. Nor has it any itself: the source's file system would
/// take them for the user's. An ordinary user's daemon stays who it is.
package struct Credentials: Sendable {
    private let switchesUsers: Bool
    /// Whether what is made for a user is that user's from the first instant.
    package var makesFilesAsCaller: Bool { switchesUsers }
    private let capabilities: UInt64

    /// CAP_SYS_RESOURCE: lifts quotas and opens the blocks reserved for root.
    private static let resourceCapability: UInt32 = 24
    /// What a thread has that has made no file yet.
    private static let closedMask: UInt32 = 0o077
    /// CAP_FSETID: keeps set-id bits when data change.
    private static let setIDCapability: UInt64 = 1 << 4

    /// Those of the daemon. As root, gives up CAP_SYS_RESOURCE for all threads that come after, and its supplementary
    /// groups.
    package init() throws(Errno) {
        switchesUsers = geteuid() == 0
        if switchesUsers {
            try checked { cl_drop_capability(Self.resourceCapability) }
            // Refused in a user namespace that may not (EPERM): then they stay.
            _ = setgroups(0, nil)
        }
        capabilities = cl_permitted_capabilities()
    }

    /// The calling thread works as `user` from now on, and makes files with `mask` as its umask; nil: it makes none, so that the
    /// umask may be any, and need not be set between two operations that make files. `keepsSetID` false
    /// for a change of data that takes set-id bits and file capabilities away, as it does where the user writes to
    /// the source directly.
    package func assume(
        user: UInt32, group: UInt32, mask: UInt32?, keepsSetID: Bool = true
    ) throws(Errno) {
        guard let worker = cl_this_worker() else {
            preconditionFailure("every thread has thread-local storage")
        }
        if worker.pointee.assumed == 0 {
            // The umask is shared by all threads until a thread leaves the others.
            try checked { cl_unshare_fs() }
            worker.pointee.mask = mask ?? Self.closedMask
            _ = umask(worker.pointee.mask)
            // Nor is it known whose rights it has: those of the thread that started it, which worked for somebody.
            if switchesUsers { return try take(worker, user, group, keepsSetID: keepsSetID) }
            worker.pointee.assumed = 1
        }
        if let mask, worker.pointee.mask != mask {
            _ = umask(mask)
            worker.pointee.mask = mask
        }
        guard switchesUsers else { return }
        if worker.pointee.user != user || worker.pointee.group != group
            || worker.pointee.effective != effective(keepsSetID)
        {
            try take(worker, user, group, keepsSetID: keepsSetID)
        }
    }

    private func effective(_ keepsSetID: Bool) -> UInt64 {
        keepsSetID ? capabilities : capabilities & ~Self.setIDCapability
    }

    private func take(
        _ worker: UnsafeMutablePointer<cl_worker>, _ user: UInt32, _ group: UInt32, keepsSetID: Bool
    ) throws(Errno) {
        let effective = effective(keepsSetID)
        // Failing, it may have done a part.
        worker.pointee.assumed = 0
        try checked { cl_assume_user(user, group, effective) }
        worker.pointee.assumed = 1
        worker.pointee.user = user
        worker.pointee.group = group
        worker.pointee.effective = effective
    }

    /// The calling thread works as the daemon itself: for files of the store.
    package func assumeDaemon() throws(Errno) {
        try assume(user: geteuid(), group: getegid(), mask: 0o077)
    }
}
