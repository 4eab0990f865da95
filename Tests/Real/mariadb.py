"""MariaDB (InnoDB) under transfers of money: recovers on each copy, and mariadb-check finds nothing."""

import glob
import os
import signal

from common import Application, Fault, complaints, run, wait_until

USER = "mysql"
CLIENTS = 4
ACCOUNTS_PER_SCALE = 2000
BALANCE = 1000

SETTINGS = [
    "--skip-networking",
    "--innodb-buffer-pool-size=32M",
    # Small, so that checkpoints fall into every snapshot, and the log goes round.
    "--innodb-log-file-size=16M",
    "--innodb-flush-log-at-trx-commit=1",
]

# Accounts are locked in the order of their numbers, so there are no deadlocks.
SCHEMA = """
CREATE DATABASE bank;
USE bank;
CREATE TABLE account (id INT PRIMARY KEY, balance BIGINT NOT NULL, note VARCHAR(400)) ENGINE=InnoDB;
CREATE TABLE transfer (id BIGINT AUTO_INCREMENT PRIMARY KEY, giver INT NOT NULL, taker INT NOT NULL, amount INT NOT NULL,
    KEY (giver), KEY (taker)) ENGINE=InnoDB;
CREATE TABLE ledger (number INT PRIMARY KEY) ENGINE=InnoDB;
INSERT INTO account SELECT seq, {balance}, REPEAT('x', 400) FROM seq_1_to_{accounts};
DELIMITER //
CREATE PROCEDURE work(seed INT)
BEGIN
    DECLARE a, b, amount INT;
    DO RAND(seed);
    LOOP
        SET a = 1 + FLOOR(RAND() * ({accounts} - 1));
        SET b = a + 1 + FLOOR(RAND() * ({accounts} - a));
        SET amount = FLOOR(RAND() * 101) - 50;
        START TRANSACTION;
        UPDATE account SET balance = balance - amount, note = REPEAT(CHAR(97 + a % 26), 400) WHERE id = a;
        UPDATE account SET balance = balance + amount WHERE id = b;
        INSERT INTO transfer (giver, taker, amount) VALUES (a, b, amount);
        COMMIT;
    END LOOP;
END //
-- Files that come, are replaced and go, beside those that are written in place.
CREATE PROCEDURE churn()
BEGIN
    LOOP
        CREATE OR REPLACE TABLE churned (n INT PRIMARY KEY, filler CHAR(100)) ENGINE=InnoDB;
        INSERT INTO churned SELECT seq, 'x' FROM seq_1_to_500;
        ALTER TABLE churned ADD COLUMN more INT, FORCE;
        TRUNCATE TABLE churned;
        RENAME TABLE churned TO churned_before;
        DROP TABLE churned_before;
        DO SLEEP(0.2);
    END LOOP;
END //
"""

# Each account holds what it began with, and what was transferred; one statement sees one state.
BROKEN = """
SELECT COUNT(*) FROM account
LEFT JOIN (SELECT id, SUM(amount) AS amount
           FROM (SELECT taker AS id, amount FROM transfer UNION ALL SELECT giver, -amount FROM transfer) AS moved
           GROUP BY id) AS total USING (id)
WHERE balance != {balance} + IFNULL(total.amount, 0)
"""


class MariaDB(Application):
    name = "mariadb"

    def prepare(self, place):
        self.accounts = ACCOUNTS_PER_SCALE * self.scale
        os.mkdir(place)
        run("chown", f"{USER}:{USER}", place)
        run("mariadb-install-db", "--no-defaults", f"--datadir={place}", "--auth-root-authentication-method=normal",
            "--skip-test-db", user=USER)
        self.sockets = self.make_socket_directory(USER)
        self.server = self._serve(place, self.sockets, "mariadb.log")
        run(*self._client(self.sockets), user=USER, text=SCHEMA.format(balance=BALANCE, accounts=self.accounts))

    def start_load(self):
        calls = [f"CALL work({self.seed + number})" for number in range(CLIENTS)] + ["CALL churn()"]
        for call in calls:
            self.loads.append(self.start(
                *self._client(self.sockets), "-e", call, "bank", log="mariadb-load.log", user=USER))
        client = self.connect(*self._client(self.sockets), "--unbuffered", "bank", log="mariadb-client.log", user=USER)

        def commit(number):
            answer = client.ask(f"INSERT INTO ledger VALUES ({number}); SELECT number FROM ledger WHERE number = {number};")
            if answer != str(number):
                raise Fault(f"the answer was {answer}")

        self.add_ledger(commit)

    def audit(self):
        return self._audit(self.sockets)

    def serve_no_more(self):
        self._end(self.server)

    def check(self, place):
        log = os.path.join(self.top, "mariadb-copy.log")
        open(log, "w").close()
        sockets = self.make_socket_directory(USER)
        server = self._serve(place, sockets, "mariadb-copy.log")
        try:
            found = self._audit(sockets)
            said = run("mariadb-check", "--no-defaults", f"--socket={sockets}/socket", "--user=root", "--check",
                       "--extended", "--all-databases", user=USER)
            wrong = [line for line in said.splitlines() if line and not line.endswith(" OK")]
            if wrong:
                raise Fault(f"mariadb-check: {wrong[:10]}")
            self._end(server)
        finally:
            server.kill()
        for file in glob.glob(f"{place}/**/*.ibd", recursive=True):
            run("innochecksum", file)
        wrong = complaints(log, "[ERROR]", "orrupt")
        if wrong:
            raise Fault(f"{log}: {wrong[:5]}")
        return found

    def _audit(self, sockets):
        total = self._ask(sockets, "SELECT SUM(balance) FROM account")
        if total != str(BALANCE * self.accounts):
            raise Fault(f"money is gone: {total} instead of {BALANCE * self.accounts}")
        broken = self._ask(sockets, BROKEN.format(balance=BALANCE))
        if broken != "0":
            raise Fault(f"{broken} accounts do not hold what was transferred")
        return {self.name: [int(line) for line in self._ask(sockets, "SELECT number FROM ledger").split()]}

    def _serve(self, place, sockets, log):
        server = self.start(
            "mariadbd", "--no-defaults", f"--datadir={place}", f"--socket={sockets}/socket",
            f"--pid-file={sockets}/pid", *SETTINGS, log=log, user=USER)

        def is_ready():
            server.expect_running()
            try:
                run("mariadb-admin", "--no-defaults", f"--socket={sockets}/socket", "--user=root", "ping", user=USER)
            except Fault:
                return False
            return True

        wait_until("MariaDB to be ready", is_ready)
        return server

    def _end(self, server):
        code = server.end(signal.SIGTERM)
        if code != 0:
            raise Fault(f"MariaDB ended with {code}: see {server.log}")

    def _client(self, sockets):
        return ["mariadb", "--no-defaults", f"--socket={sockets}/socket", "--user=root", "--batch",
                "--skip-column-names"]

    def _ask(self, sockets, statement):
        return run(*self._client(sockets), "-e", statement, "bank", user=USER).strip()
