import SystemPackage
import TestSupport
import Testing

/// Whether recipes can have machines of their own here.
private let mayHaveMachines: Bool = {
    guard Machine.isRoot, Machine.canMount, Machine.has("python3"), Machine.has("ip") else { return false }
    let script = """
        mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w \
        && mount -t overlay -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w overlay /etc
        """
    let words = ["unshare", "--mount", "--pid", "--ipc", "--net", "--fork", "sh", "-c", script]
    return (try? run(words, seconds: 30).code) == 0
}()

/// The recipes of Docs/Recipes.md, run as they stand there, each on a machine of its own (Tests/Recipes/run): what it sees
/// of /etc, /var, /srv and so on, its processes and its network are its own.
@Suite(.serialized, .enabled(if: mayHaveMachines, "needs root, /dev/fuse, namespaces, overlayfs, ip and python3"))
struct RecipeTests {
    /// Each section of the document has a test here.
    private static let all = [
        "restic", "borg", "borgmatic", "kopia", "rsync", "tar", "without-the-mount", "postgresql", "mariadb",
        "sqlite", "docker-volume",
        "vm-disk-image",
    ]

    private static let directory: Path = {
        let parts = #filePath.split(separator: "/").dropLast(2)
        return Path("/" + parts.joined(separator: "/")) / "Recipes"
    }()

    private func works(_ recipe: String, sourceLocation: SourceLocation = #_sourceLocation) throws {
        try TemporaryDirectory.with { top in
            let words = [(Self.directory / "run").string, recipe, Machine.binary, top.string]
            let finished = try run(words, seconds: 300)
            #expect(finished.code == 0, "\(finished)", sourceLocation: sourceLocation)
            #expect(finished.output.hasSuffix("recipe \(recipe): good\n"), sourceLocation: sourceLocation)
        }
    }

    @Test("every recipe of the document is run by a test") func list() throws {
        let listed = try succeed([(Self.directory / "run").string, "--list"]).split(separator: "\n")
        #expect(listed.map(String.init) == Self.all)
    }

    @Test("restic", .enabled(if: Machine.has("restic"), "restic is not installed"))
    func restic() throws { try works("restic") }

    @Test("borg", .enabled(if: Machine.has("borg"), "borgbackup is not installed"))
    func borg() throws { try works("borg") }

    @Test("borgmatic, with its hooks", .enabled(if: Machine.has("borgmatic"), "borgmatic is not installed"))
    func borgmatic() throws { try works("borgmatic") }

    @Test("Kopia, by its protocol of actions") func kopia() throws { try works("kopia") }

    @Test("rsync", .enabled(if: Machine.has("rsync"), "rsync is not installed"))
    func rsync() throws { try works("rsync") }

    @Test("tar") func tar() throws { try works("tar") }

    @Test("an export, without the mount") func export() throws { try works("without-the-mount") }

    @Test(
        "PostgreSQL under load comes back whole",
        .enabled(if: Machine.has("pg_createcluster") && Machine.has("restic"), "postgresql is not installed"))
    func postgresql() throws { try works("postgresql") }

    @Test(
        "MariaDB under load comes back whole",
        .enabled(if: Machine.has("mariadbd") && Machine.has("restic"), "mariadb-server is not installed"))
    func mariadb() throws { try works("mariadb") }

    @Test(
        "SQLite under load comes back whole",
        .enabled(if: Machine.has("sqlite3") && Machine.has("rsync"), "sqlite3 is not installed"))
    func sqlite() throws { try works("sqlite") }

    @Test(
        "a Docker volume, by what Docker documents of them",
        .enabled(if: Machine.has("redis-server") && Machine.has("restic"), "redis-server is not installed"))
    func dockerVolume() throws { try works("docker-volume") }

    @Test(
        "the image of a virtual machine's disk",
        .enabled(
            if: Machine.has("qemu-img") && Machine.has("fsfreeze") && Path("/dev/loop-control").exists,
            "qemu-utils is not installed, or there are no loop devices"))
    func image() throws { try works("vm-disk-image") }
}
