# SPDX-License-Identifier: MIT
"""`make bench`: what a user has with this, and with what there is instead, side by side.

Prints tables, and writes them to bench/. Each
figure is the median, with the smallest and the largest, of runs that take turns:
whatever else the machine does meanwhile is in all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import bed
import document
from checks import eventually, no_jobs, right

if TYPE_CHECKING:
    from collections.abc import Callable

OUTPUT = bed.TREE / "bench"
README = OUTPUT / "README.md"
PYTHON = "/usr/bin/python3"
GENERATOR = "/usr/lib/systemd/system-generators/wsl-binfmt-generator"
BARE = [PYTHON, "-IS", "-c", "pass"]
FIRST_RELEASE = "1be7a17"  # the last commit of version 0.1.0
NEVER = -1.0
RESTARTS = "launches that failed during 100 restarts, of 1,000"
BOOT = "boot to sysinit.target, ms"
LONGER = "the same, longer than with nothing in the same turn"
PATIENCE = 40  # seconds: a timer of 30 seconds has to be seen to help
# Hand-made, as found in many dotfiles.
TIMER = {
    "/etc/systemd/system/interop.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c '"
    f'[ -e {bed.TABLE}/WSLInterop ] || echo ":WSLInterop:M::MZ::/init:FP" >{bed.TABLE}/register\'\n',
    "/etc/systemd/system/interop.timer": "[Timer]\nOnBootSec=1\nOnUnitActiveSec=30\nAccuracySec=1\n",
    f"{bed.WANTS}/interop.timer": "-> ../interop.timer",
}
RIVAL = {"/etc/binfmt.d/wine.conf": ":wine:M::MZ::/bin/true:\n"}
X = "/etc/binfmt.d/x.conf"


@dataclass
class Contender:
    """What protects the distros, and what was measured."""

    name: str
    generation: str = "none"
    installed: bool = False
    files: dict[str, str] = field(default_factory=dict)
    source: Path = bed.TREE
    rows: dict[str, list[float]] = field(default_factory=dict)

    def vm(self, generation: str = "") -> bed.Vm:
        """A VM for such distros."""
        return bed.Vm(generation or self.generation, self.source)

    def boot(self, vm: bed.Vm, files: dict[str, str] | None = None, emulators: int = 30) -> bed.Distro:
        """A distro with this protection."""
        files = {**bed.NO_START_LIMIT, **self.files, **(files or {})}
        return vm.distro(installed=self.installed, files=files, emulators=emulators)

    def add(self, row: str, value: float) -> None:
        """Add a figure to a row."""
        self.rows.setdefault(row, []).append(value)


OURS = Contender("this", installed=True)
FIRST = Contender("0.1.0", installed=True)
NOTHING = Contender("nothing")
CONTENDERS = [
    NOTHING,
    Contender("WSL 2.6's override", "2.6"),
    Contender("WSL 3.0's read-only status", "3.0"),
    Contender("a 30-second timer", files=TIMER),
    FIRST,
    OURS,
]


def settled(distro: bed.Distro) -> None:
    """Wait until a distro of any version has nothing left to do."""
    eventually(partial(no_jobs, distro), 60)
    time.sleep(0.1)


def restarts(contender: Contender) -> None:
    """Launches while the service is restarted."""
    with contender.vm() as vm, contender.boot(vm) as distro:
        with contextlib.suppress(OSError):
            # Boot has lost it for those that do nothing: not what is measured here.
            vm.register(bed.WSL_INTEROP)
        with distro.launching() as launches:
            for _ in range(100):
                distro.systemctl("restart", "systemd-binfmt.service", check=False)
    contender.add(RESTARTS, 1000 * launches.failed / launches.count)


def peers(contender: Contender, kind: str) -> None:
    """Launches while a peer shuts down, that is protected in the same way, or not at all."""
    with contender.vm() as vm, contender.boot(vm) as distro:
        with contender.boot(vm) if kind == "a protected" else vm.distro(installed=False) as peer:
            if kind == "an unprotected":
                peer.shell(f"umount {bed.TABLE}/status", check=False)
            if "WSLInterop" not in vm.names():
                vm.register(bed.WSL_INTEROP)
            with distro.launching() as launches:
                peer.shutdown()
                limit = time.monotonic() + (PATIENCE if contender.files else 2)
                time.sleep(0.5)
                while time.monotonic() < limit and not vm.entry("WSLInterop"):
                    time.sleep(0.05)
                time.sleep(0.2)
        event = f"at the shutdown of {kind} peer"
        # Failing takes a fraction of the time, and the next launch comes at once: this is no part of the time.
        contender.add(f"launches that failed {event}, of 1,000", 1000 * launches.failed / launches.count)
        contender.add(f"longest outage {event}, ms", launches.outage if right_enough(vm) else NEVER)


def right_enough(vm: bed.Vm) -> bool:
    """Whether a Windows program has a handler, be it with F or without."""
    return "interpreter /init" in (vm.entry("WSLInterop") or "")


def boots(contender: Contender) -> None:
    """Time from systemd's start to sysinit.target."""
    with contender.vm() as vm, contender.boot(vm) as distro:
        shown = distro.systemctl("show", "--property=UserspaceTimestampMonotonic")
        reached = distro.systemctl("show", "--property=ActiveEnterTimestampMonotonic", "sysinit.target")
        contender.add(BOOT, (number(reached) - number(shown)) / 1000)


