# SPDX-License-Identifier: MIT
"""The other formats of this distro: the entries that its two services have registered.

All distros share one table. This distro's entries are removed when the service
stops, and so when the distro does: an entry with the flag F keeps the file
system of its interpreter in use. They are registered again after a wipe, which
removes all entries; and if another distro had replaced an entry of the same name
and then removed its own. Which entries these are is in a file for each service, a
note, for stopping it and for a watch that is started again. The kernel does not
tell who registered an entry, so service-hook lists the entries before and after
each start.
"""

import posix
import time

from wsl_binfmt import interop, notes, table

TYPE_CHECKING = False  # in place of that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Dict, Tuple

    # By the entry's name, in the order in which they were registered: the inode of the registration, and the rule
    # to register it again. The inode is 0 where it is not known that this distro's registration is the one that
    # is there: the watch registers it again.
    Formats = Dict[str, Tuple[int, bytes]]

# systemd's order: a file hides those of the same name in later directories.
BINFMT_D = "/etc/binfmt.d", "/run/binfmt.d", "/usr/local/lib/binfmt.d", "/usr/lib/binfmt.d", "/lib/binfmt.d"
UPDATE_BINFMTS = "/var/lib/binfmts"
# Links that systemd makes, each to the invocation ID of a unit.
INVOCATIONS = "/run/systemd/units/invocation:"
FILE_MAX = 1 << 20  # bytes
# Whoever wiped the table may be about to register formats of the same names, and would fail if they
# were there. So they are brought back when nothing has changed for a while.
QUIET = 0.05  # seconds
QUIET_MAX = 0.5  # seconds: the longest wait for that


def rules(service: str) -> "dict[str, bytes]":
    """List what a service registers: names of entries, each with its rule; b"" if its files have no rules."""
    if service == "systemd-binfmt.service":
        found = {name_in(rule): rule for _, _, rule in rules_of_binfmt_d()}
    else:
        found = {name.encode(errors="surrogateescape"): b"" for name in _listdir(UPDATE_BINFMTS)}
    names = {name.decode(errors="surrogateescape"): rule for name, rule in found.items()}
    return {name: rule for name, rule in names.items() if not interop.is_ours(name)}


SERVICES = ("systemd-binfmt.service", "binfmt-support.service")


def noted(service: str) -> "Formats":
    """Read which formats a service has registered."""
    fields = (notes.read(f"{service}.formats") or b"").split(b"\0")
    try:
        return {
            name.decode(errors="surrogateescape"): (int(inode), rule)
            for name, inode, rule in zip(fields[::3], fields[1::3], fields[2::3])
        }
    except ValueError:  # not written by us
        return {}


def note(service: str, formats: "Formats") -> None:
    """Write which formats a service has registered; raises OSError."""
    if not formats:
        notes.forget(f"{service}.formats")
        return
    fields: "list[bytes]" = []
    for name, (inode, rule) in formats.items():
        fields += name.encode(errors="surrogateescape"), b"%d" % inode, rule
    notes.write(f"{service}.formats", b"\0".join(fields))


def has_started(service: str) -> bool:
    """Whether a service has ended a start that has not been noted yet."""
    return notes.version(f"{service}.after") != (0, 0)


def note_start(service: str, *, failed: bool = False) -> None:
    """Note what a service has registered, once it has started; remove what it does not register any more.

    Does nothing if that start has been noted already, or goes on. failed: the
    start has failed, so there is no list of the entries after it, and those of
    now are taken. Raises OSError.
    """
    with table.Lock():
        before, after = _listing(f"{service}.before"), _listing(f"{service}.after")
        if after is None and (before is None or not failed):
            return
        # A start that ended has registered all its rules anew, whatever was there before.
        before = before or {}
        was_wiped = after is not None and _was_wiped(before, after)
        entries = table.entries()
        after = entries if after is None else after
        known = rules(service)
        registered = _registered(known, before, after)
        if was_wiped:
            registered.update({name: (0, rule) for name, rule in known.items() if rule and name not in after})
        kept = {}
        for name, (inode, rule) in noted(service).items():
            if name in known:
                # Not registered by this start. If the entry is there, the start failed before it came to that rule;
                # if not, the kernel has refused the rule.
                if name not in registered and (name in after or was_wiped):
                    kept[name] = inode if name in after else 0, rule
            elif entries.get(name) == inode:
                table.remove(name)
        note(service, {**kept, **registered})
        # In this order: for service-hook, a list of after means a start that is not noted yet.
        notes.forget(f"{service}.before")
        notes.forget(f"{service}.after")


