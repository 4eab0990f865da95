internal import CLinux
internal import LinuxSystem

/// Picks from the events of the whole file system those of other processes in the source. Used by the watch's
/// thread alone.
final class ChangeFilter: @unchecked Sendable {
    /// So many directories are remembered; with more, all are forgotten.
    private static let directoriesMax = 16384

    /// The source's path, for messages.
    let sourceName: String
    private let mount: PrivateMount
    private let ownProcess: Int32
    /// Where the directories lie that had events: until a directory is moved, which may move any of them.
    private var places: [FileHandle: PrivateMount.Place] = [:]

    init(mount: PrivateMount, name: [UInt8], ownProcess: Int32) {
        self.mount = mount
        self.ownProcess = ownProcess
        sourceName = String(decoding: name, as: UTF8.self)
    }

    /// nil where the event is the daemon's own, or of something outside.
    func foreignChange(_ event: cl_change) -> ForeignChange? {
        if event.kinds & UInt32(CL_MOVED_DIRECTORY) != 0 { places.removeAll(keepingCapacity: true) }
        if event.kinds & UInt32(CL_LOST_CHANGES) != 0 {
            places.removeAll(keepingCapacity: true)
            return ForeignChange(kinds: .lost, process: 0, isCertain: false, path: sourceName)
        }
        if event.process == ownProcess { return nil }
        var change = ForeignChange(
            kinds: .init(event.kinds), process: event.process, directory: FileHandle(event.directory),
            name: event.name.map { FileName($0) }, object: FileHandle(event.object), path: sourceName)
        switch place(of: change) {
        case .inside(let rest):
            change.path += String(decoding: rest, as: UTF8.self)
            if change.directory != nil, let name = change.name, name != Self.itself { change.path += "/\(name)" }
            return change
        case .unknown:
            change.isCertain = false
            change.path += " (a file whose name is not known)"
            return change
        case .outside, .unnamed:
            return nil
        case .gone:
            // Removed itself meanwhile, which is an event in the directory above.
            return nil
        }
    }

    /// The name by which changes of a directory's own attributes come.
    private static let itself = FileName(".")

    private func place(of change: ForeignChange) -> PrivateMount.Place {
        if let directory = change.directory { return place(ofDirectory: directory) }
        return place(ofObject: change.object, isData: change.kinds.contains(.data))
    }

    /// A file's event without a directory is a change of its link count, beside the one of the entry, or a change
    /// of a file whose name is not known: bytes are written to those only.
    private func place(ofObject object: FileHandle?, isData: Bool) -> PrivateMount.Place {
        guard let object else { return .unknown }
        let place = mount.place(of: object)
        guard place == .unnamed else { return place }
        return isData || !mount.hasName(object) ? .unknown : .outside
    }

    private func place(ofDirectory directory: FileHandle) -> PrivateMount.Place {
        if let known = places[directory] { return known }
        let place = mount.place(of: directory)
        // What is gone never comes back, and needs no room; what could not be told may be told the next time.
        if place == .gone || place == .unknown { return place }
        if places.count >= Self.directoriesMax { places.removeAll(keepingCapacity: true) }
        places[directory] = place
        return place
    }
}

extension ForeignChange.Kinds {
    fileprivate init(_ kinds: UInt32) {
        self = []
        if kinds & UInt32(CL_CHANGED_DATA) != 0 { insert(.data) }
        if kinds & UInt32(CL_CHANGED_ATTRIBUTES) != 0 { insert(.attributes) }
        if kinds & UInt32(CL_CHANGED_ENTRY) != 0 { insert(.entry) }
    }
}

extension FileHandle {
    /// nil where there is none, or it is too long.
    fileprivate init?(_ handle: cl_handle) {
        guard let bytes = handle.bytes else { return nil }
        self.init(kind: handle.type, bytes: UnsafeRawBufferPointer(start: bytes, count: Int(handle.length)))
    }
}
