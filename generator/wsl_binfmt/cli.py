# SPDX-License-Identifier: MIT
"""The command line of wsl-binfmt(1), for people."""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
from typing import Any, List, NoReturn, Optional

from wsl_binfmt import command, restore, table
from wsl_binfmt.diagnosis import anonymous, conclude, gather, gather_session, launch, tell
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.bounded import Looker
from wsl_binfmt.diagnosis.conclude import FAILS, UNKNOWN, USAGE, WORKS
from wsl_binfmt.diagnosis.problems import GENERATOR

EPILOG = """\
Exit status of status: 0 Windows programs start; 1 they do not, or there is a
warning and --fail-on=warning was given; 2 wrong arguments; 3 this is not WSL,
or a container, or Windows programs are switched off; 4 could not tell.
Exit status of restore: 0 Windows programs start, or there is nothing to do on
this machine; 1 they may not start; 2 wrong arguments."""
CMD = "cmd.exe"
NOT_WRITTEN = "cannot write to standard output"
REPORT = "wsl-binfmt-report.json"
REPORT_MAX = 4 << 20  # bytes
REPORTED = """\
{path} has what `wsl-binfmt` depends on, and nothing else: the entries of the
binfmt_misc table and the rules of binfmt.d; the settings of /etc/wsl.conf; what
systemd says of four units, and their messages in the journal; the mount of the
table; PATH, the current directory and the sockets of WSL; and, with --program,
the first 256 bytes of the program. Names of users, homes and hosts are replaced.
Read the file before you show it to others."""


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
        description="Say why a program does not start in a WSL distro, and put WSLInterop first.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"{command.NAME} {command.VERSION}")
    actions = top.add_subparsers(metavar="ACTION")
    one = actions.add_parser(
        "status",
        help="say whether a program starts, which entry handles it, and every problem with its fix (default)",
        allow_abbrev=False,
    )
    one.set_defaults(action=status)
    one.add_argument("-v", "--verbose", action="store_true", help="also list all settings, units, drop-ins and repairs")
    one.add_argument("--json", action="store_true", help="print JSON, for programs; see wsl-binfmt(1)")
    one.add_argument("--fail-on", choices=["warning"], help="exit status 1 if there is a warning, too")
    one.add_argument("--list", action="store_true", help="list the id of every problem, with its meaning")
    one.add_argument("--launch", action="store_true", help="start PROGRAM, cmd.exe by default, and say how that went")
    one.add_argument("--from", dest="source", metavar="FILE", help="answer for the machine that FILE is a report of")
    one.add_argument("program", metavar="PROGRAM", nargs="?", help="a program that does not start, of any kind")
    one = actions.add_parser("explain", help="explain a problem by its id", allow_abbrev=False)
    one.set_defaults(action=explain)
    one.add_argument("id", metavar="ID", help="an id of `wsl-binfmt --list`")
    one = actions.add_parser("report", help="write a report of this machine, for an issue", allow_abbrev=False)
    one.set_defaults(action=report)
    one.add_argument("--program", metavar="PROGRAM", help="a program that does not start")
    one.add_argument("--launch", action="store_true", help="start it, or else cmd.exe, and report the result")
    one.add_argument(
        "file", metavar="FILE", nargs="?", default=REPORT, help=f"{REPORT} by default; - for standard output"
    )
    one = actions.add_parser(
        "restore",
        help="as root: put WSLInterop first in the kernel's table again; switch the table on, if it is switched off",
        allow_abbrev=False,
    )
    one.set_defaults(action=run_restore)
    one.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, and do nothing")
    return top


def run(args: List[str]) -> int:
    """Run the command; `args` follow the program's name. Returns the exit status."""
    # A stream that was closed is None.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = _run(args)
    except SystemExit as e:  # of argparse: 0 or 2
        result = e.code if isinstance(e.code, int) else USAGE
    except ImportError as e:
        result = command.tell(f"this needs Python's module {e.name}: install the whole package python3", UNKNOWN)
    except OSError as e:
        if e.filename is None:
            result = command.tell(f"{NOT_WRITTEN}: {e.strerror}", FAILS)
        elif e.filename == GENERATOR and isinstance(e, FileNotFoundError):
            result = command.tell(f"{e.filename} is missing: install the package anew", UNKNOWN)
        else:
            result = command.tell(f"cannot read {e.filename}: {e.strerror}", UNKNOWN)
    try:
        sys.stderr.flush()
    except OSError:
        pass
    try:
        sys.stdout.flush()
    except OSError as e:
        return command.tell(f"{NOT_WRITTEN}: {e.strerror}", FAILS)
    return result


def _run(args: List[str]) -> int:
    # A first word with "/" or "." is a program. Any other is an action, or wrong.
    is_file = args and ("/" in args[0] or "." in args[0])
    is_for_top = args and not is_file and (args[0] in ("-h", "--help", "--version") or args[0][:1] != "-")
    try:
        options = parser().parse_args(args if is_for_top else ["status", *args])
    except OSError:  # the message could not be printed
        return USAGE
    result: int = options.action(options)
    return result


