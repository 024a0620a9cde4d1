# SPDX-License-Identifier: MIT
"""Gathering what can be seen of this machine, without a change to it, and without a long wait for any answer."""

from __future__ import annotations

import importlib.machinery
import os
import re
import stat
import time
import types
from typing import Any, Dict, List, Optional, Tuple

from wsl_binfmt import command, interop, table
from wsl_binfmt.diagnosis import gather_session, gather_systemd
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.bounded import Looker, executable, finish, read, start, state, state_of, text
from wsl_binfmt.diagnosis.problems import GENERATOR, SHOWN_MAX

# Runs a script as root in mounts of its own, in which nothing is mounted over the `status` of the table "$0".
BEHIND_GUARD = "unshare", "--mount", "--propagation=private", "sh", "-c"
READ_STATUS = 'mount --bind "$0" "$0" && cat "$0/status"'
# Byte order marks of UTF-8 and UTF-16, as a text that was read as UTF-8 has them.
MARKS = "\ufeff", "\udcff\udcfe", "\udcfe\udcff"
# Of the last two, one is older Debian's, the other NixOS'.
SYSTEMD = "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/run/current-system/systemd/lib/systemd/systemd"
TEMPORARY_MAX = 0.3  # seconds; the watch removes a temporary entry after interop.PATIENCE at most
Mounts = List[Tuple[m.Mount, int]]


def gather(asked: Optional[str] = None) -> m.Machine:
    """Look at everything. asked: a program, by path or name."""
    look = Looker()
    # systemctl and journalctl take longest, so that they are started first and read last.
    systemctl, journal = gather_systemd.begin()
    generator = load_generator()
    nothing: Mounts = []
    mounts = look("mounts", read_mounts, nothing)
    system = look("system", lambda: read_system(generator), m.System())
    conf = look("conf", lambda: read_conf(generator), m.Conf(state=m.NO_ANSWER))
    found_table = read_table(look, mounts)
    names = [mount for mount, _ in mounts]
    session = look("session", lambda: gather_session.read(conf), m.Session())
    session = session._replace(cwd=look("cwd", lambda: gather_session.read_cwd(names), m.Place(state=m.NO_ANSWER)))
    program = None
    if asked is not None:
        program = look(
            "program",
            lambda: gather_session.read_program(asked, conf, session, names),
            m.Program(asked, m.Place(asked, m.NO_ANSWER)),
        )
    protection = gather_systemd.read(look, generator, conf, system, systemctl, journal)
    return m.Machine(
        package=command.VERSION,
        taken=time.time(),
        system=system,
        conf=conf,
        table=found_table,
        protection=protection,
        session=session,
        program=program,
        unknown=look.unknown,
    )


def load_generator() -> Any:
    """Load the generator as a module that logs nothing, to ask it what it decides."""
    loader = importlib.machinery.SourceFileLoader("wsl_binfmt_generator", GENERATOR)
    module: Any = types.ModuleType(loader.name)
    loader.exec_module(module)
    module.log = lambda *_: None
    return module


def read_system(generator: Any) -> m.System:
    """Find out the kind of this machine."""
    release: str = generator.read("/proc/sys/kernel/osrelease").partition("\n")[0]
    filesystems = read("/proc/filesystems")
    with open("/proc/self/exe", "rb") as file:
        native = file.read(64).hex()
    uid_map = read("/proc/self/uid_map").partition("\n")[0].split()
    return m.System(
        release=release,
        distro=(re.findall('^PRETTY_NAME="?(.*?)"?$', read("/etc/os-release"), re.MULTILINE) or [""])[0],
        elsewhere=generator.not_a_distro(),
        looks_like_wsl="WSL_DISTRO_NAME" in os.environ or os.path.isdir(gather_session.SOCKETS),
        has_systemd=os.path.isdir("/run/systemd/system"),
        init=read("/proc/1/comm").strip(),
        sbin_init=state("/sbin/init"),
        systemd=m.THERE if any(map(os.path.exists, SYSTEMD)) else m.GONE,
        started=_started(),
        own_user_namespace=bool(uid_map) and uid_map != ["0", "0", "4294967295"],
        native=native,
        knows_binfmt_misc=bool(re.search(r"\tbinfmt_misc$", filesystems, re.MULTILINE)) if filesystems else None,
        has_module="/binfmt_misc.ko" in read(f"/lib/modules/{release}/modules.dep"),
    )


