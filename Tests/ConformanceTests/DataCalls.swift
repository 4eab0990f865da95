import CTestSupport
import Glibc
import SystemPackage
import TestSupport

/// Memory that O_DIRECT takes.
final class AlignedBuffer {
    let start: UnsafeMutableRawPointer
    private let count: Int

    init(_ count: Int) {
        start = UnsafeMutableRawPointer.allocate(byteCount: count, alignment: 4096)
        start.initializeMemory(as: UInt8.self, repeating: 0, count: count)
        self.count = count
    }

    convenience init(_ data: [UInt8]) {
        self.init(data.count)
        set(data)
    }

    deinit { start.deallocate() }

    func set(_ data: [UInt8]) { start.copyMemory(from: data, byteCount: data.count) }
    var contents: [UInt8] { Array(UnsafeRawBufferPointer(start: start, count: count)) }
}

extension File {
    /// pwritev2(2) of one vector.
    @discardableResult
    func writeVectored(_ data: [UInt8], at offset: Int, flags: Int32) throws(Errno) -> Int {
        var data = data
        let count = data.withUnsafeMutableBytes { bytes in
            var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
            return pwritev2(raw, &vector, 1, offset, flags)
        }
        return try check(count)
    }

    /// preadv2(2) into one vector.
    func readVectored(_ count: Int, at offset: Int, flags: Int32) throws(Errno) -> [UInt8] {
        var data = [UInt8](repeating: 0, count: count)
        let got = data.withUnsafeMutableBytes { bytes in
            var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
            return preadv2(raw, &vector, 1, offset, flags)
        }
        return Array(data[..<(try check(got))])
    }
}
