package import TestSupport

/// Makes operations that mean something in a tree: most of them succeed.
package struct OperationGenerator {
    package var dice: SeededGenerator
    private var nextInode = 10
    private var nextValue = 1

    package init(seed: UInt64) { dice = SeededGenerator(seed: seed) }

    private static let nameCount = 4
    private static let halfCount = 9

    private mutating func newInode() -> Inode {
        nextInode += 1
        return nextInode
    }

    private mutating func name() -> Name { dice.number(0...Self.nameCount - 1) }

    private mutating func kind() -> Kind {
        switch dice.number(0...9) {
        case 0...4: .file
        case 5...7: .directory
        case 8: .symbolicLink(target: dice.number(1...9))
        default: .device(dice.number(1...9))
        }
    }

    private mutating func change() -> DataChange {
        nextValue += 1
        let at = dice.number(0...Self.halfCount - 1)
        let count = dice.number(1...4)
        switch dice.number(0...9) {
        case 0...5: return .write(at: at, count: count, value: nextValue)
        case 6, 7: return .truncate(to: dice.number(0...Self.halfCount))
        case 8: return .punch(at: at, count: count)
        default: return .allocate(at: at, count: count)
        }
    }

    private mutating func setting(_ now: Int) -> Setting {
        switch dice.number(0...3) {
        case 0: .mode(now)
        case 1: .owner(now)
        case 2: .extended(now)
        default: .modified(now * 1000)
        }
    }

    private mutating func renameKind() -> RenameKind {
        switch dice.number(0...9) {
        case 0: .noReplace
        case 1, 2: .exchange
        case 3: .whiteout(newInode())
        default: .plain
        }
    }

    package mutating func next(_ tree: Ideal, now: Int) -> Operation {
        let inodes = tree.nodes.keys.sorted()
        let directories = inodes.filter { tree.nodes[$0]?.kind == .directory }
        let files = inodes.filter { tree.nodes[$0]?.kind == .file }
        let directory = dice.pick(directories)
        var name = name()
        let choice = dice.number(0...99)
        // A name that is there, more often than not, where one is to be taken.
        if choice >= 20, dice.number(0...3) > 0, let some = tree.nodes[directory]?.entries.keys.sorted(),
            !some.isEmpty
        {
            name = dice.pick(some)
        }
        switch choice {
        case 0..<20: return .make(newInode(), kind(), in: directory, name)
        case 20..<23: return .makeUnnamed(newInode())
        case 23..<31: return .link(dice.pick(inodes), in: directory, self.name())
        case 31..<40: return .unlink(in: directory, name)
        case 40..<44: return .removeDirectory(in: directory, name)
        case 44..<64:
            return .rename(from: directory, name, to: dice.pick(directories), self.name(), renameKind())
        case 64..<84 where !files.isEmpty: return .change(dice.pick(files), change())
        case 84..<90: return .set(dice.pick(inodes), setting(now))
        case 90..<92 where !files.isEmpty: return .open(dice.pick(files))
        case 92..<94:
            let open = tree.opens.keys.sorted()
            return open.isEmpty ? .synchronize(dice.pick(inodes)) : .close(dice.pick(open))
        default: return .synchronize(dice.pick(inodes))
        }
    }
}
