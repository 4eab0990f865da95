"""PostgreSQL under pgbench: recovers on each copy, and pg_amcheck and pg_checksums find nothing."""

import glob
import os
import signal

from common import Application, Fault, Process, complaints, run, wait_until

USER = "postgres"
CLIENTS = 4

# Now and then each client makes, fills and removes a table of its own, and one that all use is written anew: files
# come and go beside those that are written in place.
CHURN = """
DROP TABLE IF EXISTS churn_:client_id;
CREATE TABLE churn_:client_id AS SELECT n, repeat('x', 100) AS filler FROM generate_series(1, 1000) AS n;
CREATE INDEX ON churn_:client_id (n);
VACUUM FULL pgbench_tellers;
"""

SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "32MB",
    # So that checkpoints, and write-ahead log that is recycled, fall into every snapshot.
    "max_wal_size": "64MB",
    "checkpoint_timeout": "30s",
    "synchronous_commit": "on",
}

# One statement sees one state of all four tables.
INVARIANT = """
SELECT (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(tbalance) FROM pgbench_tellers),
       (SELECT sum(abalance) FROM pgbench_accounts), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
"""


def program(name):
    """Debian keeps the server's programs out of PATH, by version; the newest that has pg_amcheck is taken."""
    places = glob.glob("/usr/lib/postgresql/*/bin/pg_amcheck")
    newest = max(places, key=lambda path: int(path.split("/")[4]))
    return os.path.join(os.path.dirname(newest), name)


class PostgreSQL(Application):
    name = "postgresql"

    def prepare(self, place):
        os.mkdir(place)
        run("chown", f"{USER}:{USER}", place)
        run(program("initdb"), "--pgdata", place, "--data-checksums", "--auth", "trust", "--username", USER,
            "--encoding", "UTF8", "--no-locale", "--no-sync", user=USER)
        self.sockets = self.make_socket_directory(USER)
        self.server = self._serve(place, self.sockets, "postgresql.log")
        run(program("createdb"), *self._where(self.sockets), "bench", user=USER)
        run(program("pgbench"), *self._where(self.sockets), "-i", "-q", "-s", self.scale, "bench", user=USER)
        self._ask(self.sockets, "CREATE TABLE ledger (number integer PRIMARY KEY)")

    def start_load(self):
        churn = os.path.join(self.top, "churn.sql")
        with open(churn, "w") as file:
            file.write(CHURN)
        self.loads.append(self.start(
            program("pgbench"), *self._where(self.sockets), "-n", "-c", CLIENTS, "-T", 10**6, "-b", "tpcb-like@200",
            "-f", f"{churn}@1", "--random-seed", self.seed, "bench", log="pgbench.log", user=USER))
        client = self.connect(
            program("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", *self._where(self.sockets), "bench", log="psql.log",
            user=USER)

        def commit(number):
            answer = client.ask(f"INSERT INTO ledger VALUES ({number}) RETURNING number;")
            if answer != str(number):
                raise Fault(f"the answer was {answer}")

        self.add_ledger(commit)

    def audit(self):
        return self._audit(self.sockets)

    def serve_no_more(self):
        self._end(self.server)

    def check(self, place):
        # Says that the live server has this directory; whoever restores a copy removes it.
        is_copy = os.path.exists(f"{place}/postmaster.pid")
        if is_copy:
            os.unlink(f"{place}/postmaster.pid")
        log = os.path.join(self.top, "postgresql-copy.log")
        open(log, "w").close()
        sockets = self.make_socket_directory(USER)
        server = self._serve(place, sockets, "postgresql-copy.log")
        try:
            if self._ask(sockets, "SELECT pg_is_in_recovery()") != "f":
                raise Fault("the copy is still in recovery")
            if is_copy and not complaints(log, "automatic recovery in progress"):
                raise Fault(f"nothing was recovered: was this a copy of a cluster at work? See {log}")
            found = self._audit(sockets)
            said = run(program("pg_amcheck"), *self._where(sockets), "--all", "--install-missing", "--heapallindexed",
                       "--parent-check", "--jobs", 2, user=USER)
            if said.strip():
                raise Fault(f"pg_amcheck: {said[:2000]}")
            # Before the server is ended, which breaks off what works in the background, and says so.
            wrong = complaints(log, "PANIC:", "FATAL:", "ERROR:", "WARNING:", without=["the database system is "])
            if wrong:
                raise Fault(f"{log}: {wrong[:5]}")
            self._end(server)
        finally:
            server.kill()
        run(program("pg_checksums"), "--check", "--pgdata", place, user=USER)
        return found

    def _audit(self, sockets):
        sums = self._ask(sockets, INVARIANT).split("|")
        if len(set(sums)) != 1:
            raise Fault(f"branches, tellers, accounts and history differ: {sums}")
        return {self.name: [int(line) for line in self._ask(sockets, "SELECT number FROM ledger").split()]}

    def _serve(self, place, sockets, log):
        settings = {**SETTINGS, "unix_socket_directories": sockets}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        server = self.start(program("postgres"), "-D", place, *words, log=log, user=USER)

        def is_ready():
            server.expect_running()
            try:
                run(program("pg_isready"), "-q", *self._where(sockets), user=USER)
            except Fault:
                return False
            return True

        wait_until("PostgreSQL to be ready", is_ready)
        return server

    def _end(self, server: Process):
        code = server.end(signal.SIGINT)
        if code != 0:
            raise Fault(f"PostgreSQL ended with {code}: see {server.log}")

    def _where(self, sockets):
        return ["-h", sockets, "-U", USER]

    def _ask(self, sockets, statement):
        return run(program("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", *self._where(sockets), "-c", statement,
                   "bench", user=USER).strip()
