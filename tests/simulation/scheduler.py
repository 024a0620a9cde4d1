# SPDX-License-Identifier: MIT
"""Who does the next operation: one at a time, decided by a seed, on a clock that only operations move.

An actor is a script, a generator that yields its operations, or a process, which is
real code in a thread of its own. Whichever thread has the baton runs the simulation.
"""

from __future__ import annotations

import math
import random
import threading
from typing import TYPE_CHECKING, Any, Callable, Generator, Union

import world

if TYPE_CHECKING:
    import promises

# What a script yields: seconds to wait, or what to do, which returns what the script is given or raises.
Operation = Union[float, Callable[["Actor"], Any]]
Script = Generator[Operation, Any, None]
OPERATIONS_MAX = 100_000  # of one history
ON_TIME = 0.005  # seconds: an actor that waits longer for the processor is late


class Killed(BaseException):
    """A process is killed: nothing that it does from here on has an effect."""


class Pace:
    """How long each operation of an actor takes, drawn from a seed."""

    def __init__(self, seed: str, slow: float = 0.0, late: float = 0.0) -> None:
        """slow, late: how probable it is that an operation waits for milliseconds, or for up to seconds."""
        self._random = random.Random(seed)
        self._slow, self._late = slow, slow + late

    def __call__(self) -> float:
        """Draw the time of one operation."""
        drawn = self._random.random()
        if drawn >= self._late:
            return 3e-6 + 40e-6 * self._random.random()
        exponent = self._random.uniform(-4, -2.3) if drawn < self._slow else self._random.uniform(-2.3, 0.4)
        return float(10**exponent)


class Actor:
    """Whatever changes the table: a program, a service, a person."""

    def __init__(self, simulation: Simulation, name: str, distro: world.Distro | None, role: str) -> None:
        """role: "watch", "service" for those of protected distros, or "other"."""
        self.simulation = simulation
        self.name, self.distro, self.role = name, distro, role
        self.pace = simulation.pace(name)
        self.ready = simulation.now
        self.has_ended = False
        self.last_write = 0.0

    def is_late(self) -> bool:
        """Whether it waits for the processor."""
        return False


class Scripted(Actor):
    """An actor that is a script."""

    def __init__(
        self, simulation: Simulation, name: str, distro: world.Distro | None, role: str, script: Script
    ) -> None:
        super().__init__(simulation, name, distro, role)
        self._script = script
        self._send: Callable[[], Operation] = lambda: next(script)

    def step(self) -> None:
        """Do one operation."""
        script = self._script
        try:
            operation = self._send()
        except StopIteration:
            self.has_ended = True
            return
        if isinstance(operation, (float, int)):
            self.ready += operation
            self._send = lambda: next(script)
            return
        try:
            result = operation(self)
        except OSError as e:
            failure = e
            self._send = lambda: script.throw(failure)
        else:
            self._send = lambda: script.send(result)
        self.ready = self.simulation.now + self.pace()

    def end(self) -> None:
        """End it at once, as a crash of its distro does."""
        self.has_ended = True
        self._script.close()


class Process(Actor):
    """An actor that runs real code, whose system calls are operations."""

    def __init__(self, simulation: Simulation, name: str, distro: world.Distro, main: Callable[[], None]) -> None:
        super().__init__(simulation, name, distro, "watch")
        self.distro: world.Distro = distro
        self.baton = threading.Semaphore(0)
        self.is_killed = False
        self.descriptors: dict[int, Any] = {}
        self.pending: set[int] = set()
        self.signals: set[int] = set()  # that it waits for
        self.on_change = self.on_units = 0  # the signals that tell it of these
        self.stopped_until = 0.0
        self._waits_since = 0.0
        # What the promises know of it.
        self.started = simulation.now
        self.listed = self.looked = 0.0  # when it began its last look, and its last one that has ended
        self.read_inode: dict[str, tuple[int, float]] = {}
        self.saved_inode = 0
        self.inodes: set[int] = set()  # as of its last list, and as of the first one of its last look
        self.looked_at: set[int] = set()
        self.looked_from = 0.0
        self.looks = True  # its next list begins a look
        self.knows_off = self.knew_off = self.read_off = False
        self.saw_enabled = 1.0  # when it saw that WSLInterop was enabled by hand, last time
        self.removals_seen: dict[str, promises.Removal] = {}
        self._main = main
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.baton.acquire()
        self.simulation.current = self
        try:
            if not self.is_killed:
                self._main()
        except Killed:
            pass
        except BaseException as e:  # noqa: BLE001 - whatever it is breaks a promise
            self.simulation.breaks(f"{self.name} ends with {type(e).__name__}: {e}")
        self.has_ended = True
        self.close_all()
        self.simulation.on_end(self)
        self.simulation.go_on(None)

    def close_all(self) -> None:
        """Do what the kernel does when a process ends."""
        lock = self.simulation.table.lock
        if lock and lock[0] is self:
            self.simulation.table.lock = None
        self.descriptors.clear()

    def turn(self, seconds: float | None = None) -> None:
        """Wait until it is the turn of this process, for its next operation; raises Killed."""
        self._wait(self.simulation.now + (self.pace() if seconds is None else seconds))

    def _wait(self, ready: float) -> None:
        if not self.is_killed:
            self._waits_since = self.simulation.now
            self.ready = max(ready, self.stopped_until)
            if not self.signals and self.ready - self.simulation.now > ON_TIME:
                self.distro.lateness += self.ready - self.simulation.now
            self.simulation.go_on(self)
        if self.is_killed:
            raise Killed

    def wait_for_signal(self, signals: set[int], seconds: float) -> int:
        """Wait for a signal, and return its number, or 0 after some seconds."""
        if not self.pending & signals:
            self.signals = signals
            self._wait(self.simulation.now + seconds)
            self.signals = set()
        self.turn()
        # The kernel takes the lowest first.
        received = min(self.pending & signals, default=0)
        self.pending.discard(received)
        return received

    def is_idle(self) -> bool:
        """Whether it waits for nothing but a signal."""
        return bool(self.signals) and self.ready == math.inf and self.stopped_until < self.simulation.now

    def is_late(self) -> bool:
        """Whether it waits for the processor."""
        return not self.signals and self.ready - self._waits_since > ON_TIME

    def receive(self, number: int) -> None:
        """Have it receive a signal."""
        if number == 9:
            self.is_killed = True
            self.close_all()
            self.ready = self.simulation.now
            return
        self.pending.add(number)
        if number in self.signals:
            self.ready = max(self.simulation.now, self.stopped_until)

    def stop_until(self, time: float) -> None:
        """Have it stopped, SIGSTOP, until a time."""
        self.stopped_until = time
        self._waits_since = min(self._waits_since, self.simulation.now)
        if self.ready < math.inf:
            self.ready = max(self.ready, time)


