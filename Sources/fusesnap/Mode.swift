internal import ArgumentParser

/// How a mount keeps a snapshot's other version of what changes.
enum Mode: String, CaseIterable, Sendable {
    /// The original goes to the delta store before it is changed.
    case preserve
    /// What changes goes to the delta store, and is merged into the source when the snapshot ends.
    case redirect

    /// What `--mode` means.
    static func parse(_ text: String) throws -> Mode {
        if let mode = Mode(rawValue: text) { return mode }
        let known = allCases.map(\.rawValue).joined(separator: ", ")
        throw ValidationError("there is no mode '\(text)'; use \(known)")
    }
}
