# SPDX-License-Identifier: MIT
"""Files in /run/wsl-binfmt: what has to be known until this distro ends, by whichever process."""

import posix

DIRECTORY = "/run/wsl-binfmt"


def read(name: str) -> "bytes | None":
    """Read a note; None if there is none, or it cannot be read."""
    try:
        with open(f"{DIRECTORY}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return None


def version(name: str) -> "tuple[int, int]":
    """Tell one content of a note from another, without reading it; (0, 0) if there is none."""
    try:
        status = posix.stat(f"{DIRECTORY}/{name}")
    except OSError:
        return 0, 0
    return status.st_ino, status.st_ctime_ns


def write(name: str, data: bytes) -> None:
    """Write a note, whole or not at all; raises OSError."""
    try:
        posix.mkdir(DIRECTORY, 0o755)
    except FileExistsError:
        pass
    temporary = f"{DIRECTORY}/.{name}.{posix.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        posix.rename(temporary, f"{DIRECTORY}/{name}")
    except OSError:
        forget(f".{name}.{posix.getpid()}")
        raise


def forget(name: str) -> None:
    """Remove a note, if there is one; raises OSError."""
    try:
        posix.unlink(f"{DIRECTORY}/{name}")
    except FileNotFoundError:
        pass