def shutdowns(turns: int) -> None:
    """Time of a shutdown, against that of a distro with nothing in the same turn."""
    for _ in range(turns):
        for name, rule in (
            ("no formats of its own", "# none\n"),
            ("a format without F", ":x:M::xxxx::/bin/true:\n"),
            ("a format with F", ":x:M::xxxx::/bin/true:F\n"),
        ):
            taken = {}
            for contender in NOTHING, FIRST, OURS:
                with contender.vm() as vm, contender.boot(vm, {X: rule}, emulators=0) as distro:
                    settled(distro)
                    start = time.perf_counter()
                    distro.shutdown()
                    taken[contender.name] = 1000 * (time.perf_counter() - start)
            for contender in FIRST, OURS:
                row = f"shutdown, longer than with nothing, {name}, ms"
                contender.add(row, taken[contender.name] - taken["nothing"])


def number(shown: str) -> int:
    """The number in what `systemctl show` says."""
    return int(shown.strip().partition("=")[2])


def timed(distro: bed.Distro, command: list[str], environment: str = "") -> float:
    """Milliseconds that a program takes in a distro, started there by one that is running."""
    script = (
        "import subprocess, sys, time\n"
        "start = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(1000 * (time.perf_counter() - start))\n"
    )
    return float(distro.run("env", *environment.split(), PYTHON, "-c", script, *command))


def processes(contender: Contender, turns: int) -> None:
    """The generator and a restore that finds nothing wrong, against the bare interpreter."""
    with contender.vm() as vm, contender.boot(vm) as distro:
        settled(distro)
        for _ in range(turns):
            bare = timed(distro, BARE)
            contender.add("python3 -IS -c pass, ms", bare)
            distro.shell("rm -rf /run/generated; mkdir /run/generated")
            generator = timed(distro, [GENERATOR, "/run/generated"], "container=wsl")
            contender.add("generator, times that", generator / bare)
            contender.add(
                "restore, nothing wrong, times that", timed(distro, ["/usr/bin/wsl-binfmt", "restore"]) / bare
            )
            if contender is OURS:
                contender.add("wsl-binfmt status, ms", timed(distro, ["/usr/bin/wsl-binfmt", "status"]))


def restarts_of_each_kind(contender: Contender) -> None:
    """Launches that fail during 100 restarts, in all."""
    for name, generation, files in (
        ("plain", "none", {}),
        ("beside WSL 2.6's override", "2.6", {}),
        ("with a rule for wine in binfmt.d", "none", RIVAL),
    ):
        with contender.vm(generation) as vm, contender.boot(vm, files) as distro:
            settled(distro)
            with distro.launching() as launches:
                for _ in range(100):
                    distro.systemctl("restart", "systemd-binfmt.service")
        contender.add(f"launches that fail during 100 restarts, {name}", launches.failed)


