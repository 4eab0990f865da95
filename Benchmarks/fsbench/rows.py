"""The rows of the table, in suites that share their preparation. Each figure is better where it is greater; `seconds` rows are
told as they are, and are better where they are less."""
import json
import os
import random
import shutil
import subprocess
import time

from .places import Failure, command, drop_caches

MIB = 1 << 20
#: Sizes, for a machine with 2 cores and a few GiB; `--quick` divides them.
FILE_MIB = 512
SMALL_FILES = 8000
TREE_FILES = 10000
WALK_FILES = 200000
FIO_SECONDS = 2


class Suite:
    """Some rows.

    `prepare` makes the data natively: for each system anew where `fresh`, else once for all of a place. `warm` is called
    before each system is mounted. `systems` says which can be measured.
    """

    def __init__(self, name, rows, measure, prepare=None, warm=None, fresh=False, systems=lambda system: True):
        self.name, self.rows, self.measure = name, rows, measure
        self.prepare, self.warm, self.fresh, self.systems = prepare, warm, fresh, systems


class Bench:
    """What a suite works with."""

    def __init__(self, load, scratch, divisor, wanted):
        self.load_program, self.scratch, self.divisor, self.wanted = load, scratch, divisor, wanted
        self.figures, self.counts, self.failures = {}, {}, []

    def wants(self, *rows):
        return any(row in self.wanted for row in rows)

    def size(self, number):
        return max(1, number // self.divisor)

    def load(self, *words):
        return float(command(self.load_program, *words))

    def note(self, row, value):
        if row in self.wanted:
            self.figures[row] = value

    def row(self, system, row, operations, measure):
        """Measures a row that is wanted; counts the requests of one of its operations where the system tells them.

        A system that cannot do a row has no figure there. Returns whether the row was wanted.
        """
        if row not in self.wanted:
            return False
        before = system.requests()
        try:
            self.note(row, measure())
        except Failure as failure:
            self.failures.append(f"{row}, {system.name}: {failure}")
            return True
        if before is not None:
            after = system.requests()
            number = operations() if callable(operations) else operations
            self.counts[row] = {
                kind: (after[kind] - before.get(kind, 0)) / number for kind in sorted(after)
                if after[kind] != before.get(kind, 0)}
        return True

    def fio(self, path, **options):
        settings = {
            "name": "job", "filename": path, "bs": "4k", "ioengine": "psync", "rw": "randread", "runtime": FIO_SECONDS,
            "time_based": 1, "group_reporting": 1, "randrepeat": 0, "size": f"{self.size(FILE_MIB)}m", "end_fsync": 0,
            "invalidate": 0, "thread": 1, "norandommap": 1, **options}
        words = [f"--{key}={value}" for key, value in settings.items()]
        job = json.loads(command("fio", "--output-format=json", *words))["jobs"][0]
        side = job["read" if settings["rw"] == "randread" else "write"]
        self.operations = max(1, side["total_ios"])
        return side["iops"]

    def fio_operations(self):
        return self.operations

    def timed(self, *words, **options):
        """Runs of this command in a second."""
        begin = time.monotonic()
        command(*words, **options)
        return 1 / (time.monotonic() - begin)


# MARK: Data of one file

def prepare_data(bench, place):
    bench.load("sequential-write", f"{place.data}/file", bench.size(FILE_MIB) * MIB, MIB, 0)


def measure_data(bench, system):
    file = f"{system.path}/file"
    # Natively cached, new to the mount.
    bench.row(system, "sequential read", bench.size(FILE_MIB), lambda: bench.load("sequential-read", file, MIB))
    if bench.wants("random read, warm"):
        bench.load("sequential-read", file, MIB)
    operations = bench.fio_operations
    bench.row(system, "random read, warm", operations, lambda: bench.fio(file))
    if bench.wants("random read, cold"):
        drop_caches()
        bench.row(system, "random read, cold", operations, lambda: bench.fio(file))
    direct = {"direct": 1, "ioengine": "libaio", "iodepth": 16}
    if bench.wants("random read, direct, depth 16"):
        drop_caches()
    bench.row(system, "random read, direct, depth 16", operations, lambda: bench.fio(file, **direct))
    other = f"{system.path}/written"
    bench.row(
        system, "sequential write", bench.size(FILE_MIB),
        lambda: bench.load("sequential-write", other, bench.size(FILE_MIB) * MIB, MIB, 0))
    if os.path.exists(other):
        os.unlink(other)
    write = {"rw": "randwrite"}
    bench.row(system, "random overwrite, 1 job", operations, lambda: bench.fio(file, **write))
    bench.row(system, "random overwrite, 2 jobs", operations, lambda: bench.fio(file, numjobs=2, **write))
    os.sync()
    bench.row(
        system, "random overwrite, fdatasync every 32", operations, lambda: bench.fio(file, fdatasync=32, **write))
    bench.row(system, "random write, direct, depth 16", operations, lambda: bench.fio(file, **write, **direct))


def warm_data(place):
    """The source's own cache has the file, as it does where applications have used it."""
    subprocess.run(["cat", f"{place.data}/file"], stdout=subprocess.DEVNULL, check=True)


# MARK: Small files

def measure_small(bench, system):
    files, path = bench.size(SMALL_FILES), system.path
    rows = ["create", "open, read, close", "rename", "unlink"]
    if not bench.wants(*rows):
        return
    def always(row, measure):
        """Later rows need the earlier ones' files."""
        if not bench.row(system, row, files, measure):
            measure()
    always("create", lambda: bench.load("create", path, files, 1024))
    # What was just written may not be in the cache yet.
    bench.load("read", path, files)
    always("open, read, close", lambda: bench.load("read", path, files))
    always("rename", lambda: bench.load("rename", path, files))
    always("unlink", lambda: bench.load("unlink", path, files))


# MARK: A tree

def make_tree(bench):
    """A tree like that of a program's source, as a tar archive in memory."""
    top = os.path.join(bench.scratch, "tree")
    archive = top + ".tar"
    if os.path.exists(archive):
        return archive
    generator = random.Random(7)
    words = [("word%d " % number).encode() for number in range(5000)]
    for number in range(bench.size(TREE_FILES)):
        directory = f"{top}/part{number // 400:03d}/unit{number // 20 % 20:02d}"
        if number % 20 == 0:
            os.makedirs(directory)
        size = min(int(generator.lognormvariate(8.3, 1.2)), 1 << 20)
        text = b"".join(generator.choices(words, k=size // 9 + 1))[:size]
        with open(f"{directory}/file{number:06d}.c", "wb") as file:
            file.write(text)
    command("tar", "cf", archive, "-C", top, ".")
    return archive


def measure_tree(bench, system):
    archive = make_tree(bench)
    tree, copy = f"{system.path}/tree", os.path.join(bench.scratch, "copy")
    os.mkdir(tree)
    files = bench.size(TREE_FILES)
    def always(row, measure):
        if not bench.row(system, row, files, measure):
            measure()
    always("untar", lambda: bench.timed("tar", "xf", archive, "-C", tree))
    if bench.wants("cp -a out of a tree"):
        bench.row(system, "cp -a out of a tree", files, lambda: bench.timed("cp", "-a", tree, copy))
        shutil.rmtree(copy)
    if bench.wants("grep -r, warm"):
        grep = ["sh", "-c", 'grep -r "no such word" "$0" || test $? = 1', tree]
        command(*grep)
        bench.row(system, "grep -r, warm", files, lambda: bench.timed(*grep))
    if bench.wants("C build"):
        make_program(f"{system.path}/program", bench.size(60))
        bench.row(system, "C build", 1, lambda: bench.timed("make", "-s", "-j2", "-C", f"{system.path}/program"))
    bench.row(system, "rm -rf", files, lambda: bench.timed("rm", "-rf", tree))


def make_program(directory, files):
    os.mkdir(directory)
    objects = []
    for number in range(files):
        with open(f"{directory}/unit{number}.c", "w") as file:
            file.write("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n")
            for function in range(10):
                file.write(f"int f{number}_{function}(int x) {{ char b[64]; snprintf(b, 64, \"%d\", x); return atoi(b) + {function}; }}\n")
        objects.append(f"unit{number}.o")
    with open(f"{directory}/Makefile", "w") as file:
        file.write(f"all.a: {' '.join(objects)}\n\tar rc $@ $^\n%.o: %.c\n\tcc -O1 -c -o $@ $<\n")


# MARK: A walk

def prepare_walk(bench, place):
    bench.load("create", place.data, bench.size(WALK_FILES), 0)


def find(path):
    return ["sh", "-c", "exec find \"$0\" -printf '%s %m %T@ %p\\n' >/dev/null", path]


def measure_walk(bench, system):
    files = bench.size(WALK_FILES)
    if not bench.row(system, "find, first pass", files, lambda: bench.timed(*find(system.path))):
        command(*find(system.path))
    bench.row(system, "find, warm", files, lambda: bench.timed(*find(system.path)))
    listing = ["sh", "-c", 'exec ls -lR "$0" >/dev/null', system.path]
    if bench.wants("ls -lR, warm"):
        command(*listing)
    bench.row(system, "ls -lR, warm", files, lambda: bench.timed(*listing))


# MARK: Programs

def git(*words):
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    options = ["-c", "user.name=b", "-c", "user.email=b@localhost", "-c", "gc.auto=0", "-c", "safe.directory=*"]
    return ["env", *(f"{key}={environment[key]}" for key in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM")), "git", *options, *words]


def make_repository(bench):
    repository = os.path.join(bench.scratch, "repository")
    if not os.path.exists(repository):
        work = os.path.join(bench.scratch, "work")
        os.mkdir(work)
        command("tar", "xf", make_tree(bench), "-C", work)
        command(*git("-C", work, "init", "-q"))
        command(*git("-C", work, "add", "."))
        command(*git("-C", work, "commit", "-q", "-m", "all"))
        command(*git("clone", "-q", "--bare", work, repository))
        shutil.rmtree(work)
    return repository


def measure_git(bench, system):
    repository, clone = make_repository(bench), f"{system.path}/clone"
    measure = lambda: bench.timed(*git("clone", "-q", "--no-local", repository, clone))
    if not bench.row(system, "git clone", bench.size(TREE_FILES), measure):
        measure()
    if bench.wants("git status, warm"):
        status = git("-C", clone, "status", "--short")
        # Git reads files again that are not older than its index, by the second.
        time.sleep(1.1)
        command(*git("-C", clone, "update-index", "-q", "--refresh", "--force-write-index"))
        command(*status)
        bench.row(system, "git status, warm", bench.size(TREE_FILES), lambda: bench.timed(*status))


def measure_sqlite(bench, system):
    for row, journal, level, number in (
        ("SQLite, WAL, NORMAL", "WAL", "NORMAL", 12000), ("SQLite, WAL, FULL", "WAL", "FULL", 400),
        ("SQLite, DELETE, FULL", "DELETE", "FULL", 150),
    ):
        if not bench.wants(row):
            continue
        number = bench.size(number)
        file = f"{system.path}/{journal}-{level}.db"
        script = f"PRAGMA journal_mode={journal};\nPRAGMA synchronous={level};\n"
        begin = "CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, s TEXT);\nBEGIN;\n" + "".join(
            f"INSERT INTO t VALUES({key},0,'{'s' * 80}');\n" for key in range(2000)) + "COMMIT;\n"
        generator = random.Random(5)
        work = "".join(
            f"UPDATE t SET v=v+1 WHERE id={generator.randrange(2000)};\n" for _ in range(number))
        command("sqlite3", file, input=script + begin)
        def measure():
            began = time.monotonic()
            command("sqlite3", file, input=script + work)
            return number / (time.monotonic() - began)
        bench.row(system, row, number, measure)
        command("sh", "-c", 'rm -f "$0"*', file)


def postgresql():
    versions = sorted(os.listdir("/usr/lib/postgresql"), key=int)
    return f"/usr/lib/postgresql/{versions[-1]}/bin"


def as_postgres(*words):
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *words]


class Database:
    def __init__(self, bench, system):
        self.directory, self.socket = f"{system.path}/pg", os.path.join(bench.scratch, "socket")
        os.makedirs(self.socket, exist_ok=True)
        shutil.chown(self.socket, "postgres", "postgres")

    def __enter__(self):
        options = f"-c listen_addresses= -c unix_socket_directories={self.socket} -c shared_buffers=32MB"
        command(
            *as_postgres(f"{postgresql()}/pg_ctl", "-D", self.directory, "-w", "-s", "-o", options,
                         "-l", f"{self.directory}/log", "start"), cwd="/")
        return self

    def __exit__(self, *_):
        command(*as_postgres(f"{postgresql()}/pg_ctl", "-D", self.directory, "-w", "-s", "-m", "fast", "stop"), cwd="/")

    def pgbench(self, *words):
        return command(*as_postgres(f"{postgresql()}/pgbench", "-h", self.socket, *words, "postgres"), cwd="/")


class Where:
    """A place's data as a system of its own."""

    def __init__(self, place):
        self.path = place.data


def prepare_pgbench(bench, place):
    directory = f"{place.data}/pg"
    os.mkdir(directory)
    shutil.chown(directory, "postgres", "postgres")
    command(*as_postgres(f"{postgresql()}/initdb", "-D", directory, "-A", "trust", "--no-sync"), cwd="/")
    with Database(bench, Where(place)) as database:
        database.pgbench("-i", "-q", "-s", str(bench.size(10)))


def measure_pgbench(bench, system):
    with Database(bench, system) as database:
        def measure(*words):
            output = database.pgbench("-n", "-c", "2", "-j", "2", "-T", "5", *words)
            line = next(line for line in output.splitlines() if line.startswith("tps"))
            return float(line.split()[2])
        bench.row(system, "pgbench, read-only", 1, lambda: measure("-S"))
        bench.row(system, "pgbench, read-write", 1, lambda: measure())


# MARK: While a snapshot is active

ACTIVE_ROWS = [
    "start, clean (s)", "start, 256 MiB dirty (s)", "first byte of a file (s)", "4 KiB overwrites, idle",
    "the same, snapshot active: first", "the same, snapshot active: later", "fdatasync every 32, idle",
    "fdatasync every 32, snapshot active", "sequential overwrite, idle", "sequential overwrite, snapshot active",
    "extents before", "extents after", "snapshot, sequential read",
]


def extents(path):
    return int(command("filefrag", path).rsplit(":", 1)[1].split()[0])


def seconds(action):
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def measure_active(bench, system):
    file = f"{system.path}/file"
    blocks = bench.size(FILE_MIB) * MIB // 4096 // 8
    def overwrite(seed, every=0, count=blocks):
        return bench.load("overwrite", file, count, seed, every)
    def sequential():
        return bench.load("sequential-write", file, bench.size(FILE_MIB) * MIB, MIB, 1)
    os.sync()
    bench.note("extents before", extents_of(system))
    bench.row(system, "4 KiB overwrites, idle", blocks, lambda: overwrite(1))
    os.sync()
    bench.row(system, "fdatasync every 32, idle", blocks // 4, lambda: overwrite(3, 32, blocks // 4))
    bench.row(system, "sequential overwrite, idle", bench.size(FILE_MIB), sequential)
    os.sync()
    bench.note("start, clean (s)", seconds(system.start))
    if bench.wants("snapshot, sequential read"):
        # The source's own cache has it, that of the snapshot's inode has not.
        bench.row(
            system, "snapshot, sequential read", bench.size(FILE_MIB),
            lambda: bench.load("sequential-read", f"{system.snapshot}/file", MIB))
    if bench.wants("first byte of a file (s)"):
        bench.note("first byte of a file (s)", bench.load("one-byte", f"{system.path}/large"))
    bench.row(system, "the same, snapshot active: first", blocks, lambda: overwrite(1))
    os.sync()
    bench.row(system, "the same, snapshot active: later", blocks, lambda: overwrite(1))
    os.sync()
    bench.row(
        system, "fdatasync every 32, snapshot active", blocks // 4, lambda: overwrite(5, 32, blocks // 4))
    os.sync()
    bench.note("extents after", extents_of(system))
    system.stop()
    os.sync()
    if bench.wants("start, 256 MiB dirty (s)"):
        command("sh", "-c", 'head -c 268435456 /dev/zero >"$0"', f"{system.path}/dirty")
        bench.note("start, 256 MiB dirty (s)", seconds(system.start))
        system.stop()
    if bench.wants("sequential overwrite, snapshot active"):
        os.sync()
        system.start()
        bench.row(system, "sequential overwrite, snapshot active", bench.size(FILE_MIB), sequential)
        system.stop()


def extents_of(system):
    """Of the source's file, which may lie below the mount: a copy of the place's mount shows it."""
    below = os.path.join(os.path.dirname(system.place.top), "below")
    os.makedirs(below, exist_ok=True)
    command("mount", "--bind", system.place.top, below)
    try:
        return extents(f"{below}/data/file")
    finally:
        command("umount", below)


def prepare_active(bench, place):
    prepare_data(bench, place)
    bench.load("sequential-write", f"{place.data}/large", bench.size(1024) * MIB, MIB, 0)


# MARK: The snapshot of a tree

def prepare_restic(bench, place):
    os.mkdir(f"{place.data}/tree")
    command("tar", "xf", make_tree(bench), "-C", f"{place.data}/tree")


def measure_restic(bench, system):
    """The backup of a snapshot, against that of the source itself; and its small files against the live ones."""
    if not system.is_native:
        system.start()
    path = f"{system.path if system.is_native else system.snapshot}/tree"
    try:
        def walk(tree):
            return lambda: bench.timed("tar", "cf", os.path.join(bench.scratch, "out.tar"), "-C", tree, ".")
        bench.row(system, "tar of a tree, live", bench.size(TREE_FILES), walk(f"{system.path}/tree"))
        bench.row(system, "tar of a tree, snapshot", bench.size(TREE_FILES), walk(path))
        if bench.wants("restic backup of the snapshot"):
            repository = os.path.join(bench.scratch, "restic")
            environment = {**os.environ, "RESTIC_PASSWORD": "x"}
            command("restic", "-q", "--no-cache", "-r", repository, "init", env=environment)
            measure = lambda: bench.timed(
                "restic", "-q", "--no-cache", "-r", repository, "backup", path, env=environment)
            bench.row(system, "restic backup of the snapshot", bench.size(TREE_FILES), measure)
            shutil.rmtree(repository)
    finally:
        if not system.is_native:
            system.stop()


SUITES = [
    Suite(
        "data",
        ["sequential read", "random read, warm", "random read, cold", "random read, direct, depth 16", "sequential write",
         "random overwrite, 1 job", "random overwrite, 2 jobs", "random overwrite, fdatasync every 32",
         "random write, direct, depth 16"],
        measure_data, prepare_data, warm=warm_data),
    Suite("sqlite", ["SQLite, WAL, NORMAL", "SQLite, WAL, FULL", "SQLite, DELETE, FULL"], measure_sqlite),
    Suite("pgbench", ["pgbench, read-only", "pgbench, read-write"], measure_pgbench, prepare_pgbench),
    Suite("small", ["create", "open, read, close", "unlink", "rename"], measure_small, fresh=True),
    Suite("tree", ["untar", "rm -rf", "cp -a out of a tree", "grep -r, warm", "C build"], measure_tree, fresh=True),
    Suite("walk", ["find, warm", "find, first pass", "ls -lR, warm"], measure_walk, prepare_walk),
    Suite("git", ["git status, warm", "git clone"], measure_git, fresh=True),
    Suite("active", ACTIVE_ROWS, measure_active, prepare_active, fresh=True,
        systems=lambda system: system.takes_snapshots),
    Suite(
        "snapshot tree", ["tar of a tree, live", "tar of a tree, snapshot", "restic backup of the snapshot"],
        measure_restic, prepare_restic,
        systems=lambda system: system.is_native and not system.takes_snapshots or hasattr(system, "binary")),
]
ROWS = [row for suite in SUITES for row in suite.rows]

#: What the project wants to reach as a ratio to the source: on ext4, on XFS.
TARGETS = {
    "sequential read": (0.45, 0.90), "random read, warm": (0.90, 0.90), "random read, cold": (0.75, 0.90),
    "random read, direct, depth 16": (0.60, 0.90), "sequential write": (0.65, 0.95),
    "random overwrite, 1 job": (0.80, 0.85), "random overwrite, 2 jobs": (0.80, 0.90),
    "random overwrite, fdatasync every 32": (0.85, 0.92), "random write, direct, depth 16": (0.80, 0.92),
    "SQLite, WAL, NORMAL": (0.93, 0.95), "SQLite, WAL, FULL": (0.65, 0.70), "SQLite, DELETE, FULL": (0.60, 0.65),
    "pgbench, read-only": (0.95, 0.95), "pgbench, read-write": (0.95, 0.97), "create": (0.28, 0.28),
    "open, read, close": (0.23, 0.23), "unlink": (0.38, 0.38), "rename": (0.33, 0.33), "untar": (0.33, 0.33),
    "rm -rf": (0.35, 0.35), "cp -a out of a tree": (0.27, 0.27), "grep -r, warm": (0.37, 0.37),
    "find, warm": (0.85, 0.85), "find, first pass": (0.28, 0.28), "ls -lR, warm": (0.50, 0.50),
    "git status, warm": (0.70, 0.70), "git clone": (0.30, 0.30),
}
