# SPDX-License-Identifier: MIT
"""Problems of what protects this distro: the generator, its units and drop-ins, and the rules of binfmt.d."""

from __future__ import annotations

import os
import re
from typing import Iterator, List, Optional

from wsl_binfmt import interop, table
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.problems import (
    DROP_IN,
    GENERATED,
    GENERATOR,
    GUARD,
    NOTE,
    RELOAD,
    RESTART,
    SERVICE,
    SERVICES,
    WARNING,
    WATCH,
    Found,
    can_change,
    comment_out,
    is_pending,
    matches,
    problem,
    quote,
)  # fmt: skip

ADMINISTRATORS = "/etc/", "/run/"
# What systemd-binfmt says of a rule that the kernel refused.
REFUSED_RULE = re.compile(r"(/\S+\.conf):(\d+): (.*)")


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

    systemd runs the file of that name in the directory that comes first. A link
    to /dev/null is a way to switch this package off: if that was on purpose,
    leave it.
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

    Its message in the kernel log says what could not be written.
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

    /etc/wsl.conf, a drop-in or this package has changed since systemd has run
    the generators, or systemd has not read what they wrote.
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
    # What was changed since the distro has started counts from its next start on.
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
    """A drop-in undoes what those of this package do.

    It empties the setting BindPaths=, or hides the drop-in by its name. A start
    or stop of the service then empties the table.
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

    The guard is a file that cannot be written, over the table's file `status`.
    Without it, the shutdown of this distro empties the table for all distros.
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

    If that was on purpose, leave it. Many people were advised to mask
    systemd-binfmt.service, as it removed WSLInterop. With this package it does
    not, and unmasking it is safe. While it is masked, no rule of binfmt.d is
    registered, and nothing else is at risk, so for that service this is a note.
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


def binfmt_d(machine: m.Machine) -> List[m.Rule]:
    """List the rules of binfmt.d, without those of update-binfmts."""
    return [rule for rule in machine.protection.rules if rule.line]


def guilty_conditions(machine: m.Machine) -> List[m.DropIn]:
    """List the drop-ins of an administrator or a distribution that have systemd-binfmt.service skipped."""
    service = unit(machine, SERVICE)
    if service.condition is not False or service.active not in ("inactive", "dead", ""):
        return []
    return [
        each
        for each in service.drop_ins
        if not each.path.endswith(f"/{DROP_IN}")
        and any(re.match(r"(Condition|Assert)\w+\s*=", line) for line in each.lines)
    ]


def lift(drop_in: m.DropIn) -> str:
    """Make the command that has a drop-in skip systemd-binfmt.service no more, and registers the rules."""
    path, name = drop_in.path, os.path.basename(drop_in.path)
    if path.startswith(ADMINISTRATORS):
        # What else the file says stays.
        script = "/^[[:space:]]*\\(Condition\\|Assert\\)[A-Za-z]*[[:space:]]*=/d"
        command = f"sudo sed -i '{script}' {quote(path)}"
    else:  # of a package, which would bring it back
        directory = f"/etc/systemd/system/{SERVICE}.d"
        command = f"sudo mkdir -p {directory} && sudo ln -s /dev/null {quote(f'{directory}/{name}')}"
    return f"{command} && {RELOAD} && {RESTART}"


@problem(WARNING)
def unit_skipped(machine: m.Machine) -> Iterator[Found]:
    """systemd-binfmt.service was skipped: no rule of binfmt.d is registered.

    A condition does not hold, such as ConditionVirtualization=!wsl in a drop-in
    that Ubuntu has had in /usr/lib, and that Microsoft has documented. It was to
    protect WSLInterop. With this package the service does not remove WSLInterop,
    and lifting the condition is safe. Do not write an empty
    ConditionVirtualization=: that drops every condition of the unit.
    Windows programs start; those for other processors do not.
    """
    rules = binfmt_d(machine)
    service = unit(machine, SERVICE)
    if service.condition is not False or service.active != "inactive" or not rules or not can_change(machine):
        return
    if all(any(entry.name == rule.name for entry in machine.table.entries or []) for rule in rules):
        return
    guilty = guilty_conditions(machine)
    evidence = [each.path for each in guilty] or [f"systemctl status {SERVICE}"]
    evidence += [f"{rule.path}:{rule.line}: {rule.name} is not registered" for rule in rules][:5]
    advice = "With this package that is safe: the service does not empty the table any more." if guilty else ""
    yield Found(evidence, lift(guilty[0]) if guilty else None, advice)


@problem(WARNING)
def unit_failed(machine: m.Machine) -> Iterator[Found]:
    """systemd-binfmt.service has failed.

    Either the kernel refused a rule of binfmt.d; the rules after it were
    registered. Or WSL 2.8.9 or later did not let the service empty the table,
    which makes systemd 250 to 261 fail, if the drop-in of this package is not in
    effect. The system is then `degraded`, and `nixos-rebuild switch` fails.
    """
    service = unit(machine, SERVICE)
    if service.active != "failed":
        return
    said = [each.text for each in machine.protection.messages or [] if each.source == SERVICE]
    found = [(each[1], int(each[2]), each[3]) for each in map(REFUSED_RULE.search, said) if each]
    present = {entry.name for entry in machine.table.entries or []}
    if not found and not machine.protection.messages:
        rules = binfmt_d(machine)
        found = [
            (rule.path, rule.line, f"{rule.name} is not in the table") for rule in rules if rule.name not in present
        ]
    if found:
        path, line, _ = found[0]
        evidence = list(dict.fromkeys(f"{path}:{line}: {text}" for path, line, text in found))
        yield Found(evidence, f"{comment_out(path, line)} && {RESTART}")
    elif is_guarded_by_drop_in(service):
        # What failed was a start before the drop-in was in effect.
        yield Found(said[-3:] or [f"systemctl status {SERVICE}"], RESTART)
    elif machine.table.over_status and "ro" in machine.table.over_status.options:
        causes = (generator_masked, reload_needed, generator_missing_output, override_in_the_way)
        fixes = [each.fix for cause in causes for each in cause(machine)]
        yield Found(
            [f"{table.DIRECTORY}/status is read-only, by {_owner(machine)}", *said[-1:]],
            f"{fixes[0]} && {RESTART}" if fixes and fixes[0] else None,
            "This package's drop-in cures that; see why it is not in effect." if not fixes else "",
            summary="systemd-binfmt.service has failed, as it may not empty the table: the system is degraded.",
        )
    else:
        yield Found(said[-3:] or [f"systemctl status {SERVICE}"], advice=f"See `systemctl status {SERVICE}`.")


def _owner(machine: m.Machine) -> str:
    over = machine.table.over_status
    return "our guard" if over and "/wsl-binfmt-generator/" in over.root else "WSL's lock"


@problem(WARNING)
def rule_redefines_wslinterop(machine: m.Machine) -> Iterator[Found]:
    """A rule of binfmt.d registers WSLInterop.

    Each restart of systemd-binfmt.service registers it, and the watch has to
    replace it, so that a program may fail. With this package the rule has no
    use.
    """
    for rule in binfmt_d(machine):
        if rule.name == interop.NAME:
            yield Found([f"{rule.path}:{rule.line}"], comment_out(rule.path, rule.line))


@problem(WARNING)
def rule_matches_native(machine: m.Machine) -> Iterator[Found]:
    """A rule of binfmt.d matches the programs of this machine itself.

    When it is registered, the kernel gives every program of every distro to its
    interpreter, so that none runs. The watch never brings such an entry back.
    If no program runs any more, a shell that is still open can remove the entry,
    as root, by its own echo: `echo -1 >/proc/sys/fs/binfmt_misc/NAME`.
    """
    native = bytes.fromhex(machine.system.native)
    for rule in binfmt_d(machine) if native else ():
        entry = rule.entry()
        if entry and matches(entry, native, "/usr/bin/true"):
            yield Found([f"{rule.path}:{rule.line}: {rule.name}"], comment_out(rule.path, rule.line))


@problem(NOTE)
def drop_in_set_aside(machine: m.Machine) -> Iterator[Found]:
    """A drop-in that registers WSLInterop has no effect any more.

    It did what this package does, and would fail beside it. So the generator
    hides it, by a link to /dev/null below /run/systemd/generator.early. The file
    itself is as it was. It may be removed.
    """
    for path in machine.protection.set_aside:
        yield Found([path])
