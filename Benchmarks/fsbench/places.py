"""File systems to measure on: images behind loop devices, made anew as often as a row needs it."""
import os
import subprocess
import sys
import time

IMAGE_BYTES = 10 << 30


class Failure(Exception):
    pass


def command(*words, **options):
    """Runs a command to its end; its standard output. Throws with what it said where it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    if done.returncode:
        raise Failure(f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def patient(*words):
    """`command`, again while somebody still uses what it is about: a daemon that is about to end, a mount namespace."""
    for _ in range(100):
        try:
            return command(*words)
        except Failure as failure:
            if "busy" not in str(failure) and "in use" not in str(failure):
                raise
            time.sleep(0.2)
    return command(*words)


def drop_caches():
    command("sync")
    with open("/proc/sys/vm/drop_caches", "w") as control:
        control.write("3")


MAKE = {
    # Nothing is left to be initialized in the background while something is measured.
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K"],
}
OPTIONS = {"ext4": ["-o", "noinit_itable"], "xfs": [], "btrfs": []}


class Place:
    """A file system of one kind. `data` is the directory that is measured, natively and as everybody's source."""

    def __init__(self, kind, base):
        self.kind = kind
        self.top = os.path.join(base, kind)
        self.image = os.path.join(base, f"{kind}.image")
        self.data = os.path.join(self.top, "data")
        os.makedirs(self.top)
        command("fallocate", "-l", IMAGE_BYTES, self.image)
        self.device = command("losetup", "--direct-io=on", "--find", "--show", self.image).strip()
        self.is_mounted = False

    def fresh(self):
        """Makes the file system anew."""
        self.unmount()
        patient(*MAKE[self.kind], self.device)
        command("mount", *OPTIONS[self.kind], self.device, self.top)
        self.is_mounted = True
        if self.kind == "btrfs":
            command("btrfs", "subvolume", "create", self.data)
        else:
            os.mkdir(self.data)
        os.chmod(self.data, 0o755)

    def unmount(self):
        if self.is_mounted:
            patient("umount", self.top)
            self.is_mounted = False

    def end(self):
        try:
            self.unmount()
            command("losetup", "--detach", self.device)
            os.unlink(self.image)
            os.rmdir(self.top)
        except (Failure, OSError) as failure:
            print(f"left behind: {failure}", file=sys.stderr)
