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
    from collections.abc import Callable, Collection, Iterable
    from typing import Any

LEAVING = "wsl-binfmt-leaving-"
# It matches no file, see interop.PLACEHOLDER.
LEAVING_RULE = ":{}:E::distro.leaves::/init:"
# Links that systemd makes, each to the invocation ID of a unit that is active.
UNITS = "/run/systemd/units"
SECOND = 1.0  # how long a mark stays, and how long a service may be down in a restart
# A program that wiped the table may be about to register entries of the same names, and would fail if they were there.
QUIET = 0.05  # seconds without a change
QUIET_MAX = 0.5  # seconds: the longest wait for that
SAVED_MAX = 100  # entries, besides the own ones, that the next watch tells a wipe by


class OwnEntries:
    """What a watch knows of the own entries, from one look at the table to the next."""

    def __init__(self, saved: "dict[str, Any]", tell: "Callable[..., object]") -> None:
        """Begin with what an earlier watch has saved. tell: tells people of a message."""
        self._tell = tell
        # All distros have different PID namespaces.
        self.mark = f"{LEAVING}{posix.stat('/proc/self/ns/pid').st_ino}"
        # The entries as of the last look, and those of them that are not learned yet.
        self._before: "dict[str, int]" = saved.get("entries", {})
        self._new: "set[str]" = set()
        # The rules, but for those of services that have been stopped.
        self._known: "dict[str, list[tuple[str, bytes]]]" = {}
        self._ended: "set[str]" = saved.get("ended", set())
        # The own entries, each with its service and rule; those of them that an administrator has disabled; and the
        # inodes of entries that have no more than the name of a rule.
        self._own: "dict[str, tuple[str, bytes]]" = saved.get("own", {})
        self._disabled: "set[str]" = saved.get("disabled own", set())
        self._foreign: "set[int]" = set()
        # When the table changed last, and first since it had settled; 0 if it has.
        self._changed = self._unsettled = 0.0
        self._has_settled = False
        # What is to come back if it has a rule; and since when what is gone that does so only if another distro leaves.
        self._lost: "dict[str, None]" = dict.fromkeys(saved.get("lost", ()))
        self._gone: "dict[str, float]" = {}
        # Inodes of marks, and services that have stopped, with the time since when.
        self._marks: "dict[int, float]" = {}
        self._stopped: "dict[str, float]" = {}
        self._invocations: "dict[str, str]" = saved.get("invocations", {})

    def state(self) -> "dict[str, Any]":
        """Return what the next watch begins with."""
        names = {*self._own, interop.NAME, *[*self._before][-SAVED_MAX:]}
        entries = {name: inode for name, inode in self._before.items() if name in names}
        return {
            "entries": entries,
            "lost": [*self._lost],
            "own": {**self._own},
            "disabled own": {*self._disabled},
            "ended": {*self._ended},
            "invocations": {**self._invocations, **dict.fromkeys(self._stopped, "stopped")},
        }

    def is_settled(self) -> bool:
        """Whether the table has not changed for a while. Until then, a wipe is seen best from the state before."""
        return not self._unsettled

    def is_wiped(self, entries: "dict[str, int]") -> bool:
        """Whether nothing is left of what was there at the last look. WSLInterop alone is not all that was there."""
        is_any_left = any(entries.get(name) == inode for name, inode in self._before.items())
        return not is_any_left and not all(map(interop.is_ours, self._before))

    def services_have_changed(self) -> bool:
        """Whether a service has started or stopped since the last look."""
        return any(_invocation(service) != self._invocations.get(service, "") for service in rules.SERVICES)

    def look(self, entries: "dict[str, int]", now: float, *, wiped: bool, changed: bool, reloaded: bool) -> float:
        """See what has changed since the last look, and do what is to be done; raises OSError.

        entries: as of table.entries(). now: as of time.monotonic(). wiped: as of
        is_wiped(). changed: whether the table has. reloaded: whether a service
        was. Returns when to look again although nothing changes; 0 for never.
        """
        self.notice(entries, now, wiped=wiped, changed=changed)
        self._look_at_marks(entries, now)
        self._look_at_services(now, reloaded=reloaded)
        self._learn(entries, [name for name in entries if name in self._new])
        self._new = set()
        settled = min(self._changed + QUIET, self._unsettled + QUIET_MAX) if self._unsettled else 0.0
        # The first look learns at once, but brings back nothing before its time.
        if settled and (not (self._has_settled or self._lost) or now >= settled):
            self._settle(entries)
            settled = 0.0
        dues = [since + SECOND for since in (*self._marks.values(), *self._stopped.values())]
        return min(filter(None, (settled, *dues)), default=0.0)

    def notice(self, entries: "dict[str, int]", now: float, *, wiped: bool, changed: bool) -> None:
        """See what has changed since the last look; its arguments are those of look()."""
        before, self._before = self._before, entries
        if changed or before != entries:
            # The oldest is registered again first.
            gone = [name for name in reversed([*before]) if name not in entries and name not in self._disabled]
            gone = [name for name in gone if before[name] not in self._foreign]
            self._gone.update({} if wiped else dict.fromkeys(gone, now))
            # What came back and is gone again was removed on purpose.
            self._lost = {name: None for name in self._lost if name not in entries}
            self._lose(gone if wiped else [], now)
        if before != entries:
            self._new.update(name for name, inode in entries.items() if inode != before.get(name))

    def _lose(self, names: "Iterable[str]", now: float) -> None:
        """Have entries brought back when the table has settled."""
        self._lost.update(dict.fromkeys(names))
        self._changed = now
        self._unsettled = self._unsettled or now

    def _look_at_marks(self, entries: "dict[str, int]", now: float) -> None:
        """Have come back what a distro that leaves has removed; remove its mark a second later."""
        marks = {name: inode for name, inode in entries.items() if name.startswith(LEAVING)}
        self._marks = {inode: self._marks.get(inode, now) for inode in marks.values()}
        self._gone = {name: since for name, since in self._gone.items() if now < since + SECOND}
        if any(name != self.mark for name in marks):
            if self._gone:
                self._lose(self._gone, now)
            self._gone = {}
        for name, inode in marks.items():
            if now >= self._marks[inode] + SECOND:
                table.remove(name)

    def _look_at_services(self, now: float, *, reloaded: bool) -> None:
        """Remove what a service has no rule for any more when it starts or is reloaded, and all when it has stopped."""
        for service in rules.SERVICES:
            invocation, before = _invocation(service), self._invocations.get(service, "")
            self._invocations[service] = invocation
            if invocation:
                self._stopped.pop(service, None)
                self._ended.discard(service)
            elif before:
                self._stopped[service] = now
            if reloaded or (invocation != before and invocation):
                self._read_rules()
                mine = [(name, own) for name, own in self._own.items() if own[0] == service]
                old = [name for name, own in mine if own not in self._known.get(name, [])]
                # Another distro may have registered an entry of that name since.
                old = [name for name in old if self._makers(name, {})[1]]
                self._remove(old)
                # update-binfmts has passed over the name of a rule that has changed.
                self._lose([name for name in old if name not in self._disabled], now)
        for service, since in [*self._stopped.items()]:
            if now >= since + SECOND:
                del self._stopped[service]
                # A start that failed has registered what is beside the rule that the kernel refused.
                if not _has_failed(service):
                    self._ended.add(service)
                    self.leave([service])

    def _read_rules(self) -> None:
        known = {name: [own for own in made if own[0] not in self._ended] for name, made in rules.read().items()}
        self._known = {name: made for name, made in known.items() if made}

    def _settle(self, entries: "dict[str, int]") -> None:
        """Bring back what is lost, and learn which entries are own now that all files have been written."""
        self._unsettled, self._has_settled = 0.0, True
        self._read_rules()
        if self._lost:
            lost = {name: self._known[name] for name in self._lost if name in self._known}
            # Until a look has seen that they are there: there may be a wipe before that.
            self._lost = dict.fromkeys(self._bring_back(lost))
        self._foreign = set()
        self._learn(entries, entries)

    def _learn(self, entries: "dict[str, int]", names: "Iterable[str]") -> None:
        """Learn which of the entries `names` are own."""
        self._own = {name: own for name, own in self._own.items() if name in entries}
        self._disabled.intersection_update(self._own)
        for name in names:
            entry, makers = self._makers(name, self._known)
            self._own.pop(name, None)
            if entry and makers:
                self._own[name] = makers[0]
                (self._disabled.discard if entry.enabled else self._disabled.add)(name)
            elif entry:
                self._foreign.add(entries[name])

    def _makers(
        self, name: str, known: "dict[str, list[tuple[str, bytes]]]"
    ) -> "tuple[table.Entry | None, list[tuple[str, bytes]]]":
        """Read an entry that has the name of a rule or is an own one, and tell which rules make such an entry."""
        candidates = known.get(name, []) + [own for own in [self._own.get(name)] if own]
        entry = table.read(name) if candidates else None
        return entry, [own for own in candidates if entry and table.parse_rule(own[1])[1].says() == entry.says()]

    def _bring_back(self, lost: "dict[str, list[tuple[str, bytes]]]") -> "list[str]":
        """Register what is lost, and return the names of what has been."""
        registered = []
        with table.Lock():
            for name, candidates in lost.items():
                rule = self._own[name][1] if self._own.get(name) in candidates else candidates[0][1]
                try:
                    if not _is_for_this_program(rule):
                        table.register(rule)
                        registered.append(name)
                except FileExistsError:
                    pass
                except OSError as e:
                    self._tell(f"cannot register {name} again: {e.strerror}")
        if registered:
            self._tell(f"own entries were lost: registered {', '.join(registered)} again", repair=True)
        return registered

    def leave(self, services: "Collection[str]" = rules.SERVICES) -> None:
        """Remove the own entries of services, which have been stopped or end with the distro; raises OSError.

        Another distro with the same rules has its own back, as the mark is there first.
        """
        known = rules.read()
        leaving = []
        for name in table.entries():
            makers = {service for service, _ in self._makers(name, known)[1]}
            # The other service has such a rule as well, and is active.
            is_kept = any(self._invocations.get(service) for service in makers.difference(services))
            if makers.intersection(services) and not is_kept:
                leaving.append(name)
        self._remove(leaving)

    def _remove(self, names: "Collection[str]") -> None:
        """Remove own entries, after a mark for distros that have the same rules."""
        if not names:
            return
        with table.Lock():
            table.remove(self.mark)
            table.register(LEAVING_RULE.format(self.mark).encode())
            table.disable(self.mark)
            for name in names:
                table.remove(name)
                self._own.pop(name, None)


def _is_for_this_program(rule: bytes) -> bool:
    """Whether a rule matches the Python that runs the watch: such an entry may keep every program from starting."""
    with open("/proc/self/exe", "rb") as file:
        return table.parse_rule(rule)[1].may_match(file.read(256))


def _invocation(service: str) -> str:
    """Read the invocation ID of a service; "" if it is not active."""
    try:
        return posix.readlink(f"{UNITS}/invocation:{service}")
    except OSError:
        return ""


def _has_failed(service: str) -> bool:
    """Ask systemd whether a service has failed; one that was stopped has not."""
    command = ["timeout", "1", "systemctl", "is-failed", "--quiet", service]
    return posix.waitpid(posix.posix_spawnp("timeout", command, posix.environ), 0)[1] == 0
