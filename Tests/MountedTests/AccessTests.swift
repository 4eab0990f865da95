import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// Nobody gets more through a mount or a snapshot than the source would have given.
@Suite(.serialized, .enabled(if: Machine.isRoot && Machine.canMount, "\(Machine.needsMount), as root"))
struct AccessTests {
    private static let user: UInt32 = 1000
    private static let other: UInt32 = 1001

    /// Whether a user may read a file.
    private func mayRead(_ user: UInt32, _ path: Path) throws -> Bool {
        let result = Flag()
        try asUser(user) {
            do throws(Errno) {
                _ = try path.contents()
                result.set()
            } catch .permissionDenied {
                // What the modes say.
            }
        }
        return result.isSet
    }

    @Test("the snapshot gives each user what modes, owners and lists gave at the cut, whatever they are now")
    func rightsOfTheCut() throws {
        try MountedSource.with { mount in
            let live = mount.mountpoint
            for (name, mode) in [("opened", 0o600), ("closed", 0o644), ("given", 0o600), ("listed", 0o600)]
                as [(Path, UInt32)]
            {
                try (live / name).create(bytes(100))
                try (live / name).chmod(mode)
            }
            try (live / "given").chown(user: Self.user, group: Self.user)
            for (name, mode) in [("hidden", 0o700), ("shown", 0o755)] as [(Path, mode_t)] {
                try (live / name).mkdir(mode: mode)
                try (live / name / "file").create(bytes(100))
            }
            try succeed(["setfacl", "-m", "u:\(Self.user):r", (live / "listed").string])
            try mount.start()
            try (live / "opened").chmod(0o644)
            try (live / "closed").chmod(0o600)
            try (live / "given").chown(user: Self.other, group: Self.other)
            try (live / "hidden").chmod(0o755)
            try (live / "shown").chmod(0o700)
            try succeed(["setfacl", "-b", (live / "listed").string])
            let expected: [(Path, UInt32, atCut: Bool, now: Bool)] = [
                ("opened", Self.user, false, true), ("closed", Self.user, true, false),
                ("given", Self.user, true, false), ("given", Self.other, false, true),
                ("hidden/file", Self.user, false, true), ("shown/file", Self.user, true, false),
                ("listed", Self.user, true, false), ("listed", Self.other, false, false),
            ]
            for (name, user, atCut, now) in expected {
                #expect(try mayRead(user, mount.snapshot / name) == atCut, "\(name) in the snapshot, as \(user)")
                #expect(try mayRead(user, live / name) == now, "\(name) in the live view, as \(user)")
            }
        }
    }

    @Test("in a user namespace the namespace's root is the user outside, and no more")
    func userNamespace() throws {
        try MountedSource.with(prepare: { try $0.chmod(0o777) }) { mount in
            try (mount.mountpoint / "secret").create(bytes(100))
            try (mount.mountpoint / "secret").chmod(0o600)
            try mount.start()
            let script = """
                cd '\(mount.mountpoint.string)' && echo mine > made && mkdir d && chown 0:0 made \
                && ! cat secret 2>/dev/null && ! cat .snapshot/secret 2>/dev/null \
                && ! chown 1:1 made 2>/dev/null
                """
            let drop = ["setpriv", "--reuid=\(Self.user)", "--regid=\(Self.user)", "--clear-groups"]
            try succeed(drop + ["unshare", "-Ur", "sh", "-c", script])
            let made = try (mount.source / "made").lstat()
            #expect(made.user == Self.user && made.group == Self.user)
            #expect((mount.mountpoint / "secret").exists)
        }
    }

