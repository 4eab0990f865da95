"""What a backup keeps of a tree, and how two of them differ."""

import hashlib
import os
import stat

# Names at the top of a mount or its source that are no part of the tree.
HIDDEN = (".snapshot", ".fusesnap")
# Modification times before this were set by the workload, and must be the same in both; later ones are the clock's.
CLOCK_SECONDS_MIN = 1_500_000_000


def attributes(path):
    return {name: os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False)) if name != "security.selinux"}


def content(path):
    digest = hashlib.blake2b(digest_size=12)
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def capture(root, exact=False):
    """Path -> facts. `exact`: with all times, as nothing may have changed."""
    facts, groups = {}, {}

    def visit(path, name):
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        entry = {"mode": oct(status.st_mode), "owner": (status.st_uid, status.st_gid), "xattrs": attributes(path)}
        if exact:
            entry["mtime"] = status.st_mtime_ns
            if name != ".":  # The making of the store in it changes the root's status.
                entry["ctime"] = status.st_ctime_ns
        else:
            entry["mtime"] = status.st_mtime_ns if status.st_mtime < CLOCK_SECONDS_MIN else "of the clock"
        if kind == stat.S_IFREG:
            entry["size"], entry["data"] = status.st_size, content(path)
        elif kind == stat.S_IFLNK:
            entry["target"] = os.readlink(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            entry["device"] = status.st_rdev
        if kind != stat.S_IFDIR:
            entry["links"] = status.st_nlink
            groups.setdefault((status.st_dev, status.st_ino), []).append(name)
        facts[name] = entry
        if kind == stat.S_IFDIR:
            for child in sorted(os.listdir(path)):
                if name != "." or child not in HIDDEN:
                    visit(os.path.join(path, child), child if name == "." else f"{name}/{child}")

    visit(root, ".")
    for names in groups.values():
        for name in names:
            facts[name]["names"] = sorted(names)
    return facts


def of_users(facts, users):
    """What of a tree these users own, and the directories."""
    return {name: entry for name, entry in facts.items()
            if stat.S_ISDIR(int(entry["mode"], 8)) or entry["owner"][0] in users}


def differences(expected, found):
    """Lines that say how `found` differs; none where it does not."""
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            lines.append(f"{name}: missing")
        elif name not in expected:
            lines.append(f"{name}: should not be there")
        else:
            lines += [f"{name}: {fact} is {found[name].get(fact)!r}, should be {expected[name].get(fact)!r}"
                      for fact in sorted(expected[name].keys() | found[name].keys())
                      if expected[name].get(fact) != found[name].get(fact)]
    return lines
