internal import ArgumentParser

/// How a mount keeps a snapshot's other version of what changes.
enum Mode: String, CaseIterable, Sendable {
    /// The original goes to the delta store before it is changed.
    case preserve

    /// What `--mode` means.
    static func parse(_ text: String) throws -> Mode {
        if let mode = Mode(rawValue: text) { return mode }
        if text == "redirect" {
            throw ValidationError("mode redirect is not there yet in \(Version.text); use preserve")
        }
        let known = allCases.map(\.rawValue).joined(separator: ", ")
        throw ValidationError("there is no mode '\(text)'; use \(known)")
    }
}
