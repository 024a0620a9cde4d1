# SPDX-License-Identifier: MIT
"""Histories: what is to happen, drawn from a seed; running it, and shrinking what breaks a promise."""

from __future__ import annotations

import dataclasses
import errno
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

from simulation import actors, system, world
from simulation.actors import Step
from simulation.promises import Promises, is_ours
from simulation.scheduler import Script, Simulation
from wsl_binfmt import rules

if TYPE_CHECKING:
    from simulation.world import Distro

OWN = [
    rb":qemu-arm:M::\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00"
    rb":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-arm:F",
    rb":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    rb":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64:OCF",
    rb":python3:M::\xa7\x0d\x0d\x0a::/usr/bin/python3:",
    b":jar:E::jar::/usr/bin/jexec:",
    b":llvm:M::BC::/usr/bin/lli:",
    # An emulator of this machine: an entry by such a rule keeps every program from starting, WSL#12505.
    rb":qemu-x86_64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00"
    rb":\xff\xff\xff\xff\xff\xfe\xfe\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-x86_64:OCF",
]
RIVALS = [
    b":wine:M::MZ::/usr/bin/wine:",
    b":cli:M:128:PE\\x00\\x00::/usr/bin/cli:",
    b":DOSWin:E::exe::/usr/bin/wine:",
    rb":mono:M::MZ\x90:\xff\xff\x00:/usr/bin/mono:",
]
CONTAINER = [rule.replace(b"/usr/bin/", b"/usr/local/bin/").replace(b":OCF", b":F") for rule in OWN[:2]]
REFUSED = b":bad:M::::/bin/true:"
QUIET_AFTER = 30.0  # seconds after which all must have settled


@dataclass(frozen=True)
class Event:
    """Something that happens."""

    round: int
    at: float  # seconds from the beginning of its round
    kind: str
    distro: int
    choice: int  # which rule, service or number it is about

    def __str__(self) -> str:
        return f"round {self.round} at {self.at:.4f}: {self.kind} {'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[self.distro]} {self.choice}"


@dataclass(frozen=True)
class History:
    """What is to happen."""

    seed: str
    distros: tuple[tuple[bool, str, tuple[int, ...], tuple[int, ...]], ...]
    events: tuple[Event, ...]
    rounds: int
    slow: float
    late: float


def draw(seed: str) -> History:
    """Draw a history."""
    drawn = random.Random(seed)
    distros = []
    for number in range(drawn.choice((1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 6)) if drawn.random() < 0.99 else 20):
        of_binfmt_d = drawn.sample(range(len(OWN)), drawn.randrange(4))
        if drawn.random() < 0.15:
            of_binfmt_d.append(len(OWN) + drawn.randrange(len(RIVALS)))
        of_update_binfmts = drawn.sample(range(len(OWN)), drawn.choice((0, 0, 0, 1, 2)))
        is_protected = number == 0 or drawn.random() < 0.7
        distros.append((is_protected, drawn.choice(("2.0.9", "2.6", "3.0")), tuple(of_binfmt_d), tuple(of_update_binfmts)))
    rounds = drawn.choice((1, 2, 2, 3))
    length = 10 ** drawn.uniform(-3, 0.4)
    kinds = drawn.sample(list(EVENTS), drawn.choice((2, 3, 3, 5, 8, len(EVENTS))))
    events = []
    for _ in range(drawn.choice((2, 3, 5, 8, 12)) * rounds):
        # Some follow each other closely, others are far between.
        at = drawn.uniform(0, length) if drawn.random() < 0.5 else 10 ** drawn.uniform(-4.5, -0.5)
        kind, distro, choice = drawn.choice(kinds), drawn.randrange(len(distros)), drawn.randrange(100)
        events.append(Event(drawn.randrange(rounds), at, kind, distro, choice))
    events.sort(key=lambda event: (event.round, event.at))
    slow, late = drawn.choice(((0.0, 0.0), (0.02, 0.0), (0.1, 0.002), (0.02, 0.01)))
    return History(seed, tuple(distros), tuple(events), rounds, slow, late)


def simulate(history: History, *, verbose: bool = False) -> Simulation:
    """Have a history happen."""
    simulation = Simulation(history.seed, history.slow, history.late, verbose=verbose)
    simulation.promises = Promises(simulation)
    simulation.on_end = actors.watch_ends
    for number, (is_protected, generation, of_binfmt_d, of_update_binfmts) in enumerate(history.distros):
        distro = world.Distro(number, protected=is_protected, generation=generation)
        for rule in of_binfmt_d:
            add_rule(distro, (OWN + RIVALS)[rule])
        for rule in of_update_binfmts:
            distro.files[f"/var/lib/binfmts/{actors.name_of(OWN[rule])}"] = world.file_of_update_binfmts(OWN[rule])
        distro.learn()
        simulation.distros.append(distro)
    simulation.start("history", None, "other", script(simulation, history))
    system.simulation = simulation
    simulation.run()
    return simulation


def script(simulation: Simulation, history: History) -> Script:
    """Boot all distros, then have each round happen, and wait until all is quiet after each."""
    yield from actors.put("register", world.WSL)
    started = [
        simulation.start(f"boot {distro.name}", distro, role(distro), actors.boot(simulation, distro)) for distro in simulation.distros
    ]
    yield from until_quiet(simulation, started)
    for number in range(history.rounds):
        start = simulation.now
        started = []
        for index, event in enumerate(history.events):
            if event.round == number:
                yield max(0.0, start + event.at - simulation.now)
                distro = simulation.distros[event.distro]
                name, of, step = EVENTS[event.kind](simulation, distro, event.choice)
                simulation.tell(None, f"-- {event}")
                started.append(simulation.start(f"{name} {index}", distro if of else None, role(distro) if of else "other", step))
        yield from until_quiet(simulation, started)


