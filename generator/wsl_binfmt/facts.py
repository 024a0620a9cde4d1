# SPDX-License-Identifier: MIT
"""What can be seen of this machine, for a diagnosis.

Nothing is changed here, and no single thing is waited for longer than DEADLINE:
what takes longer, or may not be read, is None, which stands for "could not tell".
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import threading
import time
import types
from typing import Any, Callable, NamedTuple, TypeVar

from wsl_binfmt import formats, interop, table

GENERATOR = "/usr/lib/systemd/system-generators/wsl-binfmt-generator"
# Directories that come before that of GENERATOR, systemd.generator(7).
GENERATORS_FIRST = (
    "/run/systemd/system-generators",
    "/etc/systemd/system-generators",
    "/usr/local/lib/systemd/system-generators",
)
GENERATED = "/run/systemd/generator"
GUARD = "proc-sys-fs-binfmt_misc-status.mount"
WATCH = "wsl-binfmt.service"
BOOT = "wsl-binfmt-boot.service"
UNITS = (*formats.SERVICES, GUARD, WATCH, BOOT)
# Properties of systemd's D-Bus interface, org.freedesktop.systemd1(5).
PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "ConditionResult",
    "DropInPaths",
    "ActiveEnterTimestampMonotonic",
    "NeedDaemonReload",
    "BindPaths",
    "ExecStartPre",
    "ExecStartPost",
    "ExecStopPost",
)
DEADLINE = 2.0  # seconds
SHOWN_MAX = 100  # of things that a hostile file may have a million of
FILE_MAX = 1 << 20  # bytes of a text file that is only looked at
# Runs a script as root in mounts of its own, in which nothing is mounted over the `status` of the table "$0".
BEHIND_GUARD = "unshare", "--mount", "--propagation=private", "sh", "-c"
READ_STATUS = 'mount --bind "$0" "$0" && cat "$0/status"'

T = TypeVar("T")


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo, proc_pid_mountinfo(5)."""

    root: str
    target: str
    options: list[str]
    kind: str


class Registered(NamedTuple):
    """An entry of the table."""

    name: str
    entry: table.Entry
    since: float  # when it was registered, in seconds since 1970
    inode: int


class Setting(NamedTuple):
    """A setting of /etc/wsl.conf."""

    line: int
    name: str  # SECTION.KEY, in lower case
    value: str


class Conf(NamedTuple):
    """What WSL makes of /etc/wsl.conf."""

    # False: this user may not read it, and all that follows is only a guess.
    is_known: bool
    protect: bool
    interop: bool
    settings: list[Setting]
    # Where WSL stops reading, 0 if nowhere; and the settings from there on, which it ignores.
    stopped_at: int
    ignored: list[Setting]


class Message(NamedTuple):
    """A message of the journal."""

    source: str  # the unit or program
    text: str
    at: float  # in seconds since 1970


class Facts:
    """Everything that a diagnosis is made from."""

    def __init__(self) -> None:
        """Look at everything; takes a twentieth of a second where nothing is wrong."""
        self.is_root = os.geteuid() == 0
        # Started first, as they take longest; read last.
        systemctl = _start("systemctl", "show", "--no-pager", f"--property={','.join(PROPERTIES)}", *UNITS)
        sources = [f"_SYSTEMD_UNIT={unit}" for unit in (WATCH, formats.SERVICES[0])]
        sources.append("SYSLOG_IDENTIFIER=wsl-binfmt-generator")
        journal = _start(
            "journalctl", "--quiet", "--boot", "--output=json", "--lines=300", *" + ".join(sources).split()
        )

        generator = load_generator()
        # Why nothing is to be done on this machine; "" in a WSL distro.
        self.elsewhere: str = generator.not_a_distro()
        self.release: str = generator.first_line("/proc/sys/kernel/osrelease")
        self.has_systemd = os.path.isdir("/run/systemd/system")
        self.own_user_namespace = _first_line("/proc/self/uid_map").split() != ["0", "0", "4294967295"]
        self.conf = within(DEADLINE, lambda: read_conf(generator)) or Conf(False, True, True, [], 0, [])
        # What the generator would write now and what it has written: texts by path, "" for a link.
        wanted = within(DEADLINE, lambda: generator.output(self.conf.protect, self.conf.interop))
        self.wanted: dict[str, str] = wanted or {}
        self.written = {path: _read_generated(path) for path in self.wanted}
        self.masked_by = next(filter(os.path.lexists, _overriding_generators()), None)

        self.mounts = read_mounts()
        self.table_mount = top_mount(self.mounts, table.DIRECTORY)
        if self.table_mount and self.table_mount.kind == "autofs":
            # Looking at it has systemd mount it, if systemd answers.
            within(0.5, lambda: os.listdir(table.DIRECTORY))
            self.mounts = read_mounts()
            self.table_mount = top_mount(self.mounts, table.DIRECTORY)
        is_there = self.table_mount and self.table_mount.kind == "binfmt_misc"
        self.over_status = top_mount(self.mounts, f"{table.DIRECTORY}/status")
        self.entries: list[Registered] | None = within(DEADLINE, read_entries) if is_there else None
        self.stale = within(DEADLINE, lambda: stale_stand_ins(self.entries or [])) or []
        self.is_switched_on = self._read_status() if is_there else None

        self.units = parse_units(_finish(systemctl))
        self.messages = parse_journal(_finish(journal), self.is_root)

    def _read_status(self) -> bool | None:
        """Whether the table is switched on; None if that cannot be seen from here."""
        if not self.over_status:
            return within(DEADLINE, table.is_switched_on)
        return is_switched_on_behind_guard() if self.is_root else None


