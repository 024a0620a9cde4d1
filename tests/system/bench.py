# SPDX-License-Identifier: MIT
"""`make bench`: what a user has with this, and with what there is instead, side by side; and what this may take.

Prints tables, and writes them to bench/. Each figure is the median, with the smallest and the largest, of runs that
take turns: whatever else the machine does meanwhile is in all of them. `--quick` measures a third of it.
"""

from __future__ import annotations

import contextlib
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
PYTHON = "/usr/bin/python3"
BARE = [PYTHON, "-IS", "-c", "pass"]
PREVIOUS = bed.TREE / "tests/packages/0.2.0.tar.xz"
NEVER = float("inf")
RESTARTS = "launches that failed during 100 restarts, of 1,000"
BOOT = "boot to sysinit.target, ms"
LONGER = "boot to sysinit.target, longer than with nothing in the same turn, ms"
REST = "what of that is not the generator, ms"
GENERATOR = "generator, times the interpreter"
RESTART = "restart of systemd-binfmt.service with 30 rules, times that with nothing"
OUTAGE = "outage after a wipe, {} watching, times the interpreter"
FAILED = "launches that fail at a wipe, {} watching"
RIVAL = "rival by hand until it is outranked, {} watching, times the interpreter"
FAIL_IN_RESTARTS = "launches that fail during 100 restarts, {}"
UNPROTECTED = "launches that failed at the shutdown of an unprotected peer, of 1,000"
SHUTDOWN = "shutdown, longer than with nothing, {}, ms"
MEMORY = "the watch: private memory that it has written to, MiB"
WAKE_UPS = "the watch: wake-ups in 10 seconds in which nothing changes"
INOTIFY = "inotify instances"
LOOK = "one look with 10,000 entries, ms"
LINES = "lines of what runs at boot or stays"
ONE, FIVE, TWENTY = WATCHING = "1 distro", "5 distros", "20 distros"
WITHOUT_F, WITH_F = "no own entries", "an own entry with F"
# The most that the median may be.
BUDGETS = {
    GENERATOR: 1.20,
    RESTART: 1.3,
    LONGER: 9,
    REST: 2,
    OUTAGE.format(ONE): 0.1,
    OUTAGE.format(FIVE): 0.15,
    OUTAGE.format(TWENTY): 0.5,
    FAILED.format(ONE): 0,
    FAILED.format(FIVE): 1,
    FAILED.format(TWENTY): 3,
    RIVAL.format(ONE): 0.1,
    FAIL_IN_RESTARTS.format("plain"): 0,
    FAIL_IN_RESTARTS.format("beside WSL 2.6"): 0,
    FAIL_IN_RESTARTS.format("on WSL 3.0"): 0,
    FAIL_IN_RESTARTS.format("with a rival in binfmt.d"): 50,
    UNPROTECTED: 5,
    SHUTDOWN.format(WITHOUT_F): 3,
    SHUTDOWN.format(WITH_F): 20,
    MEMORY: 3,
    WAKE_UPS: 0,
    INOTIFY: 0,
    LOOK: 10,
    LINES: 1200,
}
X = "/etc/binfmt.d/x.conf"


@dataclass
class Contender:
    """What protects the distros, and what was measured."""

    name: str
    generation: str = "none"
    installed: bool = False
    watch: str = ""
    source: Path = bed.TREE
    rows: dict[str, list[float]] = field(default_factory=dict)

    def vm(self, generation: str = "") -> bed.Vm:
        """A VM for such distros."""
        return bed.Vm(generation or self.generation, self.source)

    def boot(self, vm: bed.Vm, files: dict[str, str] | None = None, emulators: int = 30) -> bed.Distro:
        """A distro with this protection."""
        files = {**bed.NO_START_LIMIT, **(files or {})}
        return vm.distro(installed=self.installed, files=files, emulators=emulators)

    def add(self, row: str, value: float) -> None:
        """Add a figure to a row."""
        self.rows.setdefault(row, []).append(value)


