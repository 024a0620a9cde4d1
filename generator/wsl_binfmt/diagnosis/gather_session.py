# SPDX-License-Identifier: MIT
"""Gathering what belongs to this session, and to the program that the user named."""

from __future__ import annotations

import errno
import glob
import os
import re
import socket
import stat
from typing import Iterator, List, Optional

from wsl_binfmt import interop
from wsl_binfmt.diagnosis import about_session
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.bounded import executable, searchable, state, state_of
from wsl_binfmt.diagnosis.bounded import read as read_file

SOCKETS = "/run/WSL"
# Where Windows has programs, below its drives.
FOLDERS = (
    "Windows",
    "Windows/System32",
    "Windows/System32/WindowsPowerShell/v1.0",
    "Windows/System32/OpenSSH",
    "Users/*/AppData/Local/Microsoft/WindowsApps",
    "Users/*/AppData/Local/Programs/Microsoft VS Code/bin",
    "Program Files*/*",
    "Program Files*/*/bin",
    "Program Files*/*/cmd",
    "Program Files*/Git/mingw64/bin",
    "Program Files/Docker/Docker/resources/bin",
    "Program Files/PowerShell/7",
)
START_MAX = 4096  # bytes: the loader of an ELF file is named in there
SCRIPT_MAX = 1 << 16  # bytes of a script, in which it may name a Windows program
INTERPRETER_MAX = 256  # bytes of a script's first line, BINPRM_BUF_SIZE
PT_INTERP = 3  # elf(5)
DOS_HEADER = 64  # bytes of a Windows program, before all else
IMAGE_FILE_DLL = 0x2000  # of the characteristics in a PE header


def read(conf: m.Conf) -> m.Session:
    """Look at this session, without its current directory."""
    named = os.environ.get("WSL_INTEROP", "")
    path = os.environ.get("PATH", "").split(":")
    default_uid, default_gids = default_user(conf)
    session = m.Session(
        uid=os.geteuid(),
        default_uid=default_uid,
        default_gids=default_gids,
        wsl_interop=named,
        wsl_interop_state=state(named) if named else m.GONE,
        run_wsl=state(SOCKETS),
        ancestors=list(_ancestors()),
        path=path,
        is_of_sudo="SUDO_UID" in os.environ,
        has_tmux="TMUX" in os.environ,
        sandbox=_sandbox(),
        needs_sudo=os.geteuid() != 0 or any(os.access(f"{directory}/sudo", os.X_OK) for directory in path),
    )
    return session._replace(sockets=_probe(session, list(_sockets(named))))


