"""Disk images, loop-mounted from the mount: a copy's file system is consistent, and has what was synced in it."""

import hashlib
import os
import random
import subprocess
import sys

from common import Application, Fault, run, wait_until

MIB = 1 << 20
# mkfs.xfs makes none below 300 MiB.
SIZES_MIB = {"ext4": (64, 32), "xfs": (320, 0)}  # at the least, and more for each step of the scale
LEDGER_KEEP = 200
LOAD_FILES = 40


class Disk:
    """An image, its loop device, and its file system, mounted."""

    def __init__(self, kind, image, mountpoint, cleanup):
        self.kind, self.image, self.mountpoint = kind, image, mountpoint
        self._device = None
        self._is_mounted = False
        cleanup.callback(self.clean_up)

    def attach(self):
        self._device = run("losetup", "--find", "--show", self.image).strip()
        os.makedirs(self.mountpoint, exist_ok=True)
        # The live file system has the same UUID as its copy.
        run("mount", "-t", self.kind, *(["-o", "nouuid"] if self.kind == "xfs" else []), self._device, self.mountpoint)
        self._is_mounted = True

    def set_direct(self, is_direct):
        run("losetup", f"--direct-io={'on' if is_direct else 'off'}", self._device)
        said = run("losetup", "--noheadings", "--raw", "--output", "DIO", self._device).strip()
        return said == "1"

    def detach(self):
        def is_unmounted():
            return subprocess.run(["umount", self.mountpoint], capture_output=True).returncode == 0

        if self._is_mounted:
            wait_until(f"{self.mountpoint} to be unmounted", is_unmounted, 20)
            self._is_mounted = False
        if self._device:
            run("losetup", "--detach", self._device)
            # The kernel closes the image a moment later.
            wait_until(f"{self._device} to be detached", self._is_detached, 60)
            self._device = None

    def _is_detached(self):
        name = os.path.basename(self._device)
        try:
            with open(f"/sys/block/{name}/loop/backing_file") as file:
                return file.read().strip() != self.image
        except FileNotFoundError:
            return True

    def clean_up(self):
        try:
            self.detach()
        except Fault:
            subprocess.run(["umount", "-l", self.mountpoint], capture_output=True)
            if self._device and not self._is_detached():
                subprocess.run(["losetup", "--detach", self._device], capture_output=True)

    def expect_clean(self):
        """Nobody has it attached."""
        if self.kind == "ext4":
            run("e2fsck", "-fn", self.image)
        else:
            run("xfs_repair", "-n", self.image)

    def ledger(self):
        """The numbers whose files are there; what is in the files is checked."""
        numbers = []
        directory = os.path.join(self.mountpoint, "ledger")
        for name in os.listdir(directory):
            if name.endswith(".new"):
                continue
            with open(os.path.join(directory, name), "rb") as file:
                content = file.read()
            first = content.split(b"\n", 1)[0]
            number = int(first) if first.isdigit() else 0
            if content != ledger_content(number) or number % LEDGER_KEEP != int(name):
                raise Fault(f"{self.kind}: {directory}/{name} is not as it was synced")
            numbers.append(number)
        return numbers


def ledger_content(number):
    size = number * 7919 % 20_000
    return f"{number}\n".encode() + hashlib.shake_128(str(number).encode()).digest(size)


def commit(directory, number):
    """Saves a file as careful programs do: written, synced, renamed over the one before, and that synced."""
    path = os.path.join(directory, str(number % LEDGER_KEEP))
    with open(path + ".new", "wb") as file:
        file.write(ledger_content(number))
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def work(directory, seed):
    """Writes, renames and removes files for ever, and syncs some."""
    choices = random.Random(seed)
    while True:
        path = os.path.join(directory, f"{choices.randrange(8)}", f"{choices.randrange(LOAD_FILES)}")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        what = choices.random()
        if what < 0.1 and os.path.exists(path):
            os.unlink(path)
        elif what < 0.2 and os.path.exists(path):
            os.rename(path, os.path.join(directory, f"moved-{choices.randrange(LOAD_FILES)}"))
        else:
            with open(path, "r+b" if os.path.exists(path) else "wb") as file:
                file.seek(choices.randrange(50_000))
                file.write(choices.randbytes(choices.randrange(50_000)))
                if what < 0.3:
                    file.truncate(choices.randrange(60_000))
                if what > 0.8:
                    file.flush()
                    os.fsync(file.fileno())


class Image(Application):
    name = "image"

    def prepare(self, place):
        os.mkdir(place)
        self.disks = []
        for kind, (least, more) in SIZES_MIB.items():
            image = os.path.join(place, f"{kind}.img")
            with open(image, "wb") as file:
                file.truncate((least + more * self.scale) * MIB)
            run(f"mkfs.{kind}", "-q", image)
            disk = Disk(kind, image, os.path.join(self.top, f"live-{kind}"), self.cleanup)
            disk.attach()
            os.mkdir(os.path.join(disk.mountpoint, "ledger"))
            os.mkdir(os.path.join(disk.mountpoint, "load"))
            self.disks.append(disk)

    def start_load(self):
        for disk in self.disks:
            self.loads.append(self.start(
                sys.executable, "-B", __file__, os.path.join(disk.mountpoint, "load"), self.seed, log="image.log"))
            directory = os.path.join(disk.mountpoint, "ledger")
            self.add_ledger(lambda number, directory=directory: commit(directory, number), f"image-{disk.kind}",
                            LEDGER_KEEP)

    def before_round(self, number):
        # The two take turns in going past the page cache.
        for index, disk in enumerate(self.disks):
            wanted = (number + index) % 2 == 0
            if disk.set_direct(wanted) != wanted:
                raise Fault(f"{disk.image}: --direct-io={wanted} has no effect")

    def audit(self):
        # Of a file that is replaced meanwhile the old one is read, or the new one; which ones are there is not asked.
        for disk in self.disks:
            disk.ledger()
        return None

    def compare(self, snapshot, copy):
        for disk in self.disks:
            name = os.path.basename(disk.image)
            run("cmp", os.path.join(snapshot, name), os.path.join(copy, name))

    def serve_no_more(self):
        for disk in self.disks:
            disk.detach()

    def check(self, place):
        found = {}
        for disk in self.disks:
            image = os.path.join(place, os.path.basename(disk.image))
            copy = Disk(disk.kind, image, os.path.join(self.top, f"copy-{disk.kind}"), self.cleanup)
            try:
                copy.attach()  # Replays its journal.
                found[f"image-{disk.kind}"] = copy.ledger()
            finally:
                copy.clean_up()
            copy.expect_clean()
        return found


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