OURS = Contender("this", installed=True, watch="wsl-binfmt-watch.service")
BEFORE = Contender("0.2.0", installed=True, watch="wsl-binfmt.service")
NOTHING = Contender("nothing")
CONTENDERS = [
    NOTHING,
    Contender("WSL 2.6's override", "2.6"),
    Contender("WSL 3.0's read-only status", "3.0"),
    BEFORE,
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
                limit = time.monotonic() + 2
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


def boots(turns: int) -> None:
    """Time from systemd's start to sysinit.target, and what of that is for generators."""
    for _ in range(turns):
        taken = {}
        for contender in CONTENDERS:
            with contender.vm() as vm, contender.boot(vm) as distro:
                start, begin, end = (
                    number(distro.systemctl("show", f"--property={name}TimestampMonotonic"))
                    for name in ("Userspace", "GeneratorsStart", "GeneratorsFinish")
                )
                reached = distro.systemctl("show", "--property=ActiveEnterTimestampMonotonic", "sysinit.target")
            taken[contender.name] = (number(reached) - start) / 1000, (end - begin) / 1000
            contender.add(BOOT, taken[contender.name][0])
        for contender in CONTENDERS:
            boot, generators = (ours - nothing for ours, nothing in zip(taken[contender.name], taken["nothing"]))
            contender.add(LONGER, boot)
            if contender.installed:
                contender.add(REST, boot - generators)


def shutdowns(turns: int) -> None:
    """Time of a shutdown, against that of a distro with nothing in the same turn."""
    for _ in range(turns):
        for name, rule in (WITHOUT_F, "# none\n"), (WITH_F, ":x:M::xxxx::/bin/true:F\n"):
            taken = {}
            for contender in NOTHING, BEFORE, OURS:
                with contender.vm() as vm, contender.boot(vm, {X: rule}, emulators=0) as distro:
                    settled(distro)
                    start = time.perf_counter()
                    distro.shutdown()
                    taken[contender.name] = 1000 * (time.perf_counter() - start)
            for contender in BEFORE, OURS:
                contender.add(SHUTDOWN.format(name), taken[contender.name] - taken["nothing"])


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
            distro.shell("rm -rf /run/generated; mkdir -p /run/generated/early")
            command = [bed.GENERATOR, "/run/generated", "/run/generated/early", "/run/generated"]
            contender.add(GENERATOR, timed(distro, command, "container=wsl") / bare)
            contender.add("wsl-binfmt status, ms", timed(distro, ["/usr/bin/wsl-binfmt", "status"]))


def times_of_restarts(turns: int) -> None:
    """What a restart of systemd-binfmt.service takes, against that of a distro with nothing in the same turn."""
    for _ in range(turns):
        taken = {}
        for contender in NOTHING, BEFORE, OURS:
            with contender.vm() as vm, contender.boot(vm) as distro:
                settled(distro)
                command = ["systemctl", "restart", "systemd-binfmt.service"]
                taken[contender.name] = statistics.median(timed(distro, command) for _ in range(20))
        for contender in BEFORE, OURS:
            contender.add(RESTART, taken[contender.name] / taken["nothing"])


def restarts_of_each_kind(contender: Contender) -> None:
    """Launches that fail during 100 restarts, in all."""
    wine = {"/etc/binfmt.d/wine.conf": ":wine:M::MZ::/bin/true:\n"}
    for name, generation, files in (
        ("plain", "none", {}),
        ("beside WSL 2.6", "2.6", {}),
        ("on WSL 3.0", "3.0", {}),
        ("with a rival in binfmt.d", "none", wine),
    ):
        with contender.vm(generation) as vm, contender.boot(vm, files) as distro:
            settled(distro)
            with distro.launching() as launches:
                for _ in range(100):
                    distro.systemctl("restart", "systemd-binfmt.service")
        contender.add(FAIL_IN_RESTARTS.format(name), launches.failed)


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


def watchers(contender: Contender, watching: str, turns: int) -> None:
    """What a wipe and a rival by hand are to distros that watch."""
    count = int(watching.split(maxsplit=1)[0])
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
            contender.add(OUTAGE.format(watching), outage / bare)
            wait()
            with distros[0].launching() as launches:
                time.sleep(0.1)
                vm.write("status", "-1")
                time.sleep(0.3)
            contender.add(FAILED.format(watching), launches.failed)
            wait()
            taken = elapsed(vm, "register", ":wine:M::MZ::/bin/true:", lambda names: names[0] == "WSLInterop")
            contender.add(RIVAL.format(watching), taken / bare)
            vm.write("wine", "-1")


def resources(contender: Contender) -> None:
    """Memory, wake-ups and inotify instances of the watch."""
    with contender.vm() as vm, contender.boot(vm) as distro, NOTHING.boot(vm) as other:
        settled(distro)
        contender.add(INOTIFY, inotify_instances(distro) - inotify_instances(other))
        pid = distro.systemctl("show", "--property=MainPID", "--value", contender.watch).strip()
        fields = dict(line.split(":", 1) for line in distro.run("cat", f"/proc/{pid}/smaps_rollup").splitlines()[1:])
        contender.add(MEMORY, int(fields["Private_Dirty"].split()[0]) / 1024)

        def switches() -> int:
            status = distro.run("cat", f"/proc/{pid}/status")
            return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

        before = switches()
        time.sleep(10)
        contender.add(WAKE_UPS, switches() - before)


def inotify_instances(distro: bed.Distro) -> int:
    """How many a distro's systemd has."""
    links = [descriptor.readlink() for descriptor in Path(f"/proc/{distro.pid}/fd").iterdir()]
    return links.count(Path("anon_inode:inotify"))


# The parts of version 0.2.0 that looked.
LOOKS = {
    "this": "from wsl_binfmt import watch; look = watch.Watch(print).look",
    "0.2.0": """
from wsl_binfmt import formats, interop, table
known, losses = interop.Interop(), formats.Losses(print)
def look():
    entries = table.entries()
    losses.look(entries)
    known.look(entries)
""",
}


def many_entries(contender: Contender) -> None:
    """One look of a watch, at ten thousand entries that are newer than WSLInterop."""
    script = f"""
import sys, time
sys.path.insert(0, "/usr/lib/wsl-binfmt-generator")
{LOOKS[contender.name]}
for turn in range(11):
    start = time.perf_counter()
    look()
    print(1000 * (time.perf_counter() - start))
"""
    with contender.vm() as vm, contender.boot(vm) as distro:
        for count in range(10000):
            vm.write("register", f":f{count}:M::f{count}::/bin/true:")
        settled(distro)
        distro.systemctl("stop", contender.watch)
        first, *others = map(float, distro.run(PYTHON, "-c", script).split())
        contender.add("the first look at 10,000 entries, ms", first)
        for taken in others:
            contender.add(LOOK, taken)


def lines(contender: Contender) -> None:
    """How long what runs at boot or stays is: generator, units, scripts, the command and what the watch imports."""
    generator = contender.source / "generator"
    script = "import sys, wsl_binfmt.command; print(*(n for n in sys.modules if n.startswith('wsl_binfmt.')))"
    modules = subprocess.run([PYTHON, "-Bc", script], check=True, capture_output=True, text=True, cwd=generator).stdout
    files = [generator / f"{module.replace('.', '/')}.py" for module in modules.split()]
    files += [path for path in (*generator.iterdir(), *(contender.source / "units").iterdir()) if path.is_file()]
    contender.add(LINES, sum(len(path.read_text().splitlines()) for path in files))


def figure(values: list[float], digits: int = 2) -> str:
    """Median and spread, in a few characters."""
    if NEVER in values:
        return "never ends" if values.count(NEVER) == len(values) else "may never end"
    low, middle, high = (
        f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
        for value in (min(values), statistics.median(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def make_table() -> str:
    """The results as tables in Markdown: of all contenders, and of this and its last release beside the budget."""
    shared = list(NOTHING.rows)
    table = [
        "| | " + " | ".join(contender.name for contender in CONTENDERS) + " |",
        "|---" * (len(CONTENDERS) + 1) + "|",
    ]
    for row in shared:
        cells = [figure(contender.rows[row], 0) for contender in CONTENDERS]
        table.append(f"| {row} | {' | '.join(cells)} |")
    table += ["", "| median (smallest to largest) | at most | 0.2.0 | this | |", "|---|---|---|---|---|"]
    for row in sorted(OURS.rows, key=[*BUDGETS, *OURS.rows].index):
        if row in BUDGETS or row not in shared:
            budget = BUDGETS.get(row, NEVER)
            cells = ["" if budget == NEVER else f"{budget:g}", figure(BEFORE.rows[row]), figure(OURS.rows[row])]
            cells.append("" if statistics.median(OURS.rows[row]) <= budget else "**over**")
            table.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(table) + "\n"


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
        for contender in BEFORE, OURS:
            restarts_of_each_kind(contender)
            resources(contender)
            for watching in WATCHING:
                watchers(contender, watching, 3)
            processes(contender, 20)
    times_of_restarts(3 * turns)
    boots(10 * turns)
    shutdowns(5 * turns)
    for contender in BEFORE, OURS:
        many_entries(contender)
        lines(contender)


def main() -> int:
    """Measure, print and write; returns the exit status."""
    reason = bed.unavailable()
    if reason:
        print(f"make bench {reason}")
        return 1
    with tempfile.TemporaryDirectory(prefix="wsl-binfmt-0.2.0-") as directory:
        subprocess.run(["tar", "-x", "-C", directory, "-f", PREVIOUS], check=True)
        BEFORE.source = Path(directory)
        measure(1 if sys.argv[1:] == ["--quick"] else 3)
    table = make_table()
    print(table)
    (OUTPUT / "plot.svg").write_text(make_plot())
    document.put(OUTPUT / "README.md", "make bench", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