def _sandbox() -> str:
    """Tell what a sandbox refuses that /init needs: a socket by which Windows calls back."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as e:
        # A kernel may lack it; a filter of system calls may say so as well, as that of RestrictAddressFamilies= does.
        has_filter = "\nSeccomp:\t2\n" in read_file("/proc/self/status")
        if e.errno == errno.EPERM or (e.errno == errno.EAFNOSUPPORT and has_filter):
            return f"socket(AF_VSOCK): {e.strerror}"
    return ""


def _sockets(named: str) -> Iterator[m.Socket]:
    names = os.listdir(SOCKETS) if state(SOCKETS) == m.THERE and os.access(SOCKETS, os.R_OK) else []
    found = [(f"{SOCKETS}/{name}", re.fullmatch(r"(\d+)_interop", name)) for name in names]
    paths = {path: int(match[1]) for path, match in found if match}
    if named:
        paths.setdefault(named, 0)
    for path, pid in paths.items():
        try:
            yield m.Socket(path, pid, None, made=os.stat(path).st_mtime)
        except OSError as e:
            if state_of(e) != m.GONE:
                yield m.Socket(path, pid)


def _probe(session: m.Session, sockets: List[m.Socket]) -> List[m.Socket]:
    """Tell whether the socket that /init takes listens; if it does not, which other one does, the newest first."""
    chosen = about_session.chosen_socket(m.Machine(session=session._replace(sockets=sockets)))
    result = {each.path: each for each in sockets}
    order = sorted(sockets, key=lambda each: each.made, reverse=True)
    for each in [chosen, *order] if chosen else order:
        is_there, is_closed = is_listening(each.path)
        result[each.path] = each._replace(is_listening=is_there, is_closed=is_closed)
        if result[each.path].is_listening:
            break
    return list(result.values())


def is_listening(path: str) -> "tuple[Optional[bool], bool]":
    """Whether a process listens at a Unix socket, None if that could not be told; whether this user may not ask."""
    try:
        # A service may have no Unix sockets at all, by RestrictAddressFamilies=.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(0.2)
            channel.connect(path)
    except OSError as e:
        if e.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK, errno.EACCES):
            return False, e.errno == errno.EACCES
        # A process listens, but at a socket of another type, or its queue is full.
        return (True if e.errno in (errno.EPROTOTYPE, errno.EAGAIN) else None), False
    return True, False


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid > 1:
        yield pid
        # The name may have blanks and parentheses.
        fields = read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0
    # A process that has entered this PID namespace, as by nsenter, has no parent here.
    yield 1


def default_user(conf: m.Conf) -> "tuple[Optional[int], List[int]]":
    """Tell the default user and its groups: the user that /etc/wsl.conf names, or else usually uid 1000."""
    if conf.state not in (m.THERE, m.GONE):
        return None, []
    name = next((each.value for each in conf.settings if each.name == "user.default"), "")
    users = [line.split(":") for line in read_file("/etc/passwd").split("\n")]
    users = [fields for fields in users if len(fields) >= 4 and fields[2].isdigit() and fields[3].isdigit()]
    # If there is no such user, as in a distro that was imported, the default user is root.
    for user in [each for each in users if (each[0] == name if name else each[2] == "1000")][:1]:
        groups = [line.split(":") for line in read_file("/etc/group").split("\n")]
        gids = [
            int(each[2]) for each in groups if len(each) == 4 and each[2].isdigit() and user[0] in each[3].split(",")
        ]
        return int(user[2]), [int(user[3]), *gids]
    return 0, []


def read_cwd(mounts: List[m.Mount]) -> m.Place:
    """Look at the current directory."""
    try:
        path = os.getcwdb()
    except OSError as e:
        return m.Place("", state_of(e))
    if path.startswith(b"(unreachable)"):
        return m.Place("", "not below this root")
    try:
        path.decode()
    except UnicodeDecodeError:
        return m.Place("", "not UTF-8")
    return place(os.fsdecode(path), mounts)


def place(path: str, mounts: List[m.Mount]) -> m.Place:
    """Look at a path, and at all that is on the way to it."""
    real = _real(path)
    parts = [part for part in real.split("/") if part]
    way: List[m.Element] = []
    for number in range(len(parts) + 1):
        each = "/" + "/".join(parts[:number])
        try:
            status = os.stat(each)
        except OSError as e:
            seen = m.TO_NOTHING if state_of(e) == m.GONE and os.path.islink(path) else state_of(e)
            return m.Place(path, seen, way, mount_of(real, mounts), os.path.islink(each))
        way.append(m.Element(each, status.st_uid, status.st_gid, status.st_mode))
    return m.Place(path, m.THERE, way, mount_of(real, mounts))


def _real(path: str) -> str:
    """Follow links, up to one of Windows that cannot be read; realpath() raises there before Python 3.13."""
    try:
        return os.path.realpath(path)
    except OSError:
        directory, name = os.path.split(os.path.abspath(path))
        return os.path.join(_real(directory), name)


def mount_of(path: str, mounts: List[m.Mount]) -> Optional[m.Mount]:
    """Tell on which mount a path is."""
    around = [mount for mount in mounts if f"{path}/".startswith(f"{mount.target.rstrip('/')}/")]
    return max(enumerate(around), key=lambda each: (len(each[1].target), each[0]))[1] if around else None


def find_in_path(name: str, path: List[str]) -> Optional[str]:
    """Find a program by PATH; None if there is none. `shutil` is not in Debian's python3-minimal."""
    paths = [os.path.join(directory or ".", name) for directory in path]
    there = [each for each in paths if os.path.isfile(each)]
    return next((each for each in there if os.access(each, os.X_OK)), there[0] if there else None)


def drives(conf: m.Conf, mounts: List[m.Mount]) -> List[str]:
    """List the drives of Windows, and what may be one."""
    found = [mount.target for mount in mounts if "aname=drvfs" in ";".join(mount.options) or mount.kind == "drvfs"]
    found += glob.glob(os.path.join(glob.escape(about_session.root_of_drives(conf)), "*", ""))
    return list(dict.fromkeys(drive.rstrip("/") for drive in found))


def find_on_windows(name: str, conf: m.Conf, mounts: List[m.Mount]) -> Optional[str]:
    """Find a program where Windows has it; None if there is none."""
    names = [name] if name.lower().endswith(".exe") else [name, f"{name}.exe"]
    for drive in drives(conf, mounts):
        for folder in FOLDERS:
            for each in names:
                found = sorted(glob.glob(os.path.join(glob.escape(drive), folder, glob.escape(each))))
                if found:
                    return found[0]
    return None


def find(asked: str, conf: m.Conf, session: m.Session, mounts: List[m.Mount]) -> Optional[str]:
    """Find a program by its path, by PATH, or where Windows has it."""
    if "/" in asked:
        return asked
    return (
        find_in_path(asked, session.path)
        or find_in_path(f"{asked}.exe", session.path)
        or find_on_windows(asked, conf, mounts)
    )


