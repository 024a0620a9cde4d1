# SPDX-License-Identifier: MIT
"""The other formats of this distro: which its services registered, and whether they are lost.

A wipe by another distro takes them as well, and they come back by a reload of
the service. That a format is missing does not tell a wipe: an administrator may
have removed it, or the other service, which may have the same ones. After a
wipe none is left, and WSLInterop is not the entry that it was either.
"""

import posix
import time

from wsl_binfmt import binfmt_d, interop, notes, table

TYPE_CHECKING = False  # in place of that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Iterator

TRIES_MAX = 3
BRING_BACK_MAX = 1.0  # seconds
SYSTEMCTL = "/usr/bin/systemctl"


def _imported() -> "set[str]":
    """Names of the formats that update-binfmts(8) knows."""
    return set(binfmt_d.listdir("/var/lib/binfmts"))


# What each service registers, from where.
SOURCES = {
    binfmt_d.UNIT: binfmt_d.names,
    "binfmt-support.service": _imported,
}


def note(unit: str, all_taken: bool = False) -> None:
    """Note the formats that a service has in the table, after its start; raises OSError.

    all_taken: whether the kernel took all. One that it took then, or that was
    noted before, and is not there now was lost again meanwhile, or cannot be
    registered any more: it counts as lost for TRIES_MAX starts.
    """
    tries, before = _read(unit)
    now = {name: table.inode(name) for name in SOURCES[unit]()}
    if all_taken:
        before = now
    tries = tries + 1 if any(now.get(name) == 0 for name in before) else 0
    if tries > TRIES_MAX:
        tries = 0
    kept = {name: inode for name, inode in now.items() if inode or (tries and name in before)}
    _write(unit, tries, kept)


def note_boot() -> None:
    """Note the formats of the service that units/without-python has not noted, to boot faster; raises OSError."""
    unit = binfmt_d.UNIT
    if notes.read(interop.NAME) is not None or notes.read(unit) is not None:
        return
    active = _systemctl("is-active", "--quiet", unit)
    # A failed one may have registered some.
    if active or _systemctl("is-failed", "--quiet", unit):
        note(unit, all_taken=active)


def seen() -> int:
    """The inode that WSLInterop had when saw() noted it; 0 if that has not been."""
    return _read(interop.NAME)[0]


def saw(inode: int) -> None:
    """Note the inode of WSLInterop; raises OSError."""
    if seen() != inode:
        _write(interop.NAME, inode, {})


def lost(wiped: bool) -> "list[str]":
    """List the services that are to register their formats again; wiped: whether all have been removed."""
    units = []
    for unit in SOURCES:
        tries, names = _read(unit)
        now = {name: table.inode(name) for name in names} if wiped else {}
        # None is the same, and one is missing: that others have registered the
        # same names is no loss, and to answer that would never end.
        if tries or (0 in now.values() and not any(now[name] == inode for name, inode in names.items())):
            units.append(unit)
    return units


def bring_back(wiped: bool) -> "Iterator[str]":
    """Have the services with lost formats register them again; yields each once.

    wiped: as for lost(). One that is starting or stopping is left alone, so
    this goes on until nothing is lost, or for BRING_BACK_MAX. Raises OSError.
    """
    told = set()
    for _ in range(10):
        units = lost(wiped)
        if not units:
            break
        for unit in units:
            # A refused rule makes the service fail; the other rules count.
            verb = "restart" if _systemctl("is-failed", "--quiet", unit) else "try-reload-or-restart"
            if _systemctl("--no-block", verb, unit) and unit not in told:
                told.add(unit)
                yield unit
        time.sleep(BRING_BACK_MAX / 10)


def _systemctl(*args: str) -> bool:
    """Run systemctl(1); returns whether its exit status was 0."""
    return posix.waitpid(posix.posix_spawn(SYSTEMCTL, [SYSTEMCTL, *args], posix.environ), 0)[1] == 0


def _read(name: str) -> "tuple[int, dict[str, int]]":
    """Read a note: a number, and the inode of each entry, 0 for one that was not there."""
    number, *pairs = (notes.read(name) or b"0").decode(errors="surrogateescape").split("\0")
    try:
        return int(number), dict(zip(pairs[::2], map(int, pairs[1::2])))
    except ValueError:  # not written by us
        return 0, {}


def _write(name: str, number: int, inodes: "dict[str, int]") -> None:
    fields = [str(number)]
    for entry, inode in inodes.items():
        fields += entry, str(inode)
    notes.write(name, "\0".join(fields).encode(errors="surrogateescape"))
