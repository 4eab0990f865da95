"""Tables and pictures of what was measured."""
import json
import os
import re
import statistics

from .rows import ROWS, TARGETS
from .systems import PEERS


def read(path):
    with open(path) as file:
        return json.load(file)


def merged(paths):
    """The results of the first file, with the rows of each later one in place of its own: rows that were measured again.

    A row is of one run, with all systems in the same rounds.
    """
    results = read(paths[0])
    for path in paths[1:]:
        again = read(path)
        rows = {row for figures in again["rounds"] for row in figures} | set(again["requests"])
        for number, figures in enumerate(results["rounds"]):
            for row in rows:
                figures.pop(row, None)
            if number < len(again["rounds"]):
                figures.update(again["rounds"][number])
        results["requests"].update(again["requests"])
    return results


def native_of(system):
    """The system whose figure another's is compared with."""
    if "btrfs" in system:
        return None
    return "native-xfs" if "xfs" in system else "native"


def is_absolute(row):
    """Told as it is, not as a ratio to the source."""
    return row.endswith("(s)") or row.startswith("extents")


def values(results, row, system):
    return [figures[row][system] for figures in results["rounds"] if system in figures.get(row, {})]


def ratios(results, row, system):
    """Of each round that has both."""
    native = native_of(system)
    return [
        figures[row][system] / figures[row][native] for figures in results["rounds"]
        if row in figures and system in figures[row] and native in figures[row]]


def median(numbers):
    return statistics.median(numbers) if numbers else None


def spread(numbers):
    return f" ({min(numbers):.2f}-{max(numbers):.2f})" if len(numbers) > 1 else ""


def systems_of(results):
    names = []
    for figures in results["rounds"]:
        for row in figures.values():
            names += [name for name in row if name not in names]
    return names


def best_peer(results, row, names=None):
    """The FUSE peer with the best median ratio, and that ratio."""
    found = [(median(ratios(results, row, name)), name) for name in (names or PEERS) if name != "overlayfs"]
    found = [pair for pair in found if pair[0] is not None]
    return max(found) if found else (None, None)


def best(results, row, prefix):
    found = [
        (median(ratios(results, row, name)), name) for name in systems_of(results) if name.startswith(prefix)]
    found = [pair for pair in found if pair[0] is not None]
    return max(found) if found else (None, None)


def show(number):
    return "" if number is None else f"{number:.2f}" if number < 10 else f"{number:.0f}"


def table(results):
    """All systems as ratios, for a terminal; medians."""
    lines = []
    for row in ROWS:
        cells = []
        for name in systems_of(results):
            ratio = median(ratios(results, row, name))
            value = median(values(results, row, name))
            if value is None:
                continue
            if ratio is None or name == native_of(name) or is_absolute(row):
                cells.append(f"{name}: {value:.5g}")
            else:
                cells.append(f"{name}: {ratio:.3f}{spread(ratios(results, row, name))}")
        if cells:
            lines.append(f"{row}\n    " + "\n    ".join(cells))
    return "\n".join(lines)


def compare(first, second):
    """What changed from one run to another: for each row and system the medians, and their quotient."""
    one, other = read(first), read(second)
    for row in ROWS:
        for name in systems_of(one):
            function = values if is_absolute(row) or native_of(name) in (None, name) else ratios
            before, after = median(function(one, row, name)), median(function(other, row, name))
            if before and after:
                print(f"{row:<40} {name:<28} {before:>10.4g} {after:>10.4g}  x {after / before:.2f}")


COLUMNS = [
    ("overlayfs", "kernel overlayfs"), ("fusesnap-ext4-auto", "fusesnap, ext4, `auto`"),
    ("fusesnap-ext4-write-through", "ext4, `write-through`"), ("fusesnap-xfs-auto", "XFS, `auto`"),
    ("fusesnap-xfs-passthrough", "XFS, `passthrough`"),
]


