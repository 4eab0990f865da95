import SnapshotRecord
import SystemPackage
import Testing

@testable import SnapshotCore

@Suite struct UntoldErrorsTests {
    private static let key = InodeKey(inode: 7, birth: 1)
    private static let other = InodeKey(inode: 8, birth: 1)

    @Test("an error that nobody was told is told once, by the fsync of its file")
    func once() throws {
        let untold = UntoldErrors()
        try untold.noting(Self.key) {}
        #expect(untold.take(Self.key) == nil)
        #expect(throws: Errno.ioError) {
            try untold.noting(Self.key) { () throws(Errno) in throw .ioError }
        }
        #expect(untold.take(Self.other) == nil)
        #expect(untold.take(Self.key) == .ioError)
        #expect(untold.take(Self.key) == nil)
    }
}