def elapsed(vm: bed.Vm, file: str, text: str, ended: Callable[[list[str]], bool]) -> float:
    """Milliseconds from a write to the table until `ended` holds of its names."""
    descriptor = os.open(vm.table / file, os.O_WRONLY)
    start = time.perf_counter()
    os.write(descriptor, text.encode())
    os.close(descriptor)
    while not ended(os.listdir(vm.table)):
        if time.perf_counter() > start + 10:
            return NEVER
    return 1000 * (time.perf_counter() - start)


def watchers(contender: Contender, count: int, turns: int) -> None:
    """What a wipe and a rival by hand are to distros that watch."""
    watching = f"{count} distro{'s' * (count > 1)} watching"
    with contender.vm() as vm, contextlib.ExitStack() as stack:
        distros = [stack.enter_context(contender.boot(vm)) for _ in range(count)]
        for distro in distros:
            settled(distro)

        def wait() -> None:
            eventually(lambda: right(vm))
            for distro in distros:
                settled(distro)

        for _ in range(turns):
            bare = timed(distros[0], BARE)
            wait()
            outage = elapsed(vm, "status", "-1", lambda names: "WSLInterop" in names)
            contender.add(f"outage after a wipe, {watching}, ms", outage)
            contender.add(f"outage after a wipe, {watching}, times the interpreter", outage / bare)
            wait()
            with distros[0].launching() as launches:
                time.sleep(0.1)
                vm.write("status", "-1")
                time.sleep(0.3)
            contender.add(f"launches that fail at a wipe, {watching}", launches.failed)
            wait()
            taken = elapsed(vm, "register", ":wine:M::MZ::/bin/true:", lambda names: names[0] == "WSLInterop")
            contender.add(f"rival by hand until it is outranked, {watching}, times the interpreter", taken / bare)
            vm.write("wine", "-1")


def resources(contender: Contender) -> None:
    """Memory, wake-ups and inotify instances of the watch."""
    with contender.vm() as vm, contender.boot(vm) as distro, NOTHING.boot(vm) as other:
        settled(distro)
        contender.add("inotify instances", inotify_instances(distro) - inotify_instances(other))
        if contender is OURS:
            pid = distro.systemctl("show", "--property=MainPID", "--value", "wsl-binfmt-watch.service").strip()
            fields = dict(
                line.split(":", 1) for line in distro.run("cat", f"/proc/{pid}/smaps_rollup").splitlines()[1:]
            )
            sizes = {name: int(text.split()[0]) / 1024 for name, text in fields.items()}
            contender.add("the watch: private memory that it has written to, MiB", sizes["Private_Dirty"])
            contender.add("the watch: proportional memory, alone in its VM, MiB", sizes["Pss"])

            def switches() -> int:
                status = distro.run("cat", f"/proc/{pid}/status")
                return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

            before = switches()
            time.sleep(10)
            contender.add("the watch: wake-ups in 10 seconds in which nothing changes", switches() - before)


def inotify_instances(distro: bed.Distro) -> int:
    """How many a distro's systemd has."""
    links = [descriptor.readlink() for descriptor in Path(f"/proc/{distro.pid}/fd").iterdir()]
    return links.count(Path("anon_inode:inotify"))


LOOK = """
import sys, time
sys.path.insert(0, "/usr/lib/wsl-binfmt-generator")
from wsl_binfmt import formats, interop, table
known, losses = interop.Interop(), formats.Losses(print)
for turn in range(11):
    start = time.perf_counter()
    entries = table.entries()
    losses.look(entries)
    known.look(entries)
    print(1000 * (time.perf_counter() - start))
"""