def _started() -> Optional[float]:
    """Tell when PID 1 was started, in seconds since 1970."""
    try:
        # The name may have blanks and parentheses.
        ticks = int(read("/proc/1/stat").rpartition(")")[2].split()[19])
        by_uptime = time.time() - float(read("/proc/uptime").split()[0]) + ticks / os.sysconf("SC_CLK_TCK")
    except (IndexError, ValueError):
        return None
    try:
        # While Windows sleeps, the uptime stands still. systemd makes this socket when it starts.
        return min(by_uptime, os.stat("/run/systemd/notify").st_mtime)
    except OSError:
        return by_uptime


def read_conf(generator: Any) -> m.Conf:
    """Read /etc/wsl.conf as the generator does, and what it ignores."""
    protect, enabled = generator.settings()
    conf = m.Conf(m.THERE, protect, enabled)
    try:
        fd = os.open(generator.ROOT + generator.WSL_CONF, os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(fd)
        os.close(fd)
    except OSError as e:
        return conf._replace(state=state_of(e))
    if not stat.S_ISREG(status.st_mode):
        return conf
    said = generator.read(generator.WSL_CONF)
    settings, stopped_at = _parse_conf(generator, said)
    return conf._replace(
        settings=settings,
        stopped_at=stopped_at,
        has_mark=said.startswith(MARKS),
        ignored=_ignored(generator, said, stopped_at),
        changed=status.st_mtime,
    )


def _ignored(generator: Any, said: str, stopped_at: int) -> List[m.Setting]:
    """List the settings from a malformed line on; each line is for itself."""
    ignored: List[m.Setting] = []
    header = ""
    # A continued line keeps its end.
    for number, line in enumerate(re.split("(?<=\n)", said) if stopped_at else [], 1):
        begin = line.lstrip()[:1]
        if begin == "[" and not _parse_conf(generator, line)[1]:
            header = line.strip().partition("\r")[0] + "\n"
        elif number > stopped_at and begin not in ("[", "#", ""):
            found, _ = _parse_conf(generator, header + line)
            ignored += [setting._replace(line=number) for setting in found]
            if len(ignored) >= SHOWN_MAX:
                break
    return ignored


def _parse_conf(generator: Any, said: str) -> Tuple[List[m.Setting], int]:
    settings, stopped_at = [], 0
    for line, name, value in generator.parse_wsl_conf(said):
        if name:
            settings.append(m.Setting(line, name, value))
        else:
            stopped_at = line
    return settings, stopped_at


def read_mounts() -> Mounts:
    """Read what is mounted, the uppermost last, each with its device."""
    mounts = []
    # Other line ends than these may be in names.
    for line in read("/proc/self/mountinfo").split("\n"):
        fields, _, rest = line.partition(" - ")
        try:
            _, _, device, root, target, options, *_ = fields.split(" ")
            kind, _, of_all = rest.split(" ", 2)
            major, minor = map(int, device.split(":"))
        except ValueError:
            continue
        names = list(dict.fromkeys(options.split(",") + of_all.rpartition(" ")[2].split(",")))
        # An overlay's directories say much about a machine, and nothing about this.
        names = [name for name in names if not name.startswith(("lowerdir", "upperdir", "workdir"))]
        mounts.append((m.Mount(_unescape(target), kind, names, _unescape(root)), os.makedev(major, minor)))
    return mounts


def _unescape(path: str) -> str:
    """Undo what the kernel does to blanks, newlines and backslashes in mountinfo."""
    for digits, character in ("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\"):
        path = path.replace(f"\\{digits}", character)
    return path


def top_mount(mounts: Mounts, target: str) -> Tuple[Optional[m.Mount], int]:
    """Find the uppermost mount at a path, with its device."""
    return next(((mount, device) for mount, device in reversed(mounts) if mount.target == target), (None, 0))


def read_table(look: Looker, mounts: Mounts) -> m.Table:
    """Look at the table."""
    mount, is_visible = _top_of_table(look, mounts)
    seen = m.GONE
    if mount:
        # A look into an automount makes systemd mount the table. If systemd does not answer, the look waits.
        seen = look("table", _look_into, m.NO_ANSWER, 0.5 if mount.kind == "autofs" else 2.0)
        if mount.kind == "autofs" and seen == m.THERE:
            mounts = look("mounts", read_mounts, mounts)
            mount, is_visible = _top_of_table(look, mounts)
        elif mount.kind == "autofs":
            look.unknown.pop("table", None)
    over_status, _ = top_mount(mounts, f"{table.DIRECTORY}/status")
    found = m.Table(mount, seen, is_visible, over_status=over_status)
    if not (mount and mount.kind == "binfmt_misc" and is_visible and seen == m.THERE):
        return found
    entries = look("table", read_entries, None)
    none_left: List[str] = []
    left = look("table", lambda: left_behind(entries or []), none_left)
    return found._replace(entries=entries, left=left, is_switched_on=_is_switched_on(look, over_status))


def _top_of_table(look: Looker, mounts: Mounts) -> Tuple[Optional[m.Mount], bool]:
    """Find the uppermost mount of the table, and whether the directory shows that mount."""
    mount, device = top_mount(mounts, table.DIRECTORY)
    return mount, mount is not None and look("mounts", lambda: os.stat(table.DIRECTORY).st_dev, -1) == device


def _look_into() -> str:
    try:
        os.listdir(table.DIRECTORY)
    except OSError as e:
        return state_of(e)
    return m.THERE


def _is_switched_on(look: Looker, over_status: Optional[m.Mount]) -> Optional[bool]:
    """Whether the table is switched on; None if that cannot be seen from here."""
    if not over_status:
        return look("table", table.is_switched_on, None)
    return is_switched_on_behind_guard() if os.geteuid() == 0 else None


def is_switched_on_behind_guard() -> Optional[bool]:
    """Whether the table is switched on, by its `status` below all mounts; for root. None: could not tell."""
    said = finish(start(*BEHIND_GUARD, READ_STATUS, table.DIRECTORY))
    return text(said) != "disabled\n" if said else None


def read_entries() -> List[m.Entry]:
    """Read the entries of the table, the newest first; raises OSError, also if the table never stands still."""
    for _ in range(10):
        listed = table.entries()
        states: "Dict[str, Tuple[str, bool]]" = {}
        found = [_read_entry(name, states) for name in listed]
        # While WSLInterop is replaced, a list of before and texts of after would make no sense together.
        if table.entries() == listed:
            return [each for each in found if each]
        time.sleep(0.02)
    raise OSError(0, "the table changes all the time")


def _read_entry(name: str, states: "Dict[str, Tuple[str, bool]]") -> Optional[m.Entry]:
    """Read an entry; None if there is none.

    states: of interpreters, as far as they have been looked at, each with whether it is a link to /init.
    """
    entry = table.read(name)
    try:
        since = os.stat(f"{table.DIRECTORY}/{name}").st_mtime
    except FileNotFoundError:
        return None
    if entry is None:
        return None
    interpreter = os.fsdecode(entry.interpreter)
    if interpreter not in states:
        is_link = interpreter != interop.INIT and os.path.realpath(interpreter) == interop.INIT
        states[interpreter] = executable(interpreter), is_link
    return m.Entry(
        name=name,
        enabled=entry.enabled,
        interpreter=interpreter,
        flags=os.fsdecode(entry.flags),
        offset=entry.offset,
        magic=entry.magic.hex() if entry.magic is not None else None,
        mask=entry.mask.hex() if entry.mask is not None else None,
        extension=os.fsdecode(entry.extension) if entry.extension is not None else None,
        since=since,
        interpreter_state=states[interpreter][0],
        is_link_to_init=states[interpreter][1],
    )


def left_behind(entries: List[m.Entry]) -> List[str]:
    """Tell which temporary entries stay. If there are any, this waits until the watch should have removed them."""
    names = [entry.name for entry in entries if entry.name == interop.TEMPORARY]
    before = table.entries() if names else {}
    end = time.monotonic() + TEMPORARY_MAX
    while names and time.monotonic() < end:
        time.sleep(0.02)
        now = table.entries()
        names = [name for name in names if name in now and now[name] == before.get(name)]
    return names
