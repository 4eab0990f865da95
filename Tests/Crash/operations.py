"""A workload of single system calls, done on the mount and on a plain directory, the model.

Each operation is one call that changes something, so that after a crash it has either been done or not.
"""

import ctypes
import errno
import functools
import os
import random
import stat

libc = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x1, 0x2, 0x10
MEBIBYTE = 1 << 20


@functools.lru_cache(256)
def pattern(count, seed):
    """`count` bytes that tell which they are."""
    return random.Random(seed).randbytes(count)


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def renameat2(old, new, flags):
    checked(libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags))


def fallocate(fd, mode, offset, length):
    checked(libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


class Side:
    """A directory in which operations are done, with what is open in it."""

    def __init__(self, root):
        self.root = root
        self.open = {}

    def path(self, name):
        return os.path.join(self.root, name)

    def close(self):
        for fd in self.open.values():
            try:
                os.close(fd)
            except OSError:
                pass  # Its mount has gone.
        self.open.clear()

    def do(self, operation):
        """Returns the error's number, 0 for none."""
        try:
            getattr(self, "do_" + operation[0])(*operation[1:])
            return 0
        except OSError as error:
            return error.errno

    def do_create(self, name, mode=0o644):
        os.close(os.open(self.path(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

    def do_open(self, key, name, flags=os.O_RDWR):
        self.open[key] = os.open(self.path(name), flags)

    def do_close(self, key):
        os.close(self.open.pop(key))

    def do_pwrite(self, key, offset, count, seed):
        data = pattern(count, seed)
        if os.pwrite(self.open[key], data, offset) != count:
            raise OSError(errno.EIO, "a short write")

    def do_ftruncate(self, key, size):
        os.ftruncate(self.open[key], size)

    def do_truncate(self, name, size):
        os.truncate(self.path(name), size)

    def do_fallocate(self, key, mode, offset, length):
        fallocate(self.open[key], mode, offset, length)

    def do_copy(self, key, offset, new_key, new_offset, count):
        done = os.copy_file_range(self.open[key], self.open[new_key], count, offset, new_offset)
        if done != count:
            raise OSError(errno.EIO, "a short copy")

    def do_fsync(self, key):
        os.fsync(self.open[key])

    def do_fsyncdir(self, name):
        fd = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def do_fsyncfile(self, name):
        self.do_fsyncdir(name)

    def do_backup(self, name):
        """Reads a file of the snapshot, as a backup does; nothing in the model. What cannot be read is its business."""
        path = os.path.join(self.root, ".snapshot", name)
        if not os.path.exists(os.path.dirname(path)):
            return
        try:
            with open(path, "rb", buffering=0) as file:
                while file.read(1 << 17):
                    pass
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOENT):
                raise

    def do_mkdir(self, name, mode=0o755):
        os.mkdir(self.path(name), mode)

    def do_rmdir(self, name):
        os.rmdir(self.path(name))

    def do_unlink(self, name):
        os.unlink(self.path(name))

    def do_rename(self, old, new, flags=0):
        renameat2(self.path(old), self.path(new), flags)

    def do_link(self, old, new):
        os.link(self.path(old), self.path(new), follow_symlinks=False)

    def do_symlink(self, target, name):
        os.symlink(target, self.path(name))

    def do_mknod(self, name, mode, device=0):
        os.mknod(self.path(name), mode, device)

    def do_tmpfile(self, key, directory):
        self.open[key] = os.open(self.path(directory), os.O_TMPFILE | os.O_RDWR, 0o640)

    def do_linkfd(self, key, name):
        os.link(f"/proc/self/fd/{self.open[key]}", self.path(name), follow_symlinks=True)

    def do_chmod(self, name, mode):
        os.chmod(self.path(name), mode)

    def do_chown(self, name, user, group):
        os.chown(self.path(name), user, group, follow_symlinks=False)

    def do_utime(self, name, seconds):
        os.utime(self.path(name), ns=(seconds * 10**9, seconds * 10**9 + 77), follow_symlinks=False)

    def do_setxattr(self, name, attribute, count, seed=1):
        os.setxattr(self.path(name), attribute, pattern(count, seed), follow_symlinks=False)

    def do_removexattr(self, name, attribute):
        os.removexattr(self.path(name), attribute, follow_symlinks=False)


def make_tree(side):
    """The tree at the cut: the same in each of its copies."""
    def file(name, count, seed):
        for step in (("create", name), ("open", "s", name), ("pwrite", "s", 0, count, seed), ("close", "s")):
            require(side.do(step))

    def require(error):
        if error:
            raise OSError(error, "the tree at the cut cannot be made")

    for name in ("a", "a/b", "a/b/c", "x", "x/in", "y", "y/in", "gone", "emptied", "over", "sgid"):
        require(side.do(("mkdir", name)))
    for index, name in enumerate(("a/f1", "a/f2", "a/f3", "a/b/f4", "a/b/c/f5", "x/f6", "y/f7", "gone/f8", "h1", "top",
                                  "replaced", "victim", "old1", "old2", "kind")):
        file(name, 9000 + 1111 * index, index + 1)
    file("large", 3 * MEBIBYTE, 99)
    file("short", 10, 98)
    require(side.do(("link", "h1", "h2")))
    require(side.do(("link", "h1", "a/h3")))
    require(side.do(("symlink", "a/f1", "s1")))
    require(side.do(("mknod", "fifo", stat.S_IFIFO | 0o640)))
    require(side.do(("setxattr", "a/f3", "user.old", 300)))
    require(side.do(("setxattr", "a/f3", "user.both", 30)))
    require(side.do(("chmod", "sgid", 0o2775)))
    require(side.do(("chown", "sgid", 0, 12)))
    require(side.do(("open", "s", "a/f2")))
    require(side.do(("fallocate", "s", PUNCH_HOLE | KEEP_SIZE, 4096, 4096)))
    require(side.do(("close", "s")))
    for index, name in enumerate(("a", "a/b", "x", "a/f1", "a/f2", "h1", "large", "s1", "y", ".")):
        require(side.do(("utime", name, 1_000_000_000 + index)))


def before_start():
    """Changes before the snapshot, straight to the source."""
    return [("create", "early"), ("open", "early", "early"), ("pwrite", "early", 0, 5000, 50), ("close", "early"),
            ("utime", "early", 1_000_000_100)]


def changes():
    """Every kind of change."""
    return [
        # Data of old files: in parts of blocks, whole, again, behind the end, cut, punched.
        ("open", "f1", "a/f1"), ("pwrite", "f1", 5000, 700, 101), ("pwrite", "f1", 4096, 4096, 102),
        ("pwrite", "f1", 6000, 3, 103), ("pwrite", "f1", 20000, 5000, 104), ("ftruncate", "f1", 6100),
        ("ftruncate", "f1", 30000), ("fsync", "f1"), ("pwrite", "f1", 7000, 100, 105),
        ("open", "f2", "a/f2"), ("pwrite", "f2", 0, 5000, 106), ("fallocate", "f2", PUNCH_HOLE | KEEP_SIZE, 0, 6000),
        ("fallocate", "f2", 0, 12000, 9000), ("fallocate", "f2", ZERO_RANGE, 9000, 100), ("truncate", "a/f3", 100),
        ("open", "large", "large"), ("pwrite", "large", 4096, MEBIBYTE, 107),
        ("pwrite", "large", 4096 + MEBIBYTE, MEBIBYTE, 108), ("copy", "f1", 0, "large", 100, 9000),
        ("open", "short", "short"), ("pwrite", "short", 100000, 10, 109),
        # New files.
        ("create", "n1"), ("open", "n1", "n1"), ("pwrite", "n1", 0, 9000, 110), ("fsync", "n1"), ("ftruncate", "n1", 4000),
        ("copy", "f2", 0, "n1", 4000, 5000), ("setxattr", "n1", "user.new", 200), ("chmod", "n1", 0o600),
        ("mkdir", "nd"), ("mkdir", "nd/sub"), ("create", "nd/n2"), ("symlink", "nowhere", "nd/s2"),
        ("mknod", "nd/fifo", stat.S_IFIFO | 0o600), ("mknod", "nd/null", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        ("link", "nd/n2", "nd/n3"), ("link", "a/b/f4", "nd/f4too"), ("create", "sgid/n4"), ("mkdir", "sgid/d"),
        ("tmpfile", "t", "a"), ("pwrite", "t", 0, 3000, 111), ("linkfd", "t", "nd/t1"), ("fsyncdir", "nd"),
        # Names.
        ("rename", "n1", "replaced"), ("fsyncdir", "."), ("rename", "old1", "old2"), ("rename", "x", "y", RENAME_EXCHANGE),
        ("rename", "y/in", "x/in/moved"), ("rename", "a/b", "nd/b"), ("rename", "nd/b/c", "a/c"),
        ("rename", "top", "a/c/f5", RENAME_EXCHANGE), ("rename", "kind", "emptied", RENAME_EXCHANGE),
        ("rename", "s1", "white", RENAME_WHITEOUT), ("rename", "nd/sub", "over"),
        ("unlink", "h1"), ("link", "h2", "a/h4"), ("unlink", "gone/f8"), ("rmdir", "gone"), ("create", "gone"),
        ("open", "v", "victim"), ("unlink", "victim"), ("pwrite", "v", 0, 5000, 112), ("fsync", "v"), ("mkdir", "victim"),
        ("open", "n2", "nd/n2"), ("unlink", "nd/n2"), ("pwrite", "n2", 10, 400, 113), ("unlink", "nd/n3"),
        ("unlink", "nd/fifo"), ("create", "brief"), ("unlink", "brief"), ("mkdir", "briefly"), ("rmdir", "briefly"),
        ("unlink", "fifo"),
        # Attributes.
        ("chmod", "a/f1", 0o4711), ("pwrite", "f1", 0, 10, 114), ("chown", "a/f2", 7, 8), ("chown", "y", 9, 9),
        ("utime", "a/f1", 1_200_000_000), ("utime", "a", 1_200_000_001), ("utime", "white", 1_200_000_002),
        ("setxattr", "a/f3", "user.big", 2000), ("setxattr", "a/f3", "user.both", 40, 2), ("removexattr", "a/f3", "user.old"),
        ("setxattr", "x", "user.dir", 100), ("utime", "replaced", 1_200_000_003), ("fsync", "f2"),
        # Refused: nothing may come of these.
        ("rmdir", "a"), ("create", "a"), ("rename", "a", "a/c/below"), ("unlink", "nothing"), ("mkdir", "x"),
    ]


def give_away():
    """Files for others, before a snapshot of one user's."""
    return [("chown", name, 7, 8) for name in ("a/f2", "a/b/f4", "large", "short", "h1", "old1", "victim", "kind")]


def backed_up(operations):
    """Between them, files are read of the snapshot, and written again where that was."""
    names = ("a/f1", "large", "a/f3", "replaced", "x/f6", "a/b/c/f5")
    again = [("pwrite", "f1", 4096, 4096, 301), ("pwrite", "f1", 100, 3000, 302), ("pwrite", "large", 8192, 20_000, 303),
             ("fsync", "f1"), ("ftruncate", "f1", 9000), ("pwrite", "f1", 8000, 3000, 304), ("pwrite", "large", 3, 5, 305),
             ("fallocate", "large", PUNCH_HOLE | KEEP_SIZE, 12288, 8192), ("pwrite", "large", 12288, 100, 306)]
    middle = len(operations) // 4
    front, rest = operations[:middle], operations[middle:]
    return front + [("backup", name) for name in names] + again + rest + [("backup", name) for name in names] \
        + [("pwrite", "f1", 4096, 100, 307), ("pwrite", "large", 1 << 20, 9000, 308)]


def later_changes():
    """While and after a merge: to what it moves and writes."""
    return [
        ("pwrite", "f1", 4096, 2000, 201), ("pwrite", "large", 5000, 9000, 202), ("rename", "nd", "moved"),
        ("create", "moved/late"), ("unlink", "moved/t1"), ("rename", "replaced", "y/f6"), ("chmod", "a/f2", 0o444),
        ("rename", "x", "y", RENAME_EXCHANGE), ("mkdir", "late"), ("link", "a/c/f5", "late/link"), ("unlink", "a/c/f5"),
        ("utime", "late", 1_300_000_000), ("truncate", "large", 5001), ("unlink", "old2"), ("fsync", "f1"),
    ]
