import SnapshotCore
import Testing

/// What a layer keeps of what a snapshot was asked to be.
@Suite struct SnapshotTermsTests {
    private static let all = [
        SnapshotTerms(), SnapshotTerms(isSinglePass: true),
        SnapshotTerms(scope: SnapshotScope(users: [0, 4_294_967_294])),
        SnapshotTerms(scope: SnapshotScope(users: [], groups: [12]), isSinglePass: true),
        SnapshotTerms(scope: SnapshotScope(users: [1000]), requester: 1000),
    ]

    @Test("they are read as they were written, and not where anything of them is missing")
    func roundTrip() {
        for terms in Self.all {
            #expect(SnapshotTerms(text: terms.text) == terms)
            for length in 0..<terms.text.count {
                #expect(
                    SnapshotTerms(text: String(terms.text.prefix(length))) == nil, "\(length) of \(terms.text)")
            }
        }
    }

    @Test(
        "what this version does not know is not taken for nothing",
        arguments: [
            "", "user 1\nend\n", "fusesnap terms 2\nend\n", "fusesnap terms 1\nuser\nend\n",
            "fusesnap terms 1\nuser -1\nend\n", "fusesnap terms 1\nuser 1 2\nend\n",
            "fusesnap terms 1\nonly 1\nend\n",
            "fusesnap terms 1\nsingle-pass 1\nend\n", "fusesnap terms 1\n\nend\n",
            "fusesnap terms 1\nend\nuser 1\n",
        ])
    func unknown(_ text: String) {
        #expect(SnapshotTerms(text: text) == nil)
    }
}
