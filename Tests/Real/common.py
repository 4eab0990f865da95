"""What the applications of check-real share: commands, processes, ledgers, and the mount."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time

COMMAND_SECONDS_MAX = 900
WAIT_SECONDS_MAX = 300
UNMOUNT_SECONDS_MAX = 20

ENVIRONMENT = {
    "LC_ALL": "C",
    "HOME": "/nonexistent",
    "PATH": os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin",
}


class Fault(Exception):
    """Something is not as promised."""


def as_user(user, words):
    """The command, run as this user, and ended when whoever started it dies."""
    identity = ["--reuid", user, "--regid", user, "--init-groups"] if user else []
    return ["setpriv", *identity, "--pdeathsig", "KILL", "--", *map(str, words)]


def kill_group(process):
    """Kills a process that leads a group, with the group; not when its number may be another's already."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def run(*words, user=None, text=None):
    """What the command prints; a Fault if it fails. If that is interrupted, it ends, with all that it has started."""
    command = " ".join(map(str, words))
    with subprocess.Popen(
            as_user(user, words), env=ENVIRONMENT, cwd="/", start_new_session=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(text, timeout=COMMAND_SECONDS_MAX)
        except subprocess.TimeoutExpired as late:
            kill_group(process)
            raise Fault(f"{command}: did not end in {COMMAND_SECONDS_MAX} s") from late
        except BaseException:
            kill_group(process)
            raise
    if process.returncode:
        raise Fault(f"{command}: exit code {process.returncode}: {(output + errors).strip()[-2000:]}")
    return output


def wait_until(what, condition, seconds=WAIT_SECONDS_MAX):
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise Fault(f"waited {seconds} s in vain for {what}")
        time.sleep(0.02)


def complaints(log, *signs, without=()):
    """The lines of a server's log that hold one of the signs, and none of the words that may be there."""
    with open(log, errors="replace") as file:
        return [line.strip() for line in file
                if any(sign in line for sign in signs) and not any(word in line for word in without)]


class Process:
    """A program that runs beside the check: a server, a load."""

    def __init__(self, words, log, user=None, text=False):
        self.name = os.path.basename(str(words[0]))
        self.log = log
        with open(log, "ab") as output:
            self.popen = subprocess.Popen(
                as_user(user, words), env=ENVIRONMENT, cwd="/", start_new_session=True, stderr=output,
                stdin=subprocess.PIPE if text else subprocess.DEVNULL,
                stdout=subprocess.PIPE if text else output, text=text)

    def is_running(self):
        return self.popen.poll() is None

    def expect_running(self):
        if not self.is_running():
            with open(self.log, errors="replace") as file:
                raise Fault(f"{self.name} ended with {self.popen.returncode}: {file.read()[-1000:]}")

    def end(self, how=signal.SIGKILL):
        """Ends it; a Fault if it does not end. How it ended is returned."""
        if self.is_running():
            self.popen.send_signal(how)
        try:
            return self.popen.wait(timeout=WAIT_SECONDS_MAX)
        except subprocess.TimeoutExpired as late:
            raise Fault(f"{self.name} (process {self.popen.pid}) does not end") from late

    def kill(self):
        """For clean-up: what it started goes too, and nothing is said."""
        kill_group(self.popen)
        try:
            self.popen.wait(timeout=20)
        except subprocess.TimeoutExpired:
            print(f"process {self.popen.pid} ({self.name}) does not end", flush=True)


class Client:
    """A client of a database that stays connected: one statement in, one line out."""

    def __init__(self, words, log, user):
        self.process = Process(words, log, user, text=True)

    def ask(self, statement):
        self.process.popen.stdin.write(statement + "\n")
        self.process.popen.stdin.flush()
        answer = self.process.popen.stdout.readline()
        if not answer:
            raise Fault(f"{self.process.name} gave no answer: see {self.process.log}")
        return answer.strip()


class Ledger:
    """The numbers 1, 2, 3, ..., each committed durably, and acknowledged, before the next one is begun.

    So of a snapshot it is known which numbers must be in it, those acknowledged before `start` was called, and which
    must not, those begun after it had returned. An application may `keep` only the last ones.
    """

    def __init__(self, name, commit, keep=None):
        self.name = name
        self.begun = 0
        self.acknowledged = 0
        self._commit = commit
        self._keep = keep
        self._error = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self):
        self._thread.start()

    def _work(self):
        try:
            while not self._is_over.is_set():
                self.begun += 1
                self._commit(self.begun)
                self.acknowledged = self.begun
        except Exception as error:  # Whatever it was, the check must know of it.
            self._error = error

    def expect_running(self):
        if self._error:
            raise Fault(f"{self.name}: number {self.begun} could not be committed: {self._error!r}")

    def wait_for_another(self, number):
        def came():
            self.expect_running()
            return self.acknowledged > number

        wait_until(f"{self.name} to commit number {number + 1}", came)

    def end(self):
        self._is_over.set()
        if self._thread.ident:
            self._thread.join(timeout=WAIT_SECONDS_MAX)

    def expect(self, numbers, low, high):
        """Exactly the numbers up to one between low and high are there."""
        numbers = sorted(numbers)
        last = numbers[-1] if numbers else 0
        if last < low:
            raise Fault(f"{self.name}: {low} was acknowledged before the start, and {last} is the last in the snapshot")
        if last > high:
            raise Fault(f"{self.name}: {last} is there, and {high} was the last begun before the start returned")
        first = max(1, last - self._keep + 1) if self._keep else 1
        if numbers != list(range(first, last + 1)):
            missing = sorted(set(range(first, last + 1)) - set(numbers))
            raise Fault(f"{self.name}: not all of {first} to {last} are there once; missing: {missing[:10]}")


