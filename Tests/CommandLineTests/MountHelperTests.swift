import Glibc
import SystemPackage
import TestSupport
import Testing

/// The program as mount(8)'s helper.
@Suite(.serialized) struct MountHelperTests {
    /// Calls the program by the helper's name.
    private func helper(
        _ words: [String], _ name: Path = "mount.fusesnap", in top: Path
    ) throws -> Finished {
        if !(top / name).exists { try (top / name).symlink(to: Path(Machine.binary)) }
        return try run([(top / name).string] + words, in: top, seconds: 60)
    }

    private func with(_ body: (Path) throws -> Void) throws {
        try TemporaryDirectory.with { top in
            for name: Path in ["source", "mnt"] { try (top / name).mkdir() }
            try body(top)
        }
    }

    @Test(
        "mounts as fstab says it", .enabled(if: Machine.canMount, "\(Machine.needsMount)"),
        arguments: ["mount.fusesnap", "mount.fuse.fusesnap"])
    func fstab(_ name: String) throws {
        try with { top in
            let options =
                "rw,nofail,_netdev,noauto,user=me,comment=a b,x-systemd.requires=x.mount,X-mount.mkdir,defaults,"
                + "mode=preserve,store=\(top)/store,max_delta=2G,fsname=data"
            // The order of mount(8): paths first.
            let mounted = try helper(
                ["source", "mnt", "-n", "-o", options, "-t", "fuse.fusesnap"], Path(name), in: top)
            #expect(mounted.code == 0 && mounted.errors.isEmpty, "\(mounted)")
            let status = try succeed([Machine.binary, "ctl", "status", "--json", "mnt"], in: top)
            #expect(status.contains("\"store\" : \"\(top)/store\""), "\(status)")
            #expect(status.contains("\"delta_bytes_max\" : 2147483648"), "\(status)")
            // mount(8) reports a mount that is there already.
            #expect(try helper(["source", "mnt"], Path(name), in: top).code == 32)
            try succeed([Machine.binary, "unmount", "mnt"], in: top)
        }
    }

    @Test("over the source itself, read-only", .enabled(if: Machine.canMount, "\(Machine.needsMount)"))
    func overItself() throws {
        try with { top in
            let point = (top / "source").string
            let mounted = try helper(["-r", point, point], in: top)
            #expect(mounted.code == 0, "\(mounted)")
            #expect(throws: Errno.readOnlyFileSystem) { try (top / "source/new").create() }
            try succeed([Machine.binary, "unmount", point])
        }
    }

    @Test(
        "a mount becomes read-only and writable again",
        .enabled(if: Machine.canMount && Machine.isRoot, "needs root"))
    func remount() throws {
        try with { top in
            let (source, point) = ((top / "source").string, top / "mnt")
            #expect(try helper([source, point.string], in: top).code == 0)
            try (point / "before").create()
            // As mount(8) calls it: with all that the mount table tells of the mount.
            let rest = "user_id=0,group_id=0,default_permissions,allow_other,max_read=524288"
            for (flag, error) in [("ro", Errno.readOnlyFileSystem), ("rw", nil)] as [(String, Errno?)] {
                let done = try helper([source, point.string, "-o", "\(flag),remount,\(rest)"], in: top)
                #expect(done.code == 0 && done.errors.isEmpty, "\(done)")
                if let error {
                    #expect(throws: error) { try (point / "after").create() }
                } else {
                    try (point / "after").create()
                }
            }
            #expect((top / "source/after").exists)
            try succeed([Machine.binary, "unmount", point.string])
        }
    }

    @Test(
        "wrong use is mount(8)'s exit code 1, and nothing is mounted",
        arguments: [
            (["source"], "mount point"), (["source", "mnt", "more"], "mount point"),
            (["-q", "source", "mnt"], "-q"),
            (["source", "mnt", "-o"], "-o"), (["source", "mnt", "-o", "nonsense"], "nonsense"),
            (["source", "mnt", "-o", "auto_unmount"], "auto_unmount"),
            (["source", "mnt", "-o", "max_delta=much"], "much"), (["source", "mnt", "-o", "mode=odd"], "odd"),
            (["source", "mnt", "-o", "store="], "store"), (["source", "mnt", "-t", "ext4"], "ext4"), ([], "usage"),
        ])
    func usage(_ words: [String], _ part: String) throws {
        try with { top in
            let finished = try helper(words, in: top)
            #expect(finished.code == 1, "\(finished)")
            #expect(finished.errors.contains(part), "\(finished)")
            #expect(try !isMounted(top / "mnt"))
        }
    }

    @Test("-f does everything but mount; -s passes unknown options over; -v tells the command")
    func fakeAndSloppy() throws {
        try with { top in
            let finished = try helper(["-fsv", "source", "mnt", "-o", "nonsense,max_delta=1G,odd=1"], in: top)
            #expect(finished.code == 0, "\(finished)")
            #expect(finished.output == "fusesnap mount -o max_delta=1G -- source mnt\n")
            #expect(try !isMounted(top / "mnt"))
            #expect(try helper(["-fs", "source", "mnt", "-o", "max_delta=much"], in: top).code == 1)
        }
    }

    @Test("a mount that fails is mount(8)'s exit code 32")
    func failure() throws {
        try with { top in
            let finished = try helper(["nosuch", "mnt"], in: top)
            #expect(finished.code == 32 && finished.errors.contains("nosuch"), "\(finished)")
        }
    }

    @Test("an option given in two ways is wrong usage")
    func twice() throws {
        try with { top in
            let words = [Machine.binary, "mount", "--store", "a", "-o", "store=b", "source", "mnt"]
            let finished = try run(words, in: top)
            #expect(finished.code == 64 && finished.errors.contains("given twice"), "\(finished)")
        }
    }
}
