import FusesnapReader

/// Tells the largest files of a mount's snapshot, and how much they hold: an example of `FusesnapReader`.
///
/// usage: snapshot-sizes MOUNTPOINT [NUMBER]
@main struct SnapshotSizes {
    static func main() throws {
        let arguments = CommandLine.arguments.dropFirst()
        guard let mountPoint = arguments.first else {
            print("usage: snapshot-sizes MOUNTPOINT [NUMBER]")
            return
        }
        let number = arguments.dropFirst().first.flatMap { Int($0) } ?? 10
        let reader = try SnapshotReader(mountPoint: mountPoint)
        var files: [(path: String, size: Int64, data: Int64)] = []
        try reader.root().visit { node in
            guard node.kind == .file else { return }
            let data = try node.dataRanges().reduce(0) { $0 + Int64($1.count) }
            files.append((node.path, try node.attributes().size, data))
        }
        // Before this nobody can say that all of it is of the cut.
        try reader.verify()
        for file in files.sorted(by: { $0.size > $1.size }).prefix(number) {
            print("\(file.size) bytes, \(file.data) of them data: \(file.path)")
        }
    }
}
