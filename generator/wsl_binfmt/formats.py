# SPDX-License-Identifier: MIT
"""The other formats of this distro: which its services registered, and whether they are lost.

A wipe by another distro takes them as well. What a service has in the table is
noted after each of its starts, so that a rule that the kernel refuses, or one
that is new, is not taken for lost.
"""

import posix

from wsl_binfmt import binfmt_d, table

NOTES = "/run/wsl-binfmt"
# What each service registers, from where.
SOURCES = {
    "systemd-binfmt.service": binfmt_d.names,
    "binfmt-support.service": lambda: set(binfmt_d.listdir("/var/lib/binfmts")),
}


def note(unit: str) -> None:
    """Note which of its formats a service has in the table; raises OSError."""
    names = SOURCES[unit]() & set(table.names())
    binfmt_d.write_file(f"{NOTES}/{unit}", "\0".join(sorted(names)).encode(errors="surrogateescape"))


def forget(unit: str) -> None:
    """Note that a service has been stopped, and is to have none."""
    try:
        posix.unlink(f"{NOTES}/{unit}")
    except FileNotFoundError:
        pass


def lost() -> "list[str]":
    """List the services whose formats are no longer all in the table.

    Tells of each loss once: the start that follows makes a new note.
    """
    units = []
    present = set(table.names())
    for unit in SOURCES:
        try:
            with open(f"{NOTES}/{unit}", "rb") as file:
                names = file.read().decode(errors="surrogateescape").split("\0")
        except FileNotFoundError:
            continue
        if not present.issuperset(filter(None, names)):
            forget(unit)
            units.append(unit)
    return units
