# SPDX-License-Identifier: MIT
"""The command line of wsl-binfmt(1), for people."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import time
from typing import NoReturn

from wsl_binfmt import command, diagnosis, facts, interop, launch, report, table

RESTORE_MAX = 10.0  # seconds
WORKS, FAILS, USAGE, ELSEWHERE, UNKNOWN = range(5)  # exit status
EPILOG = """\
Exit status of status: 0 Windows programs start; 1 they do not, or something is
at risk with --fail-on=warning; 2 wrong arguments; 3 this is not for this system
(not WSL, a container, or switched off by choice); 4 could not tell.
Exit status of restore: 0 Windows programs start, or that is not for this
command; 1 they may not; 2 wrong arguments."""
# As facts.BEHIND_GUARD has it run.
SWITCH_ON = """\
mount --bind "$0" "$0" || exit
read -r state <"$0/status"
[ "$state" = disabled ] || exit 0
echo 1 >"$0/status" && exit 3
"""


class Parser(argparse.ArgumentParser):
    """A parser whose messages are harmless for a terminal."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and end."""
        self.print_usage(sys.stderr)
        command.tell(f"{message}; see --help", USAGE)
        raise SystemExit(USAGE)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    top = Parser(
        prog=command.NAME,
        description="Keep Windows programs starting in this WSL distro, and say why one does not.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"{command.NAME} {command.VERSION}")
    actions = top.add_subparsers(metavar="ACTION")
    status_parser = actions.add_parser(
        "status",
        help="say whether a Windows program starts, who answers it, and every problem with what settles it (default)",
        allow_abbrev=False,
    )
    status_parser.set_defaults(action=status)
    status_parser.add_argument("-v", "--verbose", action="store_true", help="with all settings, drop-ins and repairs")
    status_parser.add_argument("--json", action="store_true", help="for programs; see wsl-binfmt(1)")
    status_parser.add_argument("--fail-on", choices=["warning"], help="exit status 1 if something is at risk, too")
    status_parser.add_argument("--list", action="store_true", help="list the id of every problem, with its meaning")
    status_parser.add_argument(
        "--launch", action="store_true", help="start PROGRAM, cmd.exe by default, and say how that went"
    )
    status_parser.add_argument("program", metavar="PROGRAM", nargs="?", help="the Windows program that does not start")
    restore_parser = actions.add_parser(
        "restore",
        help="as root: put WSLInterop first in the kernel's table again, if it is not; "
        "switch the table on, if somebody switched it off",
        allow_abbrev=False,
    )
    restore_parser.set_defaults(action=lambda options: restore(dry_run=options.dry_run))
    restore_parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, and do nothing")
    return top


def run(args: list[str]) -> int:
    """Run the command; `args` follow the program's name. Returns the exit status."""
    # What is closed is None.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = _run(args)
    except SystemExit as e:  # of argparse: 0 or 2
        result = e.code if isinstance(e.code, int) else USAGE
    except PermissionError:
        result = command.tell(f"may not change {table.DIRECTORY}, run this as root", FAILS)
    except OSError as e:
        if e.filename == facts.GENERATOR:
            result = command.tell(f"{e.filename} is missing: install the package anew", UNKNOWN)
        else:
            result = command.tell(f"cannot change {e.filename or table.DIRECTORY}: {e.strerror}", FAILS)
    except subprocess.TimeoutExpired as e:
        result = command.tell(f"{e.cmd[0]} does not answer", FAILS)
    try:
        sys.stderr.flush()
    except OSError:
        pass
    try:
        sys.stdout.flush()
    except OSError as e:
        return command.tell(f"cannot write to standard output: {e.strerror}", FAILS)
    return result


def _run(args: list[str]) -> int:
    is_for_top = args and (args[0] in ("-h", "--help", "--version") or args[0][:1] != "-")
    try:
        options = parser().parse_args(args if is_for_top else ["status", *args])
    except OSError:  # what is wrong could not be said
        return USAGE
    result: int = options.action(options)
    return result


def status(options: argparse.Namespace) -> int:
    """Say what is wrong, and what settles it; returns the exit status."""
    if options.list:
        print(report.list_problems())
        return WORKS
    seen = facts.Facts()
    path = launch.find(options.program or launch.CMD) if options.program or options.launch else None
    program = launch.read(path, seen.mounts) if path else None
    if options.program and not program:
        return command.tell(f"there is no program {options.program}", USAGE)
    if options.program and program and not program.fault and (program.start or b"MZ")[:2] != interop.WINDOWS:
        return command.tell(f"{path} is not a Windows program, it does not begin with MZ", USAGE)
    # It reads files as well, which may be on a file system that does not answer.
    found = facts.within(2 * facts.DEADLINE, lambda: diagnosis.diagnose(seen, program if options.program else None))
    if found is None:
        return command.tell("could not tell: a file that has to be looked at does not answer", UNKNOWN)
    launched = _launch(options, program, found)
    if launched:
        found = found._replace(works=launched.started)
    if options.json:
        print(report.as_json(seen, found, launched))
    else:
        is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        paint = report.Paint(
            symbols=is_terminal and "utf" in (sys.stdout.encoding or "").lower(),
            colours=is_terminal and not os.environ.get("NO_COLOR"),
        )
        print(report.as_text(seen, found, paint, launched, verbose=options.verbose))
    return exit_status(found, fail_on=options.fail_on)


def _launch(
    options: argparse.Namespace, program: diagnosis.Program | None, found: diagnosis.Diagnosis
) -> launch.Launch | None:
    if not options.launch or any(problem.id in diagnosis.ELSEWHERE for problem in found.problems):
        return None
    if program is None:
        return launch.Launch(launch.CMD, None, "file", "it is neither in PATH nor in a drive below /mnt")
    return launch.launch(program.path, [] if options.program else ["/c", "exit"])


def exit_status(found: diagnosis.Diagnosis, fail_on: str | None) -> int:
    """Make the exit status of a diagnosis."""
    if any(problem.id in (*diagnosis.ELSEWHERE, "interop-off") for problem in found.problems):
        return ELSEWHERE
    if found.works is None:
        return UNKNOWN
    at_risk = fail_on and any(problem.severity != diagnosis.NOTE for problem in found.problems)
    return WORKS if found.works and not at_risk else FAILS


def restore(*, dry_run: bool) -> int:
    """Do by hand what the watch does: wait until nobody holds a stand-in, and repair what is wrong.

    dry_run: only say what would be done. Returns the exit status; raises OSError.
    """
    generator = facts.load_generator()
    if generator.not_a_distro():
        return _tell(f"{generator.not_a_distro()}: nothing to do")
    if not generator.settings()[1]:
        return _tell("/etc/wsl.conf switches Windows programs off: nothing to do")
    if not os.path.exists(f"{table.DIRECTORY}/register"):
        return _tell(f"{table.DIRECTORY} is not mounted: nothing to do")
    if os.statvfs(table.DIRECTORY).f_flag & os.ST_RDONLY:
        return _tell(f"{table.DIRECTORY} is read-only: nothing to do")
    if not os.access(interop.INIT, os.X_OK):
        return command.tell(interop.NO_INIT, FAILS)
    inode, disabled = interop.recall()
    known = interop.Interop(inode, disabled=disabled)
    has_done = False
    end = time.monotonic() + RESTORE_MAX
    while True:
        finding = known.look(table.entries())
        stale = facts.stale_stand_ins(facts.read_entries()) if dry_run else finding.leftovers
        wrong = finding.fault if dry_run else known.repair()
        entries = table.entries()
        left = known.look(entries)
        # One that still answers in place of an entry that outranks WSLInterop stays until that is replaced.
        leftovers = ", ".join(name for name in stale if dry_run or name not in entries)
        if wrong:
            _tell(f"{wrong}: would be restored" if dry_run else f"{wrong}: restored")
        if leftovers:
            _tell(f"{leftovers} was left behind: " + ("would be removed" if dry_run else "removed"))
        has_done = has_done or bool(wrong or leftovers)
        if dry_run or not (left.held_until or left.leftovers):
            break
        if time.monotonic() > end:
            return command.tell("others hold stand-ins all the time, WSLInterop is left to them", FAILS)
        time.sleep(0.01)
    if dry_run and os.geteuid() == 0 and facts.is_switched_on_behind_guard() is False:
        return _tell("the whole table was switched off (echo 0 >status): would be switched on")
    if not dry_run and switch_on():
        return _tell("the whole table was switched off (echo 0 >status): switched on")
    if known.disabled:
        return _tell(f"WSLInterop was disabled by hand, and stays so: echo 1 >{table.DIRECTORY}/WSLInterop")
    if not has_done:
        _tell("WSLInterop is as WSL registers it, and nothing outranks it: nothing to do")
    return WORKS


def _tell(message: str) -> int:
    """Tell what was found right, or done; returns the exit status for that."""
    print(command.printable(message))
    return WORKS


def switch_on() -> bool:
    """Switch the table on, if somebody has switched it off; returns whether that was so. Raises OSError."""
    done = subprocess.run(
        [*facts.BEHIND_GUARD, SWITCH_ON, table.DIRECTORY],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
        timeout=RESTORE_MAX,
    )
    if done.returncode not in (0, 3):
        raise OSError(0, done.stderr.strip(), f"{table.DIRECTORY}/status")
    return done.returncode == 3