def many_formats() -> None:
    """One look of a watch, at ten thousand formats that are newer than WSLInterop."""
    with OURS.vm() as vm, OURS.boot(vm) as distro:
        for count in range(10000):
            vm.write("register", f":f{count}:M::f{count}::/bin/true:")
        settled(distro)
        first, *others = map(float, distro.run(PYTHON, "-c", LOOK).split())
        OURS.add("the first look at 10,000 newer formats, ms", first)
        for taken in others:
            OURS.add("one look with 10,000 newer formats, ms", taken)


def figure(values: list[float], digits: int) -> str:
    """Median and spread, in a few characters."""
    if NEVER in values:
        return "never ends" if values.count(NEVER) == len(values) else "may never end"
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def make_table() -> str:
    """The results as tables in Markdown: of all contenders, and of this and its last release."""
    shared = list(NOTHING.rows)
    lines = [
        "| | " + " | ".join(contender.name for contender in CONTENDERS) + " |",
        "|---" * (len(CONTENDERS) + 1) + "|",
    ]
    for row in shared:
        cells = [figure(contender.rows[row], 0) for contender in CONTENDERS]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += ["", "| median (smallest to largest) | 0.1.0 | this |", "|---|---|---|"]
    for row, values in OURS.rows.items():
        if row not in shared:
            before = figure(FIRST.rows[row], 2) if row in FIRST.rows else ""
            lines.append(f"| {row} | {before} | {figure(values, 2)} |")
    return "\n".join(lines) + "\n"


def make_plot() -> str:
    """An SVG of launches that fail during restarts: a bar for each contender."""
    row = RESTARTS
    bar, left, width = 28, 210, 420
    parts = [f'<text x="0" y="18" font-weight="bold">{row[0].upper()}{row[1:]}</text>']
    for index, contender in enumerate(CONTENDERS):
        value = statistics.median(contender.rows[row])
        y = 34 + index * bar
        length = max(1, value * width / 1000)
        parts.append(f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{contender.name}</text>')
        parts.append(
            f'<rect x="{left}" y="{y}" width="{length:.0f}" height="20" fill="{"#2a7" if not value else "#c43"}"/>'
        )
        parts.append(f'<text x="{left + length + 8:.0f}" y="{y + 15}">{value:.0f}</text>')
    height = 40 + len(CONTENDERS) * bar
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 0 720 {height}" width="720" height="{height}" '
        'font-family="sans-serif" font-size="14">\n'
        f'<rect x="-10" width="720" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def measure(turns: int) -> None:
    """Measure it all, so many times."""
    for _ in range(turns):
        for contender in CONTENDERS:
            restarts(contender)
            peers(contender, "a protected")
            peers(contender, "an unprotected")
        for contender in FIRST, OURS:
            restarts_of_each_kind(contender)
    for _ in range(10 * turns):
        for contender in CONTENDERS:
            boots(contender)
    for contender in CONTENDERS:
        contender.rows[LONGER] = [ms - base for ms, base in zip(contender.rows[BOOT], NOTHING.rows[BOOT])]
    shutdowns(5 * turns)
    for contender in FIRST, OURS:
        processes(contender, 30 * turns)
        resources(contender)
        for count in 1, 5:
            watchers(contender, count, 5 * turns)
    # More than 0.1.0 can boot on a machine that is busy: the kernel has no inotify instances for it.
    watchers(OURS, 20, 2 * turns)
    many_formats()


def main() -> int:
    """Measure, print and write; returns the exit status."""
    reason = bed.unavailable()
    if reason:
        print(f"make bench {reason}")
        return 1
    with tempfile.TemporaryDirectory(prefix="wsl-binfmt-0.1.0-") as directory:
        archive = subprocess.run(["git", "-C", bed.TREE, "archive", FIRST_RELEASE], check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", directory], check=True, input=archive.stdout)
        FIRST.source = Path(directory)
        measure(1 if sys.argv[1:] == ["--quick"] else 3)
    table = make_table()
    print(table)
    OUTPUT.mkdir(exist_ok=True)
    results = {contender.name: contender.rows for contender in CONTENDERS}
    (OUTPUT / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (OUTPUT / "plot.svg").write_text(make_plot())
    document.put(README, "make bench", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
