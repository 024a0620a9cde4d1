# SPDX-License-Identifier: MIT
"""Every problem: its id, how bad it is, what it means, and the check that finds it.

A problem is a generator function. Its name is the id, the first line of its
docstring the meaning, and the rest the explanation that `wsl-binfmt explain`
prints. `wsl-binfmt --list`, the man page and a test of coverage use the same list.
"""

from __future__ import annotations

import os
import re
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

from wsl_binfmt import interop, table
from wsl_binfmt.diagnosis import machine as m

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = ERROR, WARNING, NOTE
# What a problem is about: this system, every program, Windows programs only, or the program that the user named.
ELSEWHERE, ANY, WINDOWS, FILE = "elsewhere", "any", "windows", "file"
FIX_MAX = 400  # characters; a longer command is hard to read
SHOWN_MAX = 100  # as a hostile file may have a million lines
ON_NIXOS = "On NixOS, configuration.nix makes that: change it there, and run `sudo nixos-rebuild switch`."
TERMINATE = "`wsl.exe --terminate DISTRO` on Windows"

RESTORE = "sudo wsl-binfmt restore"
RELOAD = "sudo systemctl daemon-reload"
SERVICE = "systemd-binfmt.service"
SERVICES = SERVICE, "binfmt-support.service"
RESTART = f"sudo systemctl restart {SERVICE}"
GUARD = "proc-sys-fs-binfmt_misc-status.mount"
WATCH = "wsl-binfmt-watch.service"
DROP_IN = "50-wsl-binfmt.conf"
WSL_CONF = "/etc/wsl.conf"
GENERATOR = "/usr/lib/systemd/system-generators/wsl-binfmt-generator"
GENERATED = "/run/systemd/generator"

START_MAX = 256  # bytes by which the kernel chooses, BINPRM_BUF_SIZE
# How an ordinary Windows program begins.
PROGRAM = b"MZ\x90\x00\x03\x00\x00\x00\x04\x00\x00\x00\xff\xff\x00\x00".ljust(START_MAX, b"\0")


class Found(NamedTuple):
    """A problem that a machine has, with its evidence and its fix."""

    evidence: List[str] = []
    fix: Optional[str] = None  # a shell command
    advice: str = ""  # a sentence for the user
    needs_restart: bool = False  # whether the fix takes effect only when the distro starts again
    summary: str = ""  # if it is more precise than the meaning
    severity: str = ""  # if it is not the usual one
    # Whether the program starts all the same; None: the problem hides that. The default is for errors.
    works: Optional[bool] = False
    id: str = ""


Check = Callable[[m.Machine], Iterator[Found]]


class Problem(NamedTuple):
    """A kind of problem."""

    id: str
    severity: str
    about: str
    meaning: str
    explanation: str
    check: Check

    def find(self, machine: m.Machine) -> Iterator[Found]:
        """Find it, and fill in the defaults."""
        for found in self.check(machine):
            fix, advice = found.fix, found.advice
            if fix and is_nixos(machine) and re.search("/etc/|unmask", fix):
                fix, advice = None, f"{advice} {ON_NIXOS}".strip()
            if not machine.session.needs_sudo:
                fix, advice = fix and fix.replace("sudo ", ""), advice.replace("`sudo ", "`")
            # A command that has to be escaped or shortened cannot be pasted.
            if fix and not (fix.isprintable() and len(fix) <= FIX_MAX):
                fix = None
            severity = found.severity or self.severity
            yield found._replace(
                id=self.id,
                summary=found.summary or self.meaning,
                severity=severity,
                works=True if severity != ERROR and found.works is False else found.works,
                evidence=found.evidence[:SHOWN_MAX],
                fix=fix,
                advice=advice,
            )


PROBLEMS: Dict[str, Problem] = {}


def problem(severity: str, about: str = ANY) -> Callable[[Check], Check]:
    """Make a problem of a check. severity: the usual one. about: what the problem is about."""

    def register(check: Check) -> Check:
        name = check.__name__.strip("_").replace("_", "-")
        meaning, _, explanation = (check.__doc__ or "").partition("\n")
        lines = [line.strip() for line in explanation.strip().split("\n")]
        PROBLEMS[name] = Problem(name, severity, about, meaning, "\n".join(lines), check)
        return check

    return register


# Functions that several checks use.


def entry_path(name: str) -> str:
    """Tell the file of an entry."""
    return f"{table.DIRECTORY}/{name}"


def said_of(state: str) -> str:
    """Say in words what the state of a file is."""
    return {m.GONE: "it is not there", m.MAY_NOT_LOOK: "this user may not look there"}.get(state, state)