    @Test(
        "what is reserved for root stays so",
        .enabled(
            if: Machine.has("mkfs.ext4") && Path("/dev/loop-control").exists, "needs mkfs.ext4 and loop devices"))
    func reservedBlocks() throws {
        let size = 64 << 20
        let image = Path("image")
        try MountedSource.with(
            prepare: { source in
                let image = Path(source.string + "-") / image
                try Path(source.string + "-").mkdir()
                try image.create()
                try image.truncate(size)
                try succeed(["mkfs.ext4", "-q", "-m", "25", image.string])
                try succeed(["mount", "-o", "loop", image.string, source.string])
                try source.chmod(0o777)
            }
        ) { mount in
            for isActive in [false, true] {
                if isActive { try mount.start() }
                try asUser(Self.user) {
                    let file = try (mount.mountpoint / Path("file-\(isActive)")).open(O_RDWR | O_CREAT)
                    // The first write that does not fit is cut short or fails.
                    #expect(throws: Errno.noSpace) {
                        for piece in 0..<1000 {
                            let room = bytes(1 << 20)
                            if try file.write(room, at: piece << 20) < room.count { throw Errno.noSpace }
                        }
                    }
                    try file.sync()
                }
                let left = try mount.source.fileSystem()
                #expect(left.f_bavail * left.f_frsize < 4 << 20)
                #expect(Int(left.f_bfree * left.f_frsize) > size / 5, "what root has left")
                // Root may have it.
                try (mount.mountpoint / Path("root-\(isActive)")).create(bytes(1 << 20))
                try (mount.mountpoint / Path("file-\(isActive)")).unlink()
            }
        }
    }

    @Test(
        "nor does the kernel take it for a user's pages that it writes",
        .enabled(
            if: Machine.has("mkfs.ext4") && Path("/dev/loop-control").exists, "needs mkfs.ext4 and loop devices"),
        arguments: ["write-through", "writeback"])
    func reservedBlocksForPages(_ policy: String) throws {
        let size = 64 << 20
        try MountedSource.with(
            options: ["-o", "io=\(policy)"],
            prepare: { source in
                let image = Path(source.string + ".image")
                try image.create()
                try image.truncate(size)
                try succeed(["mkfs.ext4", "-q", "-m", "25", image.string])
                try succeed(["mount", "-o", "loop", image.string, source.string])
                try source.chmod(0o777)
            }
        ) { mount in
            try asUser(Self.user) {
                let file = try (mount.mountpoint / "mapped").open(O_RDWR | O_CREAT)
                try file.truncate(size)
                let mapping = try file.map(size)
                for page in stride(from: 0, to: size, by: 4096) { try mapping.write([1], at: page) }
                #expect(throws: Errno.noSpace) { try mapping.sync() }
                let written = try (mount.mountpoint / "written").open(O_RDWR | O_CREAT)
                #expect(throws: Errno.noSpace) {
                    for piece in 0..<64 { try written.writeAll(bytes(1 << 20), at: piece << 20) }
                    try written.sync()
                }
            }
            let left = try mount.source.fileSystem()
            #expect(Int(left.f_bfree * left.f_frsize) > size / 5, "what root has left")
            try (mount.mountpoint / "root").create(bytes(1 << 20))
        }
    }

    @Test(
        "with user_allow_other, a user's mount gives others what the modes give them",
        .enabled(
            if: Machine.usersMayMount && Machine.has("unshare") && Machine.has("setpriv"),
            "needs fusermount3, unshare and setpriv"))
    func allowOther() throws {
        try TemporaryDirectory.with { top in
            try succeed(["cp", Machine.binary, (top / "fusesnap").string])
            for name: Path in ["source", "mnt", "run"] {
                try (top / name).mkdir(mode: 0o755)
                try (top / name).chown(user: Self.user, group: Self.user)
            }
            try (top / "fuse.conf").create(Array("user_allow_other\n".utf8))
            // The configuration is this one in the script's mount namespace alone.
            let script = """
                set -e
                cd '\(top.string)'
                touch /etc/fuse.conf
                mount --bind fuse.conf /etc/fuse.conf
                as() { user=$1; shift; setpriv --reuid=$user --regid=$user --clear-groups env XDG_RUNTIME_DIR="$PWD/run" "$@"; }
                as \(Self.user) ./fusesnap mount -o allow_other source mnt
                trap 'as \(Self.user) ./fusesnap unmount --force mnt' EXIT
                as \(Self.user) sh -c 'echo open > mnt/open; echo secret > mnt/secret; chmod 600 mnt/secret; mkdir -m 700 mnt/d; echo > mnt/d/file'
                as \(Self.user) ./fusesnap ctl start mnt
                as \(Self.user) chmod 644 mnt/secret
                as \(Self.user) chmod 600 mnt/open
                test "$(as \(Self.other) cat mnt/secret)" = secret
                ! as \(Self.other) cat mnt/open 2>/dev/null
                ! as \(Self.other) cat mnt/d/file 2>/dev/null
                test "$(as \(Self.other) cat mnt/.snapshot/open)" = open
                ! as \(Self.other) cat mnt/.snapshot/secret 2>/dev/null
                ! as \(Self.other) cat mnt/.snapshot/d/file 2>/dev/null
                ! as \(Self.other) touch mnt/made 2>/dev/null
                ! as \(Self.other) ./fusesnap ctl stop mnt 2>/dev/null
                as \(Self.user) ./fusesnap ctl stop mnt
                """
            try succeed(["unshare", "--mount", "sh", "-c", script])
        }
    }

    @Test(
        "in a user namespace of their own a user mounts without fusermount3",
        .enabled(if: Machine.usersMayMount && Machine.has("unshare"), "needs /dev/fuse for users, and unshare"))
    func mountInUserNamespace() throws {
        try TemporaryDirectory.with { top in
            try succeed(["cp", Machine.binary, (top / "fusesnap").string])
            for name: Path in ["source", "mnt", "run"] {
                try (top / name).mkdir(mode: 0o755)
                try (top / name).chown(user: Self.user, group: Self.user)
            }
            let script = """
                set -e
                cd '\(top.string)'
                ./fusesnap mount source mnt
                trap './fusesnap unmount --force mnt' EXIT
                echo first > mnt/file
                ./fusesnap ctl start mnt
                echo second > mnt/file
                mv mnt/file mnt/moved
                test "$(cat mnt/.snapshot/file)" = first
                test "$(cat mnt/moved)" = second
                ./fusesnap ctl stop mnt
                """
            try succeed(
                ["setpriv", "--reuid=\(Self.user)", "--regid=\(Self.user)", "--clear-groups", "env"]
                    + ["XDG_RUNTIME_DIR=\((top / "run").string)", "unshare", "-Urm", "sh", "-c", script])
            #expect(try (top / "source/moved").lstat().user == Self.user)
        }
    }
}
