# SPDX-License-Identifier: MIT
"""What may happen in a history, each event by a name, as a script of an actor."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Callable

import actors
import world
from actors import Step
from promises import is_ours
from scheduler import Script, Simulation
from wsl_binfmt import rules

if TYPE_CHECKING:
    from world import Distro

OWN = [
    (
        rb":qemu-arm:M::\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00"
        rb":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-arm:F"
    ),
    (
        rb":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
        rb":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64:OCF"
    ),
    rb":python3:M::\xa7\x0d\x0d\x0a::/usr/bin/python3:",
    b":jar:E::jar::/usr/bin/jexec:",
    b":llvm:M::BC::/usr/bin/lli:",
    # An emulator of this machine: an entry by such a rule keeps every program from starting, WSL#12505.
    (
        rb":qemu-x86_64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00"
        rb":\xff\xff\xff\xff\xff\xfe\xfe\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-x86_64:OCF"
    ),
]
RIVALS = [
    b":wine:M::MZ::/usr/bin/wine:",
    b":cli:M:128:PE\\x00\\x00::/usr/bin/cli:",
    rb":dotnet:M::MZ\x90\x00::/usr/bin/dotnet:",
    b":DOSWin:E::exe::/usr/bin/wine:",
    rb":mono:M::MZ\x90:\xff\xff\x00:/usr/bin/mono:",
]
# What a file of binfmt.d may say. Many have been advised to have the last one.
RULES = [*OWN, *RIVALS, actors.OVERRIDE]
CONTAINER = [rule.replace(b"/usr/bin/", b"/usr/local/bin/").replace(b":OCF", b":F") for rule in OWN[:2]]
REFUSED = b":bad:M::::/bin/true:"


def role(distro: Distro) -> str:
    """Tell the role of what runs in a distro."""
    return "service" if distro.protected else "other"


def add_rule(distro: Distro, rule: bytes) -> None:
    """Add a file to binfmt.d."""
    distro.files[f"/etc/binfmt.d/{actors.name_of(rule)}.conf"] = rule + b"\n"
    distro.learn()


# What an event does: the name of the actor, whether it is a part of the distro, and its script.
Happens = Callable[[Simulation, "Distro", int], "tuple[str, bool, Script]"]
Of = Callable[[Simulation, "Distro", int], Step]


def service_of(choice: int) -> str:
    """Choose a service, systemd-binfmt more often."""
    return rules.SERVICES[choice % 4 == 3]


def in_distro(name: str, step: Of) -> Happens:
    """Make an event of what happens in a distro that is up."""

    def happens(simulation: Simulation, distro: Distro, choice: int) -> tuple[str, bool, Script]:
        def if_up() -> Script:
            yield 0.0
            if distro.is_up and not distro.is_shutting_down:
                yield from step(simulation, distro, choice)

        return f"{name} {distro.name}", True, if_up()

    return happens


def by(name: str, step: Callable[[Simulation, int], Step]) -> Happens:
    """Make an event of what a program outside of all distros does."""
    return lambda simulation, _distro, choice: (name, False, step(simulation, choice))


def change_rules(simulation: Simulation, distro: Distro, choice: int) -> Step:
    """Change a rule, remove it, or add one; then have a service read it."""
    distro.changed_rules = simulation.operations
    mine = distro.changed_rules
    files = sorted(path for path in distro.files if path.startswith("/etc/binfmt.d/"))
    what = choice % 3
    if what == 0 and files:
        del distro.files[files[choice % len(files)]]
    elif what == 1 and files:
        path = files[choice % len(files)]
        distro.files[path] = distro.files[path].replace(b"/usr/bin/", b"/opt/bin/")
    else:
        add_rule(distro, OWN[choice % len(OWN)])
    distro.learn()
    distro.reread = False
    simulation.tell(None, f"rules of {distro.name} change")
    yield 0.001
    then = (actors.restart, actors.reload)[choice % 2]
    if choice % 5:
        yield from then(simulation, distro, rules.SYSTEMD_BINFMT)
        distro.reread = actors.is_active(distro, rules.SYSTEMD_BINFMT) and distro.changed_rules == mine
    else:
        yield from actors.systemd_binfmt(distro, is_service=False)


def fails(simulation: Simulation, distro: Distro, choice: int) -> Step:
    """Restart a service with a rule that is refused."""
    distro.files["/etc/binfmt.d/m-bad.conf"] = REFUSED + b"\n"
    yield from actors.restart(simulation, distro, rules.SYSTEMD_BINFMT)
    if choice % 2:
        yield 0.3
        distro.files.pop("/etc/binfmt.d/m-bad.conf", None)
        yield from actors.restart(simulation, distro, rules.SYSTEMD_BINFMT)


def reboots(simulation: Simulation, distro: Distro, choice: int) -> tuple[str, bool, Script]:
    """End a distro, and perhaps boot it again."""

    def steps() -> Script:
        simulation.promises.watch_is_away()
        yield from (actors.crash if choice % 3 == 0 else actors.shutdown)(simulation, distro)
        if choice % 2:
            yield 0.01 * (choice % 7)
            yield from actors.boot(simulation, distro)

    return f"reboot {distro.name}", True, steps()


def to_watch(what: str) -> Of:
    """Have something happen to the watch of a distro."""

    def step(simulation: Simulation, distro: Distro, choice: int) -> Step:
        yield 0.0
        process = actors.watch_of(simulation, distro)
        simulation.promises.watch_is_away()
        if not process:
            return
        if what == "kill":
            yield from actors.signal(distro, actors.SIGKILL)
        elif what == "restart":
            yield from actors.signal(distro, actors.SIGTERM)
        else:
            seconds = (0.01, 0.1, 0.4, 0.9, 2.0)[choice % 5]
            distro.lateness += seconds
            process.stop_until(simulation.now + seconds)
            simulation.tell(None, f"{process.name} is stopped for {seconds} s")

    return step


def writes(*steps: tuple[str, bytes]) -> Callable[[Simulation, int], Step]:
    """Have a program write to files of the table."""

    def step(_simulation: Simulation, _choice: int) -> Step:
        for name, data in steps:
            yield from actors.put(name, data)

    return step


def own_by_hand(data: bytes) -> Callable[[Simulation, int], Step]:
    """Have an administrator write to any entry."""

    def step(simulation: Simulation, choice: int) -> Step:
        names = [entry.name for entry in simulation.table.entries if not is_ours(entry.name)]
        if names:
            yield from actors.put(names[choice % len(names)], data)

    return step


def rival(_simulation: Simulation, choice: int) -> Step:
    """Register a rival."""
    yield from actors.put("register", RIVALS[choice % len(RIVALS)])


def no_rival(_simulation: Simulation, choice: int) -> Step:
    """Remove a rival."""
    yield from actors.put(actors.name_of(RIVALS[choice % len(RIVALS)]), b"-1")


def storm(_simulation: Simulation, choice: int) -> Step:
    """Undo each repair, for a time."""
    rule = RIVALS[choice % len(RIVALS)]
    for _ in range(choice // 2):
        yield from actors.put(actors.name_of(rule), b"-1")
        yield from actors.put("register", rule)
        yield 0.001 * (choice % 5)


def disables(simulation: Simulation, choice: int) -> Step:
    """Do as `update-binfmts --disable` does for all packages of a distro."""
    return actors.update_binfmts_disable(simulation.distros[choice % len(simulation.distros)])


def refuses(simulation: Simulation, choice: int) -> Step:
    """Have the kernel refuse each write for a time."""
    simulation.promises.could_do_nothing()
    simulation.table.refuses = (errno.EIO, errno.ENOMEM, errno.EROFS)[choice % 3]
    yield 0.02 * (choice % 11)
    simulation.table.refuses = 0
    simulation.promises.could_do_nothing()


def fills_run(simulation: Simulation, choice: int) -> Step:
    """Have no space in /run of a distro for a time."""
    distro = simulation.distros[choice % len(simulation.distros)]
    simulation.promises.could_do_nothing()
    distro.run_is_full = True
    yield 0.05 * (choice % 13)
    distro.run_is_full = False
    simulation.promises.could_do_nothing()


def no_init(simulation: Simulation, choice: int) -> Step:
    """Have no /init in a distro for a time."""
    distro = simulation.distros[choice % len(simulation.distros)]
    simulation.promises.could_do_nothing()
    distro.programs.discard("/init")
    distro.no_init_since = simulation.now
    yield 0.05 * (choice % 13)
    distro.programs.add("/init")
    distro.no_init_since = 0.0
    simulation.promises.could_do_nothing()


EVENTS: dict[str, Happens] = {
    "restart": in_distro("restart", lambda sim, distro, choice: actors.restart(sim, distro, service_of(choice))),
    "reload": in_distro("reload", lambda sim, distro, choice: actors.reload(sim, distro, service_of(choice))),
    "stop": in_distro("stop", lambda sim, distro, choice: actors.stop(sim, distro, service_of(choice))),
    "start": in_distro("start", lambda sim, distro, choice: actors.start(sim, distro, service_of(choice))),
    "direct run": in_distro("systemd-binfmt", lambda _, distro, __: actors.systemd_binfmt(distro, is_service=False)),
    "change rules": in_distro("package", change_rules),
    "failing start": in_distro("failing", fails),
    "reboot": reboots,
    "kill watch": in_distro("kill", to_watch("kill")),
    "stop watch": in_distro("SIGSTOP", to_watch("stop")),
    "restart watch": in_distro("systemctl", to_watch("restart")),
    "wipe": by("container", writes(("status", b"-1"))),
    "disable WSLInterop": by("administrator", writes(("WSLInterop", b"0"))),
    "enable WSLInterop": by("administrator", writes(("WSLInterop", b"1"))),
    "remove WSLInterop": by("administrator", writes(("WSLInterop", b"-1"))),
    "override": by("override", writes(("WSLInterop", b"-1"), ("register", actors.OVERRIDE))),
    "disable own": by("administrator", own_by_hand(b"0")),
    "enable own": by("administrator", own_by_hand(b"1")),
    "remove own": by("administrator", own_by_hand(b"-1")),
    "rival": by("administrator", rival),
    "no rival": by("administrator", no_rival),
    "APE": by("administrator", writes(("register", world.APE))),
    "no APE": by("administrator", writes(("APE", b"-1"))),
    "container installs": by("container", lambda _, __: actors.container_installs(CONTAINER)),
    "container resets": by("container", lambda _, __: actors.container_resets(CONTAINER)),
    "storm of rivals": by("program", storm),
    "update-binfmts --disable": by("package", disables),
    "refusals": by("kernel", refuses),
    "full /run": by("disk", fills_run),
    "no /init": by("/init", no_init),
    "switch off": by("administrator", writes(("status", b"0"))),
    "switch on": by("administrator", writes(("status", b"1"))),
}
