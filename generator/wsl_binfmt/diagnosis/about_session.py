# SPDX-License-Identifier: MIT
"""Problems of a session: what fails in one terminal or service, and not in another."""

from __future__ import annotations

import os
from typing import Iterator, List, Optional

from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.problems import ERROR, WARNING, WINDOWS, Found, problem, quote

DRIVES = "9p", "drvfs", "virtiofs"
READ, EXECUTE = 4, 1
ALIASES = "/Microsoft/WindowsApps/"
# What a drive says whose connection to Windows is broken, EIO, ENODEV and ENOTCONN.
BROKEN = "Input/output error", "No such device", "Transport endpoint is not connected"
DRIVE_BROKEN = (
    "The connection of that drive to Windows is broken, as it may be after Windows has slept: run `wsl.exe --shutdown` "
    "on Windows. If that does not help, the drive may be full."
)
FOR_ALL_USERS = "WSL lets all users use /run/WSL and what is in it: see `ls -la /run/WSL`."
OUTSIDE = "Run the program outside of the sandbox."


def chosen_socket(machine: m.Machine) -> Optional[m.Socket]:
    """Tell which socket /init takes, UtilConnectToInteropServer() in WSL's source; None if there is none."""
    session = machine.session
    if session.wsl_interop and session.wsl_interop_state != m.GONE:
        known = [each for each in session.sockets if each.path == session.wsl_interop]
        return known[0] if known else m.Socket(session.wsl_interop)
    by_pid = {each.pid: each for each in session.sockets if each.pid}
    return next((by_pid[pid] for pid in session.ancestors if pid in by_pid), None)


def newest_socket(machine: m.Machine) -> Optional[m.Socket]:
    """Tell which of the sockets that listen is the newest."""
    listening = [each for each in machine.session.sockets if each.is_listening]
    return max(listening, key=lambda each: each.made) if listening else None


def _export(machine: m.Machine) -> Optional[str]:
    newest = newest_socket(machine)
    return f"export WSL_INTEROP={quote(newest.path)}" if newest else None


def _advice(machine: m.Machine) -> str:
    newest = newest_socket(machine)
    if newest is None:
        return "Open a new terminal of this distro on Windows: it has a socket."
    if machine.session.has_tmux:
        return (
            f"In tmux, `tmux set-environment WSL_INTEROP {quote(newest.path)}` is for the windows that you open next."
        )
    line = f"Environment=WSL_INTEROP={newest.path}"
    return f"In a service, write {line} under [Service]. The socket works while its terminal is open."


@problem(ERROR, WINDOWS)
def sandboxed(machine: m.Machine) -> Iterator[Found]:
    """A sandbox forbids the sockets by which /init reaches Windows.

    Windows calls /init back through a socket of the family AF_VSOCK. A filter of
    system calls may forbid that family, as the sandboxes of coding agents, of
    containers, and RestrictAddressFamilies= of a service do.

    Run the program outside of the sandbox. A service needs AF_UNIX and AF_VSOCK in
    RestrictAddressFamilies=.
    """
    if machine.session.sandbox:
        yield Found([machine.session.sandbox], advice=OUTSIDE)


@problem(ERROR, WINDOWS)
def no_interop_socket(machine: m.Machine) -> Iterator[Found]:
    """No socket of WSL belongs to this process: Windows programs exit with 1 and say nothing.

    /init reaches Windows through a socket in /run/WSL. It takes the socket that
    WSL_INTEROP names, or else that of an ancestor of this process. If there is no
    /run/WSL/1_interop, as on older WSL, then services, cron, `[boot] command` and
    machinectl have no socket.

    Set WSL_INTEROP to the socket of a terminal. It works while that terminal is
    open.
    """
    session = machine.session
    # If the whole directory is missing, this is not reported: see _not_tried() in conclude.py.
    if session.run_wsl != m.THERE or chosen_socket(machine) is not None:
        return
    evidence = [
        "WSL_INTEROP is not set" if not session.wsl_interop else f"WSL_INTEROP={session.wsl_interop}, which is gone"
    ]
    evidence.append("no process that this one descends from has a socket in /run/WSL")
    # With a name that is gone, /init tries it all the same, and says so.
    summary = "No socket of WSL belongs to this process: Windows programs exit with 1." if session.wsl_interop else ""
    yield Found(evidence, _export(machine), _advice(machine), summary=summary)


