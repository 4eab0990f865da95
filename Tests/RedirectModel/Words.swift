/// An inode's number. In this model it is also its identity: no number is used twice.
package typealias Inode = Int
/// A name in a directory; in the store's own directories the number of the inode that it names.
package typealias Name = Int

package enum Kind: Hashable, Sendable {
    case file
    case directory
    case symbolicLink(target: Int)
    case device(Int)

    /// What a rename leaves behind that was told to.
    static let whiteout = Kind.device(0)
}

/// Why an operation is refused: its errno.
package enum Refusal: Error, Equatable, Sendable {
    case exists, noEntry, notDirectory, isDirectory, notEmpty, invalid, notPermitted
}

/// The attributes area of an inode, but for the size.
package struct Status: Equatable, Sendable {
    package var mode = 0
    package var owner = 0
    /// The value of its one extended attribute; 0 for none.
    package var extended = 0
    package var modified = 0
    package var changed = 0
    /// Of a directory it is not kept here: it follows from the names in it.
    package var links = 0
}

/// One block: two halves, so that a change may concern a part of it. 0 is a zero byte.
package struct Page: Equatable, Sendable {
    package var halves: [Int] = [0, 0]

    package static let halfCount = 2
}

/// The data of a file: a page that is missing below the size is a hole. The size counts halves of pages.
package struct Content: Equatable, Sendable {
    package var size = 0
    package var pages: [Int: Page] = [:]

    /// How many pages hold `size` halves.
    package static func pageCount(_ size: Int) -> Int { (size + Page.halfCount - 1) / Page.halfCount }

    package mutating func truncate(to newSize: Int) {
        pages = pages.filter { $0.key < Self.pageCount(newSize) }
        size = newSize
        let last = newSize / Page.halfCount
        if newSize % Page.halfCount != 0, pages[last] != nil { pages[last]?.halves[1] = 0 }
    }
}

/// A change of a file's data; places and lengths count halves of pages.
package enum DataChange: Equatable, Sendable {
    case write(at: Int, count: Int, value: Int)
    case truncate(to: Int)
    case punch(at: Int, count: Int)
    case allocate(at: Int, count: Int)

    /// The pages that it gives a new version, in a file of this content.
    func pages(of old: Content) -> Range<Int> {
        switch self {
        case .write(let at, let count, _), .allocate(let at, let count):
            return min(at / Page.halfCount, Self.oldEnd(old, at))..<Content.pageCount(at + count)
        case .truncate(let size):
            let first = min(size / Page.halfCount, Self.oldEnd(old, size))
            return first..<max(first, Content.pageCount(old.size))
        case .punch(let at, let count):
            let end = min(at + count, old.size)
            guard at < end else { return 0..<0 }
            return at / Page.halfCount..<Content.pageCount(end)
        }
    }

    /// The page at the old end, where what is behind it becomes data: after a power cut there may be something else
    /// than zeros in it.
    private static func oldEnd(_ old: Content, _ at: Int) -> Int {
        at > old.size && old.size % Page.halfCount != 0 ? old.size / Page.halfCount : .max
    }

    func apply(to content: inout Content) {
        switch self {
        case .write(let at, let count, let value):
            for half in at..<at + count {
                content.pages[half / Page.halfCount, default: Page()].halves[half % Page.halfCount] = value
            }
            content.size = max(content.size, at + count)
        case .truncate(let size):
            content.truncate(to: size)
        case .punch(let at, let count):
            punch(at..<max(at, min(at + count, content.size)), &content)
        case .allocate(let at, let count):
            for page in pages(of: content) where content.pages[page] == nil { content.pages[page] = Page() }
            content.size = max(content.size, at + count)
        }
    }

    private func punch(_ range: Range<Int>, _ content: inout Content) {
        for half in range {
            let page = half / Page.halfCount
            let begins = page * Page.halfCount
            let isWhole =
                range.lowerBound <= begins
                && (range.upperBound >= begins + Page.halfCount || range.upperBound == content.size)
            if isWhole {
                content.pages[page] = nil
            } else if content.pages[page] != nil {
                content.pages[page]?.halves[half % Page.halfCount] = 0
            }
        }
    }
}

/// An inode as somebody sees it.
package struct Node: Equatable, Sendable {
    package var kind: Kind
    package var status: Status
    package var content = Content()
    package var entries: [Name: Inode] = [:]
}