def until_quiet(simulation: Simulation, started: list[object]) -> Step:
    """Wait until all scripts of a round have ended and no watch has anything to do."""
    end = simulation.now + QUIET_AFTER
    while True:
        is_running = any(actor in started or "systemd" in actor.name for actor in simulation.actors)
        if is_running:
            end = simulation.now + QUIET_AFTER
        elif all(process.is_idle() for process in simulation.processes()):
            break
        elif simulation.now > end:
            busy = [f"{process.name} until {process.ready - 1000}" for process in simulation.processes() if not process.is_idle()]
            simulation.breaks(f"the watches do not come to rest: {' '.join(busy)}")
        yield 0.05
    simulation.promises.quiet()
    simulation.tell(None, "-- all is quiet")


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
    return rules.SERVICES[choice % 4 == 3]


def in_distro(name: str, step: Of) -> Happens:
    def happens(simulation: Simulation, distro: Distro, choice: int) -> tuple[str, bool, Script]:
        def if_up() -> Script:
            yield 0.0
            if distro.is_up and not distro.is_shutting_down:
                yield from step(simulation, distro, choice)

        return f"{name} {distro.name}", True, if_up()

    return happens


def by(name: str, step: Callable[[Simulation, int], Step]) -> Happens:
    return lambda simulation, _distro, choice: (name, False, step(simulation, choice))


def change_rules(simulation: Simulation, distro: Distro, choice: int) -> Step:
    """Change a rule, remove it, or add one; then have a service read it."""
    distro.changed_rules = True
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
        distro.reread = actors.is_active(distro, rules.SYSTEMD_BINFMT)
    else:
        yield from actors.systemd_binfmt(distro, is_service=False)


def fails(simulation: Simulation, distro: Distro, choice: int) -> Step:
    """Restart a service with a rule that is refused."""
    distro.changed_rules = True
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
    def step(_simulation: Simulation, _choice: int) -> Step:
        for name, data in steps:
            yield from actors.put(name, data)

    return step


def own_by_hand(data: bytes) -> Callable[[Simulation, int], Step]:
    def step(simulation: Simulation, choice: int) -> Step:
        names = [entry.name for entry in simulation.table.entries if not is_ours(entry.name)]
        if names:
            yield from actors.put(names[choice % len(names)], data)

    return step


def rival(_simulation: Simulation, choice: int) -> Step:
    yield from actors.put("register", RIVALS[choice % len(RIVALS)])


def no_rival(_simulation: Simulation, choice: int) -> Step:
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
    distro = simulation.distros[choice % len(simulation.distros)]
    for rule in distro.rules()[rules.BINFMT_SUPPORT]:
        yield from actors.put(actors.name_of(rule), b"-1")


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
    yield 0.05 * (choice % 13)
    distro.programs.add("/init")
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
    "update-binfmts --disable": by("package", lambda sim, choice: disables(sim, choice)),
    "refusals": by("kernel", refuses),
    "full /run": by("disk", fills_run),
    "no /init": by("/init", no_init),
    "switch off": by("administrator", writes(("status", b"0"))),
    "switch on": by("administrator", writes(("status", b"1"))),
}


def shrink(history: History, promise: str, tries: int = 400) -> History:
    """Leave out what the broken promise does not take."""
    kind = key_of(promise)

    def breaks(smaller: History) -> bool:
        nonlocal tries
        tries -= 1
        return tries > 0 and key_of(simulate(smaller).broken) == kind

    changed = True
    while changed and tries > 0:
        changed = False
        size = max(1, len(history.events) // 2)
        while size:
            at = 0
            while at < len(history.events):
                smaller = dataclasses.replace(history, events=history.events[:at] + history.events[at + size :])
                if breaks(smaller):
                    history, changed = smaller, True
                else:
                    at += size
            size //= 2
        candidates = [dataclasses.replace(history, rounds=number) for number in range(history.rounds)]
        candidates += [dataclasses.replace(history, slow=0.0, late=0.0), dataclasses.replace(history, late=0.0)]
        used = max((event.distro for event in history.events), default=0) + 1
        candidates += [dataclasses.replace(history, distros=history.distros[:used])]
        for index, (is_protected, generation, *own) in enumerate(history.distros):
            for part in 0, 1:
                for left_out in own[part]:
                    less = [tuple(rule for rule in own[part] if rule != left_out) if part == p else own[p] for p in (0, 1)]
                    changed_distro = (is_protected, generation, less[0], less[1])
                    distros = (*history.distros[:index], changed_distro, *history.distros[index + 1 :])
                    candidates.append(dataclasses.replace(history, distros=distros))
        for smaller in candidates:
            smaller = dataclasses.replace(smaller, distros=smaller.distros, events=history.events)
            if smaller != history and len(repr(smaller)) <= len(repr(history)) and breaks(smaller):
                history, changed = smaller, True
                break
    return history


def key_of(promise: str) -> str:
    """Tell which promise a text is about, whichever actor broke it."""
    return " ".join(word for word in promise.split() if not any(character.isdigit() for character in word) and len(word) > 1)
