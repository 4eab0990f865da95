import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// The less usual ways to move data: vectors with flags, splice, sendfile, asynchronous and direct I/O.
@Suite(.serialized) struct DataCallTests {
    @Test("preadv2 and pwritev2 with flags", arguments: Setting.available)
    func flags(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(10_000))
            try place.cut()
            #expect(try file.writeVectored(bytes(100, seed: 2), at: 50, flags: RWF_DSYNC) == 100)
            #expect(try file.writeVectored(bytes(100, seed: 3), at: 500, flags: RWF_SYNC) == 100)
            #expect(try file.writeVectored(bytes(100, seed: 4), at: 0, flags: RWF_APPEND) == 100)
            #expect(try file.stat().size == 10_100)
            #expect(try file.readVectored(100, at: 10_000, flags: 0) == bytes(100, seed: 4))
            #expect(try file.readVectored(100, at: 50, flags: RWF_HIPRI) == bytes(100, seed: 2))
            #expect(try file.readVectored(100, at: 500, flags: 0) == bytes(100, seed: 3))
            #expect(throws: Errno.notSupported) { try file.readVectored(1, at: 0, flags: 1 << 30) }
            // Data that are in the cache, or the answer that they are not, or that this cannot be asked for.
            do throws(Errno) {
                #expect(try file.readVectored(100, at: 50, flags: RWF_NOWAIT) == bytes(100, seed: 2))
            } catch {
                #expect(error == .resourceTemporarilyUnavailable || error == .notSupported)
            }
            do throws(Errno) {
                try file.writeVectored(bytes(10, seed: 5), at: 0, flags: RWF_NOWAIT)
                #expect(try file.read(10, at: 0) == bytes(10, seed: 5))
            } catch {
                #expect(error == .resourceTemporarilyUnavailable || error == .notSupported)
                #expect(try file.read(10, at: 0) == Array(bytes(10_000)[..<10]))
            }
        }
    }

    @Test("vectors are read and written as one piece", arguments: Setting.available)
    func vectors(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try place.cut()
            var (first, second) = (bytes(5_000), bytes(3_001, seed: 2))
            let written = first.withUnsafeMutableBytes { first in
                second.withUnsafeMutableBytes { second in
                    let vectors = [first, second].map { iovec(iov_base: $0.baseAddress, iov_len: $0.count) }
                    return pwritev(file.raw, vectors, 2, 99)
                }
            }
            #expect(written == 8_001)
            #expect(try file.read(10_000, at: 99) == first + second)
        }
    }

    @Test("splice and tee move data between files and pipes", arguments: Setting.available)
    func splicing(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(60_000))
            try place.cut()
            let (one, other) = (try Pipe(), try Pipe())
            let copy = try (place / "copy").open(O_RDWR | O_CREAT)
            var (from, to) = (1_000, 70)
            #expect(splice(file.raw, &from, one.input.raw, nil, 30_000, 0) == 30_000)
            #expect(from == 31_000)
            #expect(tee(one.output.raw, other.input.raw, 30_000, 0) == 30_000)
            // What is in the pipe is what was there when it was put there, or later: not what never was.
            try file.write(bytes(100, seed: 2), at: 40_000)
            var moved = 0
            while moved < 30_000 {
                moved += try check(splice(one.output.raw, nil, copy.raw, &to, 30_000 - moved, 0))
            }
            #expect(try copy.read(40_000, at: 70) == Array(bytes(60_000)[1_000..<31_000]))
            #expect(try other.output.read(30_000) == Array(bytes(60_000)[1_000..<31_000]))
        }
    }

    @Test("sendfile and copy_file_range, within and to another file system", arguments: Setting.available)
    func sending(_ setting: Setting) throws {
        try setting.run { place in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(100_000))
            try place.cut()
            let inside = try (place / "copy").open(O_RDWR | O_CREAT)
            let outside = File(raw: try check(memfd_create("outside", 0)))
            for target in [inside, outside] {
                var (at, done) = (5_000, 0)
                while done < 90_000 { done += try check(sendfile(target.raw, file.raw, &at, 90_000 - done)) }
                #expect(try target.read(100_000, at: 0) == Array(bytes(100_000)[5_000..<95_000]))
            }
            try outside.write(bytes(5_000, seed: 2), at: 0)
            var at = 0
            #expect(sendfile(inside.raw, outside.raw, &at, 5_000) == 5_000)
            #expect(try inside.read(5_000, at: 90_000) == bytes(5_000, seed: 2))
            let other = try (Path("/dev/shm")).open(O_RDWR | O_TMPFILE, mode: 0o600)
            do throws(Errno) {
                #expect(try other.copyRange(from: file, at: 100, to: 0, count: 50_000) == 50_000)
                #expect(try other.read(50_000, at: 0) == Array(bytes(100_000)[100..<50_100]))
            } catch {
                #expect(error == .improperLink)
            }
        }
    }

    @Test(
        "asynchronous reads and writes do what they say, buffered and direct", arguments: Setting.available,
        [TS_ASYNC_AIO, TS_ASYNC_URING])
    func asynchronous(_ setting: Setting, _ kind: ts_async_kind) throws {
        try setting.run { place in
            guard let ring = ts_async_open(Int32(kind.rawValue), 16) else { return }
            defer { ts_async_close(ring) }
            func finish(_ count: Int) throws {
                for _ in 0..<count {
                    var (tag, result): (UInt64, Int64) = (0, 0)
                    try check(ts_async_wait(ring, &tag, &result))
                    #expect(result == 8_192, "request \(tag)")
                }
            }
            for extra in [0, O_DIRECT] {
                let file = try (place / "file-\(extra)".path).open(O_RDWR | O_CREAT | extra)
                let inputs = (0..<8).map { AlignedBuffer(bytes(8_192, seed: UInt64($0) + 5)) }
                try place.cut()
                for (number, input) in inputs.enumerated() {
                    try check(
                        ts_async_write(ring, file.raw, input.start, 8_192, Int64(number * 8_192), UInt64(number)))
                }
                try finish(8)
                #expect(try file.stat().size == 65_536)
                let outputs = (0..<8).map { _ in AlignedBuffer(8_192) }
                for (number, output) in outputs.enumerated() {
                    try check(
                        ts_async_read(ring, file.raw, output.start, 8_192, Int64(number * 8_192), UInt64(number)))
                }
                try finish(8)
                for (input, output) in zip(inputs, outputs) { #expect(input.contents == output.contents) }
            }
        }
    }

    @Test(
        "direct I/O that is not aligned: refused as the source refuses it, or done right",
        arguments: Setting.available)
    func unaligned(_ setting: Setting) throws {
        try setting.run { place in
            try (place / "file").create(bytes(20_000))
            try place.cut()
            let file = try (place / "file").open(O_RDWR | O_DIRECT)
            let buffer = AlignedBuffer(bytes(8_192, seed: 2))
            var expected = bytes(20_000)
            for (offset, count, shift) in [(1, 4_096, 0), (0, 100, 0), (4_096, 4_096, 7), (19_000, 3_000, 1)] {
                let done = pwrite(file.raw, buffer.start + shift, count, offset)
                if done < 0 {
                    #expect(currentErrno == .invalidArgument)
                    continue
                }
                #expect(done == count)
                if offset + count > expected.count {
                    expected += [UInt8](repeating: 0, count: offset + count - expected.count)
                }
                expected.replaceSubrange(offset..<(offset + count), with: buffer.contents[shift..<(shift + count)])
            }
            #expect(try (place / "file").contents() == expected)
        }
    }

    @Test("posix_fallocate grows a file, and refuses what it must", arguments: Setting.available)
    func allocating(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            let file = try (place / "file").open(O_RDWR | O_CREAT)
            try file.writeAll(bytes(100))
            try (place / "fifo").mkfifo()
            try (place / "d").mkdir()
            try place.cut()
            let targets = [
                ("file", file), ("reader", try (place / "file").open(O_RDONLY)),
                ("appender", try (place / "file").open(O_WRONLY | O_APPEND)),
                ("fifo", try (place / "fifo").open(O_RDWR | O_NONBLOCK)),
                ("directory", try (place / "d").open(O_RDONLY)),
            ]
            for (name, target) in targets {
                for (offset, count) in [
                    (0, 10), (50, 100), (0, 0), (-1, 5), (5, -1), (1 << 20, 4_096), (Int.max, 5), (1 << 62, 1),
                ] {
                    let what = "\(name) \(offset) \(count)"
                    transcript.state(what, posix_fallocate(target.raw, offset, count))
                    transcript.state(what, try file.stat().size)
                }
            }
        }
    }
}

/// pipe(2), with room for a good deal.
private struct Pipe {
    let output: File
    let input: File

    init() throws(Errno) {
        var ends: [Int32] = [-1, -1]
        try check(pipe(&ends))
        (output, input) = (File(raw: ends[0]), File(raw: ends[1]))
        _ = fcntl(ends[1], F_SETPIPE_SZ, 1 << 18)
    }
}

extension String {
    var path: Path { Path(self) }
}
