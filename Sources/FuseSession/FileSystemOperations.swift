package import LinuxSystem
package import SystemPackage

/// A file system, without FUSE: one method for each request of the kernel. Methods are called by many threads at
/// once; what they throw goes to the application unchanged. Names are valid during the call.
///
/// A node is what a look-up answered; 1 is the root. A handle is what an open answered.
package protocol FileSystemOperations: AnyObject, Sendable {
    /// The kernel has agreed on the session: requests are served from now on.
    func didStart()
    func lookup(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply
    /// The kernel drops `count` references of those that look-ups gave it.
    func forget(node: UInt64, count: UInt64)
    func attributes(node: UInt64, handle: UInt64?) throws(Errno) -> AttributeReply
    func setAttributes(
        _ context: RequestContext, node: UInt64, handle: UInt64?, _ change: AttributeChange
    ) throws(Errno) -> AttributeReply
    func readLink(node: UInt64) throws(Errno) -> [UInt8]
    func makeNode(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>, mode: UInt32,
        device: UInt64
    ) throws(Errno) -> EntryReply
    func makeDirectory(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>, mode: UInt32
    ) throws(Errno) -> EntryReply
    func makeSymbolicLink(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>,
        target: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply
    func unlink(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>
    ) throws(Errno)
    func removeDirectory(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>
    ) throws(Errno)
    func rename(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>,
        newParent: UInt64, _ newName: UnsafePointer<CChar>, flags: UInt32
    ) throws(Errno)
    func link(
        _ context: RequestContext, node: UInt64, newParent: UInt64,
        _ newName: UnsafePointer<CChar>
    ) throws(Errno) -> EntryReply
    func open(_ context: RequestContext, node: UInt64, flags: Int32) throws(Errno) -> OpenReply
    func create(
        _ context: RequestContext, parent: UInt64, _ name: UnsafePointer<CChar>, mode: UInt32,
        flags: Int32
    ) throws(Errno) -> (EntryReply, OpenReply)
    /// A file without a name: open(2) with O_TMPFILE.
    func createTemporary(
        _ context: RequestContext, parent: UInt64, mode: UInt32, flags: Int32
    ) throws(Errno) -> (EntryReply, OpenReply)
    /// `isOwn`: an application's read(2) past the kernel's cache, and not the kernel's own for that.
    func read(
        node: UInt64, handle: UInt64, size: Int, offset: Int64, isOwn: Bool
    ) throws(Errno) -> ReadReply
    func write(
        _ context: RequestContext, node: UInt64, handle: UInt64, _ data: UnsafeRawBufferPointer,
        offset: Int64
    ) throws(Errno) -> Int
    func release(node: UInt64, handle: UInt64)
    func synchronize(node: UInt64, handle: UInt64, dataOnly: Bool) throws(Errno)
    func openDirectory(_ context: RequestContext, node: UInt64) throws(Errno) -> OpenReply
    func readDirectory(
        node: UInt64, handle: UInt64, offset: Int64, into buffer: inout DirectoryBuffer
    ) throws(Errno)
    func releaseDirectory(node: UInt64, handle: UInt64)
    func synchronizeDirectory(node: UInt64, handle: UInt64, dataOnly: Bool) throws(Errno)
    func fileSystemStatus(node: UInt64) throws(Errno) -> FileSystemStatus
    func setExtendedAttribute(
        _ context: RequestContext, node: UInt64, _ name: UnsafePointer<CChar>,
        _ value: UnsafeRawBufferPointer, flags: Int32
    ) throws(Errno)
    /// The value's length; with an empty buffer only that. ERANGE where it does not fit.
    func extendedAttribute(
        node: UInt64, _ name: UnsafePointer<CChar>, into buffer: UnsafeMutableRawBufferPointer
    ) throws(Errno) -> Int
    /// The names' length, a NUL byte after each; with an empty buffer only that.
    func extendedAttributeNames(
        _ context: RequestContext, node: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(Errno) -> Int
    func removeExtendedAttribute(
        _ context: RequestContext, node: UInt64, _ name: UnsafePointer<CChar>
    ) throws(Errno)
    func allocate(
        _ context: RequestContext, node: UInt64, handle: UInt64, mode: Int32, offset: Int64,
        length: Int64
    ) throws(Errno)
    func copyRange(
        _ context: RequestContext, from node: UInt64, handle: UInt64, offset: Int64,
        to newNode: UInt64, newHandle: UInt64, newOffset: Int64, length: Int
    ) throws(Errno) -> Int
    /// Whether the kernel may have gathered writes to a file that its SEEK_DATA and SEEK_HOLE do not tell of.
    func hidesWrites(node: UInt64) -> Bool
    func seek(
        node: UInt64, handle: UInt64, offset: Int64, whence: Int32
    ) throws(Errno) -> Int64
}
