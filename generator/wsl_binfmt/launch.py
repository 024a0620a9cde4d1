# SPDX-License-Identifier: MIT
"""A Windows program that is given to the command: whether its file can be executed, and what comes of starting it."""

from __future__ import annotations

import errno
import glob
import os
import re
import shlex
import shutil
import stat
import subprocess
from typing import NamedTuple

from wsl_binfmt import diagnosis, facts

CMD = "cmd.exe"
# Where Windows has it; WSL mounts its drives below /mnt by default, wsl.conf's automount.root.
SYSTEM32 = "/mnt/*/Windows/System32/cmd.exe"
START_MAX = 10.0  # seconds; Windows takes two when it is busy


class Launch(NamedTuple):
    """What came of starting a program."""

    program: str
    started: bool | None  # None: could not tell
    layer: str  # which one failed: "file", "table", "interpreter", "windows"; "" if none
    detail: str


def find(name: str) -> str | None:
    """Find a program by its path, or by PATH; None if there is none."""
    if os.sep in name:
        return name
    found = facts.within(facts.DEADLINE, lambda: shutil.which(name, os.F_OK) or "")
    if not found and name == CMD:
        paths = facts.within(facts.DEADLINE, lambda: sorted(glob.glob(SYSTEM32)))
        found = paths[0] if paths else None
    return found or None


def read(path: str, mounts: list[facts.Mount]) -> diagnosis.Program | None:
    """Look at the file of a program; None if there is none."""
    unknown = diagnosis.Program(path, None, "", [], None)

    def look() -> list[diagnosis.Program]:
        try:
            return [_read(path, mounts)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as e:
            return [unknown._replace(fault=f"{path} cannot be looked at: {e.strerror}.")]

    found = facts.within(facts.DEADLINE, look)
    if found is None:  # its file system does not answer
        return unknown
    return found[0] if found else None


def _read(path: str, mounts: list[facts.Mount]) -> diagnosis.Program:
    status = os.stat(path)
    real = os.path.realpath(path)
    around = [mount for mount in mounts if f"{real}/".startswith(f"{mount.target.rstrip('/')}/")]
    mount = max(enumerate(around), key=lambda each: (len(each[1].target), each[0]))[1] if around else None
    where = [f"{mount.target} is mounted with {','.join(dict.fromkeys(mount.options))}"] if mount else []
    mode = f"{path} has the mode {stat.filemode(status.st_mode)}"
    fault, fix = "", None
    if not stat.S_ISREG(status.st_mode):
        fault = f"{path} is not a file."
    elif os.statvfs(path).f_flag & os.ST_NOEXEC:
        fault = f"{path} is on a file system that is mounted with noexec."
        fix = f"sudo mount -o remount,exec {shlex.quote(mount.target)}" if mount else None
    elif not os.access(path, os.X_OK):
        is_of_windows = mount is not None and mount.kind in ("9p", "drvfs", "virtiofs")
        fault = (
            f"{path} may not be executed: {'fmask= of the mount' if is_of_windows else 'its mode'} does not let you."
        )
        fix = diagnosis.edit("/etc/wsl.conf") if is_of_windows else f"chmod +x -- {shlex.quote(path)}"
    start = None
    if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
        with open(path, "rb") as file:
            start = file.read(diagnosis.START_MAX).ljust(diagnosis.START_MAX, b"\0")
    return diagnosis.Program(path, start, fault, [mode, *where] if fault else [], fix)


def launch(path: str, arguments: list[str]) -> Launch:
    """Start a program, and tell which layer failed. It is ended after START_MAX."""

    def start() -> subprocess.Popen[str] | OSError:
        try:
            return subprocess.Popen(
                [path, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="backslashreplace",
                start_new_session=True,
            )
        except OSError as e:
            return e

    process = facts.within(START_MAX, start)
    if process is None:
        return Launch(path, None, "file", f"its file system does not answer within {START_MAX:.0f} seconds")
    if isinstance(process, OSError):
        if process.errno == errno.ENOEXEC:
            return Launch(path, False, "table", f"the kernel knows no entry for it ({process.strerror})")
        if process.errno == errno.ENOENT:
            return Launch(path, False, "interpreter", f"what its entry leads to is not there ({process.strerror})")
        return Launch(path, False, "file", f"the kernel does not execute it ({process.strerror})")
    try:
        said, _ = process.communicate(timeout=START_MAX)
    except subprocess.TimeoutExpired:
        facts.end(process)
        return Launch(path, None, "windows", f"it started, and has not ended after {START_MAX:.0f} seconds")
    # What WSL's /init says of a failure of its own.
    failure = re.search(r"<3>WSL \(\d+.*?\) ERROR: .*", said)
    if failure:
        return Launch(path, False, "windows", f"/init could not reach Windows: {failure[0]}")
    return Launch(path, True, "", f"it ended with the exit status {process.returncode}")