def ratio_table(results):
    present = [(name, title) for name, title in COLUMNS if name in systems_of(results)]
    lines = ["| work | best FUSE peer | " + " | ".join(title for _, title in present) + " | wanted, ext4 / XFS |"]
    lines.append("| --- " * (len(present) + 3) + "|")
    for row in ROWS:
        if is_absolute(row) or not any(ratios(results, row, name) for name, _ in present):
            continue
        peer, name = best_peer(results, row)
        cells = [row, f"{show(peer)} {name}" if name else ""]
        cells += [show(median(ratios(results, row, name))) for name, _ in present]
        target = TARGETS.get(row)
        cells.append(f"{target[0]:.2f} / {target[1]:.2f}" if target else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


ACTIVE = [
    "start, clean (s)", "start, 256 MiB dirty (s)", "first byte of a file (s)", "extents before", "extents after"]
PAIRS = [
    ("4 KiB overwrites, idle", "the same, snapshot active: first", "first overwrite of 4 KiB blocks, to idle"),
    ("4 KiB overwrites, idle", "the same, snapshot active: later", "later ones, to idle"),
    ("fdatasync every 32, idle", "fdatasync every 32, snapshot active", "with fdatasync every 32, to idle"),
    ("sequential overwrite, idle", "sequential overwrite, snapshot active", "sequential first overwrite, to idle"),
]


def active_table(results):
    names = [name for name in systems_of(results) if values(results, "start, clean (s)", name)]
    if not names:
        return ""
    lines = ["| while a snapshot is active | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for row in ACTIVE:
        cells = []
        for name in names:
            value = median(values(results, row, name))
            cells.append("" if value is None else f"{value:.0f}" if row.startswith("extents") else f"{value * 1000:.1f} ms")
        lines.append(f"| {row.removesuffix(' (s)')} | " + " | ".join(cells) + " |")
    for idle, active, title in PAIRS:
        cells = []
        for name in names:
            pairs = [
                figures[active][name] / figures[idle][name] for figures in results["rounds"]
                if name in figures.get(idle, {}) and name in figures.get(active, {})]
            cells.append(show(median(pairs)))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def request_table(results):
    """How many requests of each kind an operation needs."""
    lines = ["| one operation of | " + "system | requests |", "| --- | --- | --- |"]
    for row in ROWS:
        for name, counts in results["requests"].get(row, {}).items():
            shown = sorted(((number, kind) for kind, number in counts.items() if number >= 0.005), reverse=True)
            text = ", ".join(f"{number:.2f} {kind}" for number, kind in shown)
            lines.append(f"| {row} | {name} | {text or 'none'} |")
    return "\n".join(lines)


# MARK: Pictures

BAR, GAP, LEFT, WIDTH = 13, 16, 250, 460
COLOURS = {"best FUSE peer": "#9aa5b1", "fusesnap, ext4": "#2f6f9f", "fusesnap, XFS": "#3f9f6f"}


def picture(results, rows, title):
    """Bars of ratios to the source, with the wanted value as a mark on fusesnap's."""
    lines, y = [], 62
    scale = WIDTH / 1.2
    for row in rows:
        bars = [
            ("best FUSE peer", best_peer(results, row)[0], None),
            ("fusesnap, ext4", best(results, row, "fusesnap-ext4-auto")[0], 0),
            ("fusesnap, XFS", best(results, row, "fusesnap-xfs")[0], 1)]
        bars = [bar for bar in bars if bar[1] is not None]
        if not bars:
            continue
        middle = y + len(bars) * BAR / 2 + 4
        lines.append(f'<text x="{LEFT - 8}" y="{middle:.0f}" text-anchor="end">{row}</text>')
        for name, ratio, side in bars:
            width = min(ratio, 1.2) * scale
            lines.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[name]}"/>')
            lines.append(f'<text x="{LEFT + width + 4:.1f}" y="{y + BAR - 3}" class="n">{ratio:.2f}</text>')
            if side is not None and row in TARGETS:
                mark = LEFT + TARGETS[row][side] * scale
                lines.append(f'<path d="M{mark:.1f} {y - 1}v{BAR}" stroke="#c33" stroke-width="2"/>')
            y += BAR
        y += GAP
    legend, x = [], LEFT
    for name, colour in COLOURS.items():
        legend.append(f'<rect x="{x}" y="34" width="11" height="11" fill="{colour}"/><text x="{x + 15}" y="44">{name}</text>')
        x += 130
    legend.append(f'<path d="M{x} 33v13" stroke="#c33" stroke-width="2"/><text x="{x + 6}" y="44">wanted</text>')
    one = LEFT + scale
    legend.append(f'<path d="M{one:.1f} 52V{y}" stroke="#888" stroke-dasharray="3 3"/><text x="{one:.1f}" y="{y + 12}" '
                  'text-anchor="middle">1 = the source itself</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 90}" height="{y + 20}" font-family="sans-serif" '
        f'font-size="12"><style>.n{{font-size:10px;fill:#444}}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{title}</text>\n'
        + "\n".join(legend + lines) + "\n</svg>\n")


PICTURES = [
    ("speed-data.svg", "Data and databases: speed as a part of the source's", ROWS[:14]),
    ("speed-names.svg", "Files and trees: speed as a part of the source's", ROWS[14:28]),
]
BEGIN, END = "<!-- speed: made by Benchmarks/speed report -->", "<!-- speed: end -->"


def report(paths, requests, document):
    results = merged(paths)
    counted = merged(requests) if requests else None
    parts = [
        f"{results['machine']}; {results['version']}; {results['date']}; {len(results['rounds'])} rounds, medians of the ratios "
        "to the source's own file system in the same round.", ratio_table(results)]
    for name, title, rows in PICTURES:
        if document:
            with open(os.path.join(os.path.dirname(document), name), "w") as file:
                file.write(picture(results, rows, title))
            parts.append(f"![{title}]({name})")
    parts.append(active_table(results))
    if counted:
        parts.append("What the daemon is asked:\n\n" + request_table(counted))
    text = "\n\n".join(part for part in parts if part)
    if not document:
        print(text)
        return
    with open(document) as file:
        whole = file.read()
    made = f"{BEGIN}\n\n{text}\n\n{END}"
    if BEGIN in whole:
        whole = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: made, whole, flags=re.DOTALL)
    else:
        whole += f"\n## Speed\n\n{made}\n"
    with open(document, "w") as file:
        file.write(whole)
