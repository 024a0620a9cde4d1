# SPDX-License-Identifier: MIT
"""The command wsl-binfmt: what the units run of it is here, what people run in cli.py."""

import posix
import sys

from wsl_binfmt import formats, interop, table, watch

NAME = "wsl-binfmt"
VERSION = "@VERSION@"
# What a service has done, when service-hook runs this.
CHANGES = ("started", "failed", "stopped")


def run(args: "list[str]") -> int:
    """Run the command; `args` follow the program's name. Returns the exit status."""
    try:
        # What only our units run: wsl-binfmt.service, and the two services by service-hook.
        if args == ["watch"]:
            watch.Watch(lambda message: tell(message, 0)).run()
            return 0
        if len(args) in (2, 3) and args[0] in CHANGES and args[1] in formats.SERVICES:
            return after_change(args[0], args[1], "".join(args[2:]))
    except PermissionError:
        return tell(f"may not change {table.DIRECTORY}, run this as root", 1)
    except OSError as e:
        return tell(f"cannot change {e.filename or table.DIRECTORY}: {e.strerror}", 1)
    # Not worth its time and memory in what runs at boot.
    from wsl_binfmt import cli  # noqa: PLC0415

    return cli.run(args)


def after_change(action: str, service: str, stand_in: str) -> int:
    """Do what is to be done after a service has changed the table; returns 0. Raises OSError.

    action: of CHANGES. stand_in: what was held meanwhile; "" where
    the user does not want WSLInterop.
    """
    if stand_in and posix.access(interop.INIT, posix.X_OK):
        inode, disabled = interop.recall()
        wrong = interop.Interop(inode, disabled=disabled, release=[stand_in]).repair()
        if wrong:
            tell(f"{wrong}: restored", 0)
    if action == "stopped":
        formats.remove(service)
    else:
        formats.note_start(service, failed=action == "failed")
    return 0


def printable(text: str) -> str:
    """Make a text harmless for a terminal and the journal: others may have put anything into names and paths."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def tell(message: str, status: int) -> int:
    """Tell what happened, on stderr, which is the journal under systemd; returns `status`."""
    try:
        posix.write(2, f"{NAME}: {printable(message)}\n".encode(errors="backslashreplace"))
    except OSError:
        pass
    return status


def main() -> None:
    """Run the command with the arguments of this process, and end it."""
    try:
        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    except Exception as e:
        status = tell(f"unexpected {type(e).__name__}, please report it: {e}", 1)
    # Leaves out the interpreter's own clearing up, a sixth of the time it takes.
    posix._exit(status)
