internal import CLinux
internal import Glibc
internal import LinuxSystem
internal import SystemPackage

/// The directory of a process or thread in /proc, held open: what is read in it is of that process and no later
/// one. Every call throws ENOENT or ESRCH once the process has ended.
struct ProcessFiles {
    let directory: Descriptor

    init(at parent: Descriptor, _ name: String) throws(Errno) {
        directory = try Descriptor.open(at: parent, name, O_PATH | O_DIRECTORY)
    }

    init(_ path: String) throws(Errno) {
        try self.init(at: .workingDirectory, path)
    }

    /// The numbers that name entries of one of its directories: descriptors, or threads.
    func numbers(in name: String) throws(Errno) -> [String] {
        try directoryNumbers(try Descriptor.open(at: directory, name, O_RDONLY | O_DIRECTORY))
    }

    func contents(_ name: String) throws(Errno) -> [UInt8] {
        let file = try Descriptor.open(at: directory, name, O_RDONLY)
        var contents: [UInt8] = []
        let block = WorkerThread.buffer(64 << 10)
        while true {
            let count = try checked { read(file.raw, block.baseAddress, block.count) }
            if count == 0 { return contents }
            contents.append(contentsOf: block[..<count])
        }
    }

    /// The text of a link. It is not followed: no file system is asked. ENAMETOOLONG for a path of 4096 bytes and
    /// more.
    func link(_ name: String) throws(Errno) -> [UInt8] {
        var room = [UInt8](repeating: 0, count: Int(PATH_MAX))
        let length = try checked { readlinkat(directory.raw, name, &room, room.count) }
        return Array(room[..<length])
    }

    /// Where a link leads: follows it, without a request to the file system.
    func place(_ name: String) throws(Errno) -> cl_place {
        var place = cl_place()
        try checked { cl_find_place(directory.raw, name, 0, &place) }
        return place
    }

    /// The modes that a link in `fd` or `map_files` has itself tell what its file was opened for.
    func isOpenForWriting(_ name: String) throws(Errno) -> Bool {
        try FileStatus(at: directory, name).mode & 0o200 != 0
    }
}

/// The entries of a directory whose names begin with a digit.
func directoryNumbers(_ directory: Descriptor) throws(Errno) -> [String] {
    var reader = DirectoryReader(directory)
    var names: [String] = []
    try reader.forEach { (entry) throws(Errno) in
        if entry.name[0] >= 48 && entry.name[0] <= 57 { names.append(String(cString: entry.name)) }
    }
    return names
}

/// What /proc/PID/fdinfo/N tells.
struct DescriptorInfo {
    var flags: UInt64 = 0
    var mount: UInt64 = 0

    init(parsing text: [UInt8]) {
        for line in text.split(separator: UInt8(ascii: "\n")) {
            let words = line.split(separator: UInt8(ascii: "\t"))
            guard words.count == 2 else { continue }
            if words[0].elementsEqual("flags:".utf8) { flags = number(words[1], radix: 8) ?? 0 }
            if words[0].elementsEqual("mnt_id:".utf8) { mount = number(words[1]) ?? 0 }
        }
    }

    /// O_RDWR and O_WRONLY; with O_PATH they mean nothing.
    var isForWriting: Bool { flags & 3 != 0 && flags & UInt64(O_PATH) == 0 }
}

/// What /proc/PID/stat tells.
struct ProcessSummary {
    private(set) var command: String
    private(set) var isKernelThread: Bool

    private static let kernelThreadFlag: UInt64 = 0x0020_0000

    /// number (command) state parent group session terminal terminal-group flags ... The command may hold
    /// anything.
    init?(parsing text: [UInt8]) {
        guard let start = text.firstIndex(of: UInt8(ascii: "(")), let end = text.lastIndex(of: UInt8(ascii: ")")),
            start < end
        else { return nil }
        let words = text[(end + 1)...].split(separator: UInt8(ascii: " "))
        guard words.count > 6, let flags = number(words[6]) else { return nil }
        command = String(decoding: text[(start + 1)..<end], as: UTF8.self)
        isKernelThread = flags & Self.kernelThreadFlag != 0
    }
}

/// A mapping of a file that is shared: from a line of /proc/PID/maps.
struct SharedMapping {
    /// The name of its link in /proc/PID/map_files.
    var name: String
    var device: Device
    var isWritable: Bool
    /// Where it stands; a line break is written as \012, as a file's own backslash and digits are.
    var path: [UInt8]

    /// A line: start-end permissions offset major:minor inode, blanks, path. nil for a mapping that is private, or
    /// not of a file.
    init?(parsing line: ArraySlice<UInt8>) {
        let words = line.split(separator: UInt8(ascii: " "), maxSplits: 5)
        guard words.count == 6, words[1].last == UInt8(ascii: "s") else { return nil }
        let range = words[0].split(separator: UInt8(ascii: "-"))
        let numbers = words[3].split(separator: UInt8(ascii: ":"))
        guard range.count == 2, numbers.count == 2, let start = number(range[0], radix: 16),
            let end = number(range[1], radix: 16), let major = number(numbers[0], radix: 16),
            let minor = number(numbers[1], radix: 16)
        else { return nil }
        path = Array(words[5].drop { $0 == UInt8(ascii: " ") })
        guard path.first == UInt8(ascii: "/") else { return nil }
        name = String(start, radix: 16) + "-" + String(end, radix: 16)
        device = Device(major: major, minor: minor)
        isWritable = words[1].dropFirst().first == UInt8(ascii: "w")
    }
}
