internal import CFuseShim
internal import Glibc

/// A request as the kernel laid it out, in the buffer into which it was read.
struct RawRequest {
    let bytes: UnsafeRawBufferPointer
    let header: fs_in_header
    /// The channel that takes the answer.
    let channel: Int32

    /// `bytes` hold a header at least.
    init(_ bytes: UnsafeRawBufferPointer, _ channel: Int32) {
        self.bytes = bytes
        self.channel = channel
        header = bytes.loadUnaligned(as: fs_in_header.self)
    }

    var opcode: Int { Int(header.opcode) }
    var process: Int32 { Int32(bitPattern: header.pid) }

    /// What follows the header; nil where that is too short.
    func argument<Argument>(_ type: Argument.Type) -> Argument? {
        let offset = MemoryLayout<fs_in_header>.size
        guard bytes.count >= offset + MemoryLayout<Argument>.size else { return nil }
        return bytes.loadUnaligned(fromByteOffset: offset, as: type)
    }

    var kind: Intake.Kind {
        switch opcode {
        case FS_OPCODE_WRITE: .data
        case FS_OPCODE_CREATE, FS_OPCODE_TMPFILE: .opening
        case FS_OPCODE_OPEN where opensForWriting: .opening
        default: .other
        }
    }

    private var opensForWriting: Bool {
        guard let input = argument(fs_open_in.self) else { return false }
        return Int32(bitPattern: input.flags) & O_ACCMODE != O_RDONLY
    }

    /// Of a WRITE or SETATTR: whether it takes set-id bits and file capabilities away.
    var killsPrivileges: Bool {
        if opcode == FS_OPCODE_WRITE {
            let flags = argument(fs_write_in.self)?.write_flags ?? 0
            return flags & UInt32(FS_WRITE_KILL_SUIDGID) != 0
        }
        // The first word of fuse_setattr_in says which attributes change.
        return (argument(UInt32.self) ?? 0) & UInt32(FS_SETATTR_KILL_SUIDGID) != 0
    }
}
