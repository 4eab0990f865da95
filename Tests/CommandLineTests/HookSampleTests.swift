import Glibc
import SystemPackage
import TestSupport
import Testing

/// The samples in Hooks/, against the real programs where those are installed.
@Suite(.serialized, .enabled(if: Machine.canMount && Machine.isRoot, "needs root and /dev/fuse"))
struct HookSampleTests {
    private static func sample(_ name: String) -> String {
        let parts = #filePath.split(separator: "/").dropLast(3)
        return "/" + parts.joined(separator: "/") + "/Hooks/\(name).sample"
    }

    /// Debian keeps them out of PATH.
    private static let postgresPrograms: String? = {
        do throws(Errno) {
            let versions = try Path("/usr/lib/postgresql").entries().map { $0.string }.sorted()
            return versions.map { "/usr/lib/postgresql/\($0)/bin" }.last { access($0 + "/initdb", X_OK) == 0 }
        } catch {
            return nil
        }
    }()

    /// A server that runs while `body` does.
    private func withServer(
        _ words: [String], ready: [String], _ body: () throws -> Void
    ) throws {
        let server = try Child(words)
        do {
            try wait("\(words[0])") { try run(ready).code == 0 }
            try body()
        } catch {
            server.signal(SIGKILL)
            _ = try server.wait()
            throw error
        }
        server.signal(SIGTERM)
        _ = try server.wait(seconds: 30)
    }

    private func configure(_ mount: MountedSource, _ text: String) throws -> [String: String] {
        let conf = mount.top / "hooks.conf"
        if conf.exists { try conf.unlink() }
        try conf.create(Array((text + "\n").utf8))
        return ["FUSESNAP_HOOKS_CONF": conf.string]
    }

    private func start(_ mount: MountedSource, _ name: String, _ environment: [String: String]) throws -> Finished
    {
        try run(
            [Machine.binary, "ctl", "start", "--hook", Self.sample(name), mount.mountpoint.string],
            environment: environment)
    }

    /// Starts a snapshot, which is of level `application`, and calls `body` while it is there.
    private func withSnapshot(
        _ mount: MountedSource, _ name: String, _ environment: [String: String], _ body: () throws -> Void
    ) throws {
        let started = try start(mount, name, environment)
        if started.code != 0 { throw TestFailure(started.description) }
        try body()
        let stopped = try mount.control("stop", "--json")
        #expect(stopped.code == 0 && stopped.output.contains("\"level\" : \"application\""), "\(stopped)")
    }

    /// Makes a directory in the mount for a server's user.
    private func directory(_ mount: MountedSource, _ name: Path, of user: String) throws -> Path {
        let path = mount.mountpoint / name
        try path.mkdir(mode: 0o700)
        try succeed(["chown", "\(user):", path.string])
        return path
    }

    private func asUser(_ user: String) -> [String] {
        ["setpriv", "--reuid=\(user)", "--regid=\(user)", "--init-groups"]
    }

    @Test(
        "every sample refuses another word than freeze and thaw, and parses as sh",
        arguments: [
            "postgresql", "mysql", "sqlite", "redis", "docker",
        ])
    func usage(_ name: String) throws {
        try TemporaryDirectory.with { top in
            try succeed(["sh", "-n", Self.sample(name)])
            let environment = ["FUSESNAP_HOOKS_CONF": (top / "none").string]
            #expect(try run([Self.sample(name), "explode"], environment: environment).code == 64)
            #expect(try run([Self.sample(name)], environment: environment).code == 64)
        }
    }

