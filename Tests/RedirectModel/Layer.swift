/// The delta map of one layer: which areas have another version than what lies below, the primary or a layer that
/// is being merged.
package struct Layer: Sendable {
    struct Record: Sendable {
        var status: Status?
        /// Set with `status`.
        var size = 0
        /// Of a new inode, whose `status` is its real file's.
        var links: Int?
        var changed = 0
        var data: Set<Int> = []
        var holes: Set<Int> = []
        /// nil in it: absent.
        var entries: [Name: Inode?] = [:]
    }

    let number: Int
    var records: [Inode: Record] = [:]
    /// Inodes made in this layer, but for directories: their data and attributes are those of a real file.
    var born: Set<Inode> = []
    var bornDirectories: Set<Inode> = []

    init(_ number: Int) { self.number = number }

    var isEmpty: Bool { records.isEmpty }

    var inodesWithData: Set<Inode> { Set(records.filter { !$0.value.data.isEmpty }.keys) }

    /// The inodes that names of this layer stand for.
    var named: Set<Inode> {
        var named: Set<Inode> = []
        for record in records.values {
            for case let inode? in record.entries.values { named.insert(inode) }
        }
        return named
    }

    /// What both the operation does, after it wrote the record, and recovery, when it reads it.
    mutating func apply(_ change: Change) {
        switch change {
        case .name(let directory, let name, let inode):
            records[directory, default: Record()].entries[name] = .some(inode)
        case .status(let inode, let status, let size):
            records[inode, default: Record()].status = status
            records[inode, default: Record()].size = size
            // One that was new in the layer below is an old one here, once that is merged.
            records[inode, default: Record()].links = nil
        case .links(let inode, let links, let changed):
            records[inode, default: Record()].links = links
            records[inode, default: Record()].changed = changed
        case .data(let inode, let pages):
            records[inode, default: Record()].data.formUnion(pages)
            records[inode, default: Record()].holes.subtract(pages)
        case .holes(let inode, let pages):
            records[inode, default: Record()].holes.formUnion(pages)
            records[inode, default: Record()].data.subtract(pages)
        case .born(let inode, let isDirectory):
            if isDirectory { bornDirectories.insert(inode) } else { born.insert(inode) }
        }
    }

    /// The layer as one change: what compaction writes.
    var changes: [Change] {
        var changes: [Change] = born.sorted().map { .born($0, isDirectory: false) }
        changes += bornDirectories.sorted().map { .born($0, isDirectory: true) }
        for (inode, record) in records.sorted(by: { $0.key < $1.key }) {
            if let links = record.links { changes.append(.links(inode, links, changed: record.changed)) }
            if let status = record.status { changes.append(.status(inode, status, size: record.size)) }
            if !record.holes.isEmpty { changes.append(.holes(inode, record.holes)) }
            if !record.data.isEmpty { changes.append(.data(inode, record.data)) }
            for (name, entry) in record.entries.sorted(by: { $0.key < $1.key }) {
                changes.append(.name(in: inode, name, entry))
            }
        }
        return changes
    }

    /// The layer that a journal tells of. `all`: every record counts, since the machine did not go down; else those
    /// that a mark covers.
    static func replay(_ journal: JournalFile, number: Int, all: Bool) -> Layer {
        var marks: [(through: Int, inodes: Set<Inode>)] = []
        for case .mark(let through, let inodes) in journal.records { marks.append((through, inodes)) }
        let end = all ? journal.records.count : marks.map(\.through).max() ?? 0
        var layer = Layer(number)
        for (sequence, record) in journal.records.enumerated() where sequence < end {
            guard case .change(let changes) = record else { continue }
            for change in changes {
                if case .data(let inode, _) = change, !all,
                    !marks.contains(where: { $0.through > sequence && $0.inodes.contains(inode) })
                {
                    continue
                }
                layer.apply(change)
            }
        }
        return layer
    }
}