def _registered(known: "dict[str, bytes]", before: "dict[str, int]", after: "dict[str, int]") -> "Formats":
    """Tell what a start has registered: of its rules, `known`, the entries whose inode is another one than before.

    Their inode is 0 if a service of another distro changed the table at the same time: they may be its registrations.
    """
    others = _others_hold(before) or _others_hold(after)
    registered: "Formats" = {}
    # The newest is listed first.
    for name, inode in reversed(list(after.items())):
        if name in known and before.get(name) != inode:
            rule = known[name] or _rule_of_entry(name)
            if rule:
                registered[name] = 0 if others else inode, rule
    return registered


def _others_hold(names: "Iterable[str]") -> bool:
    """Whether another distro's service was about to change the table: it held one of these stand-ins."""
    # A watch's is named by a number; it registers nothing that a service does.
    held = {name[len(interop.STAND_IN) :] for name in names if name.startswith(interop.STAND_IN)}
    return any(not id_.rstrip("+").isdecimal() for id_ in held.difference(map(_invocation, SERVICES)))


def _was_wiped(before: "dict[str, int]", after: "dict[str, int]") -> bool:
    """Whether the table was wiped during a start: nothing is left of what was there, nor its stand-in."""
    entries = {name: inode for name, inode in before.items() if name not in table.CONTROLS}
    return (
        bool(entries)
        and not any(after.get(name) == inode for name, inode in entries.items())
        and not any(name.startswith(interop.STAND_IN) for name in after)
    )


def _invocation(service: str) -> str:
    """Read the invocation ID of a service of this distro, which its stand-in is named by; "" if it does not run."""
    try:
        return posix.readlink(f"{INVOCATIONS}{service}")
    except OSError:
        return ""


def remove(service: str) -> None:
    """Remove the formats that a service has registered, unless others registered them anew; raises OSError."""
    note_start(service, failed=True)
    with table.Lock():
        entries = table.entries()
        for name, (inode, _) in noted(service).items():
            if entries.get(name) == inode:
                table.remove(name)
        note(service, {})


