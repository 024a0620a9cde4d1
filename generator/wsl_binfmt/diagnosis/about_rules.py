# SPDX-License-Identifier: MIT
"""Problems of the rules of binfmt.d, and of the service that registers them."""

from __future__ import annotations

import os
import re
from typing import Dict, Iterator, List

from wsl_binfmt import interop, table
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.about_protection import (
    generator_masked,
    generator_missing_output,
    is_guarded_by_drop_in,
    override_in_the_way,
    reload_needed,
    unit,
)
from wsl_binfmt.diagnosis.problems import (
    DROP_IN,
    NOTE,
    RELOAD,
    RESTART,
    SERVICE,
    SERVICES,
    WARNING,
    WINDOWS,
    Found,
    binfmt_d,
    can_change,
    comment_out,
    handles_windows,
    is_nixos,
    is_rival,
    matches,
    named,
    problem,
    quote,
    said_of,
)

ADMINISTRATORS = "/etc/", "/run/"
# What systemd-binfmt says of a rule that the kernel refused.
REFUSED_RULE = re.compile(r"(/\S+\.conf):(\d+): (.*)")
NO_FILE = "No such file or directory"
UNREAD = re.compile("Failed to (read|open) file '/")


def guilty_conditions(machine: m.Machine) -> List[m.DropIn]:
    """List the drop-ins of an administrator or a distribution that have systemd-binfmt.service skipped."""
    service = unit(machine, SERVICE)
    if service.condition is not False or service.active not in ("inactive", "dead", ""):
        return []
    return [
        each
        for each in service.drop_ins
        if not each.path.endswith(f"/{DROP_IN}")
        # An empty one takes others away.
        and any(re.match(r"(Condition|Assert)\w+\s*=\s*\S", line) for line in each.lines)
    ]


def lift(drop_ins: List[m.DropIn]) -> str:
    """Make the command that has drop-ins skip systemd-binfmt.service no more, and registers the rules."""
    own = [each.path for each in drop_ins if each.path.startswith(ADMINISTRATORS)]
    # Of packages, which would bring them back.
    others = [os.path.basename(each.path) for each in drop_ins if each.path not in own]
    commands = []
    if own:
        # What else the files say stays.
        script = "/^[[:space:]]*\\(Condition\\|Assert\\)[A-Za-z]*[[:space:]]*=/d"
        commands.append(f"sudo sed -i '{script}' {' '.join(map(quote, own))}")
    if others:
        directory = f"/etc/systemd/system/{SERVICE}.d"
        commands.append(f"sudo mkdir -p {directory}")
        commands += [f"sudo ln -s /dev/null {quote(f'{directory}/{name}')}" for name in others]
    return " && ".join([*commands, RELOAD, RESTART])