def status(options: argparse.Namespace) -> int:
    """Say what is wrong, and how to fix it; returns the exit status."""
    if options.list:
        print(tell.list_problems())
        return WORKS
    if options.source is not None:
        if options.program or options.launch:
            return command.tell("a report has its own program and launch: give neither with --from", USAGE)
        found_machine = _read_report(options.source)
        if found_machine is None:
            return USAGE
        machine = found_machine
    else:
        machine = _gather(options.program, launches=options.launch)
    found = conclude.conclude(machine)
    program = machine.program
    if program and program.place.state == m.GONE and not {"not-in-path", "drive-not-mounted"} & set(found.ids):
        where = "" if "/" in program.asked else ", neither in PATH nor on a drive of Windows"
        if re.match("[A-Za-z]:", program.asked):
            where = ": that is a path of Windows, of which `wslpath -u` makes one of this distro"
        return command.tell(f"there is no program {program.asked}{where}", USAGE)
    if options.json:
        print(_json().dumps(tell.as_plain(machine, found), indent=2))
    else:
        is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        paint = tell.Paint(
            symbols=is_terminal and "utf" in (sys.stdout.encoding or "").lower(),
            colours=is_terminal and not os.environ.get("NO_COLOR"),
        )
        print(tell.as_text(machine, found, paint, verbose=options.verbose))
    return found.exit_status(fail_on_warning=options.fail_on is not None)


def _gather(asked: Optional[str], *, launches: bool) -> m.Machine:
    machine = gather.gather(asked)
    if not launches or machine.system.elsewhere or (machine.program and machine.program.place.state != m.THERE):
        return machine
    look = Looker()
    path, is_ours = (machine.program.place.path, False) if machine.program else (None, True)
    if is_ours:
        path = look("cmd.exe", lambda: gather_session.find(CMD, machine.conf, machine.session, []), None)
    if path is None:
        return machine._replace(launch=m.Launch(CMD, is_ours, is_there=None if look.unknown else False))
    arguments = ["/c", "exit"] if is_ours else []
    # Its file system may not answer.
    hung = m.Launch(path, is_ours, is_there=None)
    run = look("launch", lambda: launch.run(path, arguments, is_ours=is_ours), hung, launch.LAUNCH_MAX + 2)
    return machine._replace(launch=run)


def _read_report(path: str) -> Optional[m.Machine]:
    """Read a report; None, after a message, if it could not be read."""
    json = _json()
    try:
        # Windows' editors put a mark before the text.
        with open(path, encoding="utf-8-sig") as file:
            return m.from_plain(json.loads(file.read(REPORT_MAX)))
    except OSError as e:
        command.tell(f"cannot read {path}: {e.strerror}", USAGE)
    except (ValueError, RecursionError) as e:
        command.tell(f"{path} is not a report of wsl-binfmt: {e}", USAGE)
    return None


def explain(options: argparse.Namespace) -> int:
    """Explain a problem; returns the exit status."""
    if options.id not in conclude.CATALOGUE:
        return command.tell(f"there is no problem {options.id}; see `wsl-binfmt --list`", USAGE)
    print(tell.explain(options.id))
    return WORKS


def report(options: argparse.Namespace) -> int:
    """Write what is seen of this machine to a file; returns the exit status."""
    json = _json()
    plain = anonymous.anonymous(m.to_plain(_gather(options.program, launches=options.launch)))
    text = json.dumps(plain, indent=1) + "\n"
    if options.file == "-":
        print(text, end="")
        return WORKS
    try:
        # Not over a file that is there, nor through a link that another user has put there.
        with open(options.file, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as e:
        return command.tell(f"cannot write {options.file}: {e.strerror}", FAILS)
    print(REPORTED.format(path=command.printable(options.file)))
    return WORKS


def run_restore(options: argparse.Namespace) -> int:
    """Repair what is wrong; returns the exit status."""
    generator = gather.load_generator()
    try:
        restore.restore(generator, lambda message: print(command.printable(message)), dry_run=options.dry_run)
    except restore.RestoreError as e:
        return command.tell(str(e), FAILS)
    except PermissionError:
        return command.tell(f"may not change {table.DIRECTORY}, run this as root", FAILS)
    except OSError as e:
        return command.tell(f"cannot change {e.filename or table.DIRECTORY}: {e.strerror}", FAILS)
    except subprocess.TimeoutExpired as e:
        return command.tell(f"{e.cmd[0]} does not answer", FAILS)
    return WORKS


def _json() -> Any:  # noqa: ANN401 # a module
    # Debian's python3-minimal lacks only this module of those that are used here.
    import json  # noqa: PLC0415

    return json
