# SPDX-License-Identifier: MIT
"""Problems of the file that was asked about, whatever it is: where it is, and who may execute it."""

from __future__ import annotations

import os
import re
import stat
from typing import Iterator, List

from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis import subject
from wsl_binfmt.diagnosis.about_session import (
    BROKEN,
    DRIVE_BROKEN,
    EXECUTE,
    READ,
    class_of_default_user,
    describe,
    is_of_windows,
    may_be_alias,
    refused,
    root_of_drives,
)
from wsl_binfmt.diagnosis.problems import (
    ERROR,
    FILE,
    TERMINATE,
    WARNING,
    WSL_CONF,
    Found,
    as_owner,
    at_line,
    edit,
    handles_windows,
    is_pending,
    problem,
    quote,
    said_of,
    set_to,
    setting,
)  # fmt: skip

EXE_MAX = 4 << 30  # bytes
APE = b"MZqFpD"
REGISTER_APE = (
    "Install `ape` as /usr/bin/ape, see the documentation of llamafile. Then `echo ':APE:M::MZqFpD::/usr/bin/ape:' | "
    "sudo tee /etc/binfmt.d/ape.conf && sudo systemctl restart systemd-binfmt.service`."
)


@problem(ERROR, FILE)
def not_in_path(machine: m.Machine) -> Iterator[Found]:
    """Windows has the program, and it is not in PATH.

    WSL adds the folders of Windows to PATH, unless `appendWindowsPath=false` is
    under [interop] in /etc/wsl.conf. A profile, sudo or a service may set PATH
    without them. Linux needs the whole name of the program, with ".exe", and does
    not look into the current directory, as Windows does.

    Add the folder to PATH, or call the program by its whole path.
    """
    program = machine.program
    if program is None or program.is_in_path:
        return
    path = program.place.path
    if program.place.state != m.THERE and not program.place.way:
        yield from _not_on_a_drive(machine, program)
        return
    if path == f"./{program.asked}":
        advice = f"Call it by {path}: Linux does not look for programs in the current directory."
        yield Found(advice=advice, summary="It is in the current directory, which is not in PATH.")
        return
    why, advice = _why_not_in_path(machine)
    evidence = [f"it is at {path}, which is not in PATH", *why]
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
    yield Found(evidence, fix, advice)


def _why_not_in_path(machine: m.Machine) -> "tuple[List[str], str]":
    """Tell why PATH has no folders of Windows: evidence and advice."""
    off = setting(machine, "interop.appendwindowspath")
    if off and off.boolean is False:
        evidence = [f"{at_line(off.line)}: appendWindowsPath=false in [interop]"]
        if is_pending(machine):
            evidence.append(f"{WSL_CONF} has changed since this distro started")
        remove = f"Or remove that line: {edit(WSL_CONF, off.line)}; it takes effect when the distro starts again."
        return evidence, remove
    if machine.session.is_of_sudo:
        return ["sudo sets PATH anew: secure_path in /etc/sudoers"], ""
    if not any("/Windows" in each for each in machine.session.path):
        return ["PATH has no folder of Windows: a profile, or what has started this session, sets it anew"], ""
    return [], ""


