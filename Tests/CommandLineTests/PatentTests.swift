import SystemPackage
import TestSupport
import Testing

/// What Docs/Patent.md names is there.
@Suite struct PatentTests {
    private static let package = Path("/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/"))

    private struct Row {
        let subject: String
        let code: String
        let tests: String

        /// Files and what is to be found in them: `FILE` `NAME`.
        static func references(_ cell: String) -> [(file: String, name: String)] {
            let words = cell.split(separator: "`", omittingEmptySubsequences: false).enumerated()
                .filter { $0.offset % 2 == 1 }.map { String($0.element) }
            return words.indices.dropLast().filter { words[$0].hasSuffix(".swift") }.map {
                (words[$0], words[$0 + 1])
            }
        }
    }

    private func text(_ path: String) throws -> String {
        String(decoding: try (Self.package / Path(path)).contents(), as: UTF8.self)
    }

    private func rows() throws -> [Row] {
        try text("Docs/Patent.md").split(separator: "\n").filter { $0.hasPrefix("| ") && !$0.hasPrefix("| ---") }
            .map { line in
                let cells = line.split(separator: "|", omittingEmptySubsequences: false)
                    .map { $0.drop { $0 == " " } }.map(String.init)
                try #require(cells.count == 6, "\(line)")
                return Row(subject: cells[1], code: cells[2], tests: cells[3])
            }
            .filter { !$0.subject.hasPrefix("claim ") && !$0.subject.hasPrefix("what it says") }
    }

    @Test("every row names code and a test, unless it says that it is being built") func complete() throws {
        let rows = try rows()
        for number in 1...14 {
            #expect(rows.contains { $0.subject.hasPrefix("\(number): ") }, "claim \(number)")
        }
        for row in rows {
            let isBeingBuilt = row.code.contains("being built")
            let (code, tests) = (Row.references(row.code), Row.references(row.tests))
            #expect(tests.isEmpty == isBeingBuilt, "\(row.subject)")
            #expect(!code.isEmpty || isBeingBuilt || row.code.contains("not used"), "\(row.subject)")
        }
    }

    @Test("every file, type, function and test that it names exists") func references() throws {
        var count = 0
        for row in try rows() {
            for (file, name) in Row.references(row.code) {
                count += 1
                let source = try text("Sources/" + file)
                let kinds = ["class", "struct", "enum", "protocol", "extension"].map { "\($0) \(name) " }
                let declared =
                    kinds + [
                        "class \(name):", "struct \(name):", "enum \(name):", "extension \(name):",
                        "protocol \(name):",
                        "func \(name)(", "func \(name)<",
                    ]
                #expect(declared.contains { source.contains($0) }, "\(file) has no \(name)")
            }
            for (file, name) in Row.references(row.tests) {
                count += 1
                let tests = try text("Tests/" + file)
                let isSuite = tests.contains("struct \(name) {")
                #expect(isSuite || isTest(name, in: tests), "\(file) has no test \(name)")
            }
        }
        #expect(count > 60)
    }

    /// Whether a function follows the attribute that makes it a test, with no other between.
    private func isTest(_ name: String, in source: String) -> Bool {
        source.split(separator: "@Test").dropFirst().contains { part in
            guard let function = part.split(separator: "func ", maxSplits: 1).dropFirst().first else {
                return false
            }
            return function.hasPrefix("\(name)(")
        }
    }
}