@problem(ERROR, WINDOWS)
def interop_socket_dead(machine: m.Machine) -> Iterator[Found]:
    """WSL_INTEROP names a socket at which nothing listens.

    /init reaches Windows through that socket. A session of tmux, screen or VS
    Code may keep the name of a socket whose terminal was closed. If the file is
    gone, /init takes the socket of an ancestor of this process. If there is one,
    this is a warning.

    Set WSL_INTEROP to a socket in /run/WSL at which something listens, or open a
    new terminal.
    """
    session = machine.session
    chosen = chosen_socket(machine)
    is_gone = bool(session.wsl_interop) and session.wsl_interop_state == m.GONE
    if is_gone and chosen is not None and chosen.is_listening is not False:
        evidence = f"WSL_INTEROP={session.wsl_interop}, which is gone; /init takes {chosen.path}"
        yield Found([evidence], _export(machine), severity=WARNING)
    elif is_gone and chosen is None:
        if session.run_wsl != m.THERE:
            yield Found([f"WSL_INTEROP={session.wsl_interop}, which is gone"], _export(machine), _advice(machine))
    elif chosen is not None and chosen.is_closed:
        summary = "This user may not use the socket that /init takes."
        yield Found([f"{chosen.path}: permission denied"], _export(machine), FOR_ALL_USERS, summary=summary)
    elif chosen is not None and chosen.is_listening is False:
        is_named = chosen.path == session.wsl_interop
        summary = "" if is_named else "Nothing listens at the socket that /init takes, as WSL_INTEROP names none."
        evidence = f"{chosen.path} refuses connections"
        yield Found([evidence], _export(machine), _advice(machine), summary=summary)


@problem(ERROR, WINDOWS)
def cwd_untranslatable(machine: m.Machine) -> Iterator[Found]:
    """The current directory cannot be handed to Windows.

    /init hands the current directory to Windows. If it was removed, /init ends
    with exit status 1. If it has no path in UTF-8, the program starts in another
    directory.

    Change to another directory.
    """
    state = machine.session.cwd.state
    if state in (m.GONE, "not below this root"):
        what = "it was removed" if state == m.GONE else "it is not below this root"
        yield Found([f"the current directory: {what}"], "cd /")
    elif state == "not UTF-8":
        yield Found(["the current directory: its path is not UTF-8"], "cd /", severity=WARNING)


@problem(ERROR, WINDOWS)
def cwd_not_for_default_user(machine: m.Machine) -> Iterator[Found]:
    """Windows may not enter the current directory: programs end with "Invalid argument".

    Windows opens a directory of the Linux file system as the distro's default
    user, no matter which user runs the program. `default=` under [user] in
    /etc/wsl.conf names the default user. Without it, that is usually the user
    with the number 1000. The default user must have the right to enter all
    directories above the current one.

    Change to another directory, such as / or that user's home.
    """
    cwd, barrier = machine.session.cwd, cwd_barrier(machine)
    if barrier:
        evidence = [
            f"the current directory is {cwd.path}",
            f"the default user, {machine.session.default_uid}, may not enter {describe(barrier)}",
        ]
        yield Found(evidence, "cd /")


def cwd_barrier(machine: m.Machine) -> Optional[m.Element]:
    """Tell above the current directory which one the default user may not enter."""
    cwd = machine.session.cwd
    if is_of_windows(cwd) or cwd.state not in (m.THERE, m.MAY_NOT_LOOK):
        return None
    # Where this user may not look, the way ends above the current directory.
    return refused(machine, cwd.way[:-1] if cwd.state == m.THERE else cwd.way, EXECUTE)


def root_of_drives(conf: m.Conf) -> str:
    """Tell below which directory WSL mounts the drives of Windows."""
    return next((each.value for each in conf.settings if each.name == "automount.root"), "/mnt/")


def may_be_alias(session: m.Session, path: str) -> bool:
    """Whether a file is where Windows has its app execution aliases."""
    return ALIASES in os.path.join(session.cwd.path, path)


def is_of_windows(place: m.Place) -> bool:
    """Whether a path is on a drive of Windows."""
    return place.mount is not None and place.mount.kind in DRIVES


def describe(element: m.Element) -> str:
    """Tell who may do what with a directory or file."""
    return f"{element.path} (mode {element.mode & 0o7777:04o}, owner {element.uid}, group {element.gid})"


def refused(machine: m.Machine, way: List[m.Element], right: int) -> Optional[m.Element]:
    """Tell which element refuses the default user a right, by its mode; None if none does."""
    session = machine.session
    if session.default_uid in (None, 0):
        return None
    for element in way:
        shift = {"u": 6, "g": 3, "o": 0}[class_of_default_user(machine, element)]
        if not (element.mode >> shift) & right:
            return element
    return None


def class_of_default_user(machine: m.Machine, element: m.Element) -> str:
    """Tell which part of a mode counts for the default user, as chmod(1) calls it."""
    session = machine.session
    return "u" if element.uid == session.default_uid else "g" if element.gid in session.default_gids else "o"
