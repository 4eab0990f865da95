import ArgumentParser
import ControlSocket
import Testing

@testable import fusesnap

struct MountTableTests {
    private let table = MountTable(
        parsing: Array(
            """
            22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
            40 22 0:30 / /mnt/a\\040b rw,nosuid - fuse.fusesnap /da\\134ta rw,user_id=1000,group_id=1000
            41 22 0:31 / /mnt rw shared:2 master:3 - tmpfs none rw
            42 41 0:32 / /mnt rw - fuse.fusesnap /data rw,user_id=0,group_id=0,allow_other
            nonsense
            43 22 0:33 / /mnt2
            """.utf8))

    @Test func `lines are read with their escapes, and others are passed over`() {
        #expect(table.entries.count == 4)
        let entry = table.mount(at: "/mnt/a b")
        #expect(
            entry
                == MountEntry(
                    mountpoint: "/mnt/a b", type: "fuse.fusesnap", source: "/da\\ta", user: 1000,
                    fileSystemOptions: ["rw", "user_id=1000", "group_id=1000"]))
    }

    @Test func `of several mounts at a path the topmost counts`() {
        #expect(table.mount(at: "/mnt")?.type == "fuse.fusesnap")
        #expect(table.mount(at: "/mnt/x") == nil)
    }

    @Test func `a path lies in the mount with the longest path above it`() {
        #expect(table.mount(containing: "/mnt/a b/c")?.user == 1000)
        #expect(table.mount(containing: "/mnt/a")?.source == "/data")
        #expect(table.mount(containing: "/mntx")?.type == "ext4")
    }

    @Test(arguments: [
        ("/a", "/a", true), ("/a", "/a/b", true), ("/a", "/ab", false), ("/", "/a", true),
        ("/a/b", "/a", false),
    ])
    func `containment goes by whole names`(_ directory: String, _ path: String, _ expected: Bool) {
        #expect(Paths.contains(directory, path) == expected)
    }

    @Test func `a path is made absolute as text`() {
        #expect(Paths.absolute("/a//b/./c/../d/") == "/a/b/d")
        #expect(Paths.absolute("/..") == "/")
    }

    @Test(arguments: [
        ("user_allow_other\n", true), ("#user_allow_other\n", false),
        ("  user_allow_other # yes\n", true),
        ("mount_max = 5\n", false), ("user_allow_other_x\n", false), ("", false),
    ])
    func `fuse.conf permits others only by its line`(_ text: String, _ expected: Bool) {
        #expect(MountChecks.allowsOthers(configuration: Array(text.utf8)) == expected)
    }
}

struct CommandTests {
    @Test(arguments: [
        ["mount"], ["mount", "--mode", "x", "/a"],
        ["mount", "--max-delta", "5X", "/a"], ["mount", "--max-delta", "0", "/a"],
        ["mount", "-o", "nope", "/a"],
        ["mount", "/a", "/b", "/c"], ["mount", ""], ["mount", "--nope", "/a"], ["unmount"],
        ["ctl", "start"],
        ["ctl", "nope"], ["nope"],
    ])
    func `wrong usage is refused with 64`(_ words: [String]) {
        let error = #expect(throws: (any Error).self) { _ = try Fusesnap.parseAsRoot(words) }
        if let error { #expect(Fusesnap.exitCode(for: error).rawValue == 64) }
    }

    @Test func `mount takes its options in any usual form`() throws {
        let words = [
            "mount", "-f", "-oro,nosuid", "-o", "io=write-through", "--max-delta=10G", "/a", "/b",
        ]
        let mount = try #require(try Fusesnap.parseAsRoot(words) as? Mount)
        #expect(mount.foreground && mount.optionLists == ["ro,nosuid", "io=write-through"])
        #expect(mount.maxDelta?.bytes == 10 << 30)
        #expect(mount.source == "/a" && mount.mountpoint == "/b")
    }

    @Test func `a status is aligned in columns`() {
        let status = Status(
            pid: 7, version: "1", source: "/data", mountpoint: "/mnt", mode: "preserve",
            state: .active,
            started: "2026-11-23T03:00:00Z", deltaBytes: 2048, changedAreas: 3,
            snapshotBytesRead: 0,
            store: "/data/.fusesnap", io: "write-through")
        let lines = StatusSummary(status).text.split(separator: "\n")
        #expect(lines.contains("Delta:         2.0 KiB"))
        #expect(lines.contains("Mount point:   /mnt"))
    }

    private func merging(_ done: UInt64, _ total: UInt64) -> Status {
        var status = Status(
            pid: 7, version: "1", source: "/data", mountpoint: "/mnt", mode: "redirect", state: .merging,
            started: "2026-11-23T03:00:00Z", deltaBytes: 4 << 20, changedAreas: 3, snapshotBytesRead: 0,
            store: "/data/.fusesnap", io: "write-through")
        status.merge = StopProgress(bytesDone: done, bytesTotal: total)
        return status
    }

    @Test func `a merge is told with how far it is, in a summary, on a line, in a list and in figures`() throws {
        let (before, now) = (merging(1 << 20, 4 << 20), merging(3 << 20, 4 << 20))
        let rates = StatusRates(from: before, to: now, after: .seconds(2))
        let rows = StatusSummary(now).rows(rates)
        #expect(rows.contains { $0.0 == "State" && $0.1.hasPrefix("merging: ") })
        #expect(rows.contains { $0 == ("Merged", "3.0 MiB of 4.0 MiB (75 %)  (+1.0 MiB/s)") })
        // What cannot be read any more is not told as if it could.
        #expect(!rows.contains { $0.0.hasPrefix("Snapshot") })
        #expect(StatusWatch.line(now, rates).hasSuffix("  merging  3.0 MiB of 4.0 MiB (75 %) (+1.0 MiB/s)"))
        #expect(now.jsonLine.contains("\"merge\":{\"bytes_done\":3145728,\"bytes_total\":4194304}"))
        var item = MountListing.Item(mountpoint: "/mnt", user: 0, state: .merging, visible: true)
        item.status = now
        let metrics = Metrics(MountListing(mounts: [item], staleSockets: [])).text
        #expect(metrics.contains("fusesnap_merge_done_bytes{mountpoint=\"/mnt\"} 3145728\n"))
        #expect(ControlList.state(item) == "merging 75 %")
    }

    @Test(
        arguments: [
            (0, 4, 0), (1, 4, 25), (4, 4, 100), (9999, 10_000, 99), (0, 0, 100), (5, 4, 100),
            (1 << 62, 1 << 63, 50),
        ] as [(UInt64, UInt64, Int)])
    func `a bar is full only when all is merged, and fits on a line`(
        _ done: UInt64, _ total: UInt64, _ percent: Int
    ) {
        let progress = ProgressText(StopProgress(bytesDone: done, bytesTotal: total))
        #expect(progress.percent == percent)
        #expect(progress.bar("merging").filter { $0 == "#" }.count == percent / 4)
        #expect(progress.bar("merging").count < 80)
    }
}
