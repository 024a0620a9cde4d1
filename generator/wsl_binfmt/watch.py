# SPDX-License-Identifier: MIT
"""The watch: looks at the table, repairs what is wrong, waits until it changes, and looks again."""

import fcntl
import posix
import time

from wsl_binfmt import formats, interop, table

TYPE_CHECKING = False  # in place of that of `typing`, whose import takes long
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
else:
    # What `signal` wraps in enums, which take a megabyte of memory.
    import _signal as signal

# The generator's decision that this distro wants the watch. systemd deletes it, and has it made again, at each
# daemon-reload; so if it is missing, that is asked again soon, and seldom after WANTED_MAX.
WANTED = "/run/systemd/generator/sysinit.target.wants/wsl-binfmt.service"
WANTED_MAX = 2.0  # seconds that the generators may take
# dnotify, fcntl(2): it tells of changes by any mount of the table, and takes none of the inotify instances, of which
# all distros together have 128.
CHANGES = fcntl.DN_MODIFY | fcntl.DN_CREATE | fcntl.DN_DELETE | fcntl.DN_ATTRIB | fcntl.DN_MULTISHOT
SIGNALS = {signal.SIGIO, signal.SIGUSR1, signal.SIGTERM}
POLL = 1.0  # seconds between two looks on a kernel without dnotify
RETRY_MAX = 64.0  # seconds between two tries of what the kernel refuses
IN_A_ROW_MAX = 20  # repairs without a look in between that finds nothing wrong


