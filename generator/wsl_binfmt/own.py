# SPDX-License-Identifier: MIT
"""The own entries of this distro: those that a rule of it makes, whichever program has registered them.

All distros share one table. The own entries are removed when the service that
has their rules is stopped, and when the distro shuts down: an entry with the flag
F keeps the file system of its interpreter in use. They come back after a wipe,
which removes all entries. What is gone alone was removed on purpose and stays so,
unless another distro with the same rules has left: it registers a mark before it
removes its own entries.
"""

import posix

from wsl_binfmt import interop, rules, table

TYPE_CHECKING = False  # in place of that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Dict, List, Optional, Set, Tuple

    # By the entry's name: the service that has the rule, and the rule.
    Own = Dict[str, Tuple[str, bytes]]

# A disabled entry that matches no file, see interop.PLACEHOLDER.
LEAVING = "wsl-binfmt-leaving-"
LEAVING_RULE = ":{}:E::distro.leaves::/init:"
# Links that systemd makes, each to the invocation ID of a unit that is active.
UNITS = "/run/systemd/units"
SYSTEMCTL = "/usr/bin/systemctl"
SECOND = 1.0  # how long a mark stays, and how long a service may be down in a restart
# A program that wiped the table may be about to register entries of the same names, and would fail if they were there.
QUIET = 0.05  # seconds without a change
QUIET_MAX = 0.5  # seconds: the longest wait for that
SAVED_MAX = 100  # entries that the next watch tells a wipe by


def mark() -> str:
    """Name the mark of this distro, by its PID namespace, which no other distro has."""
    return f"{LEAVING}{posix.stat('/proc/self/ns/pid').st_ino}"


