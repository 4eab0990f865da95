internal import CLinux
internal import Glibc
package import SystemPackage

// Names in directories. Each call is the one of its name at the end of its comment, throws its errno, and
// does not follow a symbolic link at the end of the name.

/// mkdirat(2).
package func makeDirectory(
    at directory: Descriptor, _ name: UnsafePointer<CChar>, mode: UInt32
) throws(Errno) {
    try Steps.step("mkdir") { () throws(Errno) -> Void in try checked { mkdirat(directory.raw, name, mode) } }
}

/// mknodat(2).
package func makeNode(
    at directory: Descriptor, _ name: UnsafePointer<CChar>, mode: UInt32, device: UInt64
) throws(Errno) {
    try Steps.step("mknod") { () throws(Errno) -> Void in
        try checked { mknodat(directory.raw, name, mode, dev_t(device)) }
    }
}

/// symlinkat(2).
package func makeSymbolicLink(
    to target: UnsafePointer<CChar>, at directory: Descriptor, _ name: UnsafePointer<CChar>
) throws(Errno) {
    try Steps.step("symlink") { () throws(Errno) -> Void in
        try checked { symlinkat(target, directory.raw, name) }
    }
}

/// unlinkat(2); `flags` is AT_REMOVEDIR for a directory.
package func unlink(
    at directory: Descriptor, _ name: UnsafePointer<CChar>, _ flags: Int32 = 0
) throws(Errno) {
    try Steps.step("unlink") { () throws(Errno) -> Void in try checked { unlinkat(directory.raw, name, flags) } }
}

/// renameat2(2).
package func rename(
    at directory: Descriptor, _ name: UnsafePointer<CChar>, to newDirectory: Descriptor,
    _ newName: UnsafePointer<CChar>, flags: UInt32 = 0
) throws(Errno) {
    try Steps.step("rename") { () throws(Errno) -> Void in
        try checked { renameat2(directory.raw, name, newDirectory.raw, newName, flags) }
    }
}

/// linkat(2) of what `descriptor` refers to, through its link in /proc, which needs no privilege.
package func link(
    _ descriptor: Descriptor, at directory: Descriptor, _ name: UnsafePointer<CChar>
) throws(Errno) {
    try withLink(to: descriptor) { (path) throws(Errno) -> Void in
        try Steps.step("link") { () throws(Errno) -> Void in
            try checked { linkat(AT_FDCWD, path, directory.raw, name, AT_SYMLINK_FOLLOW) }
        }
    }
}

/// linkat(2) of a name.
package func link(
    at directory: Descriptor, _ name: UnsafePointer<CChar>, to newDirectory: Descriptor,
    _ newName: UnsafePointer<CChar>
) throws(Errno) {
    try Steps.step("link") { () throws(Errno) -> Void in
        try checked { linkat(directory.raw, name, newDirectory.raw, newName, 0) }
    }
}

/// readlinkat(2) of what `descriptor` refers to: the target's bytes, without a NUL byte.
package func readLink(_ descriptor: Descriptor) throws(Errno) -> [UInt8] {
    let room = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(PATH_MAX), alignment: 1)
    defer { room.deallocate() }
    let length = try checked { cl_readlink(descriptor.raw, room.baseAddress, room.count) }
    return Array(room[..<length])
}

/// The path of what a descriptor refers to, as the kernel knows it.
package func linkTarget(of descriptor: Descriptor) throws(Errno) -> [UInt8] {
    try withLink(to: descriptor) { (link) throws(Errno) in
        var room = [UInt8](repeating: 0, count: Int(PATH_MAX))
        let length = try checked { readlink(link, &room, room.count) }
        return Array(room[..<length])
    }
}

// Attributes of what a descriptor refers to; an O_PATH descriptor will do.

/// chmod(2).
package func changeMode(_ descriptor: Descriptor, _ mode: UInt32) throws(Errno) {
    try withLink(to: descriptor) { (path) throws(Errno) -> Void in
        try Steps.step("chmod") { () throws(Errno) -> Void in try checked { chmod(path, mode) } }
    }
}

/// fchownat(2); UInt32.max leaves a side as it is.
package func changeOwner(
    _ descriptor: Descriptor, user: UInt32, group: UInt32
) throws(Errno) {
    var empty: CChar = 0
    try Steps.step("chown") { () throws(Errno) -> Void in
        try checked { fchownat(descriptor.raw, &empty, user, group, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) }
    }
}

/// utimensat(2), each side a time, `.now` or `.omitted`.
package func changeTimes(
    _ descriptor: Descriptor, accessed: Timestamp, modified: Timestamp
) throws(Errno) {
    var times = (accessed.timespec, modified.timespec)
    var empty: CChar = 0
    try Steps.step("utimens") { () throws(Errno) -> Void in
        try checked { () -> Int32 in
            withUnsafePointer(to: &times) { pointer in
                pointer.withMemoryRebound(to: timespec.self, capacity: 2) {
                    utimensat(descriptor.raw, &empty, $0, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW)
                }
            }
        }
    }
}

