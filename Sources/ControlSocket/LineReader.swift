internal import LinuxSystem
internal import SystemPackage

/// Why no line came.
enum LineError: Error, Equatable {
    case tooLong
    case timedOut
    /// The stream ended within a line.
    case truncated
    case system(Errno)
}

/// Takes a socket's stream apart into lines, and bounds their length and how long each may take: a
/// peer who sends a byte now and then wins no time.
struct LineReader {
    let socket: Int32
    private var buffer: [UInt8] = []
    /// nil where what a peer sends of descriptors is not taken.
    private var descriptors: [Descriptor]?

    /// `takesDescriptors`: those that the peer sends are kept for `takeDescriptors`.
    init(_ socket: Int32, takesDescriptors: Bool = false) {
        self.socket = socket
        descriptors = takesDescriptors ? [] : nil
    }

    /// The descriptors that came since the last call.
    mutating func takeDescriptors() -> [Descriptor] {
        defer { if descriptors != nil { descriptors = [] } }
        return descriptors ?? []
    }

    /// Waits without a bound until a line begins, or the stream ends.
    func waitForAny() throws(LineError) {
        if !buffer.isEmpty { return }
        do throws(Errno) {
            _ = try SystemCalls.waitReadable(socket, milliseconds: -1)
        } catch {
            throw .system(error)
        }
    }

    /// The next line without its newline; nil at the end of the stream.
    mutating func next(within limit: Duration) throws(LineError) -> [UInt8]? {
        let deadline = ContinuousClock.now + limit
        var searched = 0
        while true {
            if let end = buffer[searched...].firstIndex(of: UInt8(ascii: "\n")) {
                if end > ControlProtocol.lineBytesMax { throw .tooLong }
                defer { buffer.removeSubrange(...end) }
                return Array(buffer[..<end])
            }
            searched = buffer.count
            if searched > ControlProtocol.lineBytesMax { throw .tooLong }
            if try !receive(before: deadline) {
                if !buffer.isEmpty { throw .truncated }
                return nil
            }
        }
    }

    private mutating func receive(before deadline: ContinuousClock.Instant) throws(LineError)
        -> Bool
    {
        let left = (deadline - ContinuousClock.now).components
        let milliseconds = left.seconds * 1000 + left.attoseconds / 1_000_000_000_000_000
        let wait = Int32(clamping: max(0, milliseconds))
        do throws(Errno) {
            if try SystemCalls.waitReadable(socket, milliseconds: wait) {
                guard var taken = descriptors else { return try SystemCalls.receive(socket, into: &buffer) }
                defer { descriptors = taken }
                return try SystemCalls.receive(socket, into: &buffer, descriptors: &taken)
            }
        } catch {
            throw .system(error)
        }
        throw .timedOut
    }
}
