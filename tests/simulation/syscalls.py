# SPDX-License-Identifier: MIT
"""The system calls of the watch, answered by the simulation: in place of posix, fcntl, time, _signal and open()."""

from __future__ import annotations

import errno
import fcntl
import io
import math
import posix
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Iterator

import promises
import world
from wsl_binfmt import command, interop, own, rules, state, table, watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from scheduler import Process, Simulation

SIGNALS = {"SIGHUP": 1, "SIGUSR1": 10, "SIGTERM": 15, "SIGIO": 29}
TABLE = table.DIRECTORY + "/"


class Running:
    """The simulation that runs: one at a time in a process."""

    simulation: Simulation


def process() -> Process:
    """Tell whose turn it is."""
    assert Running.simulation.current
    return Running.simulation.current


class Posix:
    """The module `posix`."""

    def __getattr__(self, name: str) -> int:
        value = getattr(posix, name)
        assert isinstance(value, int), f"posix.{name} is not simulated"
        return value

    environ: dict[bytes, bytes] = {}  # noqa: RUF012 - as it is in posix
    sched_param = staticmethod(lambda number: number)
    sched_setscheduler = staticmethod(lambda *_: None)
    # What is running anyway: asking systemd takes as long as that.
    posix_spawnp = staticmethod(lambda _path, command, _environment: command[-1])

    def waitpid(self, service: str, _options: int) -> tuple[int, int]:
        """Wait for `systemctl is-failed`."""
        me = process()
        me.turn(0.01 + min(0.5, 100 * me.pace()))
        return 0, 0 if service in me.distro.failed else 256

    def open(self, path: str, _flags: int) -> int:
        """Open a file."""
        me = process()
        me.turn()
        file: Any
        if path.startswith(TABLE):
            file = Running.simulation.open(me, path[len(TABLE) :])
        elif path in (table.DIRECTORY, own.UNITS):
            file = path
        elif path in me.distro.files:
            file = me.distro.files[path]
        else:
            raise world.error(errno.ENOENT, path)
        number = max(me.descriptors, default=2) + 1
        me.descriptors[number] = file
        return number

    def read(self, fd: int, _size: int) -> bytes:
        """Read a file of the table."""
        me = process()
        me.turn()
        text = Running.simulation.table.read(me.descriptors[fd])
        Running.simulation.tell(me, f"reads {me.descriptors[fd]}")
        Running.simulation.promises.after_read(me, me.descriptors[fd])
        return text

    def write(self, fd: int, data: bytes) -> None:
        """Write to a file of the table."""
        me = process()
        me.turn()
        Running.simulation.write(me, me.descriptors[fd], data)

    def close(self, fd: int) -> None:
        """Close a file, and with it give the lock back."""
        me = process()
        me.descriptors.pop(fd, None)
        if Running.simulation.table.lock == (me, fd):
            Running.simulation.table.lock = None

    def fstat(self, fd: int) -> SimpleNamespace:
        """Tell the inode of an entry."""
        return SimpleNamespace(st_ino=getattr(process().descriptors[fd], "inode", 1))

    def stat(self, path: str) -> SimpleNamespace:
        """Tell which PID namespace this is."""
        assert path == "/proc/self/ns/pid"
        return SimpleNamespace(st_ino=process().distro.pid_namespace)

    def scandir(self, path: str) -> Iterator[SimpleNamespace]:
        """List the table."""
        assert path == table.DIRECTORY
        me = process()
        me.turn()
        Running.simulation.promises.after_list(me)
        Running.simulation.tell(me, "lists the table: " + " ".join(map(str, Running.simulation.table.entries)))
        for name, inode in [
            ("status", 2),
            ("register", 3),
            *((entry.name, entry.inode) for entry in Running.simulation.table.entries),
        ]:
            yield SimpleNamespace(name=name, inode=lambda inode=inode: inode)

    def listdir(self, path: str) -> list[str]:
        """List a directory."""
        me = process()
        me.turn()
        return [file[len(path) + 1 :] for file in me.distro.files if file.startswith(path + "/")]

    def access(self, path: str | bytes, _mode: int) -> bool:
        """Whether a program can be run."""
        return (path if isinstance(path, str) else path.decode()) in process().distro.programs

    def readlink(self, path: str) -> str:
        """Read a link."""
        me = process()
        me.turn()
        if path not in me.distro.links:
            raise world.error(errno.ENOENT, path)
        return me.distro.links[path]

    def rename(self, old: str, new: str) -> None:
        """Rename a file."""
        me = process()
        me.turn()
        me.distro.files[new] = me.distro.files.pop(old)
        Running.simulation.promises.after_save(me)
        Running.simulation.tell(me, f"writes {new}")


