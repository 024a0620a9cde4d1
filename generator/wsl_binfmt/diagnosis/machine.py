# SPDX-License-Identifier: MIT
"""A machine, as far as a diagnosis depends on it: plain values, which are written as JSON and read again.

gather.py makes a Machine from what it sees. conclude.py makes the answer from the
Machine alone. None stands for "not known" everywhere, and `unknown` says why. A
field that is missing in the JSON has its default.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, NamedTuple, Optional, Union, get_type_hints

from wsl_binfmt import interop, table

VERSION = 1
# States of a file. Any other text is what the kernel says of it, such as "Input/output error".
THERE, GONE, MAY_NOT_LOOK = "there", "gone", "may not look"
NO_ANSWER, TO_NOTHING = "no answer", "it is a link to nothing"
NOT_EXECUTABLE = "this user may not execute it"
# Of what is read: seconds that time.localtime() knows a date of, the numbers of JSON, MAX_ERRNO of the kernel.
TIME_MAX, INT_MAX, ERRNO_MAX = 1e11, 2**53, 4096


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo, proc_pid_mountinfo(5)."""

    target: str = ""
    kind: str = ""
    options: List[str] = []
    root: str = "/"


class Entry(NamedTuple):
    """An entry of the table; magic and mask in hexadecimal digits."""

    name: str = ""
    enabled: bool = True
    interpreter: str = ""
    flags: str = ""
    offset: int = 0
    magic: Optional[str] = None
    mask: Optional[str] = None
    extension: Optional[str] = None
    since: float = 0.0  # when it was registered, in seconds since 1970
    interpreter_state: str = THERE
    is_link_to_init: bool = False  # whether the interpreter is a link to /init, as NixOS makes one

    def kernel(self) -> table.Entry:
        """Make the same entry as table.py has it; a link to /init counts as /init."""
        return table.Entry(
            enabled=self.enabled,
            interpreter=interop.INIT.encode() if self.is_link_to_init else os.fsencode(self.interpreter),
            flags=os.fsencode(self.flags),
            offset=self.offset,
            magic=None if self.magic is None else bytes.fromhex(self.magic),
            mask=None if self.mask is None else bytes.fromhex(self.mask),
            extension=None if self.extension is None else os.fsencode(self.extension),
        )


class Rule(NamedTuple):
    """A rule of binfmt.d, or of update-binfmts(8): the text that makes an entry."""

    path: str = ""
    line: int = 0
    name: str = ""
    text: str = ""
    package: str = ""
    hidden_by: str = ""  # a file of the same name in /etc or /run
    interpreter_state: str = THERE

    @property
    def interpreter(self) -> str:
        """The interpreter; "" if the kernel would refuse the rule."""
        entry = self.entry()
        return os.fsdecode(entry.interpreter) if entry else ""

    @property
    def opens_interpreter(self) -> bool:
        """Whether the kernel opens the interpreter when the rule is registered: the flag F."""
        entry = self.entry()
        return entry is not None and b"F" in entry.flags

    def entry(self) -> Optional[table.Entry]:
        """Make the entry; None if the kernel would refuse the rule."""
        try:
            entry = table.parse_rule(os.fsencode(self.text))[1]
        except ValueError:
            return None
        return entry if entry.interpreter and b"" not in (entry.magic, entry.extension) else None


class Table(NamedTuple):
    """The kernel's table, as it is seen from here."""

    mount: Optional[Mount] = None
    state: str = GONE  # what looking into its directory says
    is_visible: bool = False  # whether that directory is the one of `mount`, rather than what was mounted over it
    entries: Optional[List[Entry]] = None  # the newest first
    is_switched_on: Optional[bool] = None
    over_status: Optional[Mount] = None
    # Temporary entries that a watch has not removed.
    left: List[str] = []


class System(NamedTuple):
    """The kind of the machine."""

    release: str = ""
    distro: str = ""  # as /etc/os-release calls it
    elsewhere: str = ""  # why it is no WSL distro; "" if it is one
    looks_like_wsl: bool = False  # whether WSL has given the session variables or sockets
    has_systemd: bool = False
    init: str = ""  # name of PID 1's program
    sbin_init: str = THERE
    systemd: str = THERE  # whether it is installed
    started: Optional[float] = None  # when PID 1 was, in seconds since 1970
    own_user_namespace: bool = False
    native: str = ""  # how programs of this machine begin, in hexadecimal digits
    knows_binfmt_misc: Optional[bool] = None
    has_module: Optional[bool] = None


