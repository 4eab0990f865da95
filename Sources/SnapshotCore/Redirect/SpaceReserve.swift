internal import Glibc
internal import LinuxSystem
internal import SnapshotRecord
package import SystemPackage

// While changes are redirected nothing that applications remove gives space back, so that a full file system stays full
// until the merge; and the merge needs some: the next layer and its journal, blocks of directories. That much is kept in
// each layer from its start on, and given back before it is sealed.
extension Layer {
    private static let reserveName = FileName("reserve")
    private static let reserveBytes: Int64 = 4 << 20

    /// Keeps space for the end of the layer. Throws ENOSPC where there is not even that.
    package func makeReserve() throws(Errno) {
        let reserve = try Self.reserveName.withCString { (name) throws(Errno) in
            try Descriptor.open(at: files.directory, name, O_WRONLY | O_CREAT, mode: 0o600)
        }
        do throws(Errno) {
            try allocate(reserve, mode: 0, offset: 0, length: Self.reserveBytes)
        } catch .notSupportedOnSocket {
            // No space can be set aside here.
        }
    }

    /// Gives the space back, if it is still kept.
    package func giveReserveBack() throws(Errno) {
        try Self.reserveName.withCString { (name) throws(Errno) in
            do throws(Errno) {
                // At once: XFS frees the blocks of a file that is removed some time later.
                try truncate(try Descriptor.open(at: files.directory, name, O_WRONLY), to: 0)
                try unlink(at: files.directory, name)
            } catch .noSuchFileOrDirectory {
                // An earlier attempt has given it back.
            }
        }
    }
}