@problem(WARNING)
def unit_skipped(machine: m.Machine) -> Iterator[Found]:
    """systemd-binfmt.service was skipped: no rule of binfmt.d is registered.

    A condition was not met, such as ConditionVirtualization=!wsl in a drop-in of
    Ubuntu in /usr/lib, which Microsoft has documented as well. Its purpose was to
    protect WSLInterop. With this package, the service does not remove WSLInterop,
    and lifting the condition is safe. Do not write an empty
    ConditionVirtualization=, which drops every condition of the unit.

    Windows programs start. Programs for other processors do not.
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
    # Without one, the service was skipped as there was no rule yet.
    yield Found(evidence, lift(guilty) if guilty else RESTART, advice)


@problem(WARNING)
def unit_failed(machine: m.Machine) -> Iterator[Found]:
    """systemd-binfmt.service has failed.

    The kernel may have refused a rule of binfmt.d. The other rules were
    registered. Or WSL 2.8.9 or later has not let the service empty the table: if
    the drop-in of this package is not in effect, the service of systemd 250 to 261
    then fails. The system is `degraded`, and `nixos-rebuild switch` fails.

    Correct the rule, or mend what keeps the drop-in from being in effect. Then
    restart the service.
    """
    for name in SERVICES[1:]:
        other = unit(machine, name)
        if other.active == "failed":
            restart = _start_anew(name) if is_guarded_by_drop_in(other) else None
            yield Found([f"systemctl status {name}"], restart, summary=f"{name} has failed.")
    service = unit(machine, SERVICE)
    if service.active != "failed":
        return
    said = [each.text for each in machine.protection.messages or [] if each.source == SERVICE]
    found = [(each[1], int(each[2]), each[3]) for each in map(REFUSED_RULE.search, said) if each]
    if not found:  # systemd before 250 does not say which
        refused = [rule for rule in binfmt_d(machine) if rule.entry() is None]
        found = [(rule.path, rule.line, f"the kernel refuses {rule.text}") for rule in refused]
    # If the kernel opens the interpreter, ENOENT is about that.
    without = [rule for rule in binfmt_d(machine) if rule.interpreter_state != m.THERE and rule.opens_interpreter]
    culprits = {(rule.path, rule.line) for rule in without}
    if culprits and any(NO_FILE in text for text in said) and culprits.issuperset(each[:2] for each in found):
        evidence = [
            f"{rule.path}:{rule.line}: {rule.name} has the interpreter {rule.interpreter}: "
            f"{said_of(rule.interpreter_state)}"
            for rule in without
        ]
        advice = f"Install the interpreter, or remove the rule; then `{_start_anew(SERVICE)}`."
        if is_nixos(machine):
            # The interpreters of rules are links there, which systemd-tmpfiles makes.
            yield Found(evidence, f"sudo systemd-tmpfiles --create --prefix=/run/binfmt && {_start_anew(SERVICE)}")
        else:
            yield Found(evidence, None, advice, summary="The interpreter of a rule with the flag F is missing.")
    elif found:
        evidence = list(dict.fromkeys(f"{path}:{line}: {text}" for path, line, text in found))
        lines: Dict[str, List[int]] = {}
        for path, line, _ in found:
            lines.setdefault(path, []).append(line)
        commands = [comment_out(path, *lines[path]) for path in lines]
        yield Found(evidence, " && ".join([*commands, RESTART]))
    elif any(UNREAD.search(text) for text in said):
        yield Found(said[-3:], advice=f"Mend or remove that file, then `{RESTART}`.")
    elif is_guarded_by_drop_in(service):
        # What failed was a start before the drop-in was in effect, or one of too many.
        absent = [rule for rule in binfmt_d(machine) if not named(machine, rule.name)]
        unregistered = [f"{rule.path}:{rule.line}: {rule.name} is not registered" for rule in absent]
        yield Found(said[-3:] or unregistered or [f"systemctl status {SERVICE}"], _start_anew(SERVICE))
    elif machine.table.over_status and "ro" in machine.table.over_status.options:
        causes = (generator_masked, reload_needed, generator_missing_output, override_in_the_way)
        fixes = [each.fix for cause in causes for each in cause(machine)]
        yield Found(
            [f"{table.DIRECTORY}/status is read-only, by {_owner(machine)}", *said[-1:]],
            f"{fixes[0]} && {RESTART}" if fixes and fixes[0] else None,
            "The drop-in of this package mends that, but is not in effect." if not fixes else "",
            summary="systemd-binfmt.service has failed, as it may not empty the table: the system is degraded.",
        )
    else:
        yield Found(said[-3:] or [f"systemctl status {SERVICE}"], advice=f"See `systemctl status {SERVICE}`.")


def _start_anew(service: str) -> str:
    """Make the command that starts a service also where it was started too often."""
    return f"sudo systemctl reset-failed {service} && sudo systemctl restart {service}"


def _owner(machine: m.Machine) -> str:
    over = machine.table.over_status
    return "the guard of this package" if over and "/wsl-binfmt-generator/" in over.root else "WSL's guard"


@problem(WARNING)
def rule_redefines_wslinterop(machine: m.Machine) -> Iterator[Found]:
    """A rule of binfmt.d registers WSLInterop.

    Each restart of systemd-binfmt.service removes WSLInterop and registers it
    again. A program that starts in between may fail. With this package, the rule
    is of no use.

    Remove the rule.
    """
    for rule in binfmt_d(machine):
        if rule.name == interop.NAME:
            yield Found([f"{rule.path}:{rule.line}"], comment_out(rule.path, rule.line))


@problem(NOTE, WINDOWS)
def rule_without_effect(machine: m.Machine) -> Iterator[Found]:
    """A rule of an administrator for Windows programs has no effect.

    WSLInterop stays in front of each entry that takes ordinary Windows programs,
    such as that of a wrapper. Such an entry takes effect only while WSLInterop is
    disabled.
    """
    entries = machine.table.entries or []
    first = next((entry for entry in entries if handles_windows(entry)), None)
    for rule in binfmt_d(machine):
        entry = named(machine, rule.name)
        is_behind = first and entry and is_rival(entry) and entries.index(first) < entries.index(entry)
        if is_behind and rule.path.startswith(ADMINISTRATORS):
            yield Found([f"{rule.path}:{rule.line}: {rule.name} is behind {interop.NAME}"])


@problem(WARNING)
def rule_matches_native(machine: m.Machine) -> Iterator[Found]:
    """A rule of binfmt.d matches the programs of this machine itself.

    When the rule is registered, its interpreter handles every program of every
    distro, so that none runs. The watch never registers such an entry again. If no
    program runs any more, a root shell that is still open can remove the entry by
    its own echo: `echo -1 >/proc/sys/fs/binfmt_misc/NAME`.

    Remove the rule.
    """
    native = bytes.fromhex(machine.system.native)
    for rule in binfmt_d(machine) if native else ():
        entry = rule.entry()
        if entry and matches(entry, native, "/usr/bin/true"):
            yield Found([f"{rule.path}:{rule.line}: {rule.name}"], comment_out(rule.path, rule.line))
