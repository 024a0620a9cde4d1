# SPDX-License-Identifier: MIT
"""The command wsl-binfmt: the actions for units are here, those for users in cli.py."""

import posix
import sys
import time

from wsl_binfmt import own, rules, table, watch

NAME = "wsl-binfmt"
VERSION = "@VERSION@"
MARK_TIME = 0.3  # seconds
WARNING, NOTICE = 4, 5  # of syslog(3)
JOURNAL = "/run/systemd/journal/socket"
REPAIR = "8f9b5d1c6a5e4d0f9d2c7f3b1e6a4c58"  # for `journalctl MESSAGE_ID=`


def run(args: "list[str]") -> int:
    """Run the command; `args` follow the program's name. Returns the exit status."""
    try:
        # What only units run.
        if args == ["watch"]:
            watch.Watch(log).run()
            return 0
        if len(args) == 2 and args[0] == "leave" and args[1] in rules.SERVICES:
            entries = own.OwnEntries({}, log)
            entries.leave(args[1:])
            mark = table.read(entries.mark)
            if mark:
                # This distro has no watch to remove its mark; the watches of other distros have seen it by then.
                time.sleep(MARK_TIME)
                table.remove(entries.mark, mark.inode)
            return 0
    except PermissionError:
        return tell(f"may not change {table.DIRECTORY}, run this as root", 1)
    except OSError as e:
        return tell(f"cannot change {e.filename or table.DIRECTORY}: {e.strerror}", 1)
    # Not worth its time and memory in what runs at boot.
    from wsl_binfmt import cli  # noqa: PLC0415

    return cli.run(args)


def printable(text: str) -> str:
    """Make a text harmless for a terminal and the journal: names and paths in it may have anything in them."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def log(message: str, *, repair: bool = False) -> None:
    """Log what the watch has found or done; repair: whether it is a repair, which has an ID in the journal."""
    fields = f"MESSAGE={printable(message)}\nSYSLOG_IDENTIFIER={NAME}\n"
    fields += f"PRIORITY={NOTICE}\nMESSAGE_ID={REPAIR}\n" if repair else f"PRIORITY={WARNING}\n"
    try:
        if b"JOURNAL_STREAM" in posix.environ:
            watch.send(fields.encode(errors="backslashreplace"), JOURNAL)
            return
    except OSError:
        pass
    tell(message, 0)


def tell(message: str, status: int) -> int:
    """Tell what happened, on stderr; returns `status`."""
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
    # Leaves out the interpreter's own clearing up, which takes long.
    posix._exit(status)
