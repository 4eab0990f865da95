import Glibc
import LinuxSystem
import SnapshotCore
import SnapshotRecord
import Synchronization
import SystemPackage
import TestSupport
import Testing

/// Snapshots in preserve whose daemon was killed. Only with file handles, so only as root.
@Suite(.enabled(if: geteuid() == 0, "file handles need root")) struct PreserveRecoveryTests {
    private func with(_ body: (KilledSnapshot) throws -> Void) throws {
        try KilledSnapshot.with { top in
            try (top / "f").create(bytes(40_000, seed: 7))
            try (top / "empty").create()
            try (top / "d").mkdir()
            try (top / "d/g").create(bytes(5000, seed: 8))
            try (top / "full").mkdir()
            try (top / "full/h").create(bytes(3))
            try (top / "l").symlink(to: "f")
        } _: {
            try body($0)
        }
    }

    private func takesUp(_ snapshot: KilledSnapshot, sourceLocation: SourceLocation = #_sourceLocation) throws {
        try snapshot.takeUp()
        #expect(try snapshot.shown() == snapshot.expected, sourceLocation: sourceLocation)
    }

    @Test("a change that was announced and never made, with any number of its records written")
    func announced() throws {
        for kept in 0...6 {
            try with { snapshot in
                let before = try snapshot.recordCount()
                let file = try snapshot.target("f", O_RDWR)
                #expect(snapshot.preserve.willChangeData(of: file, 4096..<12_000))
                snapshot.preserve.willChangeAttributes(of: try snapshot.target("d"))
                let directory = try snapshot.directory("d")
                "x".withCString { snapshot.preserve.willChangeEntry(in: directory, $0, now: .absent) }
                let all = try snapshot.recordCount()
                try snapshot.keepRecords(min(before + kept, all))
                try takesUp(snapshot)
                // Now they are made, as if announced for the first time.
                let again = try snapshot.target("f", O_RDWR)
                #expect(snapshot.preserve.willChangeData(of: again, 4096..<12_000))
                try (snapshot.top / "f").write(bytes(8000, seed: 9), at: 4096)
                #expect(try snapshot.shown() == snapshot.expected)
                try takesUp(snapshot)
            }
        }
    }

    @Test("a record that a kill ended in the midst of, at each byte") func halfRecord() throws {
        try with { snapshot in
            let before = try #require(try snapshot.recordEnds().last)
            #expect(snapshot.preserve.willChangeData(of: try snapshot.target("f", O_RDWR), 0..<1))
            let end = try snapshot.recordEnds()[try snapshot.recordCount() - 1]
            let bytes = try snapshot.journal.contents()
            for length in stride(from: before, to: end, by: 7) {
                try snapshot.journal.truncate(0)
                try snapshot.journal.write(Array(bytes[..<length]), at: 0)
                try takesUp(snapshot)
            }
        }
    }

    @Test("a file made whose record was not written, and what becomes of it later")
    func madeUnrecorded() throws {
        try with { snapshot in
            let directory = try snapshot.directory(".")
            "new".withCString { snapshot.preserve.willChangeEntry(in: directory, $0, now: .absent) }
            // Behind the cut, as the file system's clock ticks.
            usleep(20_000)
            try (snapshot.top / "new").create(bytes(9000))
            try takesUp(snapshot)
            let made = try snapshot.target("new", O_RDWR)
            #expect(snapshot.preserve.willChangeData(of: made, 0..<9000))
            #expect(snapshot.preserve.store.storedBytes == 0, "it is not of the cut")
            #expect(snapshot.preserve.map.isBorn(made.key))
            try (snapshot.top / "new").write([1], at: 0)
            try snapshot.rename("new", to: "d/g")
            #expect(try snapshot.shown() == snapshot.expected)
            #expect(snapshot.preserve.end.inexactReason == nil)
            try takesUp(snapshot)
            #expect(snapshot.preserve.end.inexactReason == nil)
        }
    }

    @Test("a last name that went into the graveyard, before that was recorded") func buriedUnrecorded() throws {
        try with { snapshot in
            let key = try snapshot.target("f").key
            try snapshot.unlink("f")
            try snapshot.keepRecords(try snapshot.recordCount() - 1)
            try takesUp(snapshot)
            #expect(snapshot.preserve.map.record(of: key)?.contents.withLock { $0.place } == .graveyard)
            #expect(snapshot.preserve.store.buriedBytes == 40_960)
        }
    }

    @Test(
        "a link in the graveyard for a rename over the file that never came: one link more than applications see")
    func linkedUnrenamed() throws {
        try with { snapshot in
            let target = try snapshot.target("f")
            snapshot.preserve.willChangeAttributes(of: target)
            let root = try snapshot.directory(".")
            "f".withCString {
                snapshot.preserve.willChangeEntry(in: root, $0, now: .present(target.reference))
            }
            try "f".withCString {
                try snapshot.preserve.store.linkIntoGraveyard(target.key, bytes: 0, from: root.descriptor, $0)
            }
            try takesUp(snapshot)
            let status = try FileStatus(of: target.descriptor)
            #expect(status.links == 2 && snapshot.preserve.isInGraveyard(status))
            // Then it comes after all.
            "other".withCString { snapshot.preserve.willChangeEntry(in: root, $0, now: .absent) }
            try (snapshot.top / "other").create()
            snapshot.preserve.didMake(try FileStatus(of: try snapshot.target("other").descriptor))
            try snapshot.rename("other", to: "f")
            #expect(try snapshot.shown() == snapshot.expected)
            try takesUp(snapshot)
        }
    }

    @Test("what was said to be detached and is still there, is in the source: and goes later")
    func detachedStillThere() throws {
        try with { snapshot in
            for name in ["d", "full", "empty", "l"] {
                let target = try snapshot.target(Path(name))
                snapshot.preserve.willChangeAttributes(of: target)
                try snapshot.preserve.store.record([.place(target.key, .detached)])
            }
            try takesUp(snapshot)
            try snapshot.unlink("d/g")
            try snapshot.unlink("d", AT_REMOVEDIR)
            try snapshot.unlink("empty")
            try snapshot.unlink("l")
            #expect(throws: Errno.directoryNotEmpty) { try snapshot.unlink("full", AT_REMOVEDIR) }
            #expect(try snapshot.shown() == snapshot.expected)
            try takesUp(snapshot)
        }
    }

    @Test("a directory whose removal failed is in the source, also for the next daemon") func refusedRemoval()
        throws
    {
        try with { snapshot in
            #expect(throws: Errno.directoryNotEmpty) { try snapshot.unlink("full", AT_REMOVEDIR) }
            try takesUp(snapshot)
        }
    }

    @Test("an end that was told, and a start that was not finished, are not taken up") func notTakenUp() throws {
        for (end, isMarked) in [(true, true), (false, false)] {
            try with { snapshot in
                if end { snapshot.preserve.becomeInexact("a test") }
                if !isMarked { try snapshot.keepRecords(0) }
                let outcome = try snapshot.recovery().recover()
                guard case .discarded(nil) = outcome else {
                    Issue.record("\(outcome)")
                    return
                }
                #expect(try snapshot.store.keptSnapshot() == nil)
            }
        }
    }

    /// Recovery has to discard the snapshot, for a reason with these words in it.
    private func expectDiscarded(
        _ words: String..., boot: BootIdentity? = nil, by harm: (KilledSnapshot) throws -> Void,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        try with { snapshot in
            #expect(snapshot.preserve.willChangeData(of: try snapshot.target("f", O_RDWR), 0..<40_000))
            try snapshot.unlink("d/g")
            try harm(snapshot)
            let live = try TreeCapture(snapshot.top)
            let outcome = try snapshot.recovery(boot: boot).recover()
            guard case .discarded(let why?) = outcome else {
                Issue.record("\(outcome)", sourceLocation: sourceLocation)
                return
            }
            for word in words { #expect(why.contains(word), sourceLocation: sourceLocation) }
            #expect(try snapshot.store.keptSnapshot() == nil, sourceLocation: sourceLocation)
            #expect(try live.differences(TreeCapture(snapshot.top)).isEmpty, sourceLocation: sourceLocation)
        }
    }

    @Test("what cannot be known to be exact is discarded, and why is said; the live tree stays as it is")
    func discarded() throws {
        try expectDiscarded(
            "started anew", boot: BootIdentity(high: 1, low: 2, mount: 3), by: { _ in })
        // Those of the start, too, and of what has been stored.
        for record in 1...3 {
            try expectDiscarded(
                "journal is damaged at byte",
                by: { snapshot in
                    let end = try snapshot.recordEnds()[record]
                    let byte = try snapshot.journal.contents()[end - 1]
                    try snapshot.journal.write([byte ^ 1], at: end - 1)
                })
        }
        try expectDiscarded("journal", "its beginning is damaged", by: { try $0.journal.write([0], at: 3) })
        func delta(_ snapshot: KilledSnapshot) throws -> Path {
            snapshot.top / ".fusesnap/snapshot" / Path(try snapshot.target("f").key.fileName.description)
        }
        try expectDiscarded("is not as it was", "39999 bytes", by: { try delta($0).truncate(39_999) })
        try expectDiscarded("is not as it was", "missing", by: { try delta($0).unlink() })
        try expectDiscarded(
            "graveyard", "missing",
            by: { snapshot in
                let graveyard = snapshot.top / ".fusesnap/graveyard"
                for name in try graveyard.entries() { try (graveyard / name).unlink() }
            })
    }

    @Test(
        "what was changed or made while no daemon was there reads EIO and is told; what is changed later is not taken for it"
    )
    func absence() throws {
        try with { snapshot in
            usleep(20_000)
            try (snapshot.top / "f").write([1], at: 0)
            try (snapshot.top / "d/g").write([1], at: 0)
            try snapshot.takeUp()
            #expect(throws: Errno.ioError) { try snapshot.shown() }
            #expect(snapshot.preserve.end.inexactReason != nil)
            // Its originals are gone: they must not be recorded as such.
            let target = try snapshot.target("d/g", O_RDWR)
            #expect(snapshot.preserve.willChangeData(of: target, 0..<5000))
            #expect(snapshot.preserve.map.record(of: target.key)?.contents.withLock { $0.isLost } == true)
            // And so says the next daemon.
            try snapshot.takeUp()
            #expect(snapshot.preserve.end.inexactReason != nil)
            #expect(throws: Errno.ioError) { try snapshot.shown() }
        }
        try with { snapshot in
            try snapshot.takeUp()
            let target = try snapshot.target("f", O_RDWR)
            #expect(snapshot.preserve.willChangeData(of: target, 0..<1))
            try (snapshot.top / "f").write([1], at: 0)
            #expect(try snapshot.shown() == snapshot.expected)
            #expect(snapshot.preserve.end.inexactReason == nil)
        }
    }

    @Test("random operations with kills at every kind of place between them", arguments: seeds(24))
    func random(seed: UInt64) throws {
        try with { snapshot in
            var workload = KillingWorkload(snapshot, seed: seed)
            for _ in 0..<120 { try workload.step() }
            #expect(workload.kills > 10, "seed \(seed)")
        }
    }
}
