# SPDX-License-Identifier: MIT
"""The command line of wsl-binfmt(1)."""

import posix
import sys

from wsl_binfmt import binfmt_d, formats, interop, notes, table

NAME = "wsl-binfmt"
VERSION = "@VERSION@"
USAGE = f"usage: {NAME} restore|hold|settle [UNIT]"
HELP = f"""{USAGE}

Keep Windows programs starting in this WSL distro. systemd runs this by what
wsl-binfmt-generator(8) writes; run by hand, as root, it does the same.

  restore         put WSLInterop first in the kernel's table again, if it is not
  hold            restore, and keep a second entry beside WSLInterop until the
                  next restore, for a second at most
  settle          wait until no second entry is held, restore until nothing is
                  wrong, and have services register formats that they lost
  UNIT            the service that is started: hold registers those rules of its
                  that would outrank WSL, restore notes its formats
  -h, --help      show this text
  --version       show the version

Exit status: 0 Windows programs start, or that is not for this command;
1 they may not; 2 wrong arguments."""

ACTIONS = ("restore", "hold", "settle")
# What the generator wrote last: the decision is its own. It writes this file
# only if this is a WSL distro whose user wants Windows programs.
DECISION = "/run/systemd/generator/sysinit.target.wants/wsl-binfmt-restore.path"
DROP_INS = "/etc/systemd/system"
INIT = "/init"
ST_RDONLY = 1  # statvfs(3)


def run(args: "list[str]", environ: "dict[bytes, bytes]") -> int:
    """Run the command; returns its exit status.

    args: what follows the program's name. environ: as in `posix.environ`.
    """
    if args in (["-h"], ["--help"]):
        return say(HELP, 0, out=1)
    if args == ["--version"]:
        return say(f"{NAME} {VERSION}", 0, out=1)
    action, *units = args or [""]
    if action not in ACTIONS or units not in ([], *([unit] for unit in formats.SOURCES)):
        return say(USAGE, 2)
    # A person may be anywhere, and the watch goes on when /etc/wsl.conf has been
    # changed. What drop-ins run goes with them; it must not depend on a file that
    # is gone for a moment in a daemon-reload.
    if (action == "settle" or b"INVOCATION_ID" not in environ) and not exists(DECISION):
        return tell("not a WSL distro, or switched off in /etc/wsl.conf: nothing to do", 0)
    try:
        if not exists(f"{table.DIRECTORY}/register"):
            return tell(f"{table.DIRECTORY} is not mounted: nothing to do", 0)
        if posix.statvfs(table.DIRECTORY).f_flag & ST_RDONLY:
            return tell(f"{table.DIRECTORY} is read-only: nothing to do", 0)
        if not posix.access(INIT, posix.X_OK):
            return tell(f"{INIT} cannot be run, it is what starts Windows programs; is this WSL?", 1)
        sight = interop.Sight(formats.seen())
        if action == "hold":
            wrong = interop.hold(sight, units == [binfmt_d.UNIT], any(map(registers_interop, units)))
        elif action == "settle":
            wrong = interop.settle(sight)
        elif any(map(registers_interop, units)) and not table.inode(interop.NAME) and table.inode(interop.stand_in()):
            wrong = ""  # That is still to come. If it does not, settle restores it.
        else:
            wrong = interop.restore(sight)
        if wrong:
            tell(f"{wrong}: restored", 0)
        take_notes(action, units, environ, sight)
    except PermissionError:
        return tell(f"may not change {table.DIRECTORY}, run this as root", 1)
    except OSError as e:
        return tell(f"cannot change {e.filename or f'{table.DIRECTORY} or {notes.DIRECTORY}'}: {e.strerror}", 1)
    return 0


def registers_interop(unit: str) -> bool:
    """Whether a service has a drop-in of the administrator's that registers WSLInterop.

    Many people have been advised to do so. It would fail, and with it the service,
    if WSLInterop were there: it expects that the service has emptied the table.
    """
    directory = f"{DROP_INS}/{unit}.d"
    texts = (binfmt_d.read(f"{directory}/{name}") for name in binfmt_d.listdir(directory))
    return any(text and interop.NAME.encode() in text for text in texts)


def take_notes(action: str, units: "list[str]", environ: "dict[bytes, bytes]", sight: interop.Sight) -> None:
    """Note what has been done, once that is done; and have services bring back what was lost. Raises OSError."""
    interop.remember()
    if action == "restore" and units:
        # Of a stopped service; a failed one may have registered some.
        if environ.get(b"SERVICE_RESULT") == b"success":
            notes.forget(units[0])
        else:
            formats.note(units[0])
    if action == "settle":
        formats.note_boot()
    # What another entry is there for was our doing then; the first note ends the boot, for units/without-python.
    if not sight.replaced and (action == "settle" or formats.seen()):
        formats.saw(sight.inode)
    if action == "settle":
        for unit in formats.bring_back(sight.replaced):
            tell(f"{unit}: formats are missing, reloading it", 0)
        formats.saw(sight.inode)


def exists(path: str) -> bool:
    """Whether there is something at `path`."""
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def tell(message: str, status: int) -> int:
    """Tell what happened, on stderr, which is the journal under systemd; returns `status`."""
    return say(f"{NAME}: {message}", status)


def say(text: str, status: int, out: int = 2) -> int:
    """Write a line to a file descriptor; returns `status`, or 1 if it was for stdout and failed."""
    try:
        posix.write(out, f"{text}\n".encode(errors="backslashreplace"))
    except OSError:
        return 1 if out == 1 else status
    return status


def main() -> None:
    """Run the command with the arguments of this process, and end it."""
    try:
        status = run(sys.argv[1:], posix.environ)
    except KeyboardInterrupt:
        status = 130
    except Exception as e:
        status = tell(f"unexpected {type(e).__name__}, please report it: {e}", 1)
    # Leaves out the interpreter's own clearing up, a sixth of the time it takes.
    posix._exit(status)