def is_switched_on_behind_guard() -> bool | None:
    """Whether the table is switched on, whatever is mounted over its `status`; for root. None: could not tell."""
    text = _finish(_start(*BEHIND_GUARD, READ_STATUS, table.DIRECTORY))
    return text != "disabled\n" if text else None


def within(seconds: float, function: Callable[[], T]) -> T | None:
    """Call a function; None if it takes longer, or raises OSError.

    What it waits for then, such as a file system that does not answer, ends with this process.
    """
    result: list[T] = []

    def call() -> None:
        try:
            result.append(function())
        except OSError:
            pass

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else None


def load_generator() -> Any:
    """Load the generator as a module that says nothing: what it decides is decided in one place."""
    loader = importlib.machinery.SourceFileLoader("wsl_binfmt_generator", GENERATOR)
    module: Any = types.ModuleType(loader.name)
    loader.exec_module(module)
    module.log = lambda *_: None
    return module


def read_conf(generator: Any) -> Conf:
    """Read /etc/wsl.conf as the generator does, and what it ignores."""
    protect, enabled = generator.settings()
    try:
        with generator.open_text(generator.WSL_CONF) as file:
            lines = list(file)
    except FileNotFoundError:
        lines = []
    except OSError:
        return Conf(False, protect, enabled, [], 0, [])
    settings, stopped_at = _parse_conf(generator, lines)
    return Conf(True, protect, enabled, settings, stopped_at, _ignored(generator, lines, stopped_at))


def _ignored(generator: Any, lines: list[str], stopped_at: int) -> list[Setting]:
    """List the settings from a malformed line on; each line is for itself."""
    ignored: list[Setting] = []
    header: list[str] = []
    for number, line in enumerate(lines if stopped_at else [], 1):
        start = line.lstrip()[:1]
        if start == "[" and not _parse_conf(generator, [line])[1]:
            header = [line.rstrip("\r\n") + "\n"]
        elif number > stopped_at and start not in ("[", "#", ""):
            found, _ = _parse_conf(generator, [*header, line])
            ignored += [setting._replace(line=number) for setting in found]
            if len(ignored) >= SHOWN_MAX:
                break
    return ignored


def _parse_conf(generator: Any, lines: list[str]) -> tuple[list[Setting], int]:
    settings, stopped_at = [], 0
    for line, name, value in generator.parse_wsl_conf(lines):
        if name:
            settings.append(Setting(line, name, value))
        elif value.startswith("not a [section]"):
            stopped_at = line
    return settings, stopped_at


def read_mounts() -> list[Mount]:
    """Read what is mounted, the uppermost last."""
    mounts = []
    # Other line ends than these may be in names.
    for line in read("/proc/self/mountinfo").split("\n"):
        fields, _, rest = line.partition(" - ")
        try:
            _, _, _, root, target, options, *_ = fields.split(" ")
            kind, _, of_all = rest.split(" ", 2)
        except ValueError:
            continue
        names = options.split(",") + of_all.rpartition(" ")[2].split(",")
        mounts.append(Mount(_unescape(root), _unescape(target), names, kind))
    return mounts


