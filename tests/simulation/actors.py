# SPDX-License-Identifier: MIT
"""What programs, services and people do to the table, as scripts of single operations."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Generator

import world
from scheduler import Actor, Process, Script, Scripted, Simulation
from wsl_binfmt import command, own, rules, watch

if TYPE_CHECKING:
    from world import Distro

SIGHUP, SIGTERM, SIGKILL = 1, 15, 9
Step = Generator[Any, Any, Any]
OVERRIDE = b":WSLInterop:M::MZ::/init:P\n"
LATE = b":WSLInterop-late:M::MZ::/init:P\n"


def name_of(rule: bytes) -> str:
    """Tell the name in a rule."""
    return rule[1:].split(rule[:1])[0].decode()


def put(name: str, data: bytes) -> Step:
    """Write to a file of the table, as `echo DATA >NAME` does; returns an errno."""
    try:
        file = yield lambda me: me.simulation.open(me, name)
        yield lambda me: me.simulation.write(me, file, data)
    except OSError as e:
        return e.errno
    return 0


def names() -> Step:
    """List the table."""

    def listed(me: Actor) -> list[str]:
        return [entry.name for entry in me.simulation.table.entries]

    return (yield listed)


def wipe(distro: Distro | None) -> Step:
    """Remove every entry, where `status` can be written to."""
    if distro and distro.guards_status:
        return errno.EROFS
    return (yield from put("status", b"-1"))


def systemd_binfmt(distro: Distro, *, is_service: bool) -> Step:
    """Do as systemd-binfmt does without arguments; returns whether each rule was accepted."""
    if not (is_service and distro.protected):
        yield from wipe(distro)
    failures = []
    for rule in distro.rules()["systemd-binfmt.service"]:
        yield from put(name_of(rule), b"-1")
        failures.append((yield from put("register", rule)))
    return not any(failures)


def update_binfmts(distro: Distro) -> Step:
    """Do as `update-binfmts --enable` does, which also switches the table on, where `status` can be written to."""
    for _ in range(0 if distro.guards_status else 2):
        yield from put("status", b"1")
    there = yield from names()
    for rule in distro.rules()["binfmt-support.service"]:
        if name_of(rule) not in there:
            yield from put("register", rule)
    return True


def update_binfmts_disable(distro: Distro) -> Step:
    """Remove entries by their names as `update-binfmts --disable` does, whichever program has registered them."""
    there = yield from names()
    for rule in distro.rules()["binfmt-support.service"]:
        if name_of(rule) in there:
            yield from put(name_of(rule), b"-1")


def link(distro: Distro, service: str, invocation: int) -> Step:
    """Have systemd make or remove the link by which a service is known to be active."""

    def do(me: Actor) -> None:
        path = f"{own.UNITS}/invocation:{service}"
        distro.links.pop(path, None)
        if invocation:
            distro.links[path] = str(invocation)
        me.simulation.tell(me, f"{service} is {'active' if invocation else 'inactive'}")
        for process in me.simulation.processes():
            if process.distro is distro and process.on_units:
                process.receive(process.on_units)

    yield do


def is_active(distro: Distro, service: str) -> bool:
    """Whether a service is active."""
    return f"{own.UNITS}/invocation:{service}" in distro.links


def boot_service(simulation: Simulation, distro: Distro) -> Step:
    """Register WSLInterop if it is missing when wsl-binfmt-boot.service starts."""
    if distro.has_watch and simulation.table.get("WSLInterop") is None:
        yield 0.003
        yield from put("WSLInterop", b"-1")
        yield from put("register", world.WSL)


def start(simulation: Simulation, distro: Distro, service: str) -> Step:
    """Start a service, which is skipped where it has no rules."""
    if is_active(distro, service) or not distro.rules()[service]:
        return
    yield from boot_service(simulation, distro)
    distro.failed.discard(service)
    yield from link(distro, service, simulation.operations)
    distro.started[service] = simulation.now
    yield 0.002  # systemd starts the program after that
    program = systemd_binfmt(distro, is_service=True) if service == rules.SYSTEMD_BINFMT else update_binfmts(distro)
    if not (yield from program):
        distro.failed.add(service)
        yield from link(distro, service, 0)
    if not distro.protected and distro.generation == "2.6":
        yield from put("WSLInterop", b"-1")
        yield from put("register", OVERRIDE)


def stop(simulation: Simulation, distro: Distro, service: str) -> Step:
    """Stop a service."""
    if is_active(distro, service):
        left = 0.0
        if distro.protected and not distro.has_watch:
            left = yield from leave(simulation, distro, service)
        if not distro.protected and distro.generation != "2.6":
            if service == rules.SYSTEMD_BINFMT:
                yield from wipe(distro)
            else:
                yield from update_binfmts_disable(distro)
        yield from link(distro, service, 0)
        process = watch_of(simulation, distro)
        # One that has not seen the start cannot see the stop.
        is_known = process and process.looked > distro.started.get(service, 0.0) and not distro.no_init_since
        distro.stopped[service] = simulation.now if is_known else left


def leave(simulation: Simulation, distro: Distro, service: str) -> Step:
    """Do as `wsl-binfmt leave` does, where there is no watch; returns when, or 0 if that failed."""
    distro.watches += 1
    name, began, status = f"leave {distro.name}{distro.watches}", simulation.now, [1]

    def main() -> None:
        status[:] = [command.run(["leave", service])]

    process = simulation.start_process(name, distro, main)
    while not process.has_ended:
        yield 0.001
    return 0.0 if status[0] else began


def restart(simulation: Simulation, distro: Distro, service: str) -> Step:
    """Restart a service."""
    yield from stop(simulation, distro, service)
    yield 0.004
    yield from start(simulation, distro, service)


def reload(simulation: Simulation, distro: Distro, service: str) -> Step:
    """Reload a service of a protected distro, and then the watch."""
    if distro.protected and is_active(distro, service):
        if service == rules.SYSTEMD_BINFMT:
            yield from systemd_binfmt(distro, is_service=True)
        else:
            yield from update_binfmts(distro)
        yield from boot_service(simulation, distro)
        yield from signal(distro, SIGHUP)


def signal(distro: Distro, number: int) -> Step:
    """Send the watch of a distro a signal."""

    def do(me: Actor) -> None:
        for process in me.simulation.processes():
            if process.distro is distro:
                me.simulation.tell(me, f"sends {process.name} signal {number}")
                process.receive(number)

    yield do


def watch_of(simulation: Simulation, distro: Distro) -> Process | None:
    """Find the watch of a distro."""
    return next((process for process in simulation.processes() if process.distro is distro), None)


def start_watch(simulation: Simulation, distro: Distro) -> None:
    """Start a watch, if there is none."""

    def main() -> None:
        def tell(message: str, *, repair: bool = False) -> None:
            simulation.tell(simulation.current, f"says: {message}" + repair * " (repair)")

        try:
            watch.Watch(tell).run()
        except OSError as e:
            tell(f"ends: {e}")

    if distro.has_watch and watch_of(simulation, distro) is None:
        distro.watches += 1
        simulation.start_process(f"watch {distro.name}{distro.watches}", distro, main)


def watch_ends(process: Process) -> None:
    """Have systemd start a watch again that has ended."""

    def again() -> Script:
        yield 0.2
        if distro.is_up and not distro.is_shutting_down:
            start_watch(process.simulation, distro)

    distro = process.distro
    if distro.has_watch and distro.is_up and not distro.is_shutting_down:
        process.simulation.start(f"systemd of {distro.name}", distro, "service", again())


def boot(simulation: Simulation, distro: Distro) -> Step:
    """Boot a distro."""
    if distro.is_up:
        return
    distro.is_up, distro.booted = True, simulation.now
    distro.is_shutting_down = distro.is_shutdown = False
    simulation.tell(None, f"{distro.name} boots")
    yield from boot_service(simulation, distro)
    for service in rules.SERVICES:
        yield from start(simulation, distro, service)
    if distro.has_watch:
        start_watch(simulation, distro)
    elif not distro.protected and distro.generation == "2.0.9":
        yield from put("register", LATE)


def shutdown(simulation: Simulation, distro: Distro) -> Step:
    """Shut a distro down."""
    if not distro.is_up or distro.is_shutting_down:
        return
    distro.is_shutting_down = True

    def ends_services(me: Actor) -> None:
        for actor in simulation.actors:
            if actor.distro is distro and isinstance(actor, Scripted) and actor is not me:
                actor.end()

    yield ends_services
    for service in rules.SERVICES:
        yield from stop(simulation, distro, service)
    yield 0.02
    distro.is_shutdown, distro.leaves = True, simulation.now
    yield from wipe(distro)
    yield from signal(distro, SIGTERM)
    deadline = simulation.now + 10
    had_watch = not distro.has_watch or watch_of(simulation, distro) is not None
    while watch_of(simulation, distro) and simulation.now < deadline:
        yield 0.001
    distro.ended_cleanly = had_watch and watch_of(simulation, distro) is None
    yield from ends(simulation, distro)


def ends(simulation: Simulation, distro: Distro) -> Step:
    """Have all processes of a distro killed."""

    def do(me: Actor) -> None:
        simulation.tell(me, f"{distro.name} has ended")
        for actor in simulation.actors:
            if actor.distro is distro and actor is not me:
                if isinstance(actor, Process):
                    actor.receive(SIGKILL)
                else:
                    actor.end()
        distro.is_up, distro.ended = False, simulation.now
        distro.saved = set()
        distro.known_off, distro.first_looked = None, 0.0
        distro.links.clear()
        distro.failed.clear()
        distro.files = {path: text for path, text in distro.files.items() if not path.startswith("/run/")}

    yield do


def crash(simulation: Simulation, distro: Distro) -> Step:
    """Have a distro end at once."""
    if distro.is_up:
        distro.ended_cleanly = False
        yield from ends(simulation, distro)


def container_installs(rules: list[bytes]) -> Step:
    """Do as `tonistiigi/binfmt --install` does."""
    there = yield from names()
    for rule in rules:
        if name_of(rule) not in there:
            yield from put("register", rule)


def container_resets(rules: list[bytes]) -> Step:
    """Do as `multiarch/qemu-user-static --reset -p yes` does."""
    for name in (yield from names()):
        if name.startswith("qemu-"):
            yield from put(name, b"-1")
            yield 0.01
    for rule in rules:
        yield from put("register", rule)
        yield 0.001
