# SPDX-License-Identifier: MIT
"""Starting a program, and concluding from what happens whether it started."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from typing import List, NamedTuple, Optional

from wsl_binfmt.diagnosis import about_session, bounded, subject
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.problems import handles_windows

# /init waits for ten seconds until Windows calls back.
LAUNCH_MAX = 15.0  # seconds
SAID_MAX = 20  # lines
CANNOT_EXECUTE = 126, 127  # exit status of a shell, exec in POSIX
WARNING = "Failed to translate"  # of /init, if a path has no Windows path
# How /init's own errors begin, on all versions of WSL.
INIT_ERROR = re.compile(r"<3>(?:WSL|init:) \(\d+[^)]*\) ERROR: ")
UNREADABLE = "Windows could not read it, or the current directory."
NOT_REACHED = (
    "Windows could not start it. It is in the Linux file system, which Windows sees as \\\\wsl.localhost: a policy "
    "such as AppLocker may forbid programs there, or Windows does not reach it. Try a copy of it on a drive of "
    "Windows. If the copy does not start either, it is no program for this Windows. If it does, run `wsl.exe "
    "--shutdown` on Windows. If that does not help, look into the registry: P9NP belongs into ProviderOrder, in "
    "HKLM\\SYSTEM\\CurrentControlSet\\Control\\NetworkProvider\\Order."
)
# If Windows did not start a program, its message has no such prefix.
WINDOWS_ERRORS = {
    "Invalid argument": "Windows could not start it: it is no program for this Windows, a policy such as AppLocker "
    "forbids it, or Windows cannot open it or the current directory. Try it after `cd /mnt/c`, or another drive of "
    "Windows. If it starts there, the distro's default user may not enter the directory, or Windows does not reach "
    "the files of this distro, \\\\wsl.localhost: run `wsl.exe --shutdown` on Windows.",
    "Permission denied": "Windows refused to start it. As a rule it needs an elevated terminal, for which WSL cannot "
    "ask: start it from one that is run as administrator. A policy such as AppLocker may forbid it as well, or the "
    "distro's default user may not read it.",
    "No such file or directory": "Windows does not find it by the path that /init gave it.",
    "Exec format error": "It is no program for this Windows.",
    "Input/output error": UNREADABLE,
    "I/O error": UNREADABLE,
}
# What musl says, with which WSL builds /init, where glibc says something else.
MUSL = "I/O error", "Out of memory", "Resource busy", "Operation timed out", "Not supported", "Filename too long"
ERRORS = frozenset([*map(os.strerror, errno.errorcode), *MUSL])
ANOTHER_SOCKET = "Open a new terminal, or set WSL_INTEROP to another socket in /run/WSL."
# What /init's own errors mean, by a pattern.
MEANINGS = {
    "accept4 failed 110": "Windows did not call back within ten seconds. Interop is off outside of this distro (by a "
    "policy, or by flags of the distro in the registry), or was off in /etc/wsl.conf when this distro started, or "
    "hv_sock is broken. Older WSL fails like this if WSLENV hands over very long variables. Run `wsl.exe --shutdown` "
    "on Windows, and try again.",
    "(socket|connect) failed (1|97)\\b": "A sandbox forbids the sockets by which /init reaches Windows, and by which "
    f"Windows calls back (hv_sock). {about_session.OUTSIDE}",
    "[Vv]sock|socket failed": "/init could not make the connection by which Windows calls back (hv_sock). A sandbox or "
    "a container may forbid it. If it fails everywhere, run `wsl.exe --shutdown` on Windows.",
    "connect failed 13\\b": f"This user may not use the socket that /init took. {about_session.FOR_ALL_USERS}",
    "connect failed 2\\b": "Nothing listens at the socket that WSL_INTEROP names: it is gone, as the terminal that it "
    f"belongs to was closed. {ANOTHER_SOCKET}",
    "UtilConnectUnix|ConnectToInteropServer|connect failed": "Nothing listens at the socket that /init took: the "
    f"terminal that it belongs to was closed. {ANOTHER_SOCKET}",
    "current[_ ]path|getcwd|chdir": "/init could not use the current directory: it was removed, or may not be entered. "
    "Run `cd /` and try again.",
    "execv": "/init could not start a Linux program, such as the user's shell in /etc/passwd.",
    "getpwuid|getpwnam|getgr": "/init does not find the user in /etc/passwd. Correct that file, or be another user.",
    "[Tt]ranslate": "/init could not make a Windows path of the current directory, of PATH or of the program.",
}
NO_SOCKET = "/init does so if it finds no socket, as in a service; see no-interop-socket. Try it in a new terminal."
SILENT = (
    "/init took a socket, and Windows gives no reason. On Windows, `cmd.exe /c exit` should end with 0: try that. If "
    "it does, WSL may have been started where Windows shows no windows, as by ssh, or by a task before the log-on: run "
    "`wsl.exe --shutdown`, and start the distro in a terminal of Windows."
)
HANGS = "Windows is very busy, or hangs. If it does each time, run `wsl.exe --shutdown` on Windows, or restart Windows."
HANGS_IN_LINUX = "Try it after `cd /mnt/c`. If it starts there, Windows does not reach the files of this distro."
# The low bytes of what Windows gives as the exit status if it cannot load a program, an NTSTATUS.
NOT_LOADED = {
    53: "as a program does if Windows does not find a DLL of it (0xC0000135): a DLL has to be beside the program, or "
    "in a folder of Windows' PATH",
    57: "as a program does that has the wrong version of a DLL (0xC0000139)",
    66: "as a program does if Windows cannot make a window for it (0xC0000142), as in a session of ssh",
}
NO_32_BIT = "This kernel runs no 32-bit programs: it needs CONFIG_IA32_EMULATION, as WSL's own kernel has it."
OTHERWISE = "This is an error of WSL's /init; the number at its end is that of errno(3)."


class Outcome(NamedTuple):
    """The result of a launch."""

    program: str
    started: Optional[bool]  # None: could not tell
    layer: str  # which one failed: "file", "table", "interpreter", "windows"; "" if none
    detail: str
    meaning: str = ""  # what that means, and what to do


def run(path: str, arguments: List[str], *, is_ours: bool) -> m.Launch:
    """Start a program, and end it after LAUNCH_MAX."""
    result = m.Launch(path, is_ours)
    try:
        process = subprocess.Popen(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as e:
        return result._replace(errno=e.errno or errno.EIO)
    try:
        said, _ = process.communicate(timeout=LAUNCH_MAX)
        status: Optional[int] = process.returncode
    except subprocess.TimeoutExpired:
        status = None
        said = bounded.end(process)
    lines = [line for line in bounded.text(said).split("\n") if _may_be_of_init(path, line)]
    return result._replace(status=status, said=lines[-SAID_MAX:])


def _may_be_of_init(path: str, line: str) -> bool:
    """Whether /init or Windows may have printed a line. Lines of the program itself are not recorded."""
    return bool(INIT_ERROR.search(line)) or _error_of_windows(path, line) != ""


def _error_of_windows(path: str, line: str) -> str:
    """Tell the error in a line "PATH: ERROR"; "" if the line is something else."""
    where, _, error = line.strip().rpartition(": ")
    is_of_windows = os.path.basename(where) == os.path.basename(path) and error in ERRORS
    return error if is_of_windows else ""


def outcome(machine: m.Machine) -> Optional[Outcome]:
    """Tell the result of the launch that a machine has; None if it has none."""
    launched = machine.launch
    if launched is None:
        return None
    path = launched.program
    if launched.is_there is None:
        return Outcome(path, None, "file", "its file system does not answer")
    if not launched.is_there:
        return Outcome(path, None, "file", "it is neither in PATH nor on a drive of Windows")
    if launched.errno:
        return _of_kernel(machine, launched)
    # After an error of /init, the exit status is 1. After a warning, such as of a directory without a Windows path, it
    # is that of the program.
    errors = [line for line in launched.said if launched.is_ours or not re.search(WARNING, line)]
    said = errors[-1].strip() if errors and launched.status in (1, None) else ""
    about = subject.of(machine)
    handler = about.handler if about.is_ordinary else None
    ended = f"it ended with the exit status {launched.status}"
    if said:
        return Outcome(path, False, "windows", said, explain(path, said, machine.program))
    if launched.status is not None and handler and not (handles_windows(handler) and "P" in handler.flags):
        return Outcome(path, None, "", f"{ended}, by {handler.name}, not as WSL starts it")
    if launched.status == 0:
        return Outcome(path, True, "", ended)
    if launched.status is None:
        waited = f"it has not ended after {LAUNCH_MAX:.0f} seconds"
        if launched.is_ours:
            is_in_linux = not about_session.is_of_windows(machine.session.cwd)
            return Outcome(path, False, "windows", waited, f"{HANGS} {HANGS_IN_LINUX}" if is_in_linux else HANGS)
        return Outcome(path, None, "", f"{waited}, and /init has said nothing: it seems to run")
    has_socket = about_session.chosen_socket(machine) is not None
    if launched.is_ours:
        return Outcome(
            path, False, "windows", f"{ended}, and /init has said nothing", SILENT if has_socket else NO_SOCKET
        )
    if launched.status in CANNOT_EXECUTE and about.starts_windows is not False:
        return Outcome(path, None, "", f"{ended}, as a shell does if it cannot start a program")
    if launched.status == 1 and not has_socket and about.is_for_windows:
        return Outcome(path, None, "", f"{ended}, as /init does if it finds no socket, and as a program may")
    if launched.status in NOT_LOADED and about.kind == subject.WINDOWS:
        return Outcome(path, None, "", f"{ended}, {NOT_LOADED[launched.status]}; it may be its own as well")
    return Outcome(path, True, "", ended)


def _of_kernel(machine: m.Machine, launched: m.Launch) -> Outcome:
    """Tell which layer the kernel's error is about."""
    text = os.strerror(launched.errno)
    about = subject.of(machine)
    if launched.errno == errno.ENOEXEC and about.is_native and about.processor == "i386":
        return Outcome(launched.program, False, "file", f"the kernel does not execute it ({text})", NO_32_BIT)
    if launched.errno == errno.ENOEXEC:
        return Outcome(launched.program, False, "table", f"the kernel has no entry for it ({text})")
    handler = about.handler
    if launched.errno in (errno.ENOENT, errno.ELIBBAD):
        what = "the interpreter of its entry" if handler else "the interpreter or loader that it names"
        return Outcome(launched.program, False, "interpreter", f"{what} is not there ({text})")
    if launched.errno == errno.ELOOP:
        return Outcome(launched.program, False, "table", f"its interpreter needs an interpreter in turn ({text})")
    if handler and launched.errno == errno.EACCES and machine.program and machine.program.may_execute:
        return Outcome(launched.program, False, "interpreter", f"{handler.interpreter} may not be executed ({text})")
    is_on_drive = launched.is_ours or bool(machine.program and about_session.is_of_windows(machine.program.place))
    meaning = about_session.DRIVE_BROKEN if text in about_session.BROKEN and is_on_drive else ""
    return Outcome(launched.program, False, "file", f"the kernel does not execute it ({text})", meaning)


def explain(path: str, said: str, program: Optional[m.Program] = None) -> str:
    """Explain a message of /init or of Windows in a sentence or two. program: that was launched; None for cmd.exe."""
    error = _error_of_windows(path, said)
    is_in_linux = program is not None and program.place.mount and not about_session.is_of_windows(program.place)
    if error == "Invalid argument" and is_in_linux:
        return NOT_REACHED
    if error:
        return WINDOWS_ERRORS.get(error, "Windows did not start it, and gives that as the reason.")
    return next((meaning for pattern, meaning in MEANINGS.items() if re.search(pattern, said)), OTHERWISE)
