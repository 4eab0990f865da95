"""Drives the `fusesnap` command on a source of its own."""

import ctypes
import json
import os
import signal
import subprocess
import time

COMMAND_SECONDS_MAX = 120
libc = ctypes.CDLL(None, use_errno=True)


class Fault(Exception):
    """Something is not as promised."""


def wait_until(what, condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Fault(f"waited {seconds} s in vain for {what}")
        time.sleep(0.005)


def run(*words, check=True, environment=None, seconds=COMMAND_SECONDS_MAX):
    try:
        done = subprocess.run(
            [str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=seconds, env={**os.environ, **(environment or {})})
    except subprocess.TimeoutExpired as late:
        raise Fault(f"{' '.join(map(str, words))}: did not end in {seconds} s") from late
    if check and done.returncode:
        raise Fault(f"{' '.join(map(str, words))}: exit {done.returncode}: {(done.stdout + done.stderr).strip()}")
    return done


def detach(path):
    """umount -l, whether anything is mounted there or not."""
    libc.umount2(os.fsencode(path), 2)


def is_mounted(path):
    with open("/proc/self/mounts") as table:
        return any(line.split()[1] == path for line in table)


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Mount:
    """A source, and where it is seen. `steps` are variables for the daemon alone (`Sources/LinuxSystem/Steps.swift`)."""

    def __init__(self, fusesnap, mode, source, mountpoint, options=()):
        self.fusesnap, self.mode, self.source, self.path = fusesnap, mode, source, mountpoint
        self.options = list(options)
        self.snapshot = os.path.join(mountpoint, ".snapshot")
        self.pid = None
        self.message = ""

    def try_mount(self, steps=None):
        """Whether it came to be mounted."""
        self.pid = None
        done = run(self.fusesnap, "mount", "--mode", self.mode, *self.options, self.source, self.path, check=False,
                   environment=steps)
        self.message = (done.stdout + done.stderr).strip()
        self.code = done.returncode
        if done.returncode == 0:
            status = self.control("status", "--json", check=False)
            self.pid = json.loads(status.stdout)["pid"] if status.returncode == 0 else None
        return done.returncode == 0

    def mount(self, steps=None):
        if not self.try_mount(steps):
            raise Fault(f"mount: exit {self.code}: {self.message}")

    def control(self, *words, check=True, seconds=COMMAND_SECONDS_MAX):
        return run(self.fusesnap, "ctl", *words, self.path, check=check, seconds=seconds)

    def status(self):
        return json.loads(self.control("status", "--json").stdout)

    def unmount(self, check=True):
        for _ in range(50):
            done = run(self.fusesnap, "unmount", self.path, check=False)
            if done.returncode == 0 or "busy" not in done.stderr:
                break
            time.sleep(0.05)
        # On a machine that is busy its daemon ends later than the command waits for.
        if check and done.returncode and "daemon still runs" not in done.stderr:
            raise Fault(f"unmount: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def wait_for_end(self):
        if self.pid:
            wait_until(f"the end of daemon {self.pid}", lambda: not runs(self.pid))
            self.pid = None

    def bury(self):
        """After the daemon has died: nothing of its mount is left."""
        self.wait_for_end()
        while is_mounted(self.path):
            detach(self.path)

    def kill(self):
        if self.pid and runs(self.pid):
            os.kill(self.pid, signal.SIGKILL)
        self.bury()
