# SPDX-License-Identifier: MIT
"""The own entries of this distro: those that a rule of it makes, whichever program has registered them.

All distros share one table. The own entries are removed when the service that has their rules is stopped, and when the
distro shuts down: an entry with the flag F keeps its interpreter's file system in use. They come back after a wipe.
What is gone alone was removed on purpose and stays so, unless another distro with the same rules has left: it
registers a mark before it removes its own entries.
"""

import posix

from wsl_binfmt import TYPE_CHECKING, interop, rules, table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any, Tuple

    Maker = Tuple[str, bytes]  # a service, and its rule

LEAVING = "wsl-binfmt-leaving-"
# It matches no file, see interop.PLACEHOLDER.
LEAVING_RULE = ":{}:E::distro.leaves::/init:"
# Links that systemd makes, each to the invocation ID of a unit that is active.
UNITS = "/run/systemd/units"
SECOND = 1.0  # how long a mark stays, and how long after its stop a service counts as restarting
# A program that wiped the table may be about to register entries of the same names, and would fail if they were there.
QUIET = 0.05  # seconds without a change, after which the table has settled
QUIET_MAX = 0.5  # seconds after the first change, after which it counts as settled in any case
UNREAD = -1  # in place of the inode of an entry that is learned at the next look


class OwnEntries:
    """What a watch knows of the own entries, from one look at the table to the next."""

    def __init__(self, saved: "dict[str, Any]", tell: "Callable[..., object]") -> None:
        """Begin with what an earlier watch has saved. tell: reports a message to the user."""
        self._tell = tell
        self.mark = f"{LEAVING}{posix.stat('/proc/self/ns/pid').st_ino}"  # no two distros have the same PID namespace
        self._before: "dict[str, int]" = saved.get("entries", {})  # as of the last look
        # The own entries: inode, whether it is enabled, and its service and rule.
        self._own: "dict[str, tuple[int, bool, Maker]]" = saved.get("own", {})
        self._first_change = self._last_change = 0.0  # since the table had settled
        self._lost: "dict[str, Maker]" = {}  # entries to register when the table has settled
        # Entries to register if another distro leaves, and when they were removed.
        self._gone: "dict[str, tuple[Maker, float]]" = {}
        self._marks: "dict[int, float]" = {}  # inodes, and when each was seen first
        # As of the last look at the services: their invocation IDs; those that have stopped, and when; and those that
        # have not started again within a second.
        invocations = {service: _invocation(service) for service in rules.SERVICES}
        self._invocations: "dict[str, str]" = {**invocations, **saved.get("invocations", {})}
        self._stopped: "dict[str, float]" = {}
        self._ended: "set[str]" = saved.get("ended", set())
        self._started = -SECOND  # when a service was seen to have started
        self._known = rules.read()

    def state(self) -> "dict[str, Any]":
        """Return what the next watch begins with."""
        return {
            "entries": self._before,
            "own": {**self._own},
            "invocations": {**self._invocations, **dict.fromkeys(self._stopped, "stopped")},
            "ended": {*self._ended},
        }

    def has_settled(self) -> bool:
        """Whether the table has not changed for a while. Until then, a wipe is seen best from the state before."""
        return not self._first_change

    def services_have_changed(self) -> bool:
        """Whether a service has started or stopped since the last look."""
        return any(_invocation(service) != self._invocations[service] for service in rules.SERVICES)

    def reload(self) -> None:
        """Have the rules of active services read again."""
        self._invocations = {service: active and "reloaded" for service, active in self._invocations.items()}

    def notice(self, entries: "dict[str, int]", now: float, *, changed: bool) -> bool:
        """See what is gone since the last look; returns whether the table was wiped. changed: whether it may have."""
        before, self._before = self._before, entries
        if before == entries and not changed:
            return False
        self._first_change, self._last_change = self._first_change or now, now
        is_any_left = any(entries.get(name) == inode for name, inode in before.items())
        # If there was only WSLInterop, its loss is not a wipe.
        wiped = not is_any_left and not all(map(interop.is_ours, {**before, **self._own}))
        gone = {name: maker for name, (_, enabled, maker) in self._own.items() if enabled and name not in entries}
        if wiped:
            self._lost.update(gone)
        else:
            self._gone.update({name: (maker, now) for name, maker in gone.items()})
        self._own = {name: own for name, own in self._own.items() if name in entries}
        # What is registered again is own until it has been read: if it goes before, it is lost or removed anew.
        again = {name: maker for name, maker in self._lost.items() if name in entries and name in self._known}
        self._own.update({name: (UNREAD, True, maker) for name, maker in again.items()})
        self._lost = {name: maker for name, maker in self._lost.items() if name not in entries}
        if wiped and (self.services_have_changed() or now < self._started + SECOND):
            # The service may have replaced each entry, and be about to register WSLInterop.
            return all(map(interop.is_ours, entries))
        return wiped

    def look(self, entries: "dict[str, int]", now: float) -> float:
        """Do what is to be done, after notice(); returns when to look again, 0 for never. Raises OSError."""
        self._look_at_marks(entries, now)
        self._learn(entries)
        self._look_at_services(now)
        settles = min(self._last_change + QUIET, self._first_change + QUIET_MAX) if self._first_change else 0.0
        if settles and now >= settles:
            self._first_change = settles = 0.0
            # By now, all files have been written.
            self._known = rules.read()
            self._learn(entries, anew=True)
            self._bring_back()
        dues = [since + SECOND for since in (*self._marks.values(), *self._stopped.values())]
        return earliest(settles, *dues)

    def _look_at_marks(self, entries: "dict[str, int]", now: float) -> None:
        """Mark for registration what a leaving distro has removed. Remove its mark after a second."""
        marks = {name: inode for name, inode in entries.items() if name.startswith(LEAVING)}
        self._marks = {inode: self._marks.get(inode, now) for inode in marks.values()}
        gone = {name: (maker, since) for name, (maker, since) in self._gone.items() if now < since + SECOND}
        self._gone = {name: each for name, each in gone.items() if name not in entries}
        if self._gone and marks.keys() - {self.mark}:
            self._lost.update({name: maker for name, (maker, _) in self._gone.items()})
            self._gone = {}
            self._first_change = self._last_change = now
        for name, inode in marks.items():
            if now >= self._marks[inode] + SECOND:
                table.remove(name, inode)

    def _look_at_services(self, now: float) -> None:
        """Remove what a service has no rule for any more when it starts or is reloaded, and all when it has stopped."""
        for service in rules.SERVICES:
            invocation, before = _invocation(service), self._invocations[service]
            if invocation:
                self._stopped.pop(service, None)
                self._ended.discard(service)
            elif before:
                self._stopped[service] = now
            # What has been done is noted at last, so that what the kernel refuses is tried again.
            if invocation not in ("", before):
                self._known = rules.read()
                self._remove_old(service, now)
                self._started = now
            self._invocations[service] = invocation
            if service in self._stopped and now >= self._stopped[service] + SECOND:
                # A failed start has registered all rules but the refused one. While asking, one may start.
                has_failed = _has_failed(service)
                active = set(filter(_invocation, rules.SERVICES))
                if not has_failed and service not in active:
                    self._ended.add(service)
                    self.leave([service], keep=active)
                del self._stopped[service]

    def _remove_old(self, service: str, now: float) -> None:
        """Remove the own entries whose rule a service has no more."""
        own = {name: entry for name, entry in self._own.items() if entry[2][0] == service}
        old = {name: entry for name, entry in own.items() if entry[2] not in self._known.get(name, [])}
        if old:
            self._remove({name: inode for name, (inode, _, _) in old.items()})
            # update-binfmts has passed over the name of a rule that has changed.
            self._lost.update({name: maker for name, (_, enabled, maker) in old.items() if enabled})
            # The table settles anew, even in a storm: the list of this look still has what was removed.
            self._first_change = self._last_change = now

    def _learn(self, entries: "dict[str, int]", *, anew: bool = False) -> None:
        """Learn which entries are own; anew: also of those that are known, as they may have been disabled."""
        learned = {}
        # The oldest is registered again first.
        for name in reversed([*entries]):
            if name not in self._known and name not in self._own:
                continue
            own = self._own.get(name)
            if anew or not own or own[0] != entries[name]:
                entry, makers = self._makers(name, self._known)
                # One that has gone since the table was listed is kept, so that the next look notices its loss.
                if entry:
                    own = (entry.inode, entry.enabled, makers[0]) if makers else None
            if own:
                learned[name] = own
        self._own = learned

    def _makers(self, name: str, known: "dict[str, rules.Makers]") -> "tuple[table.Entry | None, rules.Makers]":
        """Read an entry that has the name of a rule or is an own one, and tell what makes such an entry."""
        candidates = known.get(name, []) + ([self._own[name][2]] if name in self._own else [])
        entry = table.read(name) if candidates else None
        return entry, [maker for maker in candidates if entry and table.parse_rule(maker[1])[1].says() == entry.says()]

    def _bring_back(self) -> None:
        """Register what is lost and has a rule."""
        registered = []
        for name, before in self._lost.items():
            known = [maker for maker in self._known.get(name, []) if maker[0] not in self._ended]
            maker = before if before in known else next(iter(known), None)
            try:
                if maker and not _is_for_this_program(maker[1]):
                    table.register(maker[1])
                    self._own[name] = UNREAD, True, maker
                    registered.append(name)
            except FileExistsError:
                pass
            except OSError as e:
                self._tell(f"cannot register {name} again: {e.strerror}")
        self._lost = {}
        if registered:
            self._tell(f"own entries were lost: registered {', '.join(registered)} again", repair=True)

    def leave(self, services: "Collection[str]" = rules.SERVICES, *, keep: "Collection[str]" = ()) -> None:
        """Remove the own entries of services, but for those that others have a rule for as well; raises OSError."""
        known = rules.read()
        leaving = {}
        for name, inode in table.entries().items():
            makers = {service for service, _ in self._makers(name, known)[1]}
            if makers.intersection(services) and not makers.intersection(keep):
                leaving[name] = inode
        self._remove(leaving)

    def _remove(self, inodes: "dict[str, int]") -> None:
        """Remove own entries, after a mark, at which another distro with the same rules registers its own again."""
        try:
            if inodes:
                table.remove(self.mark)
                table.register(LEAVING_RULE.format(self.mark).encode())
                table.disable(self.mark)
        except (FileExistsError, FileNotFoundError):
            pass  # at the end of the other service, the command has done the same just now
        for name, inode in inodes.items():
            table.remove(name, inode)
            self._own.pop(name, None)


def earliest(*dues: float) -> float:
    """Tell which of some times comes first; 0 is never."""
    return min(filter(None, dues), default=0.0)


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
    # The watch blocks SIGTERM, and so do the programs that it starts.
    command = ["timeout", "-s", "KILL", "1", "systemctl", "is-failed", "--quiet", service]
    return posix.waitpid(posix.posix_spawnp("timeout", command, posix.environ), 0)[1] == 0
