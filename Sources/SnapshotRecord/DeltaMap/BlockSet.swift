/// A set of block numbers of one file: what its delta file holds.
///
/// Blocks are kept by chunks of 512 (2 MiB): a chunk that is partly in the set has a bitmap, and runs of chunks
/// that are in it whole are kept as ranges. So scattered blocks cost a bit each, long runs next to nothing, and a
/// look-up is a hash or a binary search. Not safe for use by several threads: its owner has the lock.
package struct BlockSet: Sendable {
    private static let chunkBlocks: UInt64 = 512
    private static let groupChunks: UInt64 = 512

    /// Chunks partly in the set, never empty, never whole.
    private var partial: [UInt64: Bitmap] = [:]
    /// How many chunks of a group (1 GiB) are in `partial`, so that a run of none skips groups.
    private var partialByGroup: [UInt64: Int] = [:]
    /// Chunks whole in the set: ascending, neither empty nor touching.
    private var whole: [Range<UInt64>] = []
    /// The number of blocks in the set.
    package private(set) var count: UInt64 = 0

    package init() {}

    package var isEmpty: Bool { count == 0 }

    package func contains(_ block: UInt64) -> Bool {
        let chunk = block / Self.chunkBlocks
        if let bitmap = partial[chunk] {
            return bitmap.contains(Int(block % Self.chunkBlocks))
        }
        return wholeRun(holding: chunk) != nil
    }

    /// The run that begins with `block`: whether its blocks are in the set, and where it ends, at `limit` at most.
    package func run(from block: UInt64, limit: UInt64) -> (isPresent: Bool, end: UInt64) {
        let isPresent = contains(block)
        var end = block
        while end < limit {
            let chunk = end / Self.chunkBlocks
            if let bitmap = partial[chunk] {
                let first = Int(end % Self.chunkBlocks)
                let next = bitmap.next(from: first, isPresent: !isPresent)
                end = chunk * Self.chunkBlocks + UInt64(next)
                if next < Int(Self.chunkBlocks) { break }
            } else if let run = wholeRun(holding: chunk) {
                guard isPresent else { break }
                end = run.upperBound * Self.chunkBlocks
            } else {
                guard !isPresent else { break }
                end = nextChunkOfInterest(after: chunk) * Self.chunkBlocks
            }
        }
        return (isPresent, min(end, limit))
    }

    /// The next chunk after one that is not in the set at all, or the begin of the next group where this one has no
    /// partial chunks; never beyond a whole run's begin.
    private func nextChunkOfInterest(after chunk: UInt64) -> UInt64 {
        let group = chunk / Self.groupChunks
        if partialByGroup[group] != nil { return chunk + 1 }
        // A file may be as large as its offsets: groups without partial chunks are not stepped through.
        let nextGroup = partialByGroup.keys.lazy.filter { $0 > group }.min()
        let nextPartial = nextGroup.map { $0 * Self.groupChunks } ?? Self.chunksEnd
        let index = wholeIndex(endingAfter: chunk)
        return index < whole.count ? min(whole[index].lowerBound, nextPartial) : nextPartial
    }

    /// Behind the last chunk that a file can have.
    private static let chunksEnd = UInt64(1) << 52

    /// Adds the blocks of `range`, those that are in the set already too.
    package mutating func insert(_ range: Range<UInt64>) {
        let firstWhole = (range.lowerBound + Self.chunkBlocks - 1) / Self.chunkBlocks
        let endOfWhole = range.upperBound / Self.chunkBlocks
        guard firstWhole < endOfWhole else { return insertParts(of: range) }
        insertParts(of: range.lowerBound..<firstWhole * Self.chunkBlocks)
        insertWhole(firstWhole..<endOfWhole)
        insertParts(of: endOfWhole * Self.chunkBlocks..<range.upperBound)
    }

    /// Adds blocks chunk by chunk.
    private mutating func insertParts(of range: Range<UInt64>) {
        var at = range.lowerBound
        while at < range.upperBound {
            let chunk = at / Self.chunkBlocks
            let chunkStart = chunk * Self.chunkBlocks
            let end = min(range.upperBound, chunkStart + Self.chunkBlocks)
            insert(Int(at - chunkStart)..<Int(end - chunkStart), inChunk: chunk)
            at = end
        }
    }

    /// Adds whole chunks, at a cost that does not depend on how many they are.
    private mutating func insertWhole(_ chunks: Range<UInt64>) {
        let inside =
            chunks.count < partial.count
            ? chunks.filter { partial[$0] != nil } : partial.keys.filter { chunks.contains($0) }
        for chunk in inside {
            guard let bitmap = partial.removeValue(forKey: chunk) else { continue }
            count -= UInt64(bitmap.count)
            leaveGroup(chunk / Self.groupChunks)
        }
        // Runs that touch or overlap become one with these.
        let first = chunks.lowerBound == 0 ? 0 : wholeIndex(endingAfter: chunks.lowerBound - 1)
        var (merged, end) = (chunks, first)
        while end < whole.count, whole[end].lowerBound <= chunks.upperBound {
            count -= UInt64(whole[end].count) * Self.chunkBlocks
            merged =
                min(merged.lowerBound, whole[end].lowerBound)..<max(merged.upperBound, whole[end].upperBound)
            end += 1
        }
        count += UInt64(merged.count) * Self.chunkBlocks
        whole.replaceSubrange(first..<end, with: [merged])
    }

    private mutating func insert(_ bits: Range<Int>, inChunk chunk: UInt64) {
        if wholeRun(holding: chunk) != nil { return }
        var bitmap = partial[chunk] ?? Bitmap()
        count += UInt64(bitmap.insert(bits))
        let group = chunk / Self.groupChunks
        let wasPartial = partial[chunk] != nil
        if bitmap.isFull {
            partial[chunk] = nil
            if wasPartial { leaveGroup(group) }
            insertWhole(chunk..<chunk + 1)
            count -= Self.chunkBlocks  // They were counted bit by bit.
        } else {
            partial[chunk] = bitmap
            if !wasPartial { partialByGroup[group, default: 0] += 1 }
        }
    }

    /// Takes the blocks of `range` out, those that are not in the set too.
    package mutating func remove(_ range: Range<UInt64>) {
        guard !range.isEmpty else { return }
        let firstWhole = (range.lowerBound + Self.chunkBlocks - 1) / Self.chunkBlocks
        let endOfWhole = range.upperBound / Self.chunkBlocks
        guard firstWhole < endOfWhole else { return removeParts(of: range) }
        removeParts(of: range.lowerBound..<firstWhole * Self.chunkBlocks)
        removeWhole(firstWhole..<endOfWhole)
        removeParts(of: endOfWhole * Self.chunkBlocks..<range.upperBound)
    }

    /// Takes whole chunks out, at a cost that does not depend on how many they are.
    private mutating func removeWhole(_ chunks: Range<UInt64>) {
        let inside =
            chunks.count < partial.count
            ? chunks.filter { partial[$0] != nil } : partial.keys.filter { chunks.contains($0) }
        for chunk in inside {
            guard let bitmap = partial.removeValue(forKey: chunk) else { continue }
            count -= UInt64(bitmap.count)
            leaveGroup(chunk / Self.groupChunks)
        }
        let first = wholeIndex(endingAfter: chunks.lowerBound)
        var end = first
        var left: [Range<UInt64>] = []
        while end < whole.count, whole[end].lowerBound < chunks.upperBound {
            let run = whole[end]
            count -= UInt64(run.clamped(to: chunks).count) * Self.chunkBlocks
            if run.lowerBound < chunks.lowerBound { left.append(run.lowerBound..<chunks.lowerBound) }
            if run.upperBound > chunks.upperBound { left.append(chunks.upperBound..<run.upperBound) }
            end += 1
        }
        whole.replaceSubrange(first..<end, with: left)
    }

    /// Takes blocks out chunk by chunk.
    private mutating func removeParts(of range: Range<UInt64>) {
        var at = range.lowerBound
        while at < range.upperBound {
            let chunk = at / Self.chunkBlocks
            let chunkStart = chunk * Self.chunkBlocks
            let end = min(range.upperBound, chunkStart + Self.chunkBlocks)
            remove(Int(at - chunkStart)..<Int(end - chunkStart), inChunk: chunk)
            at = end
        }
    }

    private mutating func remove(_ bits: Range<Int>, inChunk chunk: UInt64) {
        let group = chunk / Self.groupChunks
        var bitmap: Bitmap
        if let known = partial[chunk] {
            bitmap = known
        } else if wholeRun(holding: chunk) != nil {
            removeWhole(chunk..<chunk + 1)
            bitmap = Bitmap()
            count += UInt64(bitmap.insert(0..<Int(Self.chunkBlocks)))
            partialByGroup[group, default: 0] += 1
        } else {
            return
        }
        count -= UInt64(bitmap.remove(bits))
        partial[chunk] = bitmap.isEmpty ? nil : bitmap
        if bitmap.isEmpty { leaveGroup(group) }
    }

    /// Every run of blocks in the set, ascending; runs that touch are one.
    package var runs: [Range<UInt64>] {
        var found = whole.map { $0.lowerBound * Self.chunkBlocks..<$0.upperBound * Self.chunkBlocks }
        for (chunk, bitmap) in partial {
            var bit = 0
            while true {
                let start = bitmap.next(from: bit, isPresent: true)
                if start >= Int(Self.chunkBlocks) { break }
                let end = bitmap.next(from: start, isPresent: false)
                let base = chunk * Self.chunkBlocks
                found.append(base + UInt64(start)..<base + UInt64(end))
                if end >= Int(Self.chunkBlocks) { break }
                bit = end
            }
        }
        found.sort { $0.lowerBound < $1.lowerBound }
        var joined: [Range<UInt64>] = []
        for run in found {
            if let last = joined.last, last.upperBound == run.lowerBound {
                joined[joined.count - 1] = last.lowerBound..<run.upperBound
            } else {
                joined.append(run)
            }
        }
        return joined
    }

    /// The runs of the set within `range`: costs what they are, not what the set is.
    package func runs(in range: Range<UInt64>) -> [Range<UInt64>] {
        var runs: [Range<UInt64>] = []
        var at = range.lowerBound
        while at < range.upperBound {
            let (isPresent, end) = run(from: at, limit: range.upperBound)
            if isPresent { runs.append(at..<end) }
            at = end
        }
        return runs
    }

    private mutating func leaveGroup(_ group: UInt64) {
        guard let count = partialByGroup[group] else {
            preconditionFailure("a partial chunk is counted in its group")
        }
        partialByGroup[group] = count > 1 ? count - 1 : nil
    }

    /// The index in `whole` of the first run that ends after `chunk`.
    private func wholeIndex(endingAfter chunk: UInt64) -> Int {
        var low = 0
        var high = whole.count
        while low < high {
            let middle = (low + high) / 2
            if whole[middle].upperBound <= chunk { low = middle + 1 } else { high = middle }
        }
        return low
    }

    private func wholeRun(holding chunk: UInt64) -> Range<UInt64>? {
        let index = wholeIndex(endingAfter: chunk)
        guard index < whole.count, whole[index].contains(chunk) else { return nil }
        return whole[index]
    }
}