class Simulation:
    """A VM and all that happens in it."""

    def __init__(self, seed: str, slow: float = 0.0, late: float = 0.0, *, verbose: bool = False) -> None:
        self.seed, self._slow, self._late = seed, slow, late
        self.now = 1000.0
        self.table = world.Table(self._has_changed)
        self.distros: list[world.Distro] = []
        self.actors: list[Scripted | Process] = []
        self.promises: promises.Promises
        self.log: list[str] = []
        self._is_verbose = verbose
        self.broken = ""  # which promise, and how
        self.on_end: Callable[[Process], None] = lambda _process: None
        self.operations = 0
        self.current: Process | None = None
        self._main = threading.Semaphore(0)
        self._is_over = False

    def pace(self, name: str) -> Pace:
        """Make the pace of an actor: the same whichever other actors there are."""
        return Pace(f"{self.seed} {name}", self._slow, self._late)

    def start(self, name: str, distro: world.Distro | None, role: str, script: Script) -> Scripted:
        """Have a script run."""
        actor = Scripted(self, name, distro, role, script)
        self.actors.append(actor)
        return actor

    def start_process(self, name: str, distro: world.Distro, main: Callable[[], None]) -> Process:
        """Have real code run."""
        process = Process(self, name, distro, main)
        process.ready += process.pace()
        self.actors.append(process)
        return process

    def _has_changed(self) -> None:
        for process in self.processes():
            if process.on_change:
                process.receive(process.on_change)

    def processes(self) -> list[Process]:
        """List the processes."""
        return [actor for actor in self.actors if isinstance(actor, Process) and not actor.has_ended]

    def breaks(self, promise: str) -> None:
        """A promise is broken: the history ends here."""
        self.broken = self.broken or promise
        self.tell(None, f"BROKEN: {promise}")

    def tell(self, actor: Actor | None, text: str) -> None:
        """Write a line of the log."""
        if self._is_verbose:
            name = actor.name if actor else ""
            handler = self.table.handler_of_windows()
            self.log.append(f"{self.now - 1000:12.6f}  {name:24} {text:70} {handler}")

    def open(self, actor: Actor, name: str) -> world.Entry | str:
        """Open a file of the table to write to it."""
        try:
            file = self.table.open(name)
        except OSError as e:
            self.tell(actor, f"opens {name}: {e.strerror}")
            raise
        return file

    def write(self, actor: Actor, file: world.Entry | str, data: bytes) -> None:
        """Write to a file of the table."""
        self.promises.before_write(actor, file, data)
        failure: OSError | None = None
        try:
            self.table.write(file, data)
        except OSError as e:
            failure = e
        if self._is_verbose:
            shown = data.decode("ascii", "backslashreplace").strip()
            what = f"registers {shown[:14]}...{shown[-30:]}" if len(shown) > 50 else f"registers {shown}"
            what = what if file == "register" else f"writes {shown} to {file}"
            self.tell(actor, what + (f": {failure.strerror}" if failure else ""))
        self.promises.after_write(actor, file, data, failure)
        if failure:
            raise failure

    def run(self) -> str:
        """Run until nothing is left to do or a promise is broken; returns that promise."""
        self.go_on(None, is_main=True)
        self._is_over = True
        for process in self.processes():
            process.is_killed = True
            process.baton.release()
            process.thread.join()
        return self.broken

    def go_on(self, me: Process | None, *, is_main: bool = False) -> None:
        """Run others until it is the turn of a process; None: that of a thread which ends."""
        while not self._is_over:
            actor = min(self.actors, key=lambda actor: actor.ready, default=None)
            if actor is None or actor.ready == math.inf or self.broken:
                if is_main:
                    return
                self._main.release()
                break
            self.now = max(self.now, actor.ready)
            self.operations += 1
            if self.operations == OPERATIONS_MAX:
                self.breaks("the watches do not come to rest")
            if actor.has_ended:
                self.actors.remove(actor)
            elif isinstance(actor, Scripted):
                actor.step()
            elif actor is me:
                self.current = me
                return
            else:
                actor.baton.release()
                break
        else:
            return
        if is_main:
            self._main.acquire()
        elif me:
            me.baton.acquire()
            self.current = me
