import Glibc
import LinuxSystem
import SystemPackage
import TestSupport
import Testing

@Suite struct DescriptorTests {
    @Test("the cache keeps no more descriptors than its capacity, and those it keeps are right")
    func cacheIsBounded() throws {
        try TemporaryDirectory.with { top in
            let cache = DescriptorCache<Int>(capacity: 16)
            for number in 0..<200 {
                let path = top / Path("f\(number)")
                try path.create([UInt8(number & 0xff)])
                let opened = try FileName(path.string).withCString { (name) throws(Errno) in
                    try Descriptor.open(at: .workingDirectory, name, O_RDONLY)
                }
                cache.keep(opened, for: number)
            }
            let kept = try openDescriptors(below: top)
            #expect(kept > 0 && kept <= 16)
            var found = 0
            for number in 0..<200 {
                guard let kept = cache.descriptor(for: number) else { continue }
                found += 1
                var byte: UInt8 = 0
                #expect(pread(kept.raw, &byte, 1, 0) == 1)
                #expect(byte == UInt8(number & 0xff))
            }
            #expect(found > 0)
            cache.removeAll()
            #expect(try openDescriptors(below: top) == 0)
        }
    }

    /// Not all of the process: what other tests have begun may still be closing some.
    private func openDescriptors(below top: Path) throws -> Int {
        let prefix = (top.string + "/").utf8.map { CChar(bitPattern: $0) }
        var count = 0
        for name in try Path("/proc/self/fd").entries() {
            // The listing's own is closed by now, and others may be.
            var target = [CChar](repeating: 0, count: 4096)
            let length = readlink("/proc/self/fd/\(name.string)", &target, target.count)
            if length > 0 && target[..<length].starts(with: prefix) { count += 1 }
        }
        return count
    }

    @Test("a listing gives every entry once, also when it goes on at a position")
    func directoryReader() throws {
        try TemporaryDirectory.with { top in
            let names = Set((0..<3000).map { "entry-\($0)" })
            for name in names { try (top / Path(name)).create([]) }
            let directory = try FileName(top.string).withCString { (name) throws(Errno) in
                try Descriptor.open(at: .workingDirectory, name, O_RDONLY | O_DIRECTORY)
            }
            var reader = DirectoryReader(directory)
            var seen: [String] = []
            var position: Int64 = 0
            while true {
                try reader.seek(to: position)
                var count = 0
                while try reader.next({ (entry) throws(Errno) in
                    if count == 100 { return false }
                    count += 1
                    position = entry.next
                    if !entry.isDot { seen.append(String(cString: entry.name)) }
                    return true
                }) {}
                if count == 0 { break }
            }
            #expect(seen.count == names.count)
            #expect(Set(seen) == names)
        }
    }

    @Test(
        "a file handle finds its inode after a rename, and no other after its removal",
        .enabled(if: geteuid() == 0))
    func fileHandle() throws {
        try TemporaryDirectory.with { top in
            try (top / "a").create(bytes(10))
            let root = try open(top.string, O_RDONLY | O_DIRECTORY)
            let inode = try open((top / "a").string, O_PATH)
            let handle = try FileHandle(of: inode)
            let status = try FileStatus(of: inode)
            try (top / "a").rename(to: top / "b")
            #expect(try FileStatus(of: try handle.open(mount: root, O_PATH)).inode == status.inode)
            try (top / "b").unlink()
            try (top / "c").create(bytes(10))
            withExtendedLifetime(inode) {}
            let found = try? handle.open(mount: root, O_PATH)
            if let found {
                #expect(try FileStatus(of: found).birth == status.birth)
            }
        }
    }

    private func open(_ path: String, _ flags: Int32) throws(Errno) -> Descriptor {
        try FileName(path).withCString { (name) throws(Errno) in
            try Descriptor.open(at: .workingDirectory, name, flags)
        }
    }

    @Test("extended attributes are read whole, of a symbolic link too")
    func extendedAttributes() throws {
        try TemporaryDirectory.with { top in
            try (top / "f").create([])
            try (top / "f").setAttribute("user.one", bytes(3000))
            try (top / "f").setAttribute("user.two", [])
            try (top / "l").symlink(to: "nowhere")
            let file = try open((top / "f").string, O_PATH)
            let all = try allExtendedAttributes(file)
            #expect(all.values[FileName("user.one")] == bytes(3000))
            #expect(all.values[FileName("user.two")] == [])
            let link = try open((top / "l").string, O_PATH | O_NOFOLLOW)
            #expect(try allExtendedAttributes(link).names.isEmpty)
            #expect(String(decoding: try readLink(link), as: UTF8.self) == "nowhere")
        }
    }
}