class Setting(NamedTuple):
    """A setting of /etc/wsl.conf."""

    line: int = 0
    name: str = ""  # SECTION.KEY, in lower case
    value: str = ""

    @property
    def boolean(self) -> Optional[bool]:
        """What WSL takes the value for; None if it is neither true nor false."""
        return {"true": True, "1": True, "false": False, "0": False}.get(self.value.lower())


class Conf(NamedTuple):
    """/etc/wsl.conf, as WSL reads it."""

    state: str = GONE
    protect: bool = True
    interop: bool = True
    settings: List[Setting] = []
    # Where WSL stops reading, 0 if nowhere; and the settings from there on, which it ignores.
    stopped_at: int = 0
    has_mark: bool = False  # whether it begins with a byte order mark
    ignored: List[Setting] = []
    changed: Optional[float] = None  # in seconds since 1970
    sections: List[str] = []


class DropIn(NamedTuple):
    """A drop-in of a service, with those of its lines that a diagnosis depends on."""

    path: str = ""
    lines: List[str] = []
    is_link: bool = False


class Unit(NamedTuple):
    """What systemd says of a unit."""

    load: str = ""
    active: str = ""
    fragment: str = ""
    condition: Optional[bool] = None
    bind_paths: str = ""
    needs_reload: bool = False
    drop_ins: List[DropIn] = []


class Generated(NamedTuple):
    """A file that the generator would write now, or has written."""

    path: str = ""
    is_wanted: bool = True
    state: str = "right"  # or "missing", "old"


class Watch(NamedTuple):
    """The process of the watch."""

    pid: int = 0
    since: float = 0.0  # in seconds since 1970


class Message(NamedTuple):
    """A message of the journal."""

    source: str = ""  # the unit or program
    text: str = ""
    at: float = 0.0  # in seconds since 1970
    is_repair: bool = False


class Protection(NamedTuple):
    """What protects the distro: the generator, the units, and what they have done."""

    units: Optional[Dict[str, Unit]] = None
    generated: Optional[List[Generated]] = None
    # Whether systemd has run the generators since /etc/wsl.conf and the generator have changed.
    has_generated: bool = False
    generator_state: str = THERE
    masked_by: Optional[DropIn] = None  # the file that systemd runs in place of the generator
    set_aside: List[str] = []  # drop-ins that the generator masks
    watch: Optional[Watch] = None
    is_watch_known: bool = True
    messages: Optional[List[Message]] = None
    rules: List[Rule] = []
    hidden: List[Rule] = []  # rules of files that have no effect


class Element(NamedTuple):
    """A directory on the way to a file, or the file itself."""

    path: str = ""
    uid: int = 0
    gid: int = 0
    mode: int = 0


class Place(NamedTuple):
    """A path, with what is on the way to it."""

    path: str = ""
    state: str = THERE
    way: List[Element] = []
    mount: Optional[Mount] = None
    ends_in_link: bool = False  # whether what cannot be looked at is a link


class Socket(NamedTuple):
    """A socket in /run/WSL."""

    path: str = ""
    pid: int = 0
    is_listening: Optional[bool] = None
    is_closed: bool = False  # whether this user may not connect to it
    made: float = 0.0  # in seconds since 1970


class Session(NamedTuple):
    """What differs from one terminal or service to the other."""

    uid: int = 0
    # The user for whom Windows opens what is in the Linux file system.
    default_uid: Optional[int] = None
    default_gids: List[int] = []
    wsl_interop: str = ""
    wsl_interop_state: str = GONE
    run_wsl: str = GONE
    sockets: List[Socket] = []
    ancestors: List[int] = []  # the nearest first
    cwd: Place = Place()
    path: List[str] = []
    is_of_sudo: bool = False
    has_tmux: bool = False
    sandbox: str = ""  # what of the sockets by which /init reaches Windows is refused to this process
    needs_sudo: bool = True  # for what only root may do; root without sudo does not