def quote(text: str) -> str:
    """Quote a text for the shell. `shlex` is not in Debian's python3-minimal."""
    safe = text and all(
        character.isascii() and (character.isalnum() or character in "@%+=:,./-_") for character in text
    )
    return text if safe else "'" + text.replace("'", "'\"'\"'") + "'"


def as_owner(machine: m.Machine, command: str) -> str:
    """Make a command that changes the file that was asked about, as its owner or as root."""
    way = machine.program.place.way if machine.program else []
    return command if machine.session.uid in (0, way[-1].uid if way else 0) else f"sudo {command}"


def write_to(machine: m.Machine, name: str, text: str) -> Optional[str]:
    """Make the command that writes to an entry of the table; None if nobody can do so from here."""
    return f"echo {text} | sudo tee {quote(entry_path(name))}" if can_change(machine) else None


def restoring(machine: m.Machine) -> Optional[str]:
    """Make the command that restores WSLInterop; None where it would do nothing."""
    return RESTORE if can_change(machine) and machine.conf.interop else None


def is_nixos(machine: m.Machine) -> bool:
    """Whether the distro is NixOS."""
    return machine.system.distro.startswith("NixOS")


def named(machine: m.Machine, name: str) -> Optional[m.Entry]:
    """Find an entry by its name."""
    return next((entry for entry in machine.table.entries or [] if entry.name == name), None)


def wsl(machine: m.Machine) -> Optional[m.Entry]:
    """Find WSLInterop."""
    return named(machine, interop.NAME)


def handles_windows(entry: Optional[m.Entry]) -> bool:
    """Whether an enabled entry gives every Windows program to /init."""
    return entry is not None and entry.enabled and interop.handles_windows(entry.kernel())


def is_rival(entry: m.Entry) -> bool:
    """Whether an enabled entry would take ordinary Windows programs before WSLInterop."""
    return entry.enabled and not handles_windows(entry) and interop.is_rival(entry.kernel())


def matches(entry: table.Entry, start: bytes, path: str) -> bool:
    """Whether the kernel chooses an entry for a file, search_binfmt_handler() in fs/binfmt_misc.c."""
    if entry.extension is not None:
        return os.fsencode(os.path.basename(path)).endswith(b"." + entry.extension)
    return entry.magic is not None and entry.offset + len(entry.magic) <= START_MAX and entry.may_match(start)


def can_change(machine: m.Machine) -> bool:
    """Whether the table is there, and can be written to from here."""
    mount = machine.table.mount
    is_there = mount is not None and mount.kind == "binfmt_misc" and machine.table.is_visible
    return is_there and mount is not None and "ro" not in mount.options


def binfmt_d(machine: m.Machine) -> List[m.Rule]:
    """List the rules of binfmt.d, without those of update-binfmts."""
    return [rule for rule in machine.protection.rules if rule.line]


def is_pending(machine: m.Machine) -> bool:
    """Whether /etc/wsl.conf has changed since this distro started, so that WSL has not read it as it is."""
    changed, started = machine.conf.changed, machine.system.started
    # The kernel tells the start of a process in hundredths of a second.
    return changed is not None and started is not None and changed > started + 0.05


def setting(machine: m.Machine, name: str) -> Optional[m.Setting]:
    """Find the setting of /etc/wsl.conf that counts: WSL takes the first of several."""
    return next((each for each in machine.conf.settings if each.name == name), None)


def at_line(line: int) -> str:
    """Tell a line of /etc/wsl.conf."""
    return f"{WSL_CONF}:{line}"


def set_to(line: int, value: str) -> str:
    """Make the command that gives a setting of /etc/wsl.conf another value."""
    return f"sudo sed -i '{line}s/=.*/={value}/' {WSL_CONF}"


def edit(path: str, line: int = 0) -> str:
    """Make the command that opens a file at a line."""
    return f"sudo ${{EDITOR:-vi}} {f'+{line} ' if line else ''}{quote(path)}"


def comment_out(path: str, *lines: int) -> str:
    """Make the command that comments lines of a file of binfmt.d out; if a package has the file, in a copy."""
    script = ";".join(f"{line}s/^/# /" for line in sorted(set(lines)))
    if path.startswith(("/etc/", "/run/")):
        return f"sudo sed -i '{script}' {quote(path)}"
    return f"sed '{script}' {quote(path)} | sudo tee {quote(f'/etc/binfmt.d/{os.path.basename(path)}')} >/dev/null"