/// The blocks of one chunk, a bit each.
private struct Bitmap: Sendable {
    private static let wordBits = 64

    private var words = SIMD8<UInt64>(repeating: 0)

    var count: Int {
        var sum = 0
        for index in words.indices { sum += words[index].nonzeroBitCount }
        return sum
    }

    var isFull: Bool { words == SIMD8(repeating: .max) }

    var isEmpty: Bool { words == SIMD8(repeating: 0) }

    func contains(_ bit: Int) -> Bool {
        words[bit / Self.wordBits] >> UInt64(bit % Self.wordBits) & 1 != 0
    }

    /// The first bit from `start` on that is set, or is not; 512 where there is none.
    func next(from start: Int, isPresent: Bool) -> Int {
        var word = start / Self.wordBits
        var mask = UInt64.max << UInt64(start % Self.wordBits)
        while word < words.scalarCount {
            let candidates = (isPresent ? words[word] : ~words[word]) & mask
            if candidates != 0 { return word * Self.wordBits + candidates.trailingZeroBitCount }
            mask = .max
            word += 1
        }
        return words.scalarCount * Self.wordBits
    }

    /// Sets `bits`; how many were not set before.
    mutating func insert(_ bits: Range<Int>) -> Int {
        var added = 0
        for word in bits.lowerBound / Self.wordBits...(bits.upperBound - 1) / Self.wordBits {
            let mask = Self.mask(bits, word)
            added += (mask & ~words[word]).nonzeroBitCount
            words[word] |= mask
        }
        return added
    }

    /// Clears `bits`; how many were set before.
    mutating func remove(_ bits: Range<Int>) -> Int {
        var removed = 0
        for word in bits.lowerBound / Self.wordBits...(bits.upperBound - 1) / Self.wordBits {
            let mask = Self.mask(bits, word)
            removed += (mask & words[word]).nonzeroBitCount
            words[word] &= ~mask
        }
        return removed
    }

    /// Those of `bits` that lie in a word.
    private static func mask(_ bits: Range<Int>, _ word: Int) -> UInt64 {
        let low = max(bits.lowerBound - word * wordBits, 0)
        let high = min(bits.upperBound - word * wordBits, wordBits)
        return (UInt64.max >> UInt64(wordBits - (high - low))) << UInt64(low)
    }
}