class Program(NamedTuple):
    """The file that was asked about."""

    asked: str = ""
    place: Place = Place()
    is_in_path: bool = True
    kind: str = "file"  # or "directory", "other"
    size: int = 0
    may_execute: bool = True
    is_noexec: bool = False
    start: Optional[str] = None  # how it begins, in hexadecimal digits; None if this user may not read it
    interpreter: str = ""  # that a script names in its first line, or the loader that an ELF file names
    interpreter_state: str = THERE
    names_exe: bool = False  # whether it is a script in which ".exe" occurs
    wrong_exe: str = ""  # why a file that begins with MZ is no program for Windows; "" if it may be one
    has_stub_loader: bool = False  # whether the loader is NixOS' stub, which runs no program


class Launch(NamedTuple):
    """The result of starting a program."""

    program: str = ""
    is_ours: bool = False  # whether it is `cmd.exe /c exit`, and not a program that the user named
    is_there: Optional[bool] = True  # whether there is such a program; None: its file system does not answer
    errno: int = 0  # of the kernel, if it did not start the program
    status: Optional[int] = None  # exit status; None if it did not end
    said: List[str] = []  # lines that may be of /init


class Machine(NamedTuple):
    """A machine."""

    version: int = VERSION
    package: str = ""
    taken: float = 0.0  # when, in seconds since 1970
    system: System = System()
    conf: Conf = Conf()
    table: Table = Table()
    protection: Protection = Protection()
    session: Session = Session()
    program: Optional[Program] = None
    launch: Optional[Launch] = None
    unknown: Dict[str, str] = {}  # what could not be looked at, and why


def to_plain(value: Any) -> Any:
    """Make objects, lists, numbers and texts of a machine or a part of it, without fields that have their default."""
    if hasattr(value, "_asdict"):
        fields, defaults = value._asdict(), value._field_defaults
        return {name: to_plain(field) for name, field in fields.items() if field != defaults[name] or name == "version"}
    if isinstance(value, dict):
        return {name: to_plain(field) for name, field in value.items()}
    return [to_plain(each) for each in value] if isinstance(value, list) else value


def from_plain(plain: Any) -> Machine:
    """Make a machine of what to_plain() gave; raises ValueError, which says what is wrong where."""
    machine: Machine = _read(Machine, plain, "the machine")
    if machine.version != VERSION:
        raise ValueError(f"it is of version {machine.version}, and this command reads version {VERSION}")
    for entry in machine.table.entries or []:
        kernel = entry.kernel()
        if kernel.mask is not None and len(kernel.mask) != len(kernel.magic or b""):
            raise ValueError(f"the entry {entry.name!r:.50} has a magic and a mask that are not of the same length")
    if machine.launch and not 0 <= machine.launch.errno < ERRNO_MAX:
        raise ValueError(f"the machine.launch.errno is {machine.launch.errno}")
    for digits in machine.system.native, (machine.program and machine.program.start) or "":
        bytes.fromhex(digits)
    return machine


def _read(kind: Any, plain: Any, where: str) -> Any:
    """Read a value of a type that a machine is made of."""
    origin: Any = getattr(kind, "__origin__", None)
    arguments: Any = getattr(kind, "__args__", ())
    result: Any = plain
    if origin is Union:  # Optional
        result = None if plain is None else _read(arguments[0], plain, where)
    elif origin is list and isinstance(plain, list):
        result = [_read(arguments[0], each, f"{where}[{number}]") for number, each in enumerate(plain)]
    elif origin is dict and isinstance(plain, dict):
        result = {name: _read(arguments[1], each, f"{where}.{name}") for name, each in plain.items()}
    elif hasattr(kind, "_fields") and isinstance(plain, dict):
        hints = get_type_hints(kind)
        surplus = [name for name in plain if name not in hints]
        if surplus:
            raise ValueError(f"{where} has no {surplus[0]}")
        result = kind(**{name: _read(hints[name], each, f"{where}.{name}") for name, each in plain.items()})
    elif kind is float and isinstance(plain, (int, float)) and abs(plain) < TIME_MAX:
        result = float(plain)
    elif type(plain) is not kind or kind is float or (kind is int and abs(plain) > INT_MAX):
        raise ValueError(f"{where} is {plain!r:.50}")
    return result
