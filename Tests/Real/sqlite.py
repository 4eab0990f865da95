"""SQLite with a write-ahead log and with a rollback journal, each synced fully and normally, under several writers."""

import os
import random
import sqlite3
import sys
import time
from contextlib import closing

from common import Application, Fault

WRITERS = 2
ACCOUNTS_PER_SCALE = 1000
BALANCE = 1000
BUSY_SECONDS_MAX = 300
DATABASES = [(journal, synchronous) for journal in ("wal", "delete") for synchronous in ("full", "normal")]

SCHEMA = """
CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, note BLOB);
CREATE TABLE transfer (id INTEGER PRIMARY KEY, giver INTEGER NOT NULL REFERENCES account,
    taker INTEGER NOT NULL REFERENCES account, amount INTEGER NOT NULL);
CREATE INDEX transfer_giver ON transfer (giver);
CREATE INDEX transfer_taker ON transfer (taker);
CREATE TABLE ledger (number INTEGER PRIMARY KEY);
"""

# Each account holds what it began with, and what was transferred; one statement sees one state.
BROKEN = f"""
SELECT count(*) FROM account WHERE balance != {BALANCE}
    + (SELECT ifnull(sum(amount), 0) FROM transfer WHERE taker = account.id)
    - (SELECT ifnull(sum(amount), 0) FROM transfer WHERE giver = account.id)
"""


def connect(path, synchronous):
    # A ledger's connection is made in one thread, and used in another.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS_MAX, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("PRAGMA foreign_keys=ON")
    # So that checkpoints fall into every snapshot.
    connection.execute("PRAGMA wal_autocheckpoint=100")
    return connection


def write(path, synchronous, accounts, seed):
    """Transfers money for ever. Now and then a transaction is taken back, and the log truncated."""
    choices = random.Random(seed)
    connection = connect(path, synchronous)
    for count in range(sys.maxsize):
        connection.execute("BEGIN IMMEDIATE")
        for _ in range(choices.choice([1, 1, 1, 20])):
            giver, taker = choices.sample(range(1, accounts + 1), 2)
            amount = choices.randint(1, 50)
            note = choices.randbytes(choices.randint(0, 900))
            connection.execute("UPDATE account SET balance = balance - ?, note = ? WHERE id = ?", (amount, note, giver))
            connection.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, taker))
            connection.execute("INSERT INTO transfer (giver, taker, amount) VALUES (?, ?, ?)", (giver, taker, amount))
        connection.execute("ROLLBACK" if choices.random() < 0.05 else "COMMIT")
        if count % 200 == 199:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # SQLite hands its lock to nobody: without a pause the other writers would starve.
        time.sleep(choices.random() * 0.01)


class SQLite(Application):
    name = "sqlite"

    def prepare(self, place):
        self.place = place
        os.mkdir(place)
        self.accounts = ACCOUNTS_PER_SCALE * self.scale
        for journal, synchronous in DATABASES:
            with closing(connect(self._path(place, journal, synchronous), synchronous)) as connection:
                connection.execute(f"PRAGMA journal_mode={journal}")
                connection.executescript(SCHEMA)
                connection.execute("BEGIN")
                connection.executemany("INSERT INTO account VALUES (?, ?, zeroblob(500))",
                                       [(number, BALANCE) for number in range(1, self.accounts + 1)])
                connection.execute("COMMIT")

    def start_load(self):
        self.connections = []
        for journal, synchronous in DATABASES:
            path = self._path(self.place, journal, synchronous)
            for number in range(WRITERS):
                self.loads.append(self.start(
                    sys.executable, "-B", __file__, path, synchronous, self.accounts, self.seed + number,
                    log="sqlite.log"))
            connection = connect(path, synchronous)
            self.connections.append(connection)
            self.cleanup.callback(connection.close)
            self.add_ledger(
                lambda number, connection=connection: connection.execute("INSERT INTO ledger VALUES (?)", (number,)),
                f"sqlite-{journal}-{synchronous}")

    def serve_no_more(self):
        for connection in self.connections:
            connection.close()

    def audit(self):
        return {self._name(*kind): self._audit(self._path(self.place, *kind)) for kind in DATABASES}

    def check(self, place):
        return {self._name(*kind): self._audit(self._path(place, *kind), in_depth=True) for kind in DATABASES}

    def _audit(self, path, in_depth=False):
        with closing(connect(path, "normal")) as connection:
            connection.execute("BEGIN")
            if in_depth:
                said = connection.execute("PRAGMA integrity_check").fetchall()
                if said != [("ok",)]:
                    raise Fault(f"{path}: integrity_check: {said[:5]}")
                said = connection.execute("PRAGMA foreign_key_check").fetchall()
                if said:
                    raise Fault(f"{path}: foreign_key_check: {said[:5]}")
            total = connection.execute("SELECT sum(balance) FROM account").fetchone()[0]
            if total != BALANCE * self.accounts:
                raise Fault(f"{path}: money is gone: {total} instead of {BALANCE * self.accounts}")
            broken = connection.execute(BROKEN).fetchone()[0]
            if broken:
                raise Fault(f"{path}: {broken} accounts do not hold what was transferred")
            return [number for number, in connection.execute("SELECT number FROM ledger")]

    def _name(self, journal, synchronous):
        return f"sqlite-{journal}-{synchronous}"

    def _path(self, place, journal, synchronous):
        return os.path.join(place, f"{journal}-{synchronous}.db")


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
