"""What is measured on a place: the source's own file system, fusesnap in its modes and policies, and the peers.

A peer gets the settings that an expert would give it for speed.
"""
import json
import os
import shutil
import time

from .places import Failure, command, patient

LONG = 86400


class System:
    """Serves a place's data at `path` between `mount` and `unmount`."""

    is_native = False
    #: Whether it can take snapshots.
    takes_snapshots = False

    def __init__(self, name, kind):
        self.name = name
        self.kind = kind

    def mount(self, place):
        self.place = place
        self.path = place.data

    def unmount(self):
        pass

    def requests(self):
        """How many requests of each kind were served so far; None where that is not known."""
        return None


class Native(System):
    is_native = True


class Btrfs(Native):
    """Its snapshots are what users have today for the same job."""

    takes_snapshots = True

    def start(self):
        command("btrfs", "subvolume", "snapshot", "-r", self.path, self.snapshot)

    def stop(self):
        command("btrfs", "subvolume", "delete", self.snapshot)

    @property
    def snapshot(self):
        return os.path.join(self.place.top, "snapshot")


class Fusesnap(System):
    """Mounted over the source, as it is meant to be."""

    takes_snapshots = True

    def __init__(self, name, kind, binary, mode, policy, counts):
        super().__init__(name, kind)
        self.binary, self.mode, self.policy, self.counts = binary, mode, policy, counts

    def mount(self, place):
        super().mount(place)
        options = f"io={self.policy}" + (",count_requests" if self.counts else "")
        # --force: another mount namespace may still show what was mounted there before.
        command(self.binary, "mount", "--force", "--mode", self.mode, "-o", options, place.data)

    def unmount(self):
        # A program that was measured may have left a process that is about to end.
        patient(self.binary, "unmount", "--force", self.path)

    @property
    def snapshot(self):
        return os.path.join(self.path, ".snapshot")

    def status(self):
        return json.loads(command(self.binary, "ctl", "status", "--json", self.path))

    def requests(self):
        return self.status().get("requests") if self.counts else None

    def start(self):
        # Such a benchmark is not what --stall-max is for.
        command(self.binary, "ctl", "start", "--stall-max", "60000", self.path)

    def stop(self):
        command(self.binary, "ctl", "stop", self.path)


class Peer(System):
    """A program that serves the data beside the source."""

    def __init__(self, name, kind, words):
        super().__init__(name, kind)
        self.words = words

    def mount(self, place):
        super().mount(place)
        self.path = os.path.join(place.top, "peer")
        lower, work = os.path.join(place.top, "lower"), os.path.join(place.top, "work")
        for directory in (self.path, lower, work):
            os.makedirs(directory, exist_ok=True)
        names = {"data": place.data, "lower": lower, "work": work, "mountpoint": self.path}
        command(*(word.format(**names) for word in self.words))
        for _ in range(100):
            if os.path.ismount(self.path):
                return
            time.sleep(0.05)
        raise Failure(f"{self.name} did not mount")

    def unmount(self):
        patient("umount", self.path)
        # Its daemon may still have the source open.
        time.sleep(0.1)
        shutil.rmtree(os.path.join(self.place.top, "work"), ignore_errors=True)


OVERLAY = "lowerdir={lower},upperdir={data},workdir={work}"
PEERS = {
    "overlayfs": ["mount", "-t", "overlay", "overlay", "-o", OVERLAY, "{mountpoint}"],
    "bindfs": [
        "bindfs", "--multithreaded", "-o", f"kernel_cache,attr_timeout={LONG},entry_timeout={LONG}"
        f",negative_timeout={LONG}", "{data}", "{mountpoint}"],
    "mergerfs": [
        "mergerfs", "-o", "cache.files=auto-full,cache.writeback=true,cache.readdir=true,cache.symlinks=true"
        f",cache.statfs=60,cache.attr={LONG},cache.entry={LONG},cache.negative_entry={LONG}"
        ",security_capability=false,func.getattr=newest,category.create=ff,allow_other,use_ino"
        ",dropcacheonclose=false", "{data}", "{mountpoint}"],
    "fuse-overlayfs": [
        "fuse-overlayfs", "-o", OVERLAY + f",timeout={LONG},fast_ino=1,writeback=1,clone_fd,allow_other", "{mountpoint}"],
    "unionfs-fuse": [
        "unionfs", "-o", f"cow,kernel_cache,use_ino,attr_timeout={LONG},entry_timeout={LONG},negative_timeout={LONG}"
        ",allow_other", "{data}=RW:{lower}=RO", "{mountpoint}"],
}
PROGRAMS = {"overlayfs": "mount", "unionfs-fuse": "unionfs"}


def all_systems(binary, counts):
    """Every system that can be measured on this machine, by name."""
    systems = [Native("native", "ext4"), Native("native-xfs", "xfs")]
    for kind, policies in (
        ("ext4", ["auto", "write-through", "writeback"]),
        ("xfs", ["auto", "write-through", "writeback", "passthrough"]),
    ):
        for policy in policies:
            systems.append(Fusesnap(f"fusesnap-{kind}-{policy}", kind, binary, "preserve", policy, counts))
        systems.append(Fusesnap(f"redirect-{kind}", kind, binary, "redirect", "write-through", counts))
    for name, words in PEERS.items():
        if shutil.which(PROGRAMS.get(name, name)):
            systems.append(Peer(name, "ext4", words))
    if shutil.which("mkfs.btrfs"):
        systems.append(Btrfs("native-btrfs", "btrfs"))
    return {system.name: system for system in systems}


#: What is measured where nobody says what. `auto` is writeback over the source where there is space, write-through elsewhere.
DEFAULT = [
    "native", "native-xfs", "fusesnap-ext4-auto", "fusesnap-ext4-write-through", "fusesnap-xfs-auto",
    "fusesnap-xfs-passthrough", "overlayfs", "bindfs", "mergerfs", "fuse-overlayfs", "unionfs-fuse", "native-btrfs",
]