class Losses:
    """Which formats have been lost, and are to come back. It takes a look at the table after each change."""

    def __init__(self, tell: "Callable[[str], object]") -> None:
        """Begin with what the notes say; tell: tells people of a message."""
        self._tell = tell
        self._formats: "dict[str, Formats]" = {}
        self._versions: "dict[str, tuple[int, int]]" = {}
        self._read_notes()
        self._before = {name: inode for formats in self._formats.values() for name, (inode, _) in formats.items()}
        wsl, _ = interop.recall()
        if self._before and wsl:
            self._before[interop.NAME] = wsl
        self._lost: "dict[str, set[str]]" = {service: set() for service in SERVICES}
        self._since = 0.0
        self._changed = 0.0

    def look(self, entries: "dict[str, int]") -> bool:
        """See what was lost since the last look; returns whether there was a wipe. entries: as of table.entries()."""
        before, self._before = self._before, entries
        self._read_notes()
        # Nothing is left of what was there: a wipe. What is gone alone was removed on purpose; but if it was
        # another distro's registration of that name, that distro has taken it along. Were WSLInterop all that
        # was there, it is gone alone.
        wiped = not all(map(interop.is_ours, before)) and not any(
            entries.get(name) == inode for name, inode in before.items()
        )
        now = time.monotonic()
        for service, formats in self._formats.items():
            lost = {name for name in formats if name in before and (wiped or before[name] != formats[name][0])}
            lost = {name for name in lost | self._lost[service] if name in formats and name not in entries}
            lost |= _not_known_to_be_there(formats)
            if lost and not any(self._lost.values()):
                self._since = now
            self._lost[service] = lost
        self._changed = now if before != entries else self._changed
        return wiped

    def look_after_note(self, entries: "dict[str, int]") -> None:
        """See what is gone already of the start that was noted since the last look. entries: those of that look."""
        known = {name for formats in self._formats.values() for name in formats}
        self._read_notes()
        for service, formats in self._formats.items():
            lost = {name for name in formats if name not in known and name not in entries}
            lost |= _not_known_to_be_there(formats)
            if lost:
                self._since = self._changed = time.monotonic()
                self._lost[service] |= lost

    def due(self) -> float:
        """Tell when to call bring_back(), as time.monotonic(); 0 if nothing is lost."""
        if not any(self._lost.values()):
            return 0.0
        return min(self._changed + QUIET, self._since + QUIET_MAX)

    def bring_back(self) -> None:
        """Register again what is lost; raises OSError."""
        for service, lost in self._lost.items():
            if lost:
                self._bring_back(service, lost)
                self._lost[service] = set()

    def _bring_back(self, service: str, lost: "set[str]") -> None:
        with table.Lock():
            formats = noted(service)
            present = table.entries()
            registered = []
            # In the order in which they were registered: the newest that matches a file wins.
            for name in [name for name in formats if name in lost and not (name in present and formats[name][0])]:
                try:
                    if name in present:
                        table.remove(name)
                    table.register(formats[name][1])
                    registered.append(name)
                except FileExistsError:
                    pass
                except OSError as e:
                    self._tell(f"cannot register {name} again: {e.strerror}")
                    del formats[name]
            # A wipe that has come since is seen at the next look: by then they have been there.
            self._before = {**self._before, **dict.fromkeys(registered, 0), **table.entries()}
            for name in registered:
                formats[name] = self._before[name], formats[name][1]
            note(service, formats)
        if registered:
            self._tell(f"formats of {service} were lost: registered {', '.join(registered)} again")

    def _read_notes(self) -> None:
        for service in SERVICES:
            version = notes.version(f"{service}.formats")
            if self._versions.get(service) != version:
                self._formats[service] = noted(service)
                self._versions[service] = version


def _not_known_to_be_there(formats: "Formats") -> "set[str]":
    return {name for name, (inode, _) in formats.items() if not inode}


def _rule_of_entry(name: str) -> bytes:
    """Make the rule that an entry was registered with; b"" if it is gone, or no rule could be made."""
    entry = table.read(name)
    try:
        return entry.rule(name) if entry else b""
    except ValueError:
        return b""


def name_in(rule: bytes) -> bytes:
    """Read the name in a rule: what is between its first two delimiters."""
    return rule[1:].split(rule[:1], 1)[0]


def rules_of_binfmt_d() -> "Iterator[tuple[str, int, bytes]]":
    """Read the rules of binfmt.d(5), the lines that are no comments: file, number of the line, rule."""
    paths: "dict[str, str]" = {}
    for directory in BINFMT_D:
        for file in _listdir(directory):
            if file.endswith(".conf") and file[0] != ".":
                paths.setdefault(file, f"{directory}/{file}")
    # By the names of the files, in whichever directory they are.
    for _, path in sorted(paths.items()):
        for number, line in enumerate(_read(path).replace(b"\0", b"\n").splitlines(), 1):
            # Not a form feed, which strip() takes away as well: systemd has it as part of the rule.
            line = line.strip(b" \t\r\n")
            if line and line[:1] not in b"#;":
                yield path, number, line


def _read(path: str) -> bytes:
    try:
        # Neither waits for a FIFO nor reads a device to its end.
        with open(posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC), "rb") as file:
            return file.read(FILE_MAX) or b""
    except OSError:
        return b""


def _listdir(directory: str) -> "list[str]":
    try:
        return sorted(posix.listdir(directory))
    except OSError:
        return []


def _listing(name: str) -> "dict[str, int] | None":
    """Read a list of the table that service-hook has made with `ls -i`; None if there is none, or it is not whole."""
    said = notes.read(name)
    if said is None or not said.endswith(b"end\n"):
        return None
    found = {}
    for line in said.decode(errors="surrogateescape").split("\n"):
        inode, _, entry = line.strip().partition(" ")
        if inode.isdecimal():
            found[entry] = int(inode)
    return found