    @Test(
        "PostgreSQL: a checkpoint before the cut",
        .enabled(if: postgresPrograms != nil, "postgresql is not installed"))
    func postgresql() throws {
        let programs = try #require(Self.postgresPrograms)
        try MountedSource.with { mount in
            let data = try directory(mount, "postgresql", of: "postgres")
            let socket = mount.top / "socket"
            try socket.mkdir()
            try succeed(["chown", "postgres:", socket.string])
            let user = asUser("postgres")
            try succeed(user + [programs + "/initdb", "-D", data.string, "-A", "trust", "--no-sync"], in: "/")
            let options = ["-h", socket.string, "-U", "postgres", "-X", "-q", "-A", "-t"]
            let psql = user + ["psql"] + options + ["-c"]
            let places = ["-D", data.string, "-k", socket.string]
            let words = user + [programs + "/postgres"] + places + ["-c", "listen_addresses="]
            let environment = try configure(mount, "POSTGRESQL_OPTIONS='-h \(socket)'")
            try withServer(words, ready: psql + ["SELECT 1"]) {
                let redo = psql + ["SELECT redo_lsn FROM pg_control_checkpoint()"]
                try succeed(psql + ["CREATE TABLE t AS SELECT 1 AS n"])
                let before = try succeed(redo)
                try withSnapshot(mount, "postgresql", environment) {
                    let after = try succeed(redo)
                    #expect(after != before)
                    #expect((mount.snapshot / "postgresql/PG_VERSION").exists)
                }
            }
            let failed = try start(mount, "postgresql", environment)
            #expect(failed.code == 1 && failed.errors.contains("No such file"), "\(failed)")
            #expect(try mount.status().state == "idle")
        }
    }

    @Test(
        "MariaDB: tables are locked from freeze to thaw, and no longer",
        .enabled(if: Machine.has("mariadbd"), "mariadb-server is not installed"))
    func mysql() throws {
        try MountedSource.with { mount in
            let data = try directory(mount, "mysql", of: "mysql")
            let socket = (data / "sock").string
            let base = ["--no-defaults", "--user=mysql", "--datadir=\(data)"]
            try succeed(["mariadb-install-db", "--auth-root-authentication-method=socket"] + base)
            let words =
                ["mariadbd"] + base + ["--skip-networking", "--socket=\(socket)", "--pid-file=\(data)/pid"]
            let client = ["mariadb", "--no-defaults", "-S", socket, "-N", "-e"]
            let conf = "MYSQL_OPTIONS='--no-defaults -S \(socket)'\nMYSQL_STATE=\(mount.top)/state"
            let environment = try configure(mount, conf)
            try withServer(words, ready: client + ["SELECT 1"]) {
                try succeed(client + ["CREATE DATABASE d; CREATE TABLE d.t (n INT) ENGINE=MyISAM"])
                // Between freeze and thaw, as the hook after it sees it.
                let look = mount.top / "look"
                let text = (client + ["SET lock_wait_timeout=1; INSERT INTO d.t VALUES (1)"]).map { "'\($0)'" }
                let script = "#!/bin/sh\n[ $1 = thaw ] || ! \(text.joined(separator: " "))\n"
                try look.create(Array(script.utf8), mode: 0o755)
                let options = ["--hook", Self.sample("mysql"), "--hook", look.string]
                let finished = try run(
                    mount.runWords(options, ["cat", "\(mount.mountpoint)/mysql/d/t.MYI"]), environment: environment
                )
                #expect(finished.code == 0, "\(finished)")
                try succeed(client + ["INSERT INTO d.t VALUES (2)"])
                let rows = try succeed(client + ["SELECT n FROM d.t"])
                #expect(rows == "2\n")
                #expect(!(mount.top / "state").exists)
                // Somebody ends the session before the thaw.
                try look.unlink()
                let others = "SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() LIMIT 1"
                let ending = client + ["SET @kill = CONCAT('KILL ', (\(others))); EXECUTE IMMEDIATE @kill"]
                let quoted = ending.map { "\"\($0)\"" }.joined(separator: " ")
                try look.create(Array("#!/bin/sh\n[ $1 = thaw ] || \(quoted)\n".utf8), mode: 0o755)
                let lost = try run(mount.runWords(options, ["echo", "ran"]), environment: environment)
                #expect(lost.code == 125 && lost.output.isEmpty && lost.errors.contains("at thaw"), "\(lost)")
            }
            let failed = try start(mount, "mysql", environment)
            #expect(failed.code == 1 && failed.errors.contains("Can't connect"), "\(failed)")
        }
    }

