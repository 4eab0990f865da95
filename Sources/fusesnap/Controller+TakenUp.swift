import ControlSocket
import LinuxSystem
import SnapshotMount
import SystemPackage

// A snapshot that outlived the daemon that began it, and who holds it now.
extension Controller {
    /// Writes down who holds the snapshot that is about to begin.
    func keep(_ lease: Lease?, _ options: StartOptions) throws(ControlFailure) {
        do throws(Errno) {
            try lifecycle.keepLease(try KeptLease(options, lease)?.text)
        } catch {
            throw ControlFailure(.failed, "the lease could not be kept in the store: \(error)")
        }
    }

    /// The lease of the snapshot that an earlier daemon began, as far as it lasts. Throws why it has ended.
    func keptLease() throws(KeptLease.Ended) -> (Lease, StartOptions)? {
        let text: String?
        do throws(Errno) {
            text = try lifecycle.keptLease()
        } catch {
            throw KeptLease.Ended("who held it cannot be read: \(error)")
        }
        guard let text else { return nil }
        guard let kept = KeptLease(text: text) else { throw KeptLease.Ended("who held it cannot be read") }
        let options = try kept.renewed()
        do throws(ControlFailure) {
            return try Lease(options).map { ($0, options) }
        } catch {
            throw KeptLease.Ended(
                options.leaseProcess.map { "process \($0), which held it, has ended" } ?? error.message)
        }
    }

    func watchTakenUp(
        _ lease: Lease, _ ended: @escaping @Sendable (String) -> Void
    ) throws(KeptLease.Ended) {
        do throws(Errno) {
            try lease.watch(ended)
        } catch {
            throw KeptLease.Ended("its lease cannot be watched: \(error)")
        }
    }
}
