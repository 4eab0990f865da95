"""What a load does between power cuts, and what it was promised: each station works on files of its own, alone.

A station counts: what it has begun, what is done, and what is promised, since an fsync behind it returned. So of any
later state of the files it can be said which counts they may show: none before the promised one of an earlier moment,
none behind the begun one of a later moment.
"""

import hashlib
import os

from mount import Fault
from operations import renameat2, RENAME_EXCHANGE


def filler(*words, count):
    """`count` bytes that follow from the words."""
    seed = hashlib.blake2b(repr(words).encode(), digest_size=32).digest()
    return (seed * (count // 32 + 1))[:count]


def synced(path, flags=os.O_RDONLY):
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Station:
    def __init__(self, root, number, choices):
        self.name = f"{type(self).__name__.lower()}-{number}"
        self.root, self.choices = root, choices
        # Counters, replaced as a whole: a reader in another thread meets one state or another.
        self.begun = self.done = self.promised = self.first()

    def path(self, *names, root=None):
        return os.path.join(root or self.root, self.name, *names)

    def first(self):
        return 0

    def expect(self, what, found, low, high):
        if not low <= found <= high:
            raise Fault(f"{self.name}: {what} is {found}, should be {low} to {high}")


class Log(Station):
    """Appends to a file; begins a new one now and then, and syncs whenever it likes."""
    # The counters are of bytes, in the file of that turn: (turn, bytes).

    def first(self):
        return (0, 0)

    def prepare(self):
        os.mkdir(self.path())
        open(self.path("log"), "w").close()
        synced(self.path("log"))
        synced(self.path())

    def data(self, turn, begin, end):
        """Of an endless text, a piece of which is 256 bytes."""
        first = begin // 256
        text = b"".join(filler(self.name, turn, piece, count=256) for piece in range(first, end // 256 + 1))
        return text[begin - first * 256:end - first * 256]

    def step(self):
        turn, size = self.done
        if size > 300_000:
            # The new one has its name before the old one loses it.
            self.begun = (turn + 1, 0)
            open(self.path("next"), "w").close()
            os.rename(self.path("next"), self.path("log"))
            self.done = (turn + 1, 0)
            synced(self.path())
            self.promised = (turn + 1, 0)
            return
        count = self.choices.randint(1, 6000)
        self.begun = (turn, size + count)
        with open(self.path("log"), "ab", buffering=0) as file:
            if file.write(self.data(turn, size, size + count)) != count:
                raise Fault(f"{self.name}: a short write")
            self.done = (turn, size + count)
            if self.choices.random() < 0.5:
                os.fsync(file.fileno())
                self.promised = self.done

    def check(self, root, low, high):
        with open(self.path("log", root=root), "rb") as file:
            found = file.read()
        if low[0] == high[0]:
            self.expect("size", len(found), low[1], high[1])
            if found[:low[1]] != self.data(low[0], 0, low[1]):
                raise Fault(f"{self.name}: of {low[1]} bytes that were synced some are wrong")
        else:
            # Whichever it is: of a turn before that of `high` nothing is promised by now.
            for turn in range(low[0], high[0] + 1):
                promised = low[1] if turn == low[0] else 0
                if len(found) >= promised and found[:promised] == self.data(turn, 0, promised):
                    return
            raise Fault(f"{self.name}: what was synced is not there")


class Value(Station):
    """Replaces a file by a new one: written aside, synced or not, renamed over, the directory synced."""

    def content(self, number):
        return filler(self.name, number, count=1 + number * 7919 % 20_000)

    def write(self, name, number):
        with open(self.path(name), "wb", buffering=0) as file:
            file.write(b"%d\n" % number + self.content(number))
            if self.syncs():
                os.fsync(file.fileno())

    def syncs(self):
        return True

    def prepare(self):
        os.mkdir(self.path())
        self.write("value", 0)
        synced(self.path("value"))
        synced(self.path())

    def step(self):
        number = self.done + 1
        self.write("aside", number)
        self.begun = number
        os.rename(self.path("aside"), self.path("value"))
        self.done = number
        if self.choices.random() < 0.7:
            synced(self.path())
            self.promised = number

    def check(self, root, low, high):
        with open(self.path("value", root=root), "rb") as file:
            word, _, rest = file.read().partition(b"\n")
        if not word.isdigit():
            raise Fault(f"{self.name}: the value is torn: it begins with {word[:20]!r}")
        self.expect("the value", int(word), low, high)
        if rest != self.content(int(word)):
            raise Fault(f"{self.name}: value {int(word)} is torn")


class Trusting(Value):
    """The same without a sync of the file: what a redirect promises beyond what file systems do."""

    def syncs(self):
        return False


class Blocks(Station):
    """Writes blocks of a file in place; each is as it was after some write of it."""
    COUNT, BYTES = 48, 4096

    def first(self):
        return (0,) * self.COUNT

    def content(self, block, number):
        return number.to_bytes(8, "little") + filler(self.name, block, number, count=self.BYTES - 8)

    def prepare(self):
        os.mkdir(self.path())
        with open(self.path("file"), "wb") as file:
            for block in range(self.COUNT):
                file.write(self.content(block, 0))
        synced(self.path("file"))
        synced(self.path())

    def step(self):
        now = list(self.done)
        blocks = self.choices.sample(range(self.COUNT), self.choices.randint(1, 6))
        for block in blocks:
            now[block] += 1
        self.begun = tuple(now)
        fd = os.open(self.path("file"), os.O_WRONLY)
        try:
            for block in blocks:
                os.pwrite(fd, self.content(block, now[block]), block * self.BYTES)
            self.done = self.begun
            if self.choices.random() < 0.6:
                os.fsync(fd)
                self.promised = self.done
        finally:
            os.close(fd)

    def check(self, root, low, high):
        with open(self.path("file", root=root), "rb") as file:
            for block in range(self.COUNT):
                found = file.read(self.BYTES)
                number = int.from_bytes(found[:8], "little")
                self.expect(f"block {block}", number, low[block], high[block])
                if found != self.content(block, number):
                    raise Fault(f"{self.name}: block {block} is torn")
            if file.read(1):
                raise Fault(f"{self.name}: the file is too long")


class Names(Station):
    """Makes and removes files, directories and links in turn; the last few are there."""
    KEPT = 6

    def kind(self, number):
        return ("file", "directory", "link")[number % 3]

    def prepare(self):
        os.mkdir(self.path())
        with open(self.path("anchor"), "w") as file:
            file.write("anchor")
        synced(self.path("anchor"))
        synced(self.path())

    def step(self):
        number = self.done + 1
        self.begun = number
        path = self.path(f"n{number}")
        match self.kind(number):
            case "file":
                with open(path, "w") as file:
                    file.write(str(number))
                    file.flush()
                    os.fsync(file.fileno())
            case "directory":
                os.mkdir(path)
                with open(os.path.join(path, "in"), "w") as file:
                    file.write(str(number))
                    file.flush()
                    os.fsync(file.fileno())
                synced(path)
            case "link":
                os.link(self.path("anchor"), path)
        old = number - self.KEPT
        if old > 0:
            match self.kind(old):
                case "directory":
                    os.unlink(self.path(f"n{old}", "in"))
                    os.rmdir(self.path(f"n{old}"))
                case _:
                    os.unlink(self.path(f"n{old}"))
        self.done = number
        if self.choices.random() < 0.6:
            synced(self.path())
            self.promised = number

    def check(self, root, low, high):
        found = set(os.listdir(self.path(root=root))) - {"anchor"}
        numbers = {int(name[1:]) for name in found}
        # Those that a promise made, and that no later step has begun to take away.
        missing = {number for number in range(max(1, high - self.KEPT + 1), low + 1)} - numbers
        extra = {number for number in numbers if number <= low - self.KEPT or number > high}
        if missing or extra:
            raise Fault(f"{self.name}: missing {sorted(missing)}, should not be there {sorted(extra)} ({low} to {high})")
        for number in range(max(1, high - self.KEPT + 1), low + 1):
            if self.kind(number) == "link":
                continue
            parts = (f"n{number}",) + (("in",) if self.kind(number) == "directory" else ())
            with open(self.path(*parts, root=root)) as file:
                if file.read() != str(number):
                    raise Fault(f"{self.name}: n{number} does not hold what was synced")
        if os.stat(self.path("anchor", root=root)).st_nlink != 1 + sum(self.kind(n) == "link" for n in numbers):
            raise Fault(f"{self.name}: the count of links is wrong")


class Attributes(Station):
    """Attributes of one file, all of them the count."""

    def prepare(self):
        os.mkdir(self.path())
        with open(self.path("file"), "w") as file:
            file.write("x" * 5000)
        os.setxattr(self.path("file"), "user.number", b"0")
        synced(self.path("file"))
        synced(self.path())

    def step(self):
        number = self.done + 1
        self.begun = number
        path = self.path("file")
        os.setxattr(path, "user.number", b"%d" % number)
        os.chmod(path, 0o600 + number % 64)
        self.done = number
        if self.choices.random() < 0.6:
            synced(path)
            self.promised = number

    def check(self, root, low, high):
        path = self.path("file", root=root)
        self.expect("the attribute", int(os.getxattr(path, "user.number")), low, high)
        mode = os.stat(path).st_mode & 0o77
        if mode not in {number % 64 for number in range(low, high + 1)}:
            raise Fault(f"{self.name}: mode {mode:o} is of none of {low} to {high}")
        if os.stat(path).st_size != 5000:
            raise Fault(f"{self.name}: the size is wrong")


class Places(Station):
    """Two directories change places, by exchange and by way of a third name in turn."""

    def prepare(self):
        os.mkdir(self.path())
        for name in "ab":
            os.mkdir(self.path(name))
            with open(self.path(name, "is"), "w") as file:
                file.write(name)
            synced(self.path(name, "is"))
            synced(self.path(name))
        synced(self.path())

    def step(self):
        number = self.done + 1
        self.begun = number
        renameat2(self.path("a"), self.path("b"), RENAME_EXCHANGE)
        self.done = number
        if self.choices.random() < 0.6:
            synced(self.path())
            self.promised = number

    def check(self, root, low, high):
        found = []
        for name in "ab":
            with open(self.path(name, "is", root=root)) as file:
                found.append(file.read())
        if sorted(found) != ["a", "b"]:
            raise Fault(f"{self.name}: a directory is lost: {found}")
        if low == high and (found == ["a", "b"]) != (low % 2 == 0):
            raise Fault(f"{self.name}: an exchange that was synced is not there")


ALL = (Log, Value, Trusting, Blocks, Names, Attributes, Places)
