# SPDX-License-Identifier: MIT
"""What must hold: after each write, after each look of a watch, and when all is quiet."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

import world
from actors import is_active, name_of, watch_of
from scheduler import Actor, Process, Simulation

if TYPE_CHECKING:
    from world import Distro, Entry

WSLINTEROP, TEMPORARY, LEAVING = "WSLInterop", "WSLInterop-temporary", "wsl-binfmt-leaving-"
QUIET = 0.05  # seconds without a change, before own entries come back
PATIENCE = 0.2  # seconds that an override has, and that a watch has to see an `echo 1`
# Seconds: a watch that was so late may have missed a mark, and what others did without the lock.
TOO_LATE, LOCK_MAX = 0.6, 0.4
OUTAGE_MAX = 0.6  # seconds, whatever happens, while any watch is on time: LOCK_MAX, and a look
# How the Python begins that runs the watches.
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + bytes(236)
PE = b"MZ" + bytes(126) + b"PE\0\0"


def is_ours(name: str) -> bool:
    """Whether all watches may remove an entry of this name."""
    return name in (WSLINTEROP, TEMPORARY) or name.startswith(LEAVING)


class Removal(NamedTuple):
    """When an entry was removed by something that is none of ours, and which."""

    time: float
    inode: int


class Promises:
    """The promises, and what has to be remembered for them from one quiet time to the next: a round."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._table = simulation.table
        self._was_windows = False
        # Whether an administrator has disabled WSLInterop; None: what the watches could know of it is contradictory.
        self._is_off: bool | None = False
        self._removed_by_hand = 0.0  # when WSLInterop was, alone
        self._off_since = self._enabled_by_hand = 0.0
        self._enabled_inode = 0
        # When a program that is none of ours last did what takes Windows programs from /init.
        self._disturbed = 0.0
        # As of the last quiet time: own entries of each distro, and the names of disabled ones.
        self._own: dict[Distro, dict[str, Entry]] = {}
        self._disabled: set[str] = set()
        self._ape: Entry | None = None
        # In this round: names that were removed by others, marks and wipes, with the times.
        self._removed: dict[str, Removal] = {}
        self._marks: list[float] = []
        self._wipes: list[float] = []
        self._unclear: set[str] = set()  # names that may be there or not
        self._contents: dict[str, set[bytes]] = {}  # what was registered under a name, not by watches
        self._touched: dict[str, float] = {}  # when names were registered
        self._missed = (
            False  # whether a watch may have missed something, as it was killed, stopped or kept from its work
        )
        self._began = self._was_late = 0.0
        self._outranked = 0.0  # when a rival was registered last
        self._lost_since = 0.0  # when Windows programs went to /init last
        self._excuse = False  # nothing could be done about it meanwhile

    # After each operation

    def before_write(self, actor: Actor, file: Entry | str, _data: bytes) -> None:
        """Remember what is before a write."""
        self._was_enabled = isinstance(file, world.Entry) and file.enabled
        self._was_windows = self._table.handler_of_windows() == "/init"
        self._before = list(self._table.entries)
        # At its end, a distro removes its own entries all the same.
        is_touched = isinstance(actor, Process) and actor.looked_from > actor.distro.no_init_since > 0
        if is_touched and actor.distro and actor.distro.has_watch and not actor.distro.is_shutdown:
            self._simulation.breaks(f"{actor.name} writes to the table without an /init")

    def after_write(self, actor: Actor, file: Entry | str, data: bytes, failure: OSError | None) -> None:
        """Check what a write did."""
        now, command = self._simulation.now, data.strip()
        if failure:
            if file == "register" and failure.errno == errno.EEXIST and not isinstance(actor, Process):
                self._refused(actor, name_of(data))
            return
        actor.last_write = now
        if file == "register":
            self._registered(actor, self._table.entries[0])
        elif file == "status":
            if command == b"-1":
                self._wipes.append(now)
            if isinstance(actor, Process):
                self._simulation.breaks("a watch writes to status")
        elif isinstance(file, world.Entry) and file in self._before:
            if command == b"-1":
                self._was_removed(actor, file)
            else:
                self._switched(actor, file, is_off=command == b"0")
        elif isinstance(file, world.Entry) and file.name == WSLINTEROP and not isinstance(actor, Process):
            self._is_off = None  # a watch that has it open reads what was written to an entry that is gone
        self._windows(actor, file, name_of(data) if file == "register" else str(file))

    def _registered(self, actor: Actor, entry: Entry) -> None:
        now, name = self._simulation.now, entry.name
        entry.born = now
        if isinstance(actor, Process):
            entry.by, entry.decided = actor, actor.looked_from
            self._watch_registers(actor, entry)
        else:
            self._removed.pop(name, None)
            self._contents.setdefault(name, set()).add(entry.content)
            self._touched[name] = now
            self._disabled.discard(name)
        if name.startswith(LEAVING):
            self._marks.append(now)

    def _was_removed(self, actor: Actor, entry: Entry) -> None:
        now = self._simulation.now
        if isinstance(actor, Process):
            self._watch_removes(actor, entry)
        elif entry.name == WSLINTEROP:
            self._removed_by_hand = now
        elif entry.name != TEMPORARY:
            self._removed[entry.name] = Removal(now, entry.inode)
            # One that no watch was there to remove counts when a watch sees it first.
            self._marks += [now for other in self._table.entries if other.name.startswith(LEAVING)]
            if entry.name == "APE":
                self._ape = None

    def _switched(self, actor: Actor, entry: Entry, *, is_off: bool) -> None:
        if not isinstance(actor, Process):
            self._unclear.add(entry.name)
            self._disabled.discard(entry.name)
            # One that is disabled keeps no place.
            self._missed = self._missed or entry.name == "APE"
            if entry.name == WSLINTEROP:
                self._switched_by_hand(is_off=is_off)
        elif not is_off:
            self._simulation.breaks(f"{actor.name} enables {entry.name}")
        elif entry.name == WSLINTEROP and self._is_off is False and not actor.saw_enabled:
            self._is_off = None  # it was gone before this watch saw that it was enabled

    def _windows(self, actor: Actor, file: Entry | str, name: str) -> None:
        """Who handles Windows programs."""
        is_windows = self._table.handler_of_windows() == "/init"
        now = self._simulation.now
        if actor.role != "watch" and not (is_windows and self._was_windows):
            self._disturbed = now
        if self._was_windows:
            self._lost_since = now
        elif is_windows and now > self._lost_since + OUTAGE_MAX and not self._excuse:
            on_time = [process for process in self._simulation.processes() if process.distro.lateness < 0.01]
            if any(process.started < self._lost_since for process in on_time):
                self._simulation.breaks(
                    f"nothing has given Windows programs to /init for {now - self._lost_since:.3f} s"
                )
        if is_windows:
            self._excuse = False
        elif not self._table.enabled or self._is_off is not False or self._table.refuses:
            self._excuse = True
        if self._was_windows and not is_windows:
            # A rule of the distro is a rival's. When a program registers it, it is the newest until a watch has looked.
            is_rule = file == "register" and name not in (WSLINTEROP, TEMPORARY)
            self._outranked = now if is_rule else self._outranked
            if (
                is_rule
                or (actor.role == "service" and name == WSLINTEROP)
                or (isinstance(actor, Process) and max(self._removed_by_hand, *self._wipes, 0.0) > actor.listed)
            ):
                self._disturbed = self._simulation.now
            elif self._lateness() >= LOCK_MAX:
                self._disturbed = now
            elif actor.role != "other" and self._is_off is False:
                self._simulation.breaks(f"{actor.name} takes Windows programs from /init")

    def _switched_by_hand(self, *, is_off: bool) -> None:
        wsl = self._table.get(WSLINTEROP)
        assert wsl
        was_off, self._is_off, self._off_since = self._is_off, is_off, self._simulation.now
        if not is_off and was_off:
            self._enabled_by_hand = self._simulation.now
            self._enabled_inode = wsl.inode
        for process in self._simulation.processes():
            if is_off and not was_off and process.saw_enabled:
                process.distro.known_off = False  # what it has saved before counts no more
            process.knew_off, process.knows_off, process.saw_enabled = process.knows_off, False, float(is_off)
            if process.saved_inode != wsl.inode or (was_off and self._was_enabled and not is_off):
                self._is_off = None  # nor does a watch see an `echo 1` to an entry that it could not disable

    def _watch_registers(self, process: Process, entry: Entry) -> None:
        entry.decided = process.looked_from
        if entry.matches(ELF, b""):
            self._simulation.breaks(
                f"{process.name} registers {entry.name}, which matches every program of this machine"
            )
        if entry.name in (WSLINTEROP, TEMPORARY) and entry.matches(b"MZ", b"") and self._is_off and process.knows_off:
            self._simulation.breaks(f"{process.name} registers {entry.name}, which was disabled by hand")
        if entry.name in self._disabled:
            self._simulation.breaks(f"{process.name} enables {entry.name}, which was disabled by hand")
        since = self._removed.pop(entry.name, None)
        if (
            since is None
            or entry.name in self._unclear
            or since.time > process.looked_from
            or process.distro.lateness >= 1
        ):
            return
        late = max(self._lateness(), self._was_late)  # a watch that was late has noticed the removal later
        seen = since.time, process.stopped_until  # one that was stopped sees it when it goes on
        if any(abs(mark - time) < 1.2 + late for mark in self._marks for time in seen):
            return
        if since.inode not in process.distro.seen or (
            process.removals_seen.get(entry.name) != since and process.distro.wiped > since.time
        ):
            return
        self._simulation.breaks(f"{process.name} brings back {entry.name}, which was removed on purpose")

    def _watch_removes(self, process: Process, entry: Entry) -> None:
        if is_ours(entry.name):
            is_new = (
                entry.inode == self._enabled_inode and self._simulation.now < self._enabled_by_hand + 0.8 * PATIENCE
            )
            if entry.name == WSLINTEROP and is_new and process.knew_off:
                self._simulation.breaks(
                    f"{process.name} replaces WSLInterop before all can have seen that it was enabled by hand"
                )
            if (
                entry.name == WSLINTEROP
                and self._is_off
                and process.read_inode.get(WSLINTEROP, (0, 0.0))[1] < self._off_since
            ):
                self._is_off = None  # it was decided before
            return
        if entry.name == "APE" or entry.content in process.distro.contents:
            return
        if entry.born > process.read_inode.get(entry.name, (0, 0.0))[1]:
            return  # registered since the watch has read it
        self._simulation.breaks(f"{process.name} removes {entry.name}, which no rule of {process.distro.name} has made")

    def _refused(self, actor: Actor, name: str) -> None:
        """A registration of another program fails since the name is there."""
        entry, now = self._table.get(name), self._simulation.now
        if not entry or not entry.by:
            return
        if entry.born < actor.last_write:
            return  # what it removed was another entry of that name
        patience = PATIENCE if name == WSLINTEROP else QUIET
        if now - actor.last_write > 0.8 * patience or entry.by.distro.lateness > 0.5 * QUIET:
            return  # it took its time, or the watch did
        if name == WSLINTEROP:
            is_decided = entry.decided < actor.last_write or self._touched.get(name, 0.0) > actor.last_write
            # A watch that has just started does not know that WSLInterop was there.
            is_decided = is_decided or entry.by.started > actor.last_write - 0.1
            # One that outranks a rival waits for no override.
            is_decided = is_decided or self._outranked > actor.last_write - PATIENCE
            is_decided = is_decided or entry.by.distro.wiped > actor.last_write - PATIENCE
            if is_decided or self._wipes or self._is_off is not False or self._has_rivals():
                return
        elif any(mark > now - 2.5 for mark in self._marks) or (self._wipes and entry.born > self._wipes[0] + 0.4):
            return
        elif entry.decided < actor.last_write:
            return  # the watch had looked when nothing was removed yet
        self._simulation.breaks(f"{actor.name} cannot register {name}: {entry.by.name} has brought it back")

    def _lateness(self) -> float:
        """How late the watches were in this round, at most."""
        return max(distro.lateness for distro in self._simulation.distros)

    def _has_rivals(self) -> bool:
        """Whether something else than WSLInterop would handle Windows programs; it is not waited for then."""
        names = (WSLINTEROP, TEMPORARY)
        entries = [entry for entry in self._table.entries if entry.name not in names]
        return any(entry.matches(*program) for entry in entries for program in [*world.PROGRAMS, (PE, b"")])

    # Operations of a watch

    def could_do_nothing(self) -> None:
        """The watches could not do what they had to for a time, and what they know is not complete."""
        self._excuse = self._missed = True
        for distro in self._simulation.distros:
            distro.lateness += 1

    def watch_is_away(self) -> None:
        """A watch is killed or stopped."""
        self._missed = True

    def after_list(self, process: Process) -> None:
        """A watch lists the table."""
        now, distro = self._simulation.now, process.distro
        if not process.listed and distro.known_off not in (None, self._is_off):
            self._is_off = None  # what the watch before has saved is older
        if not process.listed:
            distro.listed = distro.saved
        process.listed = now
        process.inodes = {entry.inode for entry in self._table.entries}
        if process.looks:
            process.looks, process.looked_at, process.looked_from = False, process.inodes, now
            if distro.listed and not distro.listed & process.inodes:
                distro.wiped = now
            seen = {name: removal for name, removal in self._removed.items() if removal.time > distro.wiped}
            process.removals_seen.update(seen)
        self._forget_off()
        distro.seen |= process.looked_at

    def _forget_off(self) -> None:
        """No watch is left that knows that WSLInterop was disabled."""
        wsl = self._table.get(WSLINTEROP)
        if self._is_off and (not wsl or wsl.enabled):
            watches = [
                process for process in self._simulation.processes() if process.knows_off and not process.is_killed
            ]
            distros = [distro for distro in self._simulation.distros if distro.is_up and distro.known_off]
            if not watches and not distros:
                self._is_off = None

    def after_read(self, process: Process, file: Entry | str) -> None:
        """A watch reads an entry."""
        if isinstance(file, world.Entry):
            process.read_inode[file.name] = (file.inode, self._simulation.now)
            if file.name == WSLINTEROP:
                if file.enabled and file.inode == self._enabled_inode:
                    process.saw_enabled = process.saw_enabled or self._simulation.now
                process.read_off = not file.enabled

    def after_save(self, process: Process) -> None:
        """A watch has written its state file."""
        process.distro.saved = process.looked_at
        if WSLINTEROP in process.read_inode:
            is_older = process.read_inode[WSLINTEROP][1] < self._off_since
            # It has read another registration, and the watch before knew no more.
            is_older = is_older or not (process.knows_off or process.read_off or process.distro.known_off)
            process.distro.known_off = process.read_off if is_older or self._is_off is None else self._is_off

    def after_look(self, process: Process) -> None:
        """A watch waits, as it has done what was to be done."""
        process.looked, process.looks = process.listed, True
        process.distro.listed = process.looked_at
        if process.last_write < process.listed:  # otherwise it looks again
            process.distro.first_looked = process.distro.first_looked or self._simulation.now
        read = process.read_inode.get(WSLINTEROP)
        process.saved_inode = read[0] if read else 0
        process.knows_off = process.knows_off or process.read_off
        if (
            not process.saw_enabled
            or process.looked_from < max(self._enabled_by_hand, process.saw_enabled) + 1.1 * PATIENCE
        ):
            return  # it was enabled by hand, and every watch is to see that
        if (
            process.looked_from > self._disturbed
            and process.distro.lateness < 1
            and self._is_off is False
            and self._table.enabled
            and not self._table.refuses
            and "/init" in process.distro.programs
            and self._table.handler_of_windows() != "/init"
        ):
            self._simulation.breaks(
                f"{process.name} has looked, and Windows programs go to {self._table.handler_of_windows()}"
            )

    # When all is quiet

    def quiet(self) -> None:
        """Check what holds when all is quiet, and begin a round."""
        simulation, there = self._simulation, {entry.name: entry for entry in self._table.entries}
        watching = [process.distro for process in simulation.processes()]
        self._forget_off()
        if watching and not self._table.refuses:
            self._quiet_interop(there.get(WSLINTEROP))
            self._quiet_ape(there)
            for name in there:
                if name != WSLINTEROP and is_ours(name):
                    simulation.breaks(f"all is quiet, and {name} is there")
        for distro in simulation.distros:
            if distro.protected:
                self._quiet_distro(distro, there)
        self._own = {
            distro: {name: there[name] for name in self._own_names(distro) if name in there and there[name].enabled}
            for distro in watching
        }
        self._disabled = {entry.name for entry in self._table.entries if not entry.enabled and not is_ours(entry.name)}
        self._ape = there.get("APE")
        for distro in watching:
            distro.known_off = self._is_off
        self._marks, self._wipes, self._unclear = [], [], set()
        self._contents, self._touched = {}, {}
        self._began = simulation.now
        if self._ape and self._ape.enabled and not self._is_off and not self._is_ape_behind(there):
            self._missed = False
        self._was_late = self._lateness()
        for distro in simulation.distros:
            distro.lateness = 0.0
            distro.changed_rules, distro.reread = 0, False
        for process in simulation.processes():
            process.removals_seen = dict(self._removed)

    def _quiet_interop(self, wsl: Entry | None) -> None:
        if self._is_off is None:
            self._is_off = bool(wsl and not wsl.enabled)
        handler = self._table.handler_of_windows()
        if self._is_off and (not wsl or wsl.enabled):
            is_there = "enabled" if wsl else "missing"
            self._simulation.breaks(f"all is quiet, and WSLInterop, disabled by hand, is {is_there}")
        elif not self._is_off and self._table.enabled and handler != "/init":
            self._simulation.breaks(f"all is quiet, and Windows programs go to {handler}")
        elif not self._is_off and wsl and not set(b"FP") <= set(wsl.flags):
            self._simulation.breaks("all is quiet, and WSLInterop is not as WSL registers it")

    def _own_names(self, distro: Distro) -> set[str]:
        """Name the entries of the table that rules of a distro make, but for those that must not come back."""
        makes = {(name_of(rule), world.content_of(rule)) for own in distro.rules().values() for rule in own}
        entries = [entry for entry in self._table.entries if not entry.matches(ELF, b"")]
        return {entry.name for entry in entries if (entry.name, entry.content) in makes}

    def _is_ape_behind(self, there: dict[str, Entry]) -> bool:
        names = list(there)
        return {"APE", WSLINTEROP} <= set(names) and names.index("APE") > names.index(WSLINTEROP)

    def _quiet_ape(self, there: dict[str, Entry]) -> None:
        # It is gone for an instant while it is registered anew, which may be refused.
        if self._ape and "APE" not in there and not self._wipes and not self._missed:
            self._simulation.breaks("APE is gone")
        if self._is_ape_behind(there) and there["APE"].enabled and not self._missed and not self._is_off:
            self._simulation.breaks("all is quiet, and APE is behind WSLInterop")

    def _quiet_distro(self, distro: Distro, there: dict[str, Entry]) -> None:
        mine = distro.rules()
        makes = {world.content_of(rule) for of_service in mine.values() for rule in of_service}
        others = [other for other in self._simulation.distros if other is not distro and other.is_up]
        elsewhere = {content for other in others for content in other.contents}
        services: dict[str, list[str]] = {
            name: [service for service, own in mine.items() if name in map(name_of, own)]
            for name in {*there, *self._own.get(distro, {})}
        }
        if watch_of(self._simulation, distro):
            for name, entry in self._own.get(distro, {}).items():
                if there.get(name) is entry and entry.content not in makes | elsewhere:
                    self._quiet_old(distro, name)
                if name not in there and services[name]:
                    self._quiet_lost(distro, entry, services[name])
        for name, entry in there.items():
            if entry.content in distro.contents and entry.content not in elsewhere and services[name]:
                self._quiet_left(distro, entry, services[name])

    def _quiet_old(self, distro: Distro, name: str) -> None:
        """An entry is there whose rule the distro has no more."""
        is_reread = distro.reread and not self._missed and distro.lateness < TOO_LATE
        if is_reread and name not in self._unclear:
            self._simulation.breaks(f"all is quiet, and {name} is there, whose rule {distro.name} has no more")

    def _quiet_lost(self, distro: Distro, entry: Entry, services: list[str]) -> None:
        """An own entry is not there any more."""
        name = entry.name
        on_purpose = name in self._removed or name in self._unclear or distro.changed_rules
        # The watch may have seen it only as it was between a removal and a registration.
        unseen = any(0 < wipe - self._touched.get(name, wipe) < 0.3 for wipe in self._wipes)
        replaced = not self._contents.get(name, set()) <= {entry.content}
        rules = distro.rules()
        services = [service for service in services if entry.content in map(world.content_of, rules[service])]
        is_up = any(is_active(distro, service) for service in services) or distro.failed.issuperset(services)
        was_up = is_up and distro.booted < self._began
        unseen = unseen or bool(self._marks and self._missed)
        if was_up and not (on_purpose or unseen or replaced) and self._lateness() < TOO_LATE:
            self._simulation.breaks(f"all is quiet, and {name} of {distro.name} is not back")

    def _quiet_left(self, distro: Distro, entry: Entry, services: list[str]) -> None:
        """An entry is there that a rule of this distro makes, and of no other that is up."""
        if any(is_active(distro, service) or service in distro.failed for service in services):
            return
        # Without a watch, a start that failed leaves what it has registered, as systemd runs no ExecStop= then.
        if distro.is_up or not distro.has_watch:
            ended = max(distro.stopped.get(service, 0.0) for service in services)
            has_watch = watch_of(self._simulation, distro) or not distro.has_watch
            is_known = has_watch and not distro.changed_rules
        else:
            ended = distro.leaves
            is_known = distro.ended > self._began and distro.ended_cleanly
        is_older = max(entry.born, distro.first_looked) < ended
        if is_known and is_older and entry.enabled and distro.lateness < TOO_LATE:
            self._simulation.breaks(f"all is quiet, and {entry.name} is left of {distro.name}")
