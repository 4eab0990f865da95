internal import CLinux

/// The CRC-32C of `bytes`; `before` is that of the bytes before them.
package func checksum(_ bytes: UnsafeRawBufferPointer, after before: UInt32 = 0) -> UInt32 {
    cl_crc32c(before, bytes.baseAddress, bytes.count)
}

/// `checksum`, computed as where the processor has no instruction for it.
package func portableChecksum(_ bytes: UnsafeRawBufferPointer, after before: UInt32 = 0) -> UInt32 {
    cl_crc32c_portable(before, bytes.baseAddress, bytes.count)
}
