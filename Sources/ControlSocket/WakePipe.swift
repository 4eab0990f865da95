internal import Glibc
internal import SystemPackage

/// A pipe by which one thread wakes another out of poll(2); once signalled it stays so.
struct WakePipe: ~Copyable, Sendable {
    let reading: OwnedDescriptor
    private let writing: OwnedDescriptor

    init() throws(Errno) {
        let ends = try SystemCalls.pipe()
        reading = OwnedDescriptor(ends.reading)
        writing = OwnedDescriptor(ends.writing)
    }

    func signal() {
        // It fails only when the pipe is full of signals, which are as good as one.
        var byte: UInt8 = 1
        _ = write(writing.rawValue, &byte, 1)
    }

    /// Whether it is signalled before the time is over.
    func wait(milliseconds: Int32) -> Bool {
        do throws(Errno) {
            return try SystemCalls.waitReadable(reading.rawValue, milliseconds: milliseconds)
        } catch {
            preconditionFailure("poll of a pipe of one's own fails: \(error)")
        }
    }
}
