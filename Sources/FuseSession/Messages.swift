package import LinuxSystem

/// Who asks: the user and group that the kernel checked, the process (0 where the kernel asks by itself, for
/// write-back), and the umask of an operation that makes something.
package struct RequestContext: Sendable {
    package let user: UInt32
    package let group: UInt32
    package let process: Int32
    package let mask: UInt32
    /// The kernel asks that a change of data take set-id bits and file capabilities away.
    package let killsPrivileges: Bool
    /// Of a write: the kernel writes what it has of the file in its page cache, and says nothing of who wrote it there.
    package var isWriteBack = false
}

/// The attributes of a node, and for how many seconds the kernel may rely on them.
package struct AttributeReply: Sendable {
    package var status: FileStatus
    package var timeout: Double

    package init(_ status: FileStatus, timeout: Double) {
        self.status = status
        self.timeout = timeout
    }
}

/// The answer to a look-up: the kernel holds one more reference to `node`. Node 0 says that there is no such name,
/// which the kernel may remember for `timeout`.
package struct EntryReply: Sendable {
    /// Of all nodes of this mount: a file handle that was made in another one names nothing here.
    static let generation = UInt64(UInt32.random(in: 1...UInt32.max))

    package var node: UInt64
    package var attributes: AttributeReply?
    package var timeout: Double

    package init(node: UInt64, attributes: AttributeReply?, timeout: Double) {
        self.node = node
        self.attributes = attributes
        self.timeout = timeout
    }
}

/// The answer to an open.
package struct OpenReply: Sendable {
    package var handle: UInt64
    /// The kernel keeps what it has cached of the data.
    package var keepsCache: Bool
    /// The kernel keeps the listing of a directory.
    package var cachesListing: Bool
    /// Reads and writes go around the kernel's cache.
    package var isDirect: Bool
    /// What `Session.openBacking` gave: the kernel reads and writes that file by itself.
    package var backing: Int32?

    package init(
        handle: UInt64, keepsCache: Bool, cachesListing: Bool = false, isDirect: Bool = false,
        backing: Int32? = nil
    ) {
        self.handle = handle
        self.keepsCache = keepsCache
        self.cachesListing = cachesListing
        self.isDirect = isDirect
        self.backing = backing
    }
}

/// The answer to a read.
package enum ReadReply {
    /// The bytes of a file, from an offset on: handed over without passing through the daemon.
    case file(Descriptor, offset: Int64)
    /// Bytes that stay valid until the thread's next request.
    case bytes(UnsafeRawBufferPointer)
}

/// What SETATTR asks to change; nil leaves an attribute as it is.
package struct AttributeChange: Sendable {
    package var mode: UInt32?
    package var user: UInt32?
    package var group: UInt32?
    package var size: Int64?
    package var accessed: Timestamp?
    package var modified: Timestamp?

    /// The time of modification and nothing else.
    package var isTimeAlone: Bool {
        modified != nil && mode == nil && user == nil && group == nil && size == nil && accessed == nil
    }

    package var isEmpty: Bool {
        mode == nil && user == nil && group == nil && size == nil && accessed == nil && modified == nil
    }
}
