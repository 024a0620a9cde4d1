# SPDX-License-Identifier: MIT
"""Looking at files and programs that may not answer, or that this user may not see, within a bounded time."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from typing import Callable, Dict, List, Optional, TypeVar

from wsl_binfmt.diagnosis import machine as m

DEADLINE = 2.0  # seconds
FILE_MAX = 1 << 20  # bytes that are read of a text file

T = TypeVar("T")


class Looker:
    """Calls functions that look at something. `unknown` has what could not be seen, with the reason."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.unknown: Dict[str, str] = {}

    def __call__(self, name: str, function: Callable[[], T], otherwise: T, seconds: float = DEADLINE) -> T:
        """Call a function; `otherwise` if it fails, or takes longer than that.

        A call that takes longer, as on a file system that does not answer, ends with this process.
        """
        results: List[T] = []
        errors: List[Exception] = []

        def call() -> None:
            try:
                results.append(function())
            except Exception as e:
                errors.append(e)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(seconds)
        if results:
            return results[0]
        if errors and isinstance(errors[0], OSError):
            self.unknown[name] = state_of(errors[0])
        elif errors:
            self.unknown[name] = f"unexpected {type(errors[0]).__name__}, please report it: {errors[0]}"
        else:
            self.unknown[name] = f"no answer within {seconds:.0f} seconds"
        return otherwise


def state_of(error: OSError) -> str:
    """Tell what an error says of a file."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return m.GONE
    if error.errno in (errno.EACCES, errno.EPERM):
        return m.MAY_NOT_LOOK
    return error.strerror or str(error)


def state(path: str) -> str:
    """Tell whether a file is there, or that this user may not look."""
    try:
        os.stat(path)
    except OSError as e:
        return state_of(e)
    except ValueError:  # a NUL in the path
        return m.GONE
    return m.THERE


def read(path: str) -> str:
    """Read a text file, or its beginning; "" if it cannot be read. Does not wait for the writer of a FIFO."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(fd, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read(FILE_MAX)
    except OSError:
        return ""


def start(*args: str) -> Optional["subprocess.Popen[bytes]"]:
    """Start a program whose output is read later; None if it is not there."""
    try:
        return subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
        )
    except OSError:
        return None


def finish(process: Optional["subprocess.Popen[bytes]"]) -> Optional[bytes]:
    """Read what a program printed; None if it has failed, or takes too long."""
    if process is None:
        return None
    try:
        said, _ = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        end(process)
        return None
    return said if process.returncode == 0 else None


def end(process: "subprocess.Popen[bytes]") -> bytes:
    """End a program that takes too long, and return what it printed. A program that cannot be ended is left alone."""
    process.kill()
    try:
        return process.communicate(timeout=0.5)[0]
    except subprocess.TimeoutExpired as e:  # a child of it may have the pipe as well
        if process.stdout:
            process.stdout.close()
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            pass
        return e.output or b""


def text(said: bytes) -> str:
    """Make a text of what a program printed."""
    return said.decode(errors="backslashreplace")
