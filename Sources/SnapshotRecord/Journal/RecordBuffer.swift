internal import LinuxSystem
internal import SystemPackage

/// Encodes records, one behind the other, in memory that is kept for the next ones. Its owner has the lock.
final class RecordBuffer {
    private var start: UnsafeMutableRawPointer
    private var capacity: Int
    private(set) var count = 0

    init() {
        capacity = 4096
        start = .allocate(byteCount: capacity, alignment: 16)
    }

    deinit { start.deallocate() }

    var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: start, count: count) }

    /// Empties the buffer; memory that only a very large record needed is given back.
    func clear() {
        count = 0
        guard capacity > JournalFormat.bufferBytes else { return }
        start.deallocate()
        capacity = JournalFormat.bufferBytes
        start = .allocate(byteCount: capacity, alignment: 16)
    }

    private func reserve(_ more: Int) {
        guard count + more > capacity else { return }
        let grown = max(capacity * 2, count + more)
        let moved = UnsafeMutableRawPointer.allocate(byteCount: grown, alignment: 16)
        moved.copyMemory(from: start, byteCount: count)
        start.deallocate()
        (start, capacity) = (moved, grown)
    }

    // MARK: Values

    @inline(__always)
    func put<Number: FixedWidthInteger>(_ number: Number) {
        reserve(MemoryLayout<Number>.size)
        start.storeBytes(of: number.littleEndian, toByteOffset: count, as: Number.self)
        count += MemoryLayout<Number>.size
    }

    func put(_ bytes: UnsafeRawBufferPointer) {
        guard let from = bytes.baseAddress else { return }
        reserve(bytes.count)
        (start + count).copyMemory(from: from, byteCount: bytes.count)
        count += bytes.count
    }

    func set<Number: FixedWidthInteger>(_ number: Number, at offset: Int) {
        start.storeBytes(of: number.littleEndian, toByteOffset: offset, as: Number.self)
    }

    func put(_ key: InodeKey) {
        put(key.inode)
        put(key.birth)
    }

    func put(_ time: Timestamp) {
        put(time.seconds)
        put(time.nanoseconds)
    }

    /// A name, with a NUL byte behind it that its length does not count. Throws ENAMETOOLONG.
    private func put(_ name: FileName) throws(Errno) {
        let length = name.length
        guard length > 0, length <= JournalFormat.nameBytesMax else { throw .fileNameTooLong }
        put(UInt16(length))
        name.withCString { put(UnsafeRawBufferPointer(start: $0, count: length + 1)) }
    }

    private func put(_ bytes: [UInt8]) throws(Errno) {
        guard let length = UInt32(exactly: bytes.count) else { throw .messageTooLong }
        put(length)
        bytes.withUnsafeBytes { put($0) }
    }

    private func put(_ reference: InodeReference) {
        put(reference.key)
        put(reference.device)
        put(reference.kind)
        reference.handle.withBytes { type, bytes in
            put(type)
            put(UInt8(bytes.count))
            put(bytes)
        }
    }

    private func put(_ status: FileStatus) {
        put(status.device)
        put(status.inode)
        put(status.birth)
        put(status.specialDevice)
        put(status.size)
        put(status.blocks)
        put(status.blockSize)
        put(status.mode)
        put(status.links)
        put(status.user)
        put(status.group)
        put(status.accessed)
        put(status.modified)
        put(status.changed)
    }

    private func put(_ extended: ExtendedAttributes) throws(Errno) {
        put(UInt32(extended.values.count))
        for (name, value) in extended.values {
            try put(name)
            try put(value)
        }
        put(UInt32(extended.unreadable.count))
        for name in extended.unreadable { try put(name) }
    }

    private func put(_ kind: ChangeKind, _ inode: InodeKey) {
        put(kind.rawValue)
        put(inode)
    }

    private func put(_ blocks: Range<UInt64>) {
        put(blocks.lowerBound)
        put(blocks.upperBound)
    }

    /// Throws ENAMETOOLONG for a name that no file system has.
    func put(_ change: RecordChange) throws(Errno) {
        switch change {
        case .reference(let reference):
            put(ChangeKind.reference.rawValue)
            put(reference)
        case .born(let reference):
            put(ChangeKind.born.rawValue)
            put(reference)
        case .name(let directory, let name, let entry):
            put(.name, directory)
            try put(name)
            switch entry {
            case .absent:
                put(UInt8(0))
            case .present(let reference):
                put(UInt8(1))
                put(reference)
            }
        case .attributes(let inode, let attributes):
            put(.attributes, inode)
            put(attributes.status)
            try put(attributes.extended)
        case .written(let inode, let size, let modified, let changed):
            put(.written, inode)
            put(size)
            put(modified)
            put(changed)
        case .links(let inode, let links):
            put(.links, inode)
            put(links.count)
            put(links.changed)
        case .data(let inode, let blocks):
            put(.data, inode)
            put(blocks)
        case .holes(let inode, let blocks):
            put(.holes, inode)
            put(blocks)
        case .merged(let inode, let blocks):
            put(.merged, inode)
            put(blocks)
        case .place(let inode, let place):
            put(.place, inode)
            put(place.rawValue)
        case .target(let inode, let target):
            put(.target, inode)
            try put(target)
        case .flags(let inode, let flags):
            put(.flags, inode)
            put(flags.rawValue)
        }
    }

    // MARK: Records

    /// Begins a record: the offset that `endRecord` wants.
    func beginRecord(_ kind: RecordKind, sequence: UInt64) -> Int {
        let begin = count
        put(UInt64(0))  // Length and checksum, when they are known.
        put(sequence)
        put(UInt32(kind.rawValue))  // The check likewise.
        return begin
    }

    /// Throws EMSGSIZE where the record is larger than a reader takes.
    func endRecord(_ begin: Int, seed: UInt32) throws(Errno) {
        let length = count - begin
        guard length <= JournalFormat.recordBytesMax else { throw .messageTooLong }
        set(UInt32(length), at: begin)
        let record = UnsafeRawBufferPointer(rebasing: bytes[begin...])
        set(JournalFormat.kindAndCheck(record, seed: seed), at: begin + JournalFormat.recordKindOffset)
        set(
            JournalFormat.checksum(ofRecord: record, seed: seed), at: begin + JournalFormat.recordChecksumOffset)
    }

    func putMark(through: UInt64, _ scope: MarkScope, _ inodes: [InodeKey] = []) throws(Errno) {
        guard let number = UInt32(exactly: inodes.count) else { throw .messageTooLong }
        put(through)
        put(scope.rawValue)
        put(number)
        for inode in inodes { put(inode) }
    }

    func put(_ head: JournalHead, isCompacted: Bool, firstSequence: UInt64) {
        let begin = count
        JournalFormat.magic.withUnsafeBytes { put($0) }
        put(JournalFormat.version)
        put(UInt32(JournalFormat.headBytes))
        put(UInt32(0))  // The checksum.
        put(head.embodiment.rawValue)
        put(
            (head.isContinued ? JournalFormat.isContinuedFlag : 0)
                | (isCompacted ? JournalFormat.isCompactedFlag : 0))
        put(UInt16(0))
        put(head.layer)
        put(head.serial)
        put(head.source)
        put(head.cut)
        put(UInt32(0))
        put(head.boot.high.byteSwapped)
        put(head.boot.low.byteSwapped)
        put(head.boot.mount)
        put(firstSequence)
        put(UInt64(0))
        precondition(count - begin == JournalFormat.headBytes, "the head has the size that its reader expects")
        let all = UnsafeRawBufferPointer(rebasing: bytes[begin...])
        set(JournalFormat.checksum(ofHead: all), at: begin + JournalFormat.checksumOffset)
    }
}

extension JournalFormat {
    /// The checksum of a head whose bytes these are.
    static func checksum(ofHead bytes: UnsafeRawBufferPointer) -> UInt32 {
        let front = UnsafeRawBufferPointer(rebasing: bytes[..<checksumOffset])
        let rest = UnsafeRawBufferPointer(rebasing: bytes[(checksumOffset + 4)...])
        return LinuxSystem.checksum(rest, after: LinuxSystem.checksum(front))
    }
}
