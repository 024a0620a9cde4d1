# SPDX-License-Identifier: MIT
"""Problems of the file that was asked about, whatever it is: why it does not start."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Iterator, List, Optional

from wsl_binfmt.diagnosis import launch, subject
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.about_protection import unit
from wsl_binfmt.diagnosis.about_rules import guilty_conditions, lift
from wsl_binfmt.diagnosis.about_session import DRIVES, EXECUTE, READ, describe, refused
from wsl_binfmt.diagnosis.problems import (
    ERROR,
    FILE,
    RESTART,
    SERVICE,
    START_MAX,
    WSL_CONF,
    Found,
    at_line,
    edit,
    entry_path,
    handles_windows,
    is_pending,
    matches,
    problem,
    quote,
    said_of,
    setting,
    write_to,
)  # fmt: skip

if TYPE_CHECKING:
    from wsl_binfmt import table

ALIASES = "/Microsoft/WindowsApps/"
EMULATORS = (
    "qemu-user-static of Debian, Ubuntu and Fedora, qemu-user-static-binfmt of Arch, qemu-linux-user of openSUSE; "
    "on NixOS, boot.binfmt.emulatedSystems"
)
# What Windows opens, and the program there that does.
OPENERS = {
    ".bat": "cmd.exe /c",
    ".cmd": "cmd.exe /c",
    ".lnk": "explorer.exe",
    ".msi": "msiexec.exe /i",
    ".ps1": "powershell.exe -File",
}


@problem(ERROR, FILE)
def not_in_path(machine: m.Machine) -> Iterator[Found]:
    """Windows has the program, and it is not in PATH.

    WSL adds the folders of Windows to PATH, unless `appendWindowsPath=false` is
    under [interop] in /etc/wsl.conf. A profile, sudo or a service may set PATH
    without them. Linux needs the whole name of the program, with ".exe".

    Add the folder to PATH, or call the program by its whole path.
    """
    program = machine.program
    if program is None or program.is_in_path:
        return
    path = program.place.path
    evidence = [f"it is at {path}, which is not in PATH"]
    off = setting(machine, "interop.appendwindowspath")
    advice, needs_restart = "", False
    if off and off.value.lower() in ("false", "0"):
        evidence.append(f"{at_line(off.line)}: appendWindowsPath=false in [interop]")
        advice = f"Or remove that line: {edit(WSL_CONF, off.line)}; it takes effect when the distro starts again."
        if is_pending(machine):
            evidence.append(f"{WSL_CONF} has changed since this distro started")
    elif machine.session.is_of_sudo:
        evidence.append("sudo sets PATH anew: secure_path in /etc/sudoers")
    elif not any("/Windows" in each for each in machine.session.path):
        evidence.append("PATH has no folder of Windows: a profile, or what has started this session, sets it anew")
    if os.path.basename(path) != program.asked:
        evidence.append(f"its name is {os.path.basename(path)}")
        advice = "Call it by that name."
    directory = os.path.dirname(path)
    if directory in machine.session.path:
        yield Found(
            [f"it is at {path}", *evidence[1:]],
            None,
            advice,
            summary=f"The program is called {os.path.basename(path)}.",
        )
        return
    fix = (
        f'export PATH="$PATH:{directory}"'
        if quote(directory) == directory
        else f'export PATH="$PATH":{quote(directory)}'
    )
    yield Found(evidence, fix, advice, needs_restart)


@problem(ERROR, FILE)
def exe_not_executable(machine: m.Machine) -> Iterator[Found]:
    """The file cannot be executed.

    The table is not what fails. On a drive of Windows, the modes of files come
    from the options fmask, umask and metadata under [automount] in
    /etc/wsl.conf, or from the permissions that Windows has.

    Make the file executable with chmod. On a drive of Windows, change the option
    or the permission that takes the right away.
    """
    program = machine.program
    if program is None:
        return
    path, place = program.place.path, program.place
    if place.state not in (m.THERE, m.NO_ANSWER):
        barrier = [f"the last directory that can be seen is {describe(place.way[-1])}"] if place.way else []
        yield Found(barrier, summary=f"{path} cannot be looked at: {said_of(place.state)}.")
    elif program.kind != "file":
        yield Found([f"it is a {program.kind}"], summary=f"{path} is not a file.")
    elif program.is_noexec and place.mount:
        evidence = _evidence(program)
        fix = f"sudo mount -o remount,exec {quote(place.mount.target)}"
        yield Found(evidence, fix, summary=f"{path} is on a file system that is mounted with noexec.")
    elif not program.may_execute:
        summary = f"{path} may not be executed by this user."
        if place.mount and place.mount.kind in DRIVES:
            yield _on_a_drive(machine, program, place.mount)._replace(summary=summary)
        else:
            owner = place.way[-1].uid if place.way else 0
            sudo = "" if machine.session.uid in (owner, 0) else "sudo "
            yield Found(_evidence(program), f"{sudo}chmod +x -- {quote(path)}", summary=summary)


def _evidence(program: m.Program) -> List[str]:
    mount = program.place.mount
    where = [f"{mount.target} is mounted with {','.join(dict.fromkeys(mount.options))}"] if mount else []
    way = program.place.way
    return [f"{program.place.path} has the mode {stat.filemode(way[-1].mode)}"] * bool(way) + where


def _on_a_drive(machine: m.Machine, program: m.Program, mount: m.Mount) -> Found:
    """Tell what takes the right to execute away on a drive of Windows."""
    options = [option for text in mount.options for option in text.split(";")]
    masks = [option for option in options if re.fullmatch("(fmask|umask)=[0-7]+", option)]
    # A mask counts if it takes the right from owner, group or others; which of them this user is, the mode says.
    masks = [mask for mask in masks if int(mask.partition("=")[2], 8) & 0o111]
    evidence = _evidence(program)
    line = setting(machine, "automount.options")
    if masks:
        names = "\\|".join(sorted({mask.partition("=")[0] for mask in masks}))
        evidence.append(f"{' and '.join(masks)} takes away the right to execute")
        if line and any(mask in line.value for mask in masks):
            fix = f"sudo sed -i '{line.line}s/\\({names}\\)=[0-7]*/\\1=022/g' {WSL_CONF}"
            return Found([*evidence, f"{at_line(line.line)}: options={line.value}"], fix, needs_restart=True)
        return Found(evidence, advice="Remove it where that mount is made: in /etc/fstab, or by a mount command.")
    if "metadata" in options:
        evidence.append("the option metadata is on: the file has a mode of its own")
        return Found(evidence, f"chmod +x -- {quote(program.place.path)}")
    return Found(evidence, advice="Windows does not let you execute it: see its properties there, under Security.")


@problem(ERROR, FILE)
def exe_not_for_default_user(machine: m.Machine) -> Iterator[Found]:
    """Windows may not read the program: it ends with "Permission denied".

    Windows opens a program in the Linux file system as the distro's default
    user, no matter which user runs it. `default=` under [user] in /etc/wsl.conf
    names the default user. Without it, that is usually the user with the number
    1000.

    Move the program to a place where the default user may read it, such as
    /usr/local/bin.
    """
    program = machine.program
    if program is None or not program.may_execute or not subject.of(machine).is_for_windows:
        return
    place = program.place
    if place.state != m.THERE or (place.mount and place.mount.kind in DRIVES):
        return
    barrier = refused(machine, place.way[:-1], EXECUTE)
    what = "enter"
    if barrier is None:
        barrier, what = refused(machine, place.way[-1:], READ), "read"
    if barrier:
        evidence = [f"the default user, {machine.session.default_uid}, may not {what} {describe(barrier)}"]
        mode = "x" if what == "enter" else "r"
        advice = f"Move it where that user may read it, or allow that: `sudo chmod o+{mode} {quote(barrier.path)}`."
        yield Found(evidence, None, advice)


@problem(ERROR, FILE)
def app_execution_alias(machine: m.Machine) -> Iterator[Found]:
    """The file is an app execution alias of Windows, which Linux sees as empty.

    Programs of the Microsoft Store, such as python.exe and wt.exe, are links
    below Microsoft/WindowsApps that only Windows understands.

    Start the program by `cmd.exe /c NAME`.
    """
    if is_alias(machine):
        name = os.path.basename(machine.program.place.path) if machine.program else ""
        yield Found(["it has no content, and is below Microsoft/WindowsApps"], f"cmd.exe /c {quote(name)}")


def is_alias(machine: m.Machine) -> bool:
    """Whether an app execution alias was asked about."""
    program = machine.program
    return program is not None and ALIASES in program.place.path and (program.size == 0 or program.start == "")


@problem(ERROR, FILE)
def interpreter_missing(machine: m.Machine) -> Iterator[Found]:
    """The interpreter of the file is missing.

    A script names its interpreter in its first line, an entry of the table names
    one, and an ELF file names a loader. If the interpreter is missing, the kernel
    says "No such file or directory", although the file is there.

    Install the interpreter, or correct the line that names it.
    """
    program = machine.program
    if program is None:
        return
    about = subject.of(machine)
    handler = about.handler
    if handler and not handles_windows(handler):
        if "F" not in handler.flags and handler.interpreter_state != m.THERE:
            what = f"{handler.interpreter}: {said_of(handler.interpreter_state)}"
            evidence = [f"{entry_path(handler.name)} has the interpreter {what}"]
            yield Found(evidence, advice=f"Install {handler.interpreter}, or remove that entry.")
        elif about.kind == subject.ELF and program.interpreter and program.interpreter_state == m.GONE:
            evidence = [f"it needs the loader {program.interpreter}, which is not here"]
            advice = f"Install the C library for {about.processor}, unless the emulator is told where to find it."
            yield Found(evidence, None, advice, works=None)
    elif about.kind in (subject.SCRIPT, subject.ELF) and (about.is_native or about.kind == subject.SCRIPT):
        if program.interpreter.endswith("\r"):
            evidence = [f"its first line ends as on Windows: {program.interpreter!r}"]
            yield Found(evidence, f"sed -i 's/\\r$//' -- {quote(program.place.path)}")
        elif program.interpreter and program.interpreter_state != m.THERE:
            what = "its first line names" if about.kind == subject.SCRIPT else "it needs the loader"
            yield Found(
                [f"{what} {program.interpreter}: {said_of(program.interpreter_state)}"],
                advice=f"Install {program.interpreter}.",
            )


@problem(ERROR, FILE)
def entry_disabled(machine: m.Machine) -> Iterator[Found]:
    """The entry for such files is disabled.

    An administrator, here or in another distro, wrote 0 to the entry's file.
    Writing 1 to it enables it.
    """
    for entry in _candidates(machine):
        if not entry.enabled and not _is_interop(entry):
            yield Found([f"{entry_path(entry.name)} says: disabled"], write_to(entry.name, "1"))
            return


def _is_interop(entry: m.Entry) -> bool:
    return handles_windows(entry._replace(enabled=True))


def _is_asked(machine: m.Machine) -> bool:
    """Whether a file was asked about that nothing runs."""
    about = subject.of(machine)
    return (
        machine.program is not None
        and machine.table.entries is not None
        and about.kind in (subject.ELF, subject.OTHER)
        and about.handler is None
        and not about.is_native
    )


def _candidates(machine: m.Machine) -> List[m.Entry]:
    """List the entries for such files, disabled ones as well."""
    entries = (machine.table.entries or []) if _is_asked(machine) else []
    return [entry for entry in entries if _is_for(machine, entry.kernel())]


def _rule(machine: m.Machine) -> Optional[m.Rule]:
    """Find the rule for such files."""
    rules = ((rule, rule.entry()) for rule in machine.protection.rules)
    return next((rule for rule, entry in rules if entry and _is_for(machine, entry)), None)


def _is_for(machine: m.Machine, entry: table.Entry) -> bool:
    """Whether an entry is for the file that was asked about, were it enabled."""
    program = machine.program
    start = bytes.fromhex((program and program.start) or "").ljust(START_MAX, b"\0")[:START_MAX]
    return program is not None and matches(entry, start, program.place.path)


@problem(ERROR, FILE)
def rule_not_registered(machine: m.Machine) -> Iterator[Found]:
    """There is a rule for such files, and it is not registered.

    systemd-binfmt.service registers the rules of binfmt.d when it starts. It may
    be masked, or skipped by a condition, or have failed; or an administrator or
    a container has removed the entry since.

    Mend what keeps the service from registering the rule, and restart the
    service.
    """
    rule = _rule(machine) if _is_asked(machine) and not _candidates(machine) else None
    if rule is None:
        return
    evidence = [f"{rule.path}:{rule.line}: {rule.name}" if rule.line else rule.path]
    service = unit(machine, SERVICE)
    guilty = guilty_conditions(machine)
    fix: Optional[str] = RESTART if rule.line else f"sudo update-binfmts --enable {quote(rule.name)}"
    if rule.line and service.load == "masked":
        evidence.append(f"{SERVICE} is masked")
        fix = f"sudo systemctl unmask {SERVICE} && {RESTART}"
    elif rule.line and guilty:
        evidence.append(f"{SERVICE} was skipped, by {guilty[0].path}")
        fix = lift(guilty)
    elif rule.line and service.active == "failed":
        evidence.append(f"{SERVICE} has failed, see unit-failed")
    elif rule.line:
        evidence.append(f"{SERVICE} is {service.active or 'unknown'}")
    yield Found(evidence, fix)


@problem(ERROR, FILE)
def nothing_runs_it(machine: m.Machine) -> Iterator[Found]:
    """Nothing on this machine runs such a file.

    The kernel runs programs for its own processor, and scripts whose first line
    names an interpreter. Any other file needs an entry in the table. Emulators
    bring such entries.

    For a program for another processor, install an emulator.
    """
    program = machine.program
    about = subject.of(machine)
    if (
        program is None
        or about.handler
        or is_alias(machine)
        or program.place.state != m.THERE
        or program.kind != "file"
    ):
        return
    if about.kind == subject.EMPTY:
        yield Found(["it is empty"])
    if not _is_asked(machine) or _candidates(machine) or _rule(machine):
        return
    if about.kind == subject.ELF:
        evidence = [f"it is a program for {about.processor}, and no entry or rule matches it"]
        yield Found(evidence, advice=f"Install an emulator: {EMULATORS}.")
    elif program.place.path.lower().endswith(tuple(OPENERS)):
        opener = OPENERS[program.place.path.lower()[-4:]]
        evidence = [f"it is opened by {opener.partition(' ')[0]}, and does not start by itself"]
        yield Found(evidence, f'{opener} "$(wslpath -w {quote(program.place.path)})"')
    else:
        yield Found(
            ["it is neither a program nor a script that begins with #!, and no entry or rule matches it"],
            advice="A shell may run it as a script of its own; other programs cannot start it.",
        )


@problem(ERROR, FILE)
def launch_failed(machine: m.Machine) -> Iterator[Found]:
    """The program was launched, and did not start.

    The evidence is the layer that failed, and the message. The layers are the
    file, the table, the interpreter, and Windows with /init.

    The sentence below the evidence says what the message means.
    """
    outcome = launch.outcome(machine)
    if outcome and outcome.started is False:
        evidence = [f"layer {outcome.layer}: {outcome.detail}"]
        yield Found(evidence, None, outcome.meaning)
