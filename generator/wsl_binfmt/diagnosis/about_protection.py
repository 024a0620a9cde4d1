# SPDX-License-Identifier: MIT
"""Problems of what protects this distro: the generator, its units and drop-ins, and the rules of binfmt.d."""

from __future__ import annotations

import re
from typing import Iterator, List, Optional

from wsl_binfmt import table
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.problems import (
    DROP_IN,
    GENERATED,
    GENERATOR,
    GUARD,
    NOTE,
    RELOAD,
    SERVICE,
    SERVICES,
    WARNING,
    WATCH,
    Found,
    binfmt_d,
    can_change,
    is_pending,
    problem,
    quote,
)  # fmt: skip


def unit(machine: m.Machine, name: str) -> m.Unit:
    """Find what is known of a unit."""
    return (machine.protection.units or {}).get(name, m.Unit())


def is_guarded(machine: m.Machine) -> bool:
    """Whether nothing in this distro can empty the table by its file `status`."""
    over = machine.table.over_status
    # A session of an elevated terminal has mounts of its own, and may not see that of the unit.
    return (over is not None and "ro" in over.options) or unit(machine, GUARD).active == "active"


def activate(machine: m.Machine) -> str:
    """Make the command that has systemd run the generators, and starts what they want."""
    wanted = [GUARD] if machine.conf.protect else []
    wanted += [WATCH] if machine.conf.protect and machine.conf.interop else []
    return RELOAD + (f" && sudo systemctl start {' '.join(wanted)}" if wanted else "")


def _generated(machine: m.Machine) -> List[m.Generated]:
    return machine.protection.generated or []


def _is_active(machine: m.Machine) -> bool:
    """Whether the generator has written anything."""
    return any(each.state != "missing" for each in _generated(machine))


def wants(machine: m.Machine, name: str) -> bool:
    """Whether the generator has linked a unit, and would do so now."""
    # Where the link is missing, the cause of that is named.
    links = [each for each in _generated(machine) if each.path.endswith(f"/{name}")]
    return any(each.is_wanted and each.state == "right" for each in links)


@problem(WARNING)
def generator_masked(machine: m.Machine) -> Iterator[Found]:
    """Another file hides the generator, so that nothing protects this distro.

    Of several generators with the same name, systemd runs only that in the first
    directory. A link to /dev/null is a way to switch this package off. If that
    was on purpose, leave it.
    """
    masked = machine.protection.masked_by
    if masked and machine.system.has_systemd:
        evidence = [f"{masked.path} hides {GENERATOR}"]
        if masked.is_link:
            yield Found(evidence, f"sudo rm {quote(masked.path)} && {activate(machine)}")
        else:
            yield Found(evidence, advice="Move that file to another directory, unless it is there on purpose.")


@problem(WARNING)
def generator_missing_output(machine: m.Machine) -> Iterator[Found]:
    """The generator ran and failed.

    Its message in the kernel log says why.

    Mend the cause, and run `sudo systemctl daemon-reload`.
    """
    failure = _failure(machine)
    if failure and _is_reload_due(machine):
        yield Found([failure, *_stale(machine)], activate(machine))


def _failure(machine: m.Machine) -> str:
    """Tell what the generator said when it failed last; "" if it is not known to have failed."""
    said = [each.text for each in machine.protection.messages or [] if each.source == "wsl-binfmt-generator"]
    failures = [text for text in said if "cannot write" in text or "unexpected" in text]
    if machine.protection.has_generated:
        return failures[-1] if failures else "it is not known here why: sudo journalctl -t wsl-binfmt-generator"
    return failures[-1] if failures and not _is_active(machine) else ""


@problem(WARNING)
def reload_needed(machine: m.Machine) -> Iterator[Found]:
    """What the generator has written is out of date.

    /etc/wsl.conf, a drop-in or this package has changed since systemd ran the
    generators, or systemd has not read what they wrote.

    Run `sudo systemctl daemon-reload`.
    """
    if _is_reload_due(machine) and not _failure(machine):
        yield Found(_stale(machine), activate(machine))
        return
    for name in SERVICES:
        service = unit(machine, name)
        if service.needs_reload and _has_drop_in(machine, name) and not is_guarded_by_drop_in(service):
            yield Found([f"systemd has not read {GENERATED}/{name}.d/{DROP_IN}"], RELOAD)
            return


def _is_reload_due(machine: m.Machine) -> bool:
    # A change since the distro started takes effect at its next start.
    is_known = machine.conf.state in (m.THERE, m.GONE) and not is_pending(machine)
    return is_known and machine.system.has_systemd and not machine.protection.masked_by and bool(_stale(machine))


def _stale(machine: m.Machine) -> List[str]:
    """Tell which files are not as the generator would write them now, three of each kind at most."""
    stale = [
        f"{_full(each.path)} is missing or old" for each in _generated(machine) if each.state in ("missing", "old")
    ]
    unwanted = [_full(each.path) for each in _generated(machine) if not each.is_wanted]
    return stale[:3] + [f"{path} would not be written now" for path in unwanted[:3]]


def _full(path: str) -> str:
    """Tell the path of what the generator writes."""
    is_early = path.startswith("early/")
    return f"{GENERATED}.early/{path[len('early/') :]}" if is_early else f"{GENERATED}/{path}"


def _has_drop_in(machine: m.Machine, name: str) -> bool:
    return any(each.path == f"{name}.d/{DROP_IN}" and each.state == "right" for each in _generated(machine))


