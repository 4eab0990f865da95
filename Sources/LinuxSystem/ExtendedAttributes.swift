internal import CLinux
internal import Glibc
package import SystemPackage

// Extended attributes of what a descriptor refers to. They go through the link in /proc, so that an O_PATH
// descriptor will do, one of a symbolic link too.

/// setxattr(2); `flags` is XATTR_CREATE, XATTR_REPLACE or 0.
package func setExtendedAttribute(
    _ descriptor: Descriptor, _ name: UnsafePointer<CChar>, _ value: UnsafeRawBufferPointer,
    _ flags: Int32
) throws(Errno) {
    try withLink(to: descriptor) { (path) throws(Errno) -> Void in
        try Steps.step("setxattr") { () throws(Errno) -> Void in
            try checked { setxattr(path, name, value.baseAddress, value.count, flags) }
        }
    }
}

/// removexattr(2).
package func removeExtendedAttribute(
    _ descriptor: Descriptor, _ name: UnsafePointer<CChar>
) throws(Errno) {
    try withLink(to: descriptor) { (path) throws(Errno) -> Void in
        try Steps.step("removexattr") { () throws(Errno) -> Void in try checked { removexattr(path, name) } }
    }
}

/// getxattr(2): the value's length; with an empty buffer only that. Throws ERANGE where it does not fit.
package func extendedAttribute(
    _ descriptor: Descriptor, _ name: UnsafePointer<CChar>, into buffer: UnsafeMutableRawBufferPointer
) throws(Errno) -> Int {
    try withLink(to: descriptor) { (path) throws(Errno) -> Int in
        try checked { getxattr(path, name, buffer.baseAddress, buffer.count) }
    }
}

/// listxattr(2): the length of the names, a NUL byte after each; with an empty buffer only that.
package func extendedAttributeNames(
    _ descriptor: Descriptor, into buffer: UnsafeMutableRawBufferPointer
) throws(Errno) -> Int {
    try withLink(to: descriptor) { (path) throws(Errno) -> Int in
        try checked {
            listxattr(
                path, buffer.baseAddress?.assumingMemoryBound(to: CChar.self), buffer.count)
        }
    }
}

/// listxattr(2): all names.
package func extendedAttributeNames(_ descriptor: Descriptor) throws(Errno) -> [FileName] {
    let bytes = try growing { (buffer) throws(Errno) -> Int in
        try extendedAttributeNames(descriptor, into: buffer)
    }
    return bytes.split(separator: 0).map { FileName(bytes: $0) }
}

/// All extended attributes of an inode, by name.
package struct ExtendedAttributes: Sendable, Equatable {
    package var values: [FileName: [UInt8]] = [:]
    /// Those whose values this process may not read: `user.` ones of a file that it may not read, without privilege.
    package var unreadable: Set<FileName> = []

    package init() {}

    package var names: [FileName] { Array(values.keys) + unreadable }

    /// Throws what getxattr(2) throws: ENODATA where there is none of that name, EACCES where it may not be read.
    package func value(_ name: FileName) throws(Errno) -> [UInt8] {
        if let value = values[name] { return value }
        throw unreadable.contains(name) ? .permissionDenied : .noData
    }

    /// Whether some are there only in one of the two, or have another value, as far as values can be read in both.
    package func differs(from other: ExtendedAttributes) -> Bool {
        if Set(names) != Set(other.names) { return true }
        return values.contains { name, value in
            guard let others = other.values[name] else { return false }
            return others != value
        }
    }
}

/// Every extended attribute with its value; none where the file system has no such thing.
package func allExtendedAttributes(
    _ descriptor: Descriptor
) throws(Errno) -> ExtendedAttributes {
    var attributes = ExtendedAttributes()
    let names: [FileName]
    do throws(Errno) {
        names = try extendedAttributeNames(descriptor)
    } catch .notSupported {
        return attributes
    }
    for name in names {
        do throws(Errno) {
            attributes.values[name] = try growing { (buffer) throws(Errno) -> Int in
                try name.withCString { (string) throws(Errno) -> Int in
                    try extendedAttribute(descriptor, string, into: buffer)
                }
            }
        } catch .noData {
            // Listed, and gone or not ours to read: then it is not part of what we can keep.
        } catch .permissionDenied {
            attributes.unreadable.insert(name)
        }
    }
    return attributes
}

/// Asks for the length, then for the bytes, again while they grow in between.
private func growing(
    _ call: (UnsafeMutableRawBufferPointer) throws(Errno) -> Int
) throws(Errno) -> [UInt8] {
    while true {
        let length = try call(UnsafeMutableRawBufferPointer(start: nil, count: 0))
        if length == 0 { return [] }
        let room = UnsafeMutableRawBufferPointer.allocate(byteCount: length, alignment: 1)
        defer { room.deallocate() }
        do throws(Errno) {
            let count = try call(room)
            return Array(room[..<count])
        } catch .outOfRange {
            continue
        }
    }
}