def read_program(asked: str, conf: m.Conf, session: m.Session, mounts: List[m.Mount]) -> m.Program:
    """Look at the program that the user named; its place is GONE if there is none."""
    in_path = asked if "/" in asked else find_in_path(asked, session.path)
    path = find(asked, conf, session, mounts) if in_path or not os.path.isfile(asked) else f"./{asked}"
    if path is None:
        places = (
            m.Place(each, searchable(each)) for each in (about_session.root_of_drives(conf), *drives(conf, mounts))
        )
        unseen = next((each for each in places if each.state not in (m.THERE, m.GONE)), m.Place(asked, m.GONE))
        return m.Program(asked, unseen, is_in_path=False)
    found = m.Program(asked, place(path, mounts), is_in_path=in_path is not None)
    try:
        status = os.stat(path)
    except OSError as e:
        # A link that Windows has made may have a target that Linux does not understand.
        is_alias = os.path.islink(path) and about_session.may_be_alias(session, path)
        # place() does not see a slash at the end.
        seen = m.THERE if is_alias else state_of(e) if found.place.state == m.THERE else found.place.state
        return found._replace(place=found.place._replace(state=seen))
    kind = "file" if stat.S_ISREG(status.st_mode) else "directory" if stat.S_ISDIR(status.st_mode) else "other"
    found = found._replace(
        kind=kind,
        size=status.st_size,
        may_execute=os.access(path, os.X_OK),
        is_noexec=bool(os.statvfs(path).f_flag & os.ST_NOEXEC),
    )
    return _read_start(found, path, session) if kind == "file" else found


def _read_start(found: m.Program, path: str, session: m.Session) -> m.Program:
    """Read how a file begins, and which interpreter or loader it names."""
    try:
        with open(path, "rb") as file:
            start = file.read(START_MAX)
            is_script = start.startswith(b"#!")
            names_exe = is_script and b".exe" in start + file.read(SCRIPT_MAX)
    except OSError:
        return found._replace(start="" if about_session.may_be_alias(session, path) else None)
    interpreter = _loader(start) if start.startswith(b"\x7fELF") else ""
    has_stub_loader = bool(interpreter) and "-stub-ld" in os.path.realpath(interpreter)
    if is_script:
        line = os.fsdecode(start[2:INTERPRETER_MAX].partition(b"\n")[0]).strip(" \t")
        interpreter, *arguments = re.split("[ \t]+", line, maxsplit=1)
        if os.path.basename(interpreter) == "env" and arguments:
            interpreter = _looked_up(arguments[0], session.path) or interpreter
    return found._replace(
        start=start[:256].hex(),
        interpreter=interpreter,
        interpreter_state=executable(interpreter) if "/" in interpreter else m.GONE if interpreter else m.THERE,
        names_exe=names_exe,
        has_stub_loader=has_stub_loader,
        wrong_exe=_wrong_exe(start) if start.startswith(b"MZ") else "",
    )


def _wrong_exe(start: bytes) -> str:
    """Tell why a file that begins with MZ is no program for Windows; "" if it may be one, or is one for APE."""
    at = int.from_bytes(start[60:64], "little")
    header = start[at : at + 24]
    # A header of another linker than those of Windows may be anywhere.
    if at < DOS_HEADER or at + 24 > len(start) or not start.startswith(interop.HEADERS):
        return ""
    if not header.startswith(b"PE\0\0"):
        return "has no PE header: it is for DOS, or for a Windows of 16 bits"
    return "is a DLL" if int.from_bytes(header[22:24], "little") & IMAGE_FILE_DLL else ""


def _looked_up(argument: str, path: List[str]) -> str:
    """Tell what env(1) finds by PATH, or else what it looks for; "" if that is another matter. It has one argument."""
    is_split = argument.startswith("-S")
    name = (argument[2:].split() or [""])[0] if is_split else argument
    return "" if name.startswith("-") or "=" in name else find_in_path(name, path) or name


def _loader(start: bytes) -> str:
    """Read which loader an ELF file names, elf(5); "" if none, or not in its beginning."""
    is_64, is_big = start[4:5] == b"\2", start[5:6] == b"\2"

    def number(at: int, size: int) -> int:
        data = start[at : at + size]
        return int.from_bytes(data if is_big else data[::-1], "big")

    table_at = number(32, 8) if is_64 else number(28, 4)
    size, count = number(54 if is_64 else 42, 2), number(56 if is_64 else 44, 2)
    for at in range(table_at, table_at + min(count, 64) * size, size or 1):
        if number(at, 4) == PT_INTERP:
            offset = number(at + 8, 8) if is_64 else number(at + 4, 4)
            length = number(at + 32, 8) if is_64 else number(at + 16, 4)
            return os.fsdecode(start[offset : offset + length].partition(b"\0")[0])
    return ""
