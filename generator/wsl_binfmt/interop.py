# SPDX-License-Identifier: MIT
"""WSLInterop, the entry by which WSL starts Windows programs: what is wrong with it, and the repair.

A stand-in is a second entry with the same rule as WSLInterop, by the name
WSLInterop-held-by-ID. It is there while WSLInterop is replaced, so that a Windows
program that is started at any instant finds one of the two. A service that is
about to change the table registers one as well (service-hook): it holds it. Until
that stand-in is removed, WSLInterop is left to the service, as WSL's override for
systemd-binfmt.service fails if WSLInterop is there before the override registers
it. One that has been there for HOLD_MAX was left by somebody who was killed.
"""

import posix
import time

from wsl_binfmt import notes, table

TYPE_CHECKING = False  # in place of that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

NAME = "WSLInterop"
STAND_IN = NAME + "-held-by-"
INIT = "/init"
WINDOWS = b"MZ"  # what every Windows program begins with
# How ordinary Windows programs begin, by their linkers.
HEADERS = b"MZ\x90\0", b"MZP\0", b"MZx\0", b"MZ\0\0"
TEMPORARY = NAME + "-temporary"
MISSING = f"{NAME} is missing"
NO_INIT = "/init cannot be run, it is what starts Windows programs; is this WSL?"
# A start of systemd-binfmt.service with all the formats of qemu takes a twentieth of it.
HOLD_MAX = 1.0  # seconds
# Whoever removes WSLInterop alone may be about to register it anew, as WSL's override does, and would
# fail if it were back. So a stand-in answers that long.
PATIENCE = 0.05  # seconds
# Others who change the table do not know the lock; so often a repair that they disturbed begins again.
TRIES = 4


def rule(name: str) -> bytes:
    """Make the rule by which WSL registers /init, src/linux/init/binfmt.h in its source.

    F has the kernel open /init now, for programs that see another root later;
    P preserves argv[0].
    """
    return f":{name}:M::MZ::{INIT}:FP".encode()


def is_ours(name: str) -> bool:
    """Whether an entry's name is WSLInterop, or that of a stand-in."""
    return name == NAME or name.startswith(STAND_IN)


def leads_to_init(entry: table.Entry) -> bool:
    """Whether an entry gives every Windows program to /init."""
    return (
        entry.interpreter == INIT.encode()
        and entry.magic == WINDOWS
        and entry.offset == 0
        and entry.mask in (None, b"\xff\xff")
    )


def is_as_registered(entry: table.Entry) -> bool:
    """Whether an entry is what WSL registers. Flags that a later WSL may add are WSL's affair."""
    return leads_to_init(entry) and set(entry.flags) >= set(b"FP")


handles_windows = leads_to_init


def is_rival(entry: table.Entry) -> bool:
    """Whether an entry would take ordinary Windows programs, were it newer than WSLInterop."""
    if entry.extension is not None:
        return entry.extension == b"exe"
    return entry.magic is not None and not leads_to_init(entry) and any(map(entry.may_match, HEADERS))


def stand_in() -> str:
    """Name the stand-in of this distro, by its PID namespace, which no other distro has."""
    return STAND_IN + str(posix.stat("/proc/self/ns/pid").st_ino)


class Finding:
    """What one look at the table found."""

    __slots__ = ("enabled_anew", "fault", "held_until", "leftovers", "takers", "wiped")

    def __init__(self) -> None:
        """Begin with nothing found."""
        # Whether all entries are gone that were there.
        self.wiped = True
        # What is wrong with WSLInterop; None if nothing is, or if it was disabled by hand.
        self.fault: "str | None" = None
        # WSLInterop was disabled by hand, and somebody has registered it anew since.
        self.enabled_anew = False
        # Entries that match Windows programs, the newest first, down to WSLInterop.
        self.takers: "list[tuple[str, table.Entry]]" = []
        # When to look again because somebody else holds a stand-in, as time.monotonic(); 0 if nobody does.
        self.held_until = 0.0
        # Stand-ins that nobody needs any more.
        self.leftovers: "list[str]" = []

    def is_answered(self, without: "Collection[str]" = ()) -> bool:
        """Whether /init gets Windows programs, also if the entries `without` were not there."""
        for name, entry in self.takers:
            if name not in without:
                return leads_to_init(entry)
        return False

    def needs_repair(self) -> bool:
        """Whether repair() has something to do now."""
        if self.enabled_anew:
            return True
        if self.held_until and self.fault:
            return not self.is_answered()
        if self.held_until:
            return bool(self.leftovers) and self.is_answered(without=self.leftovers)
        return bool(self.fault or self.leftovers)