class OwnEntries:
    """What a watch knows of the own entries, from one look at the table to the next."""

    def __init__(self, state: "Dict[str, Any]", tell: "Callable[..., object]") -> None:
        """Begin with what an earlier watch has saved. tell: tells people of a message."""
        self._tell = tell
        self._rules = rules.Rules()
        self._mark = mark()
        # The entries as of the last look, which of them are own, and inodes of those that have only the name of one.
        self._before: "Dict[str, int]" = state.get("entries", {})
        self._own: "Own" = state.get("own", {})
        self._foreign: "Set[int]" = set()
        # Own entries that are gone, with the time since when: removed on purpose, or by another distro that leaves.
        self._gone: "Dict[str, Tuple[float, Tuple[str, bytes]]]" = {}
        # What is to come back, since when, and when the table has changed last.
        self._lost: "Own" = {}
        self._lost_since = self._changed = 0.0
        # Own entries that an administrator has disabled.
        self._disabled: "Set[str]" = set()
        # Inodes of marks, with the time since when they are there.
        self._marks: "Dict[int, float]" = {}
        self._invocations: "Dict[str, str]" = state.get("invocations", {})
        self._stopped: "Dict[str, float]" = {}
        # When to look again although nothing changes, as time.monotonic(); 0 for never.
        self.due = 0.0

    def state(self) -> "Dict[str, Any]":
        """Return what the next watch begins with."""
        names = {*self._own, interop.NAME, *list(self._before)[-SAVED_MAX:]}
        entries = {name: inode for name, inode in self._before.items() if name in names}
        return {"entries": entries, "own": self._own, "invocations": self._invocations}

    def is_wiped(self, entries: "Dict[str, int]") -> bool:
        """Whether nothing is left of what was there at the last look. WSLInterop alone is not all that was there."""
        before = self._before.items()
        return not all(map(interop.is_ours, self._before)) and not any(entries.get(name) == inode for name, inode in before)

    def services_have_changed(self) -> bool:
        """Whether a service has started or stopped since the last look."""
        return any(_invocation(service) != self._invocations.get(service, "") for service in rules.SERVICES)

    def look(self, entries: "Dict[str, int]", now: float, *, wiped: bool, reloaded: bool) -> None:
        """See what has changed since the last look, and do what is to be done; raises OSError.

        entries: as of table.entries(). now: as of time.monotonic(). wiped: as of
        is_wiped(). reloaded: whether a service was reloaded.
        """
        changed = entries != self._before
        if changed:
            self._compare(entries, now, wiped=wiped)
        self._disabled = {name for name in self._own if _is_disabled(name)}
        self._look_at_marks(entries, now)
        self._look_at_services(entries, now, reloaded=reloaded)
        if self._lost and now >= self._due_of_lost():
            self._bring_back()
        dues = [since + SECOND for since in (*self._marks.values(), *self._stopped.values())]
        self.due = min([*dues, self._due_of_lost()] if self._lost else dues, default=0.0)

    def _due_of_lost(self) -> float:
        return min(self._changed + QUIET, self._lost_since + QUIET_MAX)

    def _compare(self, entries: "Dict[str, int]", now: float, *, wiped: bool) -> None:
        """Learn which entries are own, and which own ones are gone."""
        before, self._before, self._changed = self._before, entries, now
        known = self._rules.read()
        lost: "Own" = {}
        if wiped:
            names = [name for name in before if before[name] not in self._foreign and name not in self._disabled]
            lost = {name: self._own.get(name) or known[name][0] for name in reversed(names) if name in known}
        for name, own in self._own.items():
            if name not in entries and not wiped:
                self._gone[name] = now, own
        self._own = {name: own for name, own in self._own.items() if entries.get(name) == before.get(name)}
        self._foreign.intersection_update(entries.values())
        for name, inode in reversed([*entries.items()]):
            if name in known and name not in self._own and inode not in self._foreign and not interop.is_ours(name):
                makers = _makers(name, known[name])
                if makers:
                    self._own[name] = makers[0]
                else:
                    self._foreign.add(inode)
        self._add_lost(lost, now)
        self._lost = {name: own for name, own in self._lost.items() if name not in entries}

    def _add_lost(self, lost: "Own", now: float) -> None:
        if lost and not self._lost:
            self._lost_since = now
        self._lost.update(lost)

    def _look_at_marks(self, entries: "Dict[str, int]", now: float) -> None:
        """Have come back what a distro that leaves has removed; remove its mark a second later."""
        marks = {name: inode for name, inode in entries.items() if name.startswith(LEAVING)}
        self._marks = {inode: self._marks.get(inode, now) for inode in marks.values()}
        self._gone = {name: gone for name, gone in self._gone.items() if now < gone[0] + SECOND and name not in entries}
        if any(name != self._mark for name in marks):
            self._add_lost({name: own for name, (_, own) in self._gone.items()}, now)
            self._gone = {}
        for name, inode in marks.items():
            if now >= self._marks[inode] + SECOND:
                table.remove(name)

    def _look_at_services(self, entries: "Dict[str, int]", now: float, *, reloaded: bool) -> None:
        """Remove entries whose rule is gone when a service starts or is reloaded, and all own ones when it has stopped."""
        for service in rules.SERVICES:
            invocation, before = _invocation(service), self._invocations.get(service, "")
            self._invocations[service] = invocation
            if invocation:
                self._stopped.pop(service, None)
            elif before:
                self._stopped[service] = now
            if reloaded or (invocation != before and invocation):
                known = self._rules.read()
                old = {name: own for name, own in self._own.items() if own[0] == service and own not in known.get(name, [])}
                self._remove(old)
                # update-binfmts has passed over the name of a rule that has changed.
                self._add_lost({name: own for name, own in old.items() if name in known}, now)
        for service, since in list(self._stopped.items()):
            if now >= since + SECOND:
                del self._stopped[service]
                # A start that failed has registered what is beside the rule that the kernel refused.
                if not _has_failed(service):
                    self.leave([service])

    def leave(self, services: "Iterable[str]" = rules.SERVICES) -> None:
        """Remove the own entries of services, which have been stopped or end with the distro; raises OSError.

        Another distro with the same rules has its own back, as the mark is there first.
        """
        known = self._rules.read()
        leaving = []
        for name in table.entries():
            candidates = [*known.get(name, []), *([self._own[name]] if name in self._own else [])]
            makers = {service for service, _ in _makers(name, candidates)} if candidates else set()
            is_kept = any(self._invocations.get(service) for service in makers.difference(services))
            if makers.intersection(services) and not is_kept and not interop.is_ours(name):
                leaving.append(name)
        if leaving:
            with table.Lock():
                table.remove(self._mark)
                table.register(LEAVING_RULE.format(self._mark).encode())
                table.disable(self._mark)
                self._remove(leaving)

    def _remove(self, names: "Iterable[str]") -> None:
        for name in list(names):
            table.remove(name)
            self._own.pop(name, None)

    def _bring_back(self) -> None:
        """Register again what is lost, and still has a rule, in the order in which it was registered."""
        known = self._rules.read()
        lost, self._lost = self._lost, {}
        registered = []
        with table.Lock():
            present = table.entries()
            for name, own in lost.items():
                if name in present or not known.get(name) or _is_for_python(known[name][0][1]):
                    continue
                rule = own[1] if own in known[name] else known[name][0][1]
                try:
                    table.register(rule)
                    registered.append(name)
                except FileExistsError:
                    pass
                except OSError as e:
                    self._tell(f"cannot register {name} again: {e.strerror}")
        if registered:
            self._tell(f"own entries were lost: registered {', '.join(registered)} again", repair=True)


def _makers(name: str, candidates: "List[Tuple[str, bytes]]") -> "List[Tuple[str, bytes]]":
    """Tell which rules make such an entry as is there."""
    entry = table.read(name)
    return [own for own in candidates if entry and _parse(own[1]) == entry.says()]


def _parse(rule: bytes) -> "Tuple[object, ...]":
    try:
        return table.parse_rule(rule)[1].says()
    except ValueError:
        return ()


def _is_disabled(name: str) -> bool:
    entry = table.read(name)
    return entry is not None and not entry.enabled


def _is_for_python(rule: bytes) -> bool:
    """Whether a rule matches the program that this watch runs in, and so may keep every program from starting."""
    try:
        with open("/proc/self/exe", "rb") as file:
            return table.parse_rule(rule)[1].may_match(file.read(256))
    except ValueError:
        return False


def _invocation(service: str) -> str:
    """Read the invocation ID of a service; "" if it is not active."""
    try:
        return posix.readlink(f"{UNITS}/invocation:{service}")
    except OSError:
        return ""


def _has_failed(service: str) -> bool:
    """Ask systemd whether a service has failed; one that was stopped has not."""
    command = ["timeout", "1", SYSTEMCTL, "is-failed", "--quiet", service]
    try:
        return posix.waitpid(posix.posix_spawn("/usr/bin/timeout", command, {}), 0)[1] == 0
    except OSError:
        return False
