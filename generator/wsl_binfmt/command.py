# SPDX-License-Identifier: MIT
"""The command line of wsl-binfmt(1)."""

import posix
import sys
import time

from wsl_binfmt import formats, interop, table, watch

NAME = "wsl-binfmt"
VERSION = "@VERSION@"
USAGE = f"usage: {NAME} restore"
HELP = f"""{USAGE}

Keep Windows programs starting in this WSL distro.

  restore         as root: put WSLInterop first in the kernel's table again, if
                  it is not; switch the table on, if somebody switched it off
  -h, --help      show this text
  --version       show the version

Exit status: 0 Windows programs start, or that is not for this command;
1 they may not; 2 wrong arguments."""

# What a service has done, when service-hook runs this.
CHANGES = ("started", "failed", "stopped")
ST_RDONLY = 1  # statvfs(3)
# Runs as root in mounts of its own, in which nothing is mounted over the table's `status`.
SWITCH_ON = """\
mount --bind "$0" "$0" || exit
read -r state <"$0/status"
[ "$state" = disabled ] && echo 1 >"$0/status" && exit 3
exit 0
"""


def run(args: "list[str]") -> int:
    """Run the command; `args` follow the program's name. Returns the exit status."""
    if args in (["-h"], ["--help"]):
        return say(HELP, 0, out=1)
    if args == ["--version"]:
        return say(f"{NAME} {VERSION}", 0, out=1)
    try:
        if args == ["restore"]:
            return restore()
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
    say(USAGE, 2)
    return tell("what is to be done?" if not args else f"not understood: {' '.join(args)}", 2)


def restore() -> int:
    """Do by hand what the watch does: wait until nobody holds a stand-in, and repair what is wrong. Raises OSError."""
    if not exists(watch.WANTED):
        return tell("not a WSL distro, or switched off in /etc/wsl.conf: nothing to do", 0)
    if not exists(f"{table.DIRECTORY}/register"):
        return tell(f"{table.DIRECTORY} is not mounted: nothing to do", 0)
    if posix.statvfs(table.DIRECTORY).f_flag & ST_RDONLY:
        return tell(f"{table.DIRECTORY} is read-only: nothing to do", 0)
    if not posix.access(interop.INIT, posix.X_OK):
        return tell(interop.NO_INIT, 1)
    inode, disabled = interop.recall()
    known = interop.Interop(inode, disabled=disabled)
    while True:
        wrong = known.repair()
        if wrong:
            tell(f"{wrong}: restored", 0)
        finding = known.look(table.entries())
        if not finding.held_until:
            break
        time.sleep(0.01)
    if switch_on():
        tell("the whole table was switched off (echo 0 >status): switched on", 0)
    return 0


def switch_on() -> bool:
    """Switch the table on, if somebody has switched it off; returns whether that was so. Raises OSError."""
    # Not worth its memory in the watch.
    import subprocess  # noqa: PLC0415

    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", SWITCH_ON, table.DIRECTORY],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode not in (0, 3):
        raise OSError(0, done.stderr.strip(), f"{table.DIRECTORY}/status")
    return done.returncode == 3


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
        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    except Exception as e:
        status = tell(f"unexpected {type(e).__name__}, please report it: {e}", 1)
    # Leaves out the interpreter's own clearing up, a sixth of the time it takes.
    posix._exit(status)
