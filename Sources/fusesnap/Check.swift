internal import ArgumentParser
internal import SnapshotRecord

struct Check: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check",
        abstract: "Check what a store holds, without mounting it.",
        discussion: """
            Reads the journals and looks whether all is there that they tell of. Nothing is changed, and no daemon may be \
            using the store. Exits with 0 where it is whole, with 1 where something is damaged: the file is named, and what \
            to do.
            """)

    @Argument(
        help: "The store: SOURCE/.fusesnap, or the directory given with --store.", completion: .directory)
    var store: String

    func validate() throws {
        if store.isEmpty { throw ValidationError("STORE is empty; name a directory") }
    }

    func run() throws {
        let findings: [StoreCheck.Finding]
        do throws(StoreError) {
            findings = try StoreCheck(path: Paths.absolute(store)).findings
        } catch {
            throw CommandFailure("cannot check \(store): \(Daemon.message(error))")
        }
        for finding in findings { print(Finding(finding).text) }
        if findings.contains(where: { $0.verdict == .problem }) { throw ExitCode.failed }
    }
}

extension Finding {
    fileprivate init(_ finding: StoreCheck.Finding) {
        let verdict: Verdict =
            switch finding.verdict {
            case .ok: .ok
            case .note: .note
            case .problem: .problem
            }
        self.init("store", verdict, finding.message, finding.advice)
    }
}