class Fcntl:
    """The module `fcntl`."""

    def __getattr__(self, name: str) -> int:
        return int(getattr(fcntl, name))

    def fcntl(self, fd: int, command: int, argument: int) -> None:
        """Ask for signals; the number of one comes first."""
        me = process()
        if command == fcntl.F_SETSIG:
            me.descriptors[-fd] = argument
            return
        number = me.descriptors[-fd]
        assert argument & fcntl.DN_MODIFY
        assert argument & fcntl.DN_MULTISHOT
        if me.descriptors[fd] == own.UNITS:
            me.on_units = number
        else:
            me.on_change = number

    def flock(self, fd: int, _how: int) -> None:
        """Take the lock; raises BlockingIOError."""
        me = process()
        me.turn()
        if Running.simulation.table.lock not in (None, (me, fd)):
            raise BlockingIOError
        Running.simulation.table.lock = me, fd
        Running.simulation.tell(me, "takes the lock")


class Time:
    """The module `time`."""

    def monotonic(self) -> float:
        """Tell the time."""
        return Running.simulation.now

    def sleep(self, seconds: float) -> None:
        """Wait."""
        process().turn(seconds)


class Signal:
    """The module `_signal`."""

    SIG_BLOCK = 0
    SIGHUP, SIGUSR1, SIGTERM, SIGIO = SIGNALS.values()

    def pthread_sigmask(self, _how: int, _signals: set[int]) -> None:
        """Block signals: they are, always."""

    def sigwait(self, signals: set[int]) -> int:
        """Wait for a signal."""
        Running.simulation.promises.after_look(process())
        return process().wait_for_signal(signals, math.inf)

    def sigtimedwait(self, signals: set[int], seconds: float) -> SimpleNamespace | None:
        """Wait for a signal or for a time."""
        Running.simulation.promises.after_look(process())
        received = process().wait_for_signal(signals, seconds)
        return SimpleNamespace(si_signo=received) if received else None


class _Written(io.BytesIO):
    def __init__(self, me: Process, path: str) -> None:
        super().__init__()
        self._me, self._path = me, path

    def close(self) -> None:
        """Have what was written in the file."""
        if not self.closed and not self._me.is_killed:
            self._me.distro.files[self._path] = self.getvalue()
        super().close()


def _open(path: str, mode: str, opener: Callable[[str, int], int] | None = None) -> io.BytesIO:
    me = process()
    if opener:
        return io.BytesIO(me.descriptors.pop(opener(path, 0)))
    me.turn()
    if path == "/proc/self/exe":
        return io.BytesIO(promises.ELF)
    if path == "/proc/1/comm":
        return io.BytesIO(b"systemd-shutdow\n" if me.distro.is_shutdown else b"systemd\n")
    if mode == "wb":
        if me.distro.run_is_full:
            raise world.error(errno.ENOSPC, path)
        return _Written(me, path)
    if path not in me.distro.files:
        raise world.error(errno.ENOENT, path)
    return io.BytesIO(me.distro.files[path])


def _tell(message: str, status: int) -> int:
    Running.simulation.tell(process(), f"says: {message}")
    return status


def install() -> None:
    """Have the modules of the watch ask the simulation, for the rest of this process."""
    names = {"posix": Posix(), "fcntl": Fcntl(), "time": Time(), "signal": Signal(), "open": _open}
    for module in table, interop, own, rules, state, watch, command:
        for name, value in names.items():
            if name == "open" or hasattr(module, name):
                setattr(module, name, value)
    command.tell = _tell
    # They are computed of what `_signal` and `fcntl` have.
    setattr(watch, "SIGNALS", set(SIGNALS.values()))  # noqa: B010 - they are numbers here