def _not_on_a_drive(machine: m.Machine, program: m.Program) -> Iterator[Found]:
    """Tell why a program is on no drive of Windows, if that is known."""
    off, root = setting(machine, "automount.enabled"), setting(machine, "automount.root")
    if program.place.state != m.GONE:
        evidence = [f"{program.place.path}: {said_of(program.place.state)}"]
        if root:
            evidence.append(f"{at_line(root.line)}: root={root.value} in [automount]")
        yield Found(evidence, summary="It is not in PATH, and the drives of Windows cannot be looked at.")
    elif off and off.boolean is False and program.asked.lower().endswith(".exe"):
        evidence = [f"{at_line(off.line)}: enabled=false in [automount]"]
        summary = "It is not in PATH, and WSL mounts no drive of Windows here."
        yield Found(evidence, set_to(off.line, "true"), needs_restart=True, summary=summary)
    elif re.fullmatch(r"[^\\:]+\.exe", program.asked, re.IGNORECASE):
        evidence, advice = _why_not_in_path(machine)
        advice = f"Call it by its whole path, as `where.exe {program.asked}` in a terminal of Windows tells. {advice}"
        summary = "It is not in PATH, nor in those folders of Windows in which this command looks."
        yield Found(evidence, None, advice.strip(), summary=summary)


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
    if program is None or is_alias(machine):
        return
    path, place = program.place.path, program.place
    if place.state not in (m.THERE, m.NO_ANSWER):
        if not place.way or _unmounted_drive(machine):
            return
        barrier = [f"the last directory that can be seen is {describe(place.way[-1])}"]
        advice = _why_unseen(place) if place.state in BROKEN and is_of_windows(place) else ""
        yield Found(barrier, advice=advice, summary=f"{path} cannot be looked at: {said_of(place.state)}.")
    elif program.kind != "file":
        evidence = ["it is a directory"] if program.kind == "directory" else []
        yield Found(evidence, summary=f"{path} is not a file.")
    elif program.is_noexec and place.mount:
        evidence = _evidence(program)
        fix = f"sudo mount -o remount,exec {quote(place.mount.target)}"
        yield Found(evidence, fix, summary=f"{path} is on a file system that is mounted with noexec.")
    elif not program.may_execute:
        summary = f"{path} may not be executed by this user."
        if place.mount and is_of_windows(place):
            yield _on_a_drive(machine, program, place.mount)._replace(summary=summary)
        elif _lets_all_execute(program):
            advice = "An access control list, or a security module, takes that right away: see `getfacl`."
            yield Found(_evidence(program), advice=advice, summary=summary)
        else:
            yield Found(_evidence(program), _make_executable(machine, program), summary=summary)


def _why_unseen(place: m.Place) -> str:
    """Tell why a file on a drive of Windows cannot be looked at."""
    if not place.ends_in_link:
        return DRIVE_BROKEN
    last = place.way[-1].path
    return (
        f"A link of Windows in {last} leads where WSL cannot follow, as to a network share: mount that share, "
        "`sudo mount -t drvfs '\\\\SERVER\\SHARE' DIRECTORY`."
    )


def _lets_all_execute(program: m.Program) -> bool:
    """Whether it is not the mode that takes the right to execute away."""
    way = program.place.way
    return bool(way) and way[-1].mode & 0o111 == 0o111


def _make_executable(machine: m.Machine, program: m.Program) -> str:
    way = program.place.way
    # Who may not read a program cannot have it run by an interpreter.
    rights = "x" if way and way[-1].mode & 0o400 else "rx"
    return as_owner(machine, f"chmod +{rights} -- {quote(program.place.path)}")


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
        if is_pending(machine):
            advice = f"{WSL_CONF} has changed since this distro started: the change takes effect after {TERMINATE}."
            return Found(evidence, advice=advice)
        return Found(evidence, advice="Remove it where that mount is made: in /etc/fstab, or by a mount command.")
    if "metadata" in options and not _lets_all_execute(program):
        evidence.append("the option metadata is on: the file has a mode of its own")
        return Found(evidence, _make_executable(machine, program))
    return Found(evidence, advice="Windows does not let you execute it: see its properties there, under Security.")


@problem(ERROR, FILE)
def exe_not_for_default_user(machine: m.Machine) -> Iterator[Found]:
    """Windows may not read the program: it ends with "Invalid argument", or "Permission denied".

    Windows opens a program in the Linux file system as the distro's default
    user, no matter which user runs it. `default=` under [user] in /etc/wsl.conf
    names the default user. Without it, that is usually the user with the number
    1000.

    Move the program to a place where the default user may read it, such as
    /usr/local/bin.
    """
    program, about = machine.program, subject.of(machine)
    if program is None or not program.may_execute or not about.is_for_windows or about.kind == subject.SCRIPT:
        return
    place = program.place
    if place.state != m.THERE or is_of_windows(place):
        return
    barrier = refused(machine, place.way[:-1], EXECUTE)
    what = "enter"
    if barrier is None:
        barrier, what = refused(machine, place.way[-1:], READ), "read"
    if barrier:
        evidence = [f"the default user, {machine.session.default_uid}, may not {what} {describe(barrier)}"]
        mode = f"{class_of_default_user(machine, barrier)}+{'x' if what == 'enter' else 'r'}"
        advice = f"Move it where that user may read it, or allow that: `sudo chmod {mode} {quote(barrier.path)}`."
        yield Found(evidence, None, advice)


@problem(ERROR, FILE)
def exe_too_large(machine: m.Machine) -> Iterator[Found]:
    """Windows starts no program of 4 GiB or more.

    A llamafile may be that large. It starts on Linux, if there is an entry for
    APE; see ape-not-registered. Or keep its weights in a file of their own.
    """
    program = machine.program
    if program and program.size >= EXE_MAX and subject.of(machine).kind == subject.WINDOWS:
        handler = subject.of(machine).handler
        if handler is None or handles_windows(handler):
            yield Found([f"it has {program.size / 2**30:.1f} GiB"])