class Watch:
    """A loop that loses no change: one that happens during a look leaves a signal pending, which ends the wait."""

    def __init__(self, tell: "Callable[[str], object]") -> None:
        """tell: tells people of a message."""
        self._tell = tell
        inode, disabled = interop.recall()
        self._remembered = inode, disabled
        self._interop = interop.Interop(inode, disabled=disabled)
        self._losses = formats.Losses(tell)
        self._polls = False
        self._repairs_in_a_row = 0
        self._retry = POLL
        # When to look again although nothing changes, as time.monotonic(); 0 for never.
        self._due = 0.0
        # When this distro was found not to want the watch, and when to ask again; 0 if neither.
        self._unwanted_since = self._ask_again = 0.0
        # What people have been told of.
        self._failure = ""
        self._is_switched_on = True
        self._has_init = True

    def run(self) -> None:
        """Watch until SIGTERM; raises OSError if the table is not there."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            # A look takes less than a millisecond, and until it ends Windows programs may fail to start.
            posix.sched_setscheduler(0, posix.SCHED_RR, posix.sched_param(1))
        except OSError:
            pass  # a kernel with CONFIG_RT_GROUP_SCHED
        directory = posix.open(table.DIRECTORY, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            fcntl.fcntl(directory, fcntl.F_NOTIFY, CHANGES)
        except OSError as e:
            self._tell(f"this kernel has no dnotify, CONFIG_DNOTIFY ({e.strerror}): looking every second instead")
            self._polls = True
        while True:
            due = self._try_to_look()
            # Booting waits neither for what the kernel refuses, nor where somebody undoes each repair.
            if self._failure or not 0 < self._repairs_in_a_row <= IN_A_ROW_MAX:
                _tell_systemd_that_it_is_up()
            received = self._wait(due)
            if received == signal.SIGTERM:
                return
            if received == signal.SIGUSR1:
                self._leave()

    def _try_to_look(self) -> float:
        """Look, and survive what the kernel refuses.

        Returns when to look again although nothing changes, as time.monotonic();
        0 for never.
        """
        self._due = 0.0
        try:
            self._look()
        except OSError as e:
            failure = f"cannot change {e.filename or table.DIRECTORY}: {e.strerror}"
            if failure != self._failure:
                self._tell(failure)
                self._failure = failure
            self._retry = min(2 * self._retry, RETRY_MAX)
            retry = time.monotonic() + self._retry
            return min(self._due or retry, retry)
        self._failure = ""
        self._retry = POLL
        return self._due

    def _look(self) -> None:
        """Look at the table once, and do what is to be done; raises OSError."""
        entries = table.entries()
        wiped = self._losses.look(entries)
        finding = self._interop.look(entries, wiped=wiped)
        is_wrong = finding.needs_repair()
        if is_wrong and self._may_act():
            wrong = self._interop.repair(finding)
            if wrong:
                self._tell(f"{wrong}: restored")
            self._repairs_in_a_row += 1
            # Somebody who undoes each repair must not have the machine busy with it.
            self._due = time.monotonic() + (0.1 if self._repairs_in_a_row > IN_A_ROW_MAX else 0.0)
            return
        self._repairs_in_a_row = 0

        self._look_at_status()
        due = self._losses.due()
        if is_wrong:
            self._due = self._ask_again
        elif finding.held_until or not 0 < due <= time.monotonic():
            self._due = finding.held_until or due
            if not due:
                self._unwanted_since = 0.0
        elif self._may_act():
            self._losses.bring_back()
            self._due = time.monotonic()
            return
        else:
            self._due = self._ask_again
        # Last: nothing else has to wait where /run is full.
        self._take_notes(entries)

    def _take_notes(self, entries: "dict[str, int]") -> None:
        """Note what has to be known after this process has ended; raises OSError."""
        for service in formats.SERVICES:
            if formats.has_started(service):
                formats.note_start(service)
                self._losses.look_after_note(entries)
        # By WSLInterop's registration, a new watch tells that nothing has been wiped since.
        if not self._losses.due():
            self._remember()
        self._due = self._due or self._losses.due()

    def _may_act(self) -> bool:
        """Whether this distro wants the table changed, and has what WSLInterop leads to."""
        now = time.monotonic()
        if not _exists(WANTED):
            self._unwanted_since = self._unwanted_since or now
            self._ask_again = now + (0.01 if now < self._unwanted_since + WANTED_MAX else POLL)
            return False
        self._unwanted_since = self._ask_again = 0.0
        had_init, self._has_init = self._has_init, posix.access(interop.INIT, posix.X_OK)
        if not self._has_init:
            self._ask_again = now + POLL
            if had_init:
                self._tell(interop.NO_INIT)
        return self._has_init

    def _look_at_status(self) -> None:
        was_on, self._is_switched_on = self._is_switched_on, table.is_switched_on()
        if was_on and not self._is_switched_on:
            self._tell(
                "somebody has switched off the whole table (echo 0 >status), so that no Windows program starts: "
                "`sudo wsl-binfmt restore` switches it on"
            )
        elif self._is_switched_on and not was_on:
            self._tell("the table is switched on again")

    def _remember(self) -> None:
        known = self._interop.inode, self._interop.disabled
        if known != self._remembered:
            interop.remember(known[0], disabled=known[1])
            self._remembered = known

    def _wait(self, due: float) -> int:
        """Wait for a signal, and return its number; or until `due`, and return 0."""
        if self._polls:
            poll = time.monotonic() + POLL
            due = min(due or poll, poll)
        if not due:
            return signal.sigwait(SIGNALS)
        # Our own repair is a change as well, of which SIGIO tells: it must not end a wait that is to slow us down.
        signals = SIGNALS - {signal.SIGIO} if self._repairs_in_a_row > IN_A_ROW_MAX else SIGNALS
        received = signal.sigtimedwait(signals, max(0.0, due - time.monotonic()))
        return received.si_signo if received else 0

    def _leave(self) -> None:
        """Have the formats of this distro end with it: it is shutting down."""
        for service in formats.SERVICES:
            try:
                formats.remove(service)
            except OSError as e:
                self._tell(f"cannot remove the formats of {service}: {e.strerror}")


def _tell_systemd_that_it_is_up() -> None:
    """Send what sd_notify(3) sends, once."""
    path = posix.environ.pop(b"NOTIFY_SOCKET", b"")
    if path:
        # `socket` would take a megabyte of memory.
        from _socket import AF_UNIX, SOCK_DGRAM, socket  # noqa: PLC0415

        channel = socket(AF_UNIX, SOCK_DGRAM)
        channel.sendto(b"READY=1", b"\0" + path[1:] if path[:1] == b"@" else path)
        channel.close()


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