def _unescape(path: str) -> str:
    """Undo what the kernel does to blanks, newlines and backslashes in mountinfo."""
    for digits, character in ("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\"):
        path = path.replace(f"\\{digits}", character)
    return path


def top_mount(mounts: list[Mount], target: str) -> Mount | None:
    """Find the uppermost mount at a path; None if nothing is mounted there."""
    return next((mount for mount in reversed(mounts) if mount.target == target), None)


def read_entries() -> list[Registered]:
    """Read the entries of the table, the newest first; raises OSError, also if the table never stands still."""
    for _ in range(10):
        listed = table.entries()
        found = [_read_entry(name, inode) for name, inode in listed.items()]
        # While WSLInterop is replaced, a list of before and texts of after would make no sense together.
        if table.entries() == listed:
            return [each for each in found if each]
        time.sleep(0.02)
    raise OSError(0, "the table changes all the time")


def _read_entry(name: str, inode: int) -> Registered | None:
    entry = table.read(name)
    try:
        status = os.stat(f"{table.DIRECTORY}/{name}")
    except FileNotFoundError:
        return None
    return Registered(name, entry, status.st_mtime, inode) if entry else None


def stale_stand_ins(entries: list[Registered]) -> list[str]:
    """Tell which stand-ins nobody removes; waits longer than anybody holds one, if there are any."""
    end = time.monotonic() + 1.2 * interop.HOLD_MAX
    left = {entry.name: entry.inode for entry in entries if entry.name.startswith(interop.STAND_IN)}
    while left and time.monotonic() < end:
        time.sleep(0.02)
        now = table.entries()
        left = {name: inode for name, inode in left.items() if now.get(name) == inode}
    return list(left)


def package_of(path: str) -> str:
    """Name the Debian package that a file belongs to; "" if none does, or nobody knows."""
    said = _finish(_start("dpkg-query", "--search", path)) or ""
    return said.partition(":")[0] if said.endswith(f": {path}\n") else ""


def parse_units(said: str | None) -> dict[str, dict[str, str]] | None:
    """Parse what `systemctl show` says: the properties of each unit; None if it says nothing."""
    units = {}
    for block in (said or "").split("\n\n"):
        unit: dict[str, str] = {}
        for line in block.strip("\n").split("\n"):
            name, _, value = line.partition("=")
            # Some are there more than once.
            unit[name] = f"{unit[name]}\n{value}" if name in unit else value
        if "Id" in unit:
            units[unit["Id"]] = unit
    return units or None


def parse_journal(said: str | None, is_root: bool) -> list[Message] | None:
    """Parse what `journalctl --output=json` says; None if this user may not read it."""
    if said is None or (not said and not is_root):
        return None
    messages = []
    for line in said.split("\n"):
        try:
            fields = json.loads(line)
            text = fields["MESSAGE"]
            # As bytes, if it is no text.
            text = text if isinstance(text, str) else bytes(text).decode(errors="backslashreplace")
            source = fields.get("_SYSTEMD_UNIT") or fields.get("SYSLOG_IDENTIFIER", "")
            messages.append(Message(source, text, int(fields["__REALTIME_TIMESTAMP"]) / 1e6))
        except (KeyError, TypeError, ValueError):
            continue
    return messages


def _overriding_generators() -> list[str]:
    paths = [f"{directory}/{os.path.basename(GENERATOR)}" for directory in GENERATORS_FIRST]
    # Of another PREFIX, the generator itself is there, or a link to it.
    return [path for path in paths if os.path.realpath(path) != os.path.realpath(GENERATOR)]


def _read_generated(path: str) -> str | None:
    """What the generator has written: "" for a link; None if there is nothing."""
    full = f"{GENERATED}/{path}"
    if os.path.islink(full):
        return ""
    return read(full) if os.path.exists(full) else None


def has_generated_since() -> bool:
    """Whether systemd has run the generators since /etc/wsl.conf and the generator itself have changed."""
    try:
        # Of a file that is gone, nobody knows when that was.
        changed = max(os.stat(path).st_ctime_ns for path in ("/etc/wsl.conf", GENERATOR))
        return os.stat(GENERATED).st_mtime_ns > changed
    except OSError:
        return False


def _first_line(path: str) -> str:
    return read(path).partition("\n")[0]


def read(path: str) -> str:
    """Read a text file, or its beginning; "" if it cannot be read. Does not wait for the writer of a FIFO."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(fd, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read(FILE_MAX)
    except OSError:
        return ""


def _start(*args: str) -> subprocess.Popen[str] | None:
    """Start a program whose output is read later; None if it is not there."""
    try:
        return subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="backslashreplace",
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
        )
    except OSError:
        return None


def end(process: subprocess.Popen[str]) -> None:
    """End a program that takes too long; one that cannot be ended is left alone."""
    process.kill()
    try:
        process.communicate(timeout=0.5)
    except subprocess.TimeoutExpired:
        pass


def _finish(process: subprocess.Popen[str] | None) -> str | None:
    """Read what a program printed; None if it has failed, or takes too long."""
    if process is None:
        return None
    try:
        said, _ = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        end(process)
        return None
    return said if process.returncode == 0 else None
