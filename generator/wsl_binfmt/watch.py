# SPDX-License-Identifier: MIT
"""The watch: looks at the table, repairs what is wrong, waits until it changes, and looks again."""

import fcntl
import posix
import time

from wsl_binfmt import TYPE_CHECKING, interop, own, state, table

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
else:
    # What `signal` wraps in enums, which take a megabyte of memory.
    import _signal as signal

# dnotify, fcntl(2): it tells of changes by any mount of the table, and takes none of the inotify instances, of which
# all distros together have 128.
CHANGES = fcntl.DN_MODIFY | fcntl.DN_CREATE | fcntl.DN_DELETE | fcntl.DN_ATTRIB | fcntl.DN_RENAME | fcntl.DN_MULTISHOT
# SIGIO is for changes of the table, SIGUSR1 for starts and stops of services, SIGHUP for their reloads.
SIGNALS = {signal.SIGIO, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM}
POLL = 1.0  # seconds between two looks on a kernel without dnotify, and between two tries of what the kernel refuses
IN_A_ROW_MAX = 20  # repairs without a look in between that finds nothing wrong


class Watch:
    """A loop that loses no change: one that happens during a look leaves a signal pending, which ends the wait."""

    def __init__(self, tell: "Callable[..., object]") -> None:
        """tell: reports a message to the user."""
        self._tell = tell
        self._saved = state.load()
        self._interop = interop.Interop(self._saved.get("inode", 0), disabled=self._saved.get("disabled", False))
        self._own = own.OwnEntries(self._saved, tell)
        self._polls = False
        self._repairs_in_a_row = 0
        # What people have been told of.
        self._failure = ""
        self._is_switched_on = True

    def run(self) -> None:
        """Watch until SIGTERM."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            # A look takes less than a millisecond, and until it ends Windows programs may fail to start.
            posix.sched_setscheduler(0, posix.SCHED_RR | posix.SCHED_RESET_ON_FORK, posix.sched_param(1))
        except OSError:  # a kernel with CONFIG_RT_GROUP_SCHED: the unit has Nice=
            pass
        for directory, number in (table.DIRECTORY, signal.SIGIO), (own.UNITS, signal.SIGUSR1):
            try:
                descriptor = posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
                fcntl.fcntl(descriptor, fcntl.F_SETSIG, number)
                fcntl.fcntl(descriptor, fcntl.F_NOTIFY, CHANGES)
            except OSError as e:
                self._tell(f"cannot watch {directory} ({e.strerror}): looking every second instead")
                self._polls = True
        received, due = int(signal.SIGIO), 0.0
        while received != signal.SIGTERM:
            if received == signal.SIGHUP:
                self._own.reload()
            # Most units that start and stop do not concern the watch.
            if received != signal.SIGUSR1 or self._own.services_have_changed():
                due = self.look(changed=received == signal.SIGIO)
            if self._failure or not 0 < self._repairs_in_a_row <= IN_A_ROW_MAX:
                _notify()
            received = self._wait(due)
        self._leave()

    def look(self, *, changed: bool = True) -> float:
        """Look at the table once, do what is to be done, and tell what keeps the watch from it.

        changed: whether the table has changed, or may have. Returns when to look again although nothing changes, as
        time.monotonic(); 0 for never.
        """
        due, failure = 0.0, ""
        try:
            entries, now = table.entries(), time.monotonic()
            # Before a repair, which makes other entries of those that were there.
            wiped = self._own.notice(entries, now, changed=changed)
            if posix.access(interop.INIT, posix.X_OK):
                due = self._repair(entries, now, wiped=wiped)
            else:
                failure = interop.NO_INIT
            # The file is saved last, as /run may be full. The first one does not wait: the watch may be killed soon.
            if self._own.has_settled() or not self._saved:
                self._save()
        except OSError as e:
            failure = f"cannot change {e.filename or table.DIRECTORY}: {e.strerror}"
        if failure not in ("", self._failure):
            self._tell(failure)
        self._failure = failure
        return own.earliest(due, time.monotonic() + POLL) if failure else due

    def _repair(self, entries: "dict[str, int]", now: float, *, wiped: bool) -> float:
        """Repair WSLInterop; or, if it is right, look at all else. Returns as look() does."""
        plan = self._interop.look(entries, now, wiped=wiped)
        if plan[0]:
            fault = self._interop.repair(plan, wiped=wiped)[1]
            if fault:
                self._tell(f"{fault}: restored", repair=True)
            self._repairs_in_a_row += 1
            # A program that undoes each repair must not keep the processor busy.
            return now + (0.1 if self._repairs_in_a_row > IN_A_ROW_MAX else 0.0)
        self._repairs_in_a_row = 0
        self._look_at_status()
        return own.earliest(plan[2], self._own.look(entries, now))

    def _look_at_status(self) -> None:
        was_on, self._is_switched_on = self._is_switched_on, table.is_switched_on()
        if was_on and not self._is_switched_on:
            self._tell(
                "the whole table has been switched off (echo 0 >status), so that no Windows program starts: "
                "`sudo wsl-binfmt restore` switches it on"
            )
        elif self._is_switched_on and not was_on:
            self._tell("the table is switched on again")

    def _save(self) -> None:
        known = {"inode": self._interop.inode, "disabled": self._interop.disabled, **self._own.state()}
        if known != self._saved:
            state.save(known)
            self._saved = known

    def _wait(self, due: float) -> int:
        """Wait for a signal, and return its number; or until `due`, and return 0."""
        if self._polls:
            due = own.earliest(due, time.monotonic() + POLL)
        if not due:
            return signal.sigwait(SIGNALS)
        # The watch's own repair raises SIGIO, which must not end this wait.
        signals = SIGNALS - {signal.SIGIO} if self._repairs_in_a_row > IN_A_ROW_MAX else SIGNALS
        received = signal.sigtimedwait(signals, max(0.0, due - time.monotonic()))
        return received.si_signo if received else 0

    def _leave(self) -> None:
        """Remove the own entries if the distro shuts down: its PID 1 is systemd-shutdown then."""
        try:
            with open("/proc/1/comm", "rb") as file:
                if file.read() == b"systemd-shutdow\n":
                    self._own.leave()
        except OSError as e:
            self._tell(f"cannot remove own entries: {e.strerror}")


def _notify() -> None:
    """Tell systemd that the watch is up, once, as sd_notify(3) does."""
    path = posix.environ.pop(b"NOTIFY_SOCKET", b"")
    if path:
        send(b"READY=1", b"\0" + path[1:] if path[:1] == b"@" else path)


def send(data: bytes, path: "str | bytes") -> None:
    """Send a datagram to a program's socket; raises OSError."""
    # `socket` would take a megabyte of memory.
    from _socket import AF_UNIX, SOCK_DGRAM, socket  # noqa: PLC0415

    channel = socket(AF_UNIX, SOCK_DGRAM)
    try:
        channel.sendto(data, path)
    finally:
        channel.close()