/// The size of a file system and what is left of it: what statvfs(3) tells, in blocks of `fragmentSize` bytes.
package struct FileSystemStatus: Sendable {
    package var blockSize: UInt
    package var fragmentSize: UInt
    package var blocks: UInt
    package var freeBlocks: UInt
    package var availableBlocks: UInt
    package var files: UInt
    package var freeFiles: UInt
    package var nameMax: UInt

    /// fstatvfs(3).
    package init(of descriptor: Descriptor) throws(Errno) {
        var buffer = statvfs()
        try checked { fstatvfs(descriptor.raw, &buffer) }
        blockSize = buffer.f_bsize
        fragmentSize = buffer.f_frsize
        blocks = buffer.f_blocks
        freeBlocks = buffer.f_bfree
        availableBlocks = buffer.f_bavail
        files = buffer.f_files
        freeFiles = buffer.f_ffree
        nameMax = buffer.f_namemax
    }
}

// Data.

/// pread(2) until `buffer` is full or the file ends: the number of bytes read.
package func readFully(
    _ descriptor: Descriptor, into buffer: UnsafeMutableRawBufferPointer, at offset: Int64
) throws(Errno) -> Int {
    var done = 0
    while done < buffer.count {
        let count = try checked {
            pread(
                descriptor.raw, buffer.baseAddress.map { $0 + done }, buffer.count - done,
                Int(offset) + done)
        }
        if count == 0 { break }
        done += count
    }
    return done
}

/// pwrite(2) until all of `buffer` is written.
package func writeFully(
    _ descriptor: Descriptor, _ buffer: UnsafeRawBufferPointer, at offset: Int64
) throws(Errno) {
    try Steps.write(buffer) { (bytes) throws(Errno) in try write(descriptor, bytes, at: offset) }
}

private func write(
    _ descriptor: Descriptor, _ buffer: UnsafeRawBufferPointer, at offset: Int64
) throws(Errno) {
    var done = 0
    while done < buffer.count {
        done += try checked {
            pwrite(
                descriptor.raw, buffer.baseAddress.map { $0 + done }, buffer.count - done,
                Int(offset) + done)
        }
    }
}

/// pwrite(2) until all of `bytes` is written.
package func writeFully(_ descriptor: Descriptor, _ bytes: [UInt8], at offset: Int64) throws(Errno) {
    try bytes.withUnsafeBufferPointer { (bytes) throws(Errno) in
        try writeFully(descriptor, UnsafeRawBufferPointer(bytes), at: offset)
    }
}

/// ftruncate(2).
package func truncate(_ descriptor: Descriptor, to size: Int64) throws(Errno) {
    try Steps.step("truncate") { () throws(Errno) -> Void in try checked { ftruncate(descriptor.raw, Int(size)) } }
}

/// truncate(2) of what `descriptor` refers to; an O_PATH descriptor will do.
package func truncatePath(_ descriptor: Descriptor, to size: Int64) throws(Errno) {
    try withLink(to: descriptor) { (path) throws(Errno) -> Void in
        try Steps.step("truncate") { () throws(Errno) -> Void in try checked { Glibc.truncate(path, Int(size)) } }
    }
}

/// fallocate(2).
package func allocate(
    _ descriptor: Descriptor, mode: Int32, offset: Int64, length: Int64
) throws(Errno) {
    try Steps.step("allocate") { () throws(Errno) -> Void in
        try checked { fallocate(descriptor.raw, mode, Int(offset), Int(length)) }
    }
}

/// lseek(2) with SEEK_DATA or SEEK_HOLE: nil where there is no data from `offset` on (ENXIO).
package func seek(
    _ descriptor: Descriptor, _ whence: Int32, from offset: Int64
) throws(Errno) -> Int64? {
    do throws(Errno) {
        return Int64(try checked { lseek(descriptor.raw, Int(offset), whence) })
    } catch .noSuchAddressOrDevice {
        return nil
    }
}

/// ioctl(FICLONERANGE): `target` shares the source's blocks in `range`, at the same offsets.
package func cloneRange(
    _ source: Descriptor, to target: Descriptor, _ range: Range<Int64>
) throws(Errno) {
    let start = UInt64(range.lowerBound)
    try Steps.step("clone") { () throws(Errno) -> Void in
        try checked { cl_clone_range(source.raw, start, UInt64(range.count), target.raw, start) }
    }
}

/// sync_file_range(2) of all of a file: writes its dirty pages and waits for them, without the inode's lock.
package func flushPages(_ file: Descriptor) throws(Errno) {
    try checked { cl_flush(file.raw) }
}
