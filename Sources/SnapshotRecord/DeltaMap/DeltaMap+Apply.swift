internal import LinuxSystem
internal import Synchronization
package import SystemPackage

extension DeltaMap {
    /// Does one change: what an operation calls after it wrote the record, and recovery when it reads it. To apply a
    /// change again, with all that came after it, does no harm.
    package func apply(_ change: RecordChange) {
        switch change {
        case .reference(let reference):
            _ = recordForChange(of: reference.key, reference)
        case .born(let reference):
            // False is for who makes an inode: here the number was used again, and that was noticed then.
            _ = insertBorn(reference.key, reference)
        case .name(let directory, let name, let entry):
            let isNew = recordForChange(of: directory)?.contents.withLock {
                $0.entries.updateValue(entry, forKey: name) == nil
            }
            if isNew == true { countAreas(1) }
        case .data(let inode, let blocks):
            changeData(of: inode) { contents in
                contents.blocks.insert(blocks)
                contents.holes.remove(blocks)
            }
        case .holes(let inode, let blocks):
            changeData(of: inode) { [isRedirect] contents in
                contents.holes.insert(blocks)
                if isRedirect { contents.blocks.remove(blocks) } else { contents.blocks.insert(blocks) }
            }
        case .merged(let inode, let blocks):
            changeData(of: inode) { contents in
                contents.blocks.remove(blocks)
                contents.holes.remove(blocks)
            }
        case .place(let inode, let place):
            changeContents(of: inode) { $0.place = place }
        case .target(let inode, let target):
            changeContents(of: inode) { $0.target = target }
        case .flags(let inode, let flags):
            changeContents(of: inode) { $0.set(flags) }
        case .attributes, .written, .links:
            applyToAttributes(change)
        }
    }

    private func applyToAttributes(_ change: RecordChange) {
        switch change {
        case .attributes(let inode, let attributes):
            let isNew = recordForChange(of: inode)?.contents.withLock { contents in
                defer { contents.attributes = attributes }
                // It was new in a layer that has been merged since: the record has all of it now.
                contents.links = nil
                return contents.attributes == nil
            }
            if isNew == true { countAreas(1) }
        case .written(let inode, let size, let modified, let changed):
            record(of: inode)?.contents.withLock { contents in
                guard let attributes = contents.attributes else { return }
                var status = attributes.status
                (status.size, status.modified, status.changed) = (size, modified, changed)
                contents.attributes = RecordedAttributes(status: status, extended: attributes.extended)
            }
        case .links(let inode, let links):
            changeContents(of: inode) { if $0.attributes == nil { $0.links = links } }
        default:
            preconditionFailure("only changes of attributes come here")
        }
    }

    private func changeContents(of inode: InodeKey, _ body: (inout InodeRecord.Contents) -> Void) {
        recordForChange(of: inode)?.contents.withLock { body(&$0) }
    }

    private func changeData(of inode: InodeKey, _ body: (inout InodeRecord.Contents) -> Void) {
        func count(_ contents: borrowing InodeRecord.Contents) -> UInt64 {
            contents.blocks.count + (isRedirect ? contents.holes.count : 0)
        }
        let added = recordForChange(of: inode)?.contents.withLock { contents -> UInt64 in
            let before = count(contents)
            body(&contents)
            let now = count(contents)
            return now > before ? now - before : 0
        }
        if let added, added > 0 { countAreas(added) }
    }

    /// Emits changes that make this map out of an empty one: how to find inodes and which are born first, then the rest
    /// inode by inode, each as it is at some moment while this is called. Throws what `emit` throws.
    ///
    /// No lock is held across `emit`. A record that is changed at the same time is copied by who changes it, once.
    package func forEachChange(_ emit: (RecordChange) throws(Errno) -> Void) throws(Errno) {
        let (records, born) = inodes
        var withoutRecord = born
        for record in records {
            if born.contains(record.key) {
                withoutRecord.remove(record.key)
                try emit(.born(record.reference ?? InodeReference(record.key)))
            } else if let reference = record.reference {
                try emit(.reference(reference))
            }
        }
        for key in withoutRecord { try emit(.born(InodeReference(key))) }
        for record in records {
            try record.forEachChange(placed: born.contains(record.key) ? .store : .source, emit)
        }
    }
}

extension InodeReference {
    /// Of an inode of which only the key is of interest.
    fileprivate init(_ key: InodeKey) {
        var status = FileStatus()
        (status.inode, status.birth) = (key.inode, key.birth)
        self.init(status, handle: FileHandle())
    }
}

extension InodeRecord {
    fileprivate func forEachChange(
        placed place: InodePlace, _ emit: (RecordChange) throws(Errno) -> Void
    ) throws(Errno) {
        let contents = self.contents.withLock { $0 }
        if contents.place != place { try emit(.place(key, contents.place)) }
        if let attributes = contents.attributes {
            try emit(.attributes(key, attributes))
        } else if let links = contents.links {
            try emit(.links(key, links))
        }
        // In preserve the holes are among the blocks: so they come after these.
        for run in contents.blocks.runs { try emit(.data(key, run)) }
        for run in contents.holes.runs { try emit(.holes(key, run)) }
        for (name, entry) in contents.entries { try emit(.name(in: key, name, entry)) }
        if let target = contents.target { try emit(.target(key, target)) }
        if !contents.flags.isEmpty { try emit(.flags(key, contents.flags)) }
    }
}

extension InodeRecord.Contents {
    fileprivate var flags: RecordFlags {
        var flags: RecordFlags = []
        if knowsEnd { flags.insert(.knowsEnd) }
        if isUnreadable { flags.insert(.isUnreadable) }
        if isLost { flags.insert(.isLost) }
        return flags
    }

    fileprivate mutating func set(_ flags: RecordFlags) {
        if flags.contains(.knowsEnd) { knowsEnd = true }
        if flags.contains(.isUnreadable) { isUnreadable = true }
        if flags.contains(.isLost) { isLost = true }
    }
}