class Interop:
    """What a process knows of WSLInterop, from one look at the table to the next."""

    def __init__(self, inode: int = 0, *, disabled: bool = False, release: "Collection[str]" = ()) -> None:
        """Begin with what an earlier process knew.

        inode: of WSLInterop when it was looked at last; 0 if it never was.
        disabled: whether somebody had disabled it by hand. release: stand-ins
        that are not needed any more.
        """
        self.inode = inode
        self.disabled = disabled
        self._stand_ins = [stand_in(), stand_in() + "+"]
        self._release = {*self._stand_ins, *release}
        # When each stand-in was seen first, by its inode. The kernel's own time for it would jump with the clock.
        self._first_seen: "dict[int, float]" = {}
        # When somebody was seen to have removed WSLInterop alone; 0 if that is not why it is missing.
        self._gone_since = 0.0
        self._was_there = False
        # Inodes of entries that do not match Windows programs: what an entry matches never changes.
        self._strangers: "set[int]" = set()

    def look(self, entries: "dict[str, int]", *, wiped: bool = True) -> Finding:
        """Find what is wrong. entries: as of table.entries(). wiped: whether all that was there is gone."""
        finding = Finding()
        finding.wiped = wiped
        now = time.monotonic()
        self._look_at_stand_ins(finding, entries, now)
        wsl = table.read(NAME)
        self._learn_whether_disabled(entries, wsl)
        if wsl or self._was_there:
            self._gone_since = 0.0 if wsl or wiped else now
        self._was_there = wsl is not None
        if wsl is None:
            if now < self._gone_since + PATIENCE:
                finding.held_until = self._gone_since + PATIENCE
            # One that was disabled needs nothing that answers in its place.
            finding.fault = None if finding.held_until and self.disabled else MISSING
        elif not wsl.enabled:
            return finding
        # Where WSLInterop is missing and nobody holds a stand-in, the others do not matter.
        if wsl or finding.held_until:
            finding.takers = self._takers(entries)
        rivals = [name for name, entry in finding.takers if not is_ours(name) and not is_as_registered(entry)]
        if wsl and self.disabled:
            finding.enabled_anew = True
        elif wsl and not is_as_registered(wsl):
            finding.fault = f"{NAME} is not as WSL registers it"
        elif wsl and rivals:
            finding.fault = f"{rivals[0]} outranks {NAME}"
        return finding

    def repair(self, finding: "Finding | None" = None) -> "str | None":
        """Make WSL answer Windows programs, and remove stand-ins that nobody needs.

        finding: what a look has just found; looks itself without one. Returns
        what was wrong and is right now; None if nothing was, or if whoever holds
        a stand-in is about to do the rest. Raises OSError.
        """
        with table.Lock() as was_free:
            for tries_left in reversed(range(TRIES)):
                if finding is None or not was_free:
                    finding = self.look(table.entries(), wiped=finding is None or finding.wiped)
                try:
                    if finding.held_until:
                        self._bridge(finding)
                        return None
                    return self._restore(finding)
                except (FileExistsError, FileNotFoundError):
                    if not tries_left:
                        raise
                    was_free = False
        return None

    def _bridge(self, finding: Finding) -> None:
        """Make WSL answer, and leave WSLInterop to whoever holds a stand-in."""
        # Once this process has ended, nobody knows that these are released, and our watch would wait HOLD_MAX for
        # them. Those of our own it knows by their names.
        released = [name for name in finding.leftovers if name not in self._stand_ins]
        if finding.fault and not finding.is_answered(without=released):
            newest = self._register_stand_in()
            self._remove(name for name in finding.leftovers if name != newest)
        elif finding.is_answered(without=finding.leftovers):
            self._remove(finding.leftovers)
        elif finding.fault:
            self._remove(released)
        if finding.enabled_anew:
            self._disable()

    def _restore(self, finding: Finding) -> "str | None":
        if finding.fault and finding.fault != MISSING:
            if not finding.is_answered(without=[NAME]):
                finding.leftovers.append(self._register_stand_in())
            # Somebody may have disabled it since the look.
            wsl = table.read(NAME)
            self.disabled = self.disabled or (wsl is not None and not wsl.enabled)
            table.remove(NAME)
        if finding.fault:
            # Fails if another distro's watch has registered it since: repair() then looks again.
            table.register(rule(NAME))
        if self.disabled and (finding.enabled_anew or finding.fault):
            self._disable()
        self._remove(finding.leftovers)
        return finding.fault

    def _register_stand_in(self) -> str:
        """Have a stand-in of this distro come first; returns its name."""
        # One that is outranked may still answer some programs.
        free = [name for name in self._stand_ins if table.registration(name) is None]
        name = (free or self._stand_ins)[0]
        table.remove(name)
        table.register(rule(name))
        return name

    def _disable(self) -> None:
        table.disable(NAME)
        # Who enables it from here on means it.
        self.inode = table.entries().get(NAME, self.inode)

    def _remove(self, names: "Iterable[str]") -> None:
        for name in names:
            table.remove(name)

    def _look_at_stand_ins(self, finding: Finding, entries: "dict[str, int]", now: float) -> None:
        stand_ins = {name: inode for name, inode in entries.items() if name.startswith(STAND_IN)}
        self._first_seen = {inode: self._first_seen.get(inode, now) for inode in stand_ins.values()}
        for name, inode in stand_ins.items():
            until = self._first_seen[inode] + HOLD_MAX
            if name in self._release or until <= now:
                finding.leftovers.append(name)
            else:
                finding.held_until = min(finding.held_until or until, until)

    def _learn_whether_disabled(self, entries: "dict[str, int]", wsl: "table.Entry | None") -> None:
        """Tell `echo 0 >WSLInterop` and `echo 1` from another registration, which is always an enabled one."""
        # Of what was read, as it may have been replaced since the entries were listed.
        inode = wsl.inode if wsl else entries.get(NAME, 0)
        if not self.inode:
            # A stand-in is disabled if WSLInterop was when it was made.
            for name in [name for name in entries if is_ours(name)][-1:]:
                oldest = table.read(name)
                self.disabled = oldest is not None and not oldest.enabled
        elif wsl and (inode == self.inode or not wsl.enabled):
            self.disabled = not wsl.enabled
        # One that is still to be disabled is not known yet.
        if inode and not (wsl and wsl.enabled and self.disabled):
            self.inode = inode

    def _takers(self, entries: "dict[str, int]") -> "list[tuple[str, table.Entry]]":
        takers = []
        self._strangers.intersection_update(entries.values())
        for name, inode in entries.items():
            if inode not in self._strangers:
                entry = table.read(name)
                if entry and not entry.may_match(WINDOWS):
                    self._strangers.add(inode)
                elif entry and entry.enabled:
                    takers.append((name, entry))
            if name == NAME:
                break
        return takers


def recall() -> "tuple[int, bool]":
    """Recall the inode of WSLInterop, 0 if it was never seen, and whether somebody had disabled it by hand."""
    inode, _, state = (notes.read(NAME) or b"").partition(b" ")
    if inode.isdigit() and state in (b"enabled", b"disabled"):
        return int(inode), state == b"disabled"
    return 0, False


def remember(inode: int, *, disabled: bool) -> None:
    """Remember what recall() returns, for when this process has ended; raises OSError."""
    notes.write(NAME, b"%d %s" % (inode, b"disabled" if disabled else b"enabled"))
