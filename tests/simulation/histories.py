# SPDX-License-Identifier: MIT
"""Histories: what is to happen, drawn from a seed; running it, and shrinking what breaks a promise."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import actors
import events
import syscalls
import world
from actors import Step
from promises import Promises
from scheduler import Script, Simulation

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


QUIET_AFTER = 80.0  # seconds after which all must have settled


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLOSE = 0.05  # seconds between two events that are taken for concurrent


@dataclass(frozen=True)
class Event:
    """Something that happens."""

    round: int
    at: float  # seconds from the beginning of its round
    kind: str
    distro: int
    choice: int  # which rule, service or number it is about

    def is_close_to(self, other: Event) -> bool:
        """Whether both happen at about the same time."""
        return self.round == other.round and abs(self.at - other.at) < CLOSE

    def __str__(self) -> str:
        return f"round {self.round} at {self.at:.4f}: {self.kind} {LETTERS[self.distro]} {self.choice}"


@dataclass(frozen=True)
class History:
    """What is to happen."""

    seed: str
    distros: tuple[tuple[str, str, tuple[int, ...], tuple[int, ...]], ...]
    events: tuple[Event, ...]
    rounds: int
    slow: float  # how probable it is that an operation waits for the processor: milliseconds, or up to seconds
    late: float

    def describe(self) -> list[str]:
        """Say what is to happen, a line each."""
        lines = []
        for number, (kind, generation, *own) in enumerate(self.distros):
            names = [[actors.name_of(events.RULES[rule]) for rule in rules_of_one] for rules_of_one in own]
            rules = f"binfmt.d: {' '.join(names[0]) or 'none'}, binfmt-support: {' '.join(names[1]) or 'none'}"
            lines.append(f"distro {LETTERS[number]}: {kind}, WSL {generation}, {rules}")
        return [*lines, *map(str, self.events)]


def draw(seed: str, kinds: Collection[str] = ()) -> History:
    """Draw a history. kinds: of events; any if there are none."""
    drawn = random.Random(seed)
    distros = []
    for number in range(drawn.choice((1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 6)) if drawn.random() < 0.99 else 20):
        of_binfmt_d = drawn.sample(range(len(events.OWN)), drawn.randrange(4))
        if drawn.random() < 0.15:
            of_binfmt_d.append(len(events.OWN) + drawn.randrange(len(events.RIVALS)))
        # By a seed of its own, so that all else is drawn as before.
        if random.Random(f"{seed} {number}").random() < 0.15:
            of_binfmt_d.append(events.RULES.index(actors.OVERRIDE))
        of_update_binfmts = drawn.sample(range(len(events.OWN)), drawn.choice((0, 0, 0, 1, 2)))
        share = 0.5 if number == 0 else drawn.random()
        kind = world.WITHOUT if share >= 0.7 else world.WITHOUT_INTEROP if share < 0.1 else world.PROTECTED
        distros.append((kind, drawn.choice(("2.0.9", "2.6", "3.0")), tuple(of_binfmt_d), tuple(of_update_binfmts)))
    rounds = drawn.choice((1, 2, 2, 3))
    length = 10 ** drawn.uniform(-3, 0.4)
    among = [*kinds] or drawn.sample(list(events.EVENTS), drawn.choice((2, 3, 3, 5, 8, len(events.EVENTS))))
    drawn_events = []
    for _ in range(drawn.choice((2, 3, 5, 8, 12)) * rounds):
        # Some follow each other closely, others are far between.
        at = drawn.uniform(0, length) if drawn.random() < 0.5 else 10 ** drawn.uniform(-4.5, -0.5)
        kind, distro, choice = drawn.choice(among), drawn.randrange(len(distros)), drawn.randrange(100)
        drawn_events.append(Event(drawn.randrange(rounds), at, kind, distro, choice))
    drawn_events.sort(key=lambda event: (event.round, event.at))
    slow, late = drawn.choice(((0.0, 0.0), (0.02, 0.0), (0.1, 0.002), (0.02, 0.01)))
    return History(seed, tuple(distros), tuple(drawn_events), rounds, slow, late)


def simulate(history: History, *, verbose: bool = False) -> Simulation:
    """Have a history happen."""
    simulation = Simulation(history.seed, history.slow, history.late, verbose=verbose)
    simulation.promises = Promises(simulation)
    simulation.on_end = actors.watch_ends
    for number, (kind, generation, of_binfmt_d, of_update_binfmts) in enumerate(history.distros):
        distro = world.Distro(number, kind, generation)
        for rule in of_binfmt_d:
            events.add_rule(distro, events.RULES[rule])
        for rule in of_update_binfmts:
            distro.files[f"/var/lib/binfmts/{actors.name_of(events.OWN[rule])}"] = world.file_of_update_binfmts(
                events.OWN[rule]
            )
        distro.learn()
        simulation.distros.append(distro)
    simulation.start("history", None, "other", script(simulation, history))
    syscalls.Running.simulation = simulation
    simulation.run()
    return simulation


def script(simulation: Simulation, history: History) -> Script:
    """Boot all distros, then have each round happen, and wait until all is quiet after each."""
    yield from actors.put("register", world.WSL)
    started = [
        simulation.start(f"boot {distro.name}", distro, events.role(distro), actors.boot(simulation, distro))
        for distro in simulation.distros
    ]
    yield from until_quiet(simulation, started)
    for number in range(history.rounds):
        start = simulation.now
        started = []
        for index, event in enumerate(history.events):
            if event.round == number:
                yield max(0.0, start + event.at - simulation.now)
                distro = simulation.distros[event.distro]
                name, of, step = events.EVENTS[event.kind](simulation, distro, event.choice)
                simulation.tell(None, f"-- {event}")
                started.append(
                    simulation.start(
                        f"{name} {index}", distro if of else None, events.role(distro) if of else "other", step
                    )
                )
        yield from until_quiet(simulation, started)


def until_quiet(simulation: Simulation, started: Sequence[object]) -> Step:
    """Wait until all scripts of a round have ended and no watch has anything to do."""
    end = simulation.now + QUIET_AFTER
    while True:
        is_running = any(actor in started or "systemd" in actor.name for actor in simulation.actors)
        if is_running:
            end = simulation.now + QUIET_AFTER
        elif all(process.is_idle() for process in simulation.processes()):
            break
        elif simulation.now > end:
            busy = [
                f"{process.name} until {process.ready - 1000}"
                for process in simulation.processes()
                if not process.is_idle()
            ]
            simulation.breaks(f"the watches do not come to rest: {' '.join(busy)}")
        yield 0.05
    simulation.promises.quiet()
    simulation.tell(None, "-- all is quiet")


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
        for index, (kind, generation, *own) in enumerate(history.distros):
            for part in 0, 1:
                for left_out in own[part]:
                    less = [
                        tuple(rule for rule in own[part] if rule != left_out) if part == p else own[p] for p in (0, 1)
                    ]
                    changed_distro = (kind, generation, less[0], less[1])
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
    return " ".join(
        word for word in promise.split() if not any(character.isdigit() for character in word) and len(word) > 1
    )