    @Test(
        "SQLite: the log is written to the database",
        .enabled(if: Machine.has("sqlite3"), "sqlite3 is not installed"))
    func sqlite() throws {
        try MountedSource.with { mount in
            let databases = ["a.db", "b c.db"].map { mount.mountpoint / Path($0) }
            let python = """
                import sqlite3, sys, subprocess
                keep = []
                for path in sys.argv[1:3]:
                    keep.append(sqlite3.connect(path))
                    keep[-1].execute("PRAGMA journal_mode=WAL"); keep[-1].execute("CREATE TABLE t (n)"); keep[-1].commit()
                sys.exit(subprocess.call(sys.argv[3:]))
                """
            let environment = try configure(
                mount, "SQLITE_DATABASES='\(databases.map(\.string).joined(separator: "\n"))'")
            let words = ["--hook", Self.sample("sqlite")]
            let check = "stat -c '%n %s' \(mount.mountpoint)/*-wal"
            let finished = try run(
                ["python3", "-c", python] + databases.map(\.string) + mount.runWords(words, ["sh", "-c", check]),
                environment: environment)
            #expect(finished.code == 0, "\(finished)")
            let sizes = finished.output.split(separator: "\n")
            #expect(sizes.count == 2 && sizes.allSatisfy { $0.hasSuffix(" 0") }, "\(finished)")
            let missing = try configure(mount, "SQLITE_DATABASES='\(mount.mountpoint)/none.db'")
            let failed = try start(mount, "sqlite", missing)
            #expect(failed.code == 1 && failed.errors.contains("none.db: no such file"), "\(failed)")
            #expect(!(mount.mountpoint / "none.db").exists)
        }
    }

    @Test(
        "Redis: its data are on the disk",
        .enabled(if: Machine.has("redis-server"), "redis-server is not installed"))
    func redis() throws {
        try MountedSource.with { mount in
            let data = try directory(mount, "redis", of: "redis")
            let socket = (mount.top / "redis.sock").string
            let words = [
                "redis-server", "--port", "0", "--unixsocket", socket, "--dir", data.string, "--save", "",
            ]
            let client = ["redis-cli", "-s", socket, "-e"]
            let environment = try configure(mount, "REDIS_OPTIONS='-s \(socket)'")
            try withServer(words, ready: client + ["PING"]) {
                try succeed(client + ["SET", "key", "the-value"])
                #expect(!(data / "dump.rdb").exists)
                try withSnapshot(mount, "redis", environment) {
                    let dump = String(decoding: try (mount.snapshot / "redis/dump.rdb").contents(), as: UTF8.self)
                    #expect(dump.contains("the-value"))
                }
                try (data / "dump.rdb").unlink()
                // It cannot save there.
                try data.rename(to: mount.mountpoint / "gone")
                try (mount.mountpoint / "gone").rmdir()
                let failed = try start(mount, "redis", environment)
                #expect(failed.code == 1 && failed.errors.contains("failed"), "\(failed)")
            }
            let failed = try start(mount, "redis", environment)
            #expect(failed.code == 1 && failed.errors.contains("connect"), "\(failed)")
        }
    }

    @Test(
        "Docker: a command in each container, and another at thaw, by a program that takes docker's arguments down"
    )
    func docker() throws {
        try MountedSource.with { mount in
            let log = mount.top / "log"
            let fake = mount.top / "docker"
            let script = "#!/bin/sh\nprintf '%s|' \"$@\" >> \(log); echo >> \(log); [ \"$2\" != broken ]\n"
            try fake.create(Array(script.utf8), mode: 0o755)
            let conf = "DOCKER=\(fake)\nDOCKER_FREEZE='psql -c CHECKPOINT'\nDOCKER_THAW='echo on'\n"
            try withSnapshot(mount, "docker", try configure(mount, conf + "DOCKER_CONTAINERS='one two'")) {
                let calls = String(decoding: try log.contents(), as: UTF8.self).split(separator: "\n")
                #expect(
                    calls == [
                        "exec|one|sh|-c|psql -c CHECKPOINT|", "exec|two|sh|-c|psql -c CHECKPOINT|",
                        "exec|one|sh|-c|echo on|", "exec|two|sh|-c|echo on|",
                    ])
            }
            let failed = try start(mount, "docker", try configure(mount, conf + "DOCKER_CONTAINERS='broken two'"))
            #expect(failed.code == 1 && failed.errors.contains("container broken: freeze failed"), "\(failed)")
        }
    }
}
