# SPDX-License-Identifier: MIT
"""The command line of wsl-binfmt(1)."""

import posix
import sys

from wsl_binfmt import interop, table

NAME = "wsl-binfmt"
VERSION = "@VERSION@"
USAGE = f"usage: {NAME} restore|hold"
HELP = f"""{USAGE}

Keep Windows programs starting in this WSL distro. systemd runs this by what
wsl-binfmt-generator(8) writes; run by hand, as root, it does the same.

  restore         put WSLInterop first in the kernel's table again, if it is not
  hold            restore, and keep a second entry beside WSLInterop until the
                  next restore, for a second at most
  -h, --help      show this text
  --version       show the version

Exit status: 0 Windows programs start, or it is not for us to see to it;
1 they may not; 2 wrong arguments."""

ACTIONS = {"restore": interop.restore, "hold": interop.hold}
# What the generator wrote last: the decision is its own. It writes this file
# only if this is a WSL distro whose user wants Windows programs.
DECISION = "/run/systemd/generator/binfmt-support.service.d/50-wsl-binfmt.conf"
ST_RDONLY = 1  # statvfs(3)


def run(args: "list[str]", by_hand: bool) -> int:
    """Run the command; returns its exit status.

    args: what follows the program's name. by_hand: whether not systemd started
    us; only then has anybody to find out whether there is something to do.
    """
    if args in (["-h"], ["--help"]):
        print(HELP)
        return 0
    if args == ["--version"]:
        print(NAME, VERSION)
        return 0
    if len(args) != 1 or args[0] not in ACTIONS:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        if by_hand and not exists(DECISION):
            return say("not a WSL distro, or switched off in /etc/wsl.conf: nothing to do", 0)
        if not exists(f"{table.DIRECTORY}/register"):
            return say(f"{table.DIRECTORY} is not mounted: nothing to do", 0)
        if posix.statvfs(table.DIRECTORY).f_flag & ST_RDONLY:
            return say(f"{table.DIRECTORY} is read-only: nothing to do", 0)
        wrong = ACTIONS[args[0]]()
    except PermissionError as e:
        return say(f"{e.filename or table.DIRECTORY}: {e.strerror}, run this as root", 1)
    except OSError as e:
        return say(f"cannot register /init for Windows programs: {e.filename or '/init'}: {e.strerror}", 1)
    return say(f"{wrong}: restored", 0) if wrong else 0


def exists(path: str) -> bool:
    """Whether there is something at `path`."""
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def say(message: str, status: int) -> int:
    """Say something on stderr, which is the journal under systemd; returns `status`."""
    print(f"{NAME}: {message}", file=sys.stderr)
    return status


def main() -> None:
    """Run the command with the arguments of this process, and end it."""
    try:
        status = run(sys.argv[1:], b"INVOCATION_ID" not in posix.environ)
    except KeyboardInterrupt:
        status = 130
    except Exception as e:
        status = say(f"unexpected {type(e).__name__}, please report it: {e}", 1)
    try:
        sys.stdout.flush()
    except OSError:
        status = status or 1
    # Leaves out the interpreter's own clearing up, a sixth of the time it takes.
    posix._exit(status)