@problem(WARNING, FILE)
def ape_not_registered(machine: m.Machine) -> Iterator[Found]:
    """There is no entry for APE, so that Windows runs this program, which then may refuse.

    llamafile, and all that is made with Cosmopolitan, begins with MZqFpD and runs
    on several systems. With an entry for APE, it runs on Linux. Without one,
    Windows runs it, and it may say "APE is running on WIN32 inside WSL". Do not
    remove WSLInterop, as that message advises: no Windows program would start. An
    entry for APE is more specific, and stays in front of WSLInterop.

    Install the program `ape` as /usr/bin/ape, write
    `:APE:M::MZqFpD::/usr/bin/ape:` into /etc/binfmt.d/ape.conf, and restart
    systemd-binfmt.service.
    """
    program, about = machine.program, subject.of(machine)
    if program is None or not bytes.fromhex(program.start or "").startswith(APE) or about.is_taken_by_specific:
        return
    evidence = [f"it begins with {APE.decode()}"]
    if handles_windows(about.handler):
        yield Found(evidence, advice=REGISTER_APE)
    else:
        what = f"the entry {about.handler.name} takes it" if about.handler else "no entry takes it"
        yield Found(evidence, advice=REGISTER_APE, severity=ERROR, summary=f"There is no entry for APE: {what}.")


@problem(ERROR, FILE)
def drive_not_mounted(machine: m.Machine) -> Iterator[Found]:
    """The path is on a drive of Windows that is not mounted here.

    WSL mounts the fixed drives of Windows below /mnt when the distro starts,
    unless `enabled=false` is under [automount] in /etc/wsl.conf. It does not mount
    network drives, nor what was plugged in later. If it could not mount a drive,
    the kernel log says why: `dmesg`.

    Mount the drive by `sudo mount -t drvfs C: /mnt/c`.
    """
    drive = _unmounted_drive(machine)
    if drive:
        off = setting(machine, "automount.enabled")
        evidence = [f"{drive} is not a mount of a drive"]
        if off and off.boolean is False:
            yield Found(
                [*evidence, f"{at_line(off.line)}: enabled=false in [automount]"], set_to(off.line, "true"), "", True
            )
            return
        letter = os.path.basename(drive).upper()
        fix = f"sudo mkdir -p {quote(drive)} && sudo mount -t drvfs {letter}: {quote(drive)}"
        yield Found(evidence, fix, "If that fails, `dmesg` says why.")


def _unmounted_drive(machine: m.Machine) -> str:
    """Tell the directory of a drive that the path of a missing program is on, and that is not mounted; or ""."""
    program = machine.program
    if program is None or program.place.state != m.GONE or not program.place.way or is_of_windows(program.place):
        return ""
    below = root_of_drives(machine.conf).rstrip("/")
    found = re.match(f"{re.escape(below)}/[a-z](?=/)", program.place.path)
    return found[0] if found else ""


@problem(ERROR, FILE)
def app_execution_alias(machine: m.Machine) -> Iterator[Found]:
    """The file is an app execution alias of Windows, which Linux sees as empty.

    Programs of the Microsoft Store, such as python.exe and wt.exe, are links
    below Microsoft/WindowsApps that only Windows understands. Since its build
    20190, Windows shows them to Linux as files that start.

    Start the program by `cmd.exe /c NAME`.
    """
    if is_alias(machine):
        path = os.path.join(machine.session.cwd.path, machine.program.place.path if machine.program else "")
        folder = "/Windows/System32"
        is_in_path = any(each.lower().endswith(folder.lower()) for each in machine.session.path)
        drive, _, below = path.partition("/Users/")
        cmd = "cmd.exe" if is_in_path or not below else quote(f"{drive}{folder}/cmd.exe")
        fix = f"{cmd} /c {quote(os.path.basename(path))}"
        yield Found(["it has no content, and is below Microsoft/WindowsApps"], fix)


def is_alias(machine: m.Machine) -> bool:
    """Whether an app execution alias was asked about."""
    program = machine.program
    if program is None or not may_be_alias(machine.session, program.place.path):
        return False
    return program.place.state == m.THERE and program.kind == "file" and (program.size == 0 or program.start == "")
