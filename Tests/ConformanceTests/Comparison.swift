import SystemPackage
import TestSupport
import Testing

/// What a series of calls answered, a line each, so that it can be compared.
final class Transcript {
    private(set) var lines: [String] = []

    /// Notes what a call returned or threw.
    func note<Result>(_ what: String, _ call: () throws -> Result) {
        do {
            let result = try call()
            lines.append("\(what): \(result is Void ? "done" : "\(result)")")
        } catch {
            lines.append("\(what): \(error)")
        }
    }

    /// Notes what came of it.
    func state(_ what: String, _ value: some Any) { lines.append("\(what): \(value)") }

    /// The lines that differ, with what they should be.
    func differences(_ actual: Transcript) -> [String] {
        if lines.count != actual.lines.count { return ["\(actual.lines.count) lines, should be \(lines.count)"] }
        return zip(lines, actual.lines).filter { $0 != $1 }.map { "\($1), should be \($0)" }
    }
}

extension Setting {
    /// Expects `body` to note the same here as in a plain directory: for many calls, where that says more than a list
    /// of expectations could.
    func compare(_ body: (Place, Transcript) throws -> Void) throws {
        let (expected, actual) = (Transcript(), Transcript())
        try Setting.plain.run { try body($0, expected) }
        try run { try body($0, actual) }
        #expect(!expected.lines.isEmpty)
        #expect(expected.differences(actual) == [])
    }
}

/// Who calls, by their groups.
struct Caller: Sendable, CustomStringConvertible {
    let description: String
    let user: UInt32
    let group: UInt32
    var groups: [UInt32] = []

    static let root = Caller(description: "root", user: 0, group: 0)

    func run(mask: UInt32 = 0o022, _ body: () throws -> Void) throws {
        try asUser(user, group: group, groups: groups, mask: mask, body)
    }
}
