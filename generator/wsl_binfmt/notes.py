# SPDX-License-Identifier: MIT
"""What is to be remembered until this distro ends, as files."""

import posix

DIRECTORY = "/run/wsl-binfmt"


def read(name: str) -> "bytes | None":
    """Read a note; None if there is none."""
    try:
        with open(f"{DIRECTORY}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return None


def write(name: str, data: bytes) -> None:
    """Write a note, whole or not at all, and the directories that it is in; raises OSError."""
    path = f"{DIRECTORY}/{name}"
    at = 0
    while (at := path.find("/", at + 1)) > 0:
        try:
            posix.mkdir(path[:at], 0o755)
        except FileExistsError:
            pass
    # Its name is short, and that of a note may be as long as any.
    temporary = f".{posix.getpid()}"
    try:
        with open(f"{DIRECTORY}/{temporary}", "wb") as file:
            file.write(data)
        rename(temporary, name)
    except OSError:
        forget(temporary)
        raise


def rename(name: str, to: str) -> None:
    """Give a note, or a directory of notes, another name; raises OSError."""
    posix.rename(f"{DIRECTORY}/{name}", f"{DIRECTORY}/{to}")


def forget(name: str) -> None:
    """Remove a note, or a directory of notes, if there is one; raises OSError."""
    path = f"{DIRECTORY}/{name}"
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        for inner in posix.listdir(path):
            posix.unlink(f"{path}/{inner}")
        posix.rmdir(path)