def is_guarded_by_drop_in(service: m.Unit) -> bool:
    """Whether a service cannot empty the table, as our drop-in has it."""
    return f"/dev/null:{table.DIRECTORY}/status" in service.bind_paths


@problem(WARNING)
def override_in_the_way(machine: m.Machine) -> Iterator[Found]:
    """A drop-in undoes a drop-in of this package.

    It empties the setting BindPaths=, or hides the drop-in of this package by
    having its name. A start or stop of the service then empties the table.

    Remove that line, or give the file another name.
    """
    for name in SERVICES:
        service = unit(machine, name)
        if service.load != "loaded" or not _has_drop_in(machine, name) or service.needs_reload:
            continue
        if is_guarded_by_drop_in(service):
            continue
        others = [each for each in service.drop_ins if not each.path.startswith(GENERATED)]
        for each in others:
            if each.path.endswith(f"/{DROP_IN}"):
                yield Found([each.path], f"{put_away(each)} && {RELOAD}")
                break
            if any(re.match(r"BindPaths\s*=\s*$", line) for line in each.lines):
                path = quote(each.path)
                yield Found(
                    [each.path], f"sudo sed -i '/^[[:space:]]*BindPaths[[:space:]]*=[[:space:]]*$/d' {path} && {RELOAD}"
                )
                break
        else:
            yield Found([each.path for each in others] or [f"systemctl show {name} has no BindPaths= of ours"])


def put_away(file: m.DropIn) -> str:
    """Make the command that has systemd read a file no more, and keeps what it says."""
    path = quote(file.path)
    return f"sudo rm {path}" if file.is_link else f"sudo mv {path} {quote(file.path + '.off')}"


@problem(WARNING)
def guard_inactive(machine: m.Machine) -> Iterator[Found]:
    """Nothing keeps this distro from emptying the table.

    The guard is a read-only file, mounted over the table's file `status`. Without
    the guard, the shutdown of this distro empties the table for all distros.

    Start the guard. `systemctl status proc-sys-fs-binfmt_misc-status.mount` says
    why it is not active.
    """
    state = unit(machine, GUARD)
    if machine.protection.units is None or state.load == "masked" or not wants(machine, GUARD):
        return
    if can_change(machine) and not is_guarded(machine):
        yield Found([f"{GUARD} is {state.active or 'unknown'}"], f"sudo systemctl start {GUARD}")


@problem(WARNING)
def watch_inactive(machine: m.Machine) -> Iterator[Found]:
    """The watch does not run: nothing repairs what others do to the table.

    Another distro, a container or a package can remove WSLInterop, or register
    an entry that takes Windows programs. The watch is the process that repairs
    that.

    Start the watch. `systemctl status wsl-binfmt-watch.service` says why it does
    not run.
    """
    state = unit(machine, WATCH)
    if state.load == "masked" or not wants(machine, WATCH) or not can_change(machine):
        return
    if machine.protection.watch is None and machine.protection.is_watch_known:
        evidence = ["there is no process `wsl-binfmt watch`"]
        if state.active:
            evidence.append(f"{WATCH} is {state.active}")
        if state.fragment and not state.fragment.endswith(f"lib/systemd/system/{WATCH}"):
            evidence.append(f"{WATCH} is read from {state.fragment}, which is not of this package")
            # One of an administrator, with the name of ours.
            away = f"{put_away(m.DropIn(state.fragment))} && {RELOAD} && sudo systemctl restart {WATCH}"
            yield Found(evidence, away if state.fragment.startswith("/etc/") else None)
            return
        # A unit whose process is another one is active already.
        action = "restart" if state.active == "active" else "start"
        yield Found(evidence, f"sudo systemctl {action} {WATCH}")


@problem(WARNING)
def unit_masked(machine: m.Machine) -> Iterator[Found]:
    """A unit is masked.

    If that was on purpose, leave it. Many users were advised to mask
    systemd-binfmt.service, as it removed WSLInterop. With this package, the
    service does not do so, and unmasking it is safe. For that service this is a
    note: while it is masked, the rules of binfmt.d are not registered, and nothing
    else is wrong.
    """
    for name in (GUARD, WATCH, SERVICE):
        state = unit(machine, name)
        is_service = name == SERVICE
        if state.load != "masked" or not (
            is_service or any(each.path.endswith(f"/{name}") for each in _generated(machine))
        ):
            continue
        evidence = [f"{name} is masked"]
        fix: Optional[str] = (
            f"sudo systemctl unmask {name} && sudo systemctl {'restart' if is_service else 'start'} {name}"
        )
        if state.fragment.startswith("/run/"):
            fix = f"sudo systemctl unmask --runtime {name} && sudo systemctl start {name}"
        elif state.fragment and not state.fragment.startswith("/etc/"):
            fix = None
        if state.fragment:
            evidence.append(state.fragment)
        waiting = {rule.path for rule in binfmt_d(machine)}
        if is_service and waiting:
            evidence += [f"the rules of {path} are not registered" for path in sorted(waiting)]
        advice = "With this package, unmasking it is safe: it does not empty the table any more." if is_service else ""
        yield Found(evidence, fix, advice, severity=NOTE if is_service else WARNING)


@problem(NOTE)
def drop_in_set_aside(machine: m.Machine) -> Iterator[Found]:
    """A drop-in that registers WSLInterop has no effect any more.

    It does what this package does, and would fail beside it. So the generator
    masks it, by a link to /dev/null below /run/systemd/generator.early. The file
    itself is unchanged. You may remove it.
    """
    for path in machine.protection.set_aside:
        yield Found([path])
