# SPDX-License-Identifier: MIT
"""`make bench`: what a user has with this, and with what there is instead, side by side.

Prints a table, and writes it to results.json, plot.svg and the README. Each
figure is the median, with the smallest and the largest, of runs that take turns:
whatever else the machine does meanwhile is in all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from functools import partial

import bed
from checks import eventually, quiet, right

OUTPUT = bed.TREE / "bench"
README = bed.TREE / "README.md"
MARKS = "<!-- begin: make bench -->\n", "<!-- end: make bench -->\n"
PYTHON = "/usr/bin/python3"
GENERATOR = "/usr/lib/systemd/system-generators/wsl-binfmt-generator"
BARE = [PYTHON, "-IS", "-c", "pass"]
NEVER = -1.0
RESTARTS = "launches that failed during 100 restarts, of 1,000"
BOOT = "boot to sysinit.target, ms"
LONGER = "the same, longer than with nothing by (each turn's difference)"
PATIENCE = 40  # seconds: a timer of 30 seconds has to be seen to help
# Hand-made, as found in many dotfiles.
TIMER = {
    "/etc/systemd/system/interop.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c '"
    f'[ -e {bed.TABLE}/WSLInterop ] || echo ":WSLInterop:M::MZ::/init:FP" >{bed.TABLE}/register\'\n',
    "/etc/systemd/system/interop.timer": "[Timer]\nOnBootSec=1\nOnUnitActiveSec=30\nAccuracySec=1\n",
    f"{bed.WANTS}/interop.timer": "-> ../interop.timer",
}


@dataclass
class Contender:
    """What protects the distros, and what was measured."""

    name: str
    generation: str = "none"
    installed: bool = False
    files: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[float]] = field(default_factory=dict)

    def boot(self, vm: bed.Vm) -> bed.Distro:
        """A distro with this protection."""
        return vm.distro(installed=self.installed, files={**bed.NO_START_LIMIT, **self.files})

    def add(self, row: str, value: float) -> None:
        """Add a figure to a row."""
        self.rows.setdefault(row, []).append(value)


OURS = Contender("this", installed=True)
CONTENDERS = [
    Contender("nothing"),
    Contender("WSL 2.6's override", "2.6"),
    Contender("WSL 2.9's read-only status", "2.9"),
    Contender("a 30-second timer", files=TIMER),
    OURS,
]


def restarts(contender: Contender) -> None:
    """Launches while the service is restarted."""
    with bed.Vm(contender.generation) as vm, contender.boot(vm) as distro:
        with contextlib.suppress(OSError):
            # Boot has lost it for those that do nothing: not what is measured here.
            vm.register(bed.WSL_INTEROP)
        with distro.launching() as launches:
            for _ in range(100):
                distro.systemctl("restart", "systemd-binfmt.service", check=False)
    contender.add(RESTARTS, 1000 * launches.failed / launches.count)


def peers(contender: Contender, kind: str) -> None:
    """Launches while a peer shuts down, that is protected in the same way, or not at all."""
    with bed.Vm(contender.generation) as vm, contender.boot(vm) as distro:
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
    with bed.Vm(contender.generation) as vm, contender.boot(vm) as distro:
        shown = distro.systemctl("show", "--property=UserspaceTimestampMonotonic")
        reached = distro.systemctl("show", "--property=ActiveEnterTimestampMonotonic", "sysinit.target")
        contender.add(BOOT, (number(reached) - number(shown)) / 1000)


def number(shown: str) -> int:
    """The number in what `systemctl show` says."""
    return int(shown.strip().partition("=")[2])


def timed(distro: bed.Distro, command: list[str], environment: str = "") -> float:
    """Milliseconds that a program takes in a distro, started there by one that is running."""
    script = (
        "import subprocess, sys, time\n"
        "start = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], check=True)\n"
        "print(1000 * (time.perf_counter() - start))\n"
    )
    return float(distro.run("env", *environment.split(), PYTHON, "-c", script, *command))


def processes(turns: int) -> None:
    """The generator and a restore that finds nothing wrong, against the bare interpreter."""
    with bed.Vm() as vm, OURS.boot(vm) as distro:
        eventually(partial(quiet, distro))
        for _ in range(turns):
            bare = timed(distro, BARE)
            OURS.add("python3 -IS -c pass, ms", bare)
            distro.shell("rm -rf /run/generated; mkdir /run/generated")
            OURS.add("generator, times that", timed(distro, [GENERATOR, "/run/generated"], "container=wsl") / bare)
            OURS.add("restore, nothing wrong, times that", timed(distro, ["/usr/bin/wsl-binfmt", "restore"]) / bare)


def many_formats() -> None:
    """A restore with many formats registered, before WSLInterop and behind it."""
    with bed.Vm() as vm, OURS.boot(vm) as distro:
        distro.systemctl("stop", "wsl-binfmt-restore.path")
        present = 0
        for count in 10, 1000, 10000:
            for name in range(present, count):
                vm.write("register", f":f{name}:M::f{name}::/bin/true:")
            present = count
            for _ in range(10):
                taken = timed(distro, ["/usr/bin/wsl-binfmt", "restore"])
                OURS.add(f"restore with {count} newer formats, ms", taken)


def watchers() -> None:
    """The outage after a wipe, with many distros that see it."""
    for count in 1, 5, 20:
        with bed.Vm() as vm, contextlib.ExitStack() as stack:
            distros = [stack.enter_context(OURS.boot(vm)) for _ in range(count)]
            for _ in range(5):
                for distro in distros:
                    eventually(partial(quiet, distro), 60)
                bare = timed(distros[0], BARE)
                vm.write("status", "-1")
                start = time.perf_counter()
                while "WSLInterop" not in os.listdir(vm.table):
                    time.sleep(0.0002)
                outage = 1000 * (time.perf_counter() - start)
                row = f"outage after a wipe, {count} distro{'s' * (count > 1)} watching"
                OURS.add(f"{row}, ms", outage)
                OURS.add(f"{row}, times the interpreter", outage / bare)
                eventually(lambda: right(vm))


def figure(values: list[float], digits: int) -> str:
    """Median and spread, in a few characters."""
    if NEVER in values:
        return "never ends" if values.count(NEVER) == len(values) else "may never end"
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def make_table() -> str:
    """The results as tables in Markdown: of all contenders, and of this alone."""
    shared = list(CONTENDERS[0].rows)
    lines = [
        "| | " + " | ".join(contender.name for contender in CONTENDERS) + " |",
        "|---" * (len(CONTENDERS) + 1) + "|",
    ]
    for row in shared:
        cells = [figure(contender.rows[row], 0) for contender in CONTENDERS]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += ["", "| this alone | median (smallest to largest) |", "|---|---|"]
    lines += [f"| {row} | {figure(values, 2)} |" for row, values in OURS.rows.items() if row not in shared]
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


def update_readme(table: str) -> None:
    """Put the table between its marks in the README."""
    text = README.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    README.write_text(before + MARKS[0] + table + MARKS[1] + after)


def main() -> int:
    """Measure it all; returns the exit status."""
    reason = bed.unavailable()
    if reason:
        print(f"make bench {reason}")
        return 1
    turns = 1 if sys.argv[1:] == ["--quick"] else 3
    for _ in range(turns):
        for contender in CONTENDERS:
            restarts(contender)
            peers(contender, "a protected")
            peers(contender, "an unprotected")
    for _ in range(10 * turns):
        for contender in CONTENDERS:
            boots(contender)
    for contender in CONTENDERS:
        contender.rows[LONGER] = [ms - base for ms, base in zip(contender.rows[BOOT], CONTENDERS[0].rows[BOOT])]
    processes(50 * turns)
    many_formats()
    watchers()
    table = make_table()
    print(table)
    OUTPUT.mkdir(exist_ok=True)
    results = {contender.name: contender.rows for contender in CONTENDERS}
    (OUTPUT / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (OUTPUT / "plot.svg").write_text(make_plot())
    update_readme(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