class Application:
    """What check-real asks of an application. Its processes and mounts are ended by `cleanup`, an ExitStack."""

    name = ""

    def __init__(self, top, cleanup, scale, seed):
        self.top, self.cleanup, self.scale, self.seed = top, cleanup, scale, seed
        self.ledgers = []
        self.loads = []

    def prepare(self, place):
        """Makes the data in this directory of the mount, and begins to serve them."""
        raise NotImplementedError

    def start_load(self):
        """Starts `loads` and fills `ledgers`; check-real starts those."""
        raise NotImplementedError

    def before_round(self, number):
        pass

    def audit(self):
        """The live data under load: a Fault if an invariant is broken; by ledger, the numbers there are, or None."""
        raise NotImplementedError

    def compare(self, snapshot, copy):
        """Compares a copy with the snapshot it was taken from, while that is there."""

    def serve_no_more(self):
        """Ends the server, cleanly."""

    def check(self, place):
        """Checks data that nobody serves, a copy or the live ones, in depth; by ledger, the numbers that are there."""
        raise NotImplementedError

    def add_ledger(self, commit, name=None, keep=None):
        self.ledgers.append(Ledger(name or self.name, commit, keep))

    def start(self, *words, log, user=None):
        process = Process(words, os.path.join(self.top, log), user)
        self.cleanup.callback(process.kill)
        return process

    def connect(self, *words, log, user):
        client = Client(words, os.path.join(self.top, log), user)
        self.cleanup.callback(client.process.kill)
        return client

    def make_socket_directory(self, user):
        """A short path (a Unix socket's may have 107 bytes), for this user alone."""
        path = tempfile.mkdtemp(prefix="fusesnap-real-", dir="/tmp")
        self.cleanup.callback(shutil.rmtree, path, ignore_errors=True)
        shutil.chown(path, user, user)
        return path

    def expect_load(self):
        for runner in (*self.loads, *self.ledgers):
            runner.expect_running()


class Mount:
    """A directory, and fusesnap mounted over it."""

    def __init__(self, fusesnap, path, mode, options):
        self.path = path
        self.snapshot = os.path.join(path, ".snapshot")
        self.start_seconds, self.stall_seconds = [], []
        self._fusesnap = fusesnap
        os.mkdir(path)
        # It is new and nobody's; but mount namespaces of other programs, which come and go, would make `mount` refuse.
        run(fusesnap, "mount", "--force", "--mode", mode, *(["-o", options] if options else []), path)
        self._is_mounted = True

    def start(self):
        began = time.monotonic()
        run(self._fusesnap, "ctl", "start", self.path)
        self.start_seconds.append(time.monotonic() - began)
        status = json.loads(run(self._fusesnap, "ctl", "status", "--json", self.path))
        self.stall_seconds.append(status["last_stall_microseconds"] / 1e6)

    def stop(self):
        run(self._fusesnap, "ctl", "stop", self.path)

    def unmount(self):
        # The kernel lets go of the last files a moment after whoever had them open has ended.
        limit = time.monotonic() + UNMOUNT_SECONDS_MAX
        while True:
            try:
                run(self._fusesnap, "unmount", self.path)
                break
            except Fault:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.1)
        self._is_mounted = False

    def clean_up(self):
        if not self._is_mounted:
            return
        if subprocess.run([self._fusesnap, "unmount", "--force", self.path], capture_output=True).returncode:
            subprocess.run(["umount", "-l", self.path], capture_output=True)
        self._is_mounted = False


def milliseconds(seconds):
    """Median and longest, for the table."""
    if not seconds:
        return "-"
    return f"{statistics.median(seconds) * 1000:.1f} / {max(seconds) * 1000:.1f}"
