internal import Synchronization
package import SystemPackage

/// The descriptors that are kept only for speed, of the whole process: where no more can be opened, all of them are
/// let go, and the call is made again. So an application meets EMFILE only when the daemon's limit is used up by
/// what applications hold open. Safe for use by all threads, whatever locks they hold.
package enum SpareDescriptors {
    private struct Keepers {
        var releases: [UInt64: @Sendable () -> Void] = [:]
        var next: UInt64 = 0
    }

    private static let keepers = Mutex(Keepers())

    /// Calls `release` where descriptors have run out, until `remove` with the number that this returns. It must open
    /// nothing, and take no lock under which anything is opened.
    static func add(_ release: @escaping @Sendable () -> Void) -> UInt64 {
        keepers.withLock { keepers in
            keepers.next += 1
            keepers.releases[keepers.next] = release
            return keepers.next
        }
    }

    static func remove(_ number: UInt64) {
        _ = keepers.withLock { $0.releases.removeValue(forKey: number) }
    }

    private static func releaseAll() {
        for release in keepers.withLock({ Array($0.releases.values) }) { release() }
    }

    /// `checked`, for calls that open a descriptor.
    @discardableResult
    package static func checked(_ call: () -> Int32) throws(Errno) -> Int32 {
        do throws(Errno) {
            return try LinuxSystem.checked(call)
        } catch  where error == .tooManyOpenFiles || error == .tooManyOpenFilesInSystem {
            releaseAll()
            return try LinuxSystem.checked(call)
        }
    }
}
