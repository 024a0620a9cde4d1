# SPDX-License-Identifier: MIT
"""The rules of this distro: what its two services register, binfmt.d(5) and update-binfmts(8)."""

import posix

from wsl_binfmt import TYPE_CHECKING, interop, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import List, Tuple

    Makers = List[Tuple[str, bytes]]  # of an entry: services, each with its rule

SYSTEMD_BINFMT, BINFMT_SUPPORT = SERVICES = "systemd-binfmt.service", "binfmt-support.service"
# systemd's order: a file hides those of the same name in later directories.
BINFMT_D = "/etc/binfmt.d", "/run/binfmt.d", "/usr/local/lib/binfmt.d", "/usr/lib/binfmt.d", "/lib/binfmt.d"
UPDATE_BINFMTS = "/var/lib/binfmts"
# What binfmt-support registers in place of an interpreter if several rules are for the same files.
RUN_DETECTORS = b"/usr/lib/binfmt-support/run-detectors"
FILE_MAX = 1 << 20  # bytes


def read() -> "dict[str, Makers]":
    """Read the rules of this distro: for each name of an entry what makes it, first what counts of several."""
    found: "dict[str, Makers]" = {}
    # systemd-binfmt replaces an entry by the next rule of its name.
    rules = [(SYSTEMD_BINFMT, rule) for _, _, rule in reversed([*rules_of_binfmt_d()])]
    for service, rule in rules + [(BINFMT_SUPPORT, rule) for rule in rules_of_update_binfmts()]:
        try:
            name = table.parse_rule(rule)[0]
        except ValueError:
            continue
        if not interop.is_ours(name):
            found.setdefault(name, []).append((service, rule))
    return found


def rules_of_binfmt_d() -> "Iterator[tuple[str, int, bytes]]":
    """Read the rules of binfmt.d(5), the lines that are no comments: file, number of the line, rule."""
    paths: "dict[str, str]" = {}
    for directory in BINFMT_D:
        for file in _listdir(directory):
            if file.endswith(".conf") and file[0] != ".":
                paths.setdefault(file, f"{directory}/{file}")
    # Sorted by file name, whatever the directory.
    for _, path in sorted(paths.items()):
        for number, line in enumerate(_read(path).replace(b"\0", b"\n").splitlines(), 1):
            # Not a form feed, which strip() takes away as well: systemd has it as part of the rule.
            line = line.strip(b" \t\r\n")
            if line and line[:1] not in b"#;":
                yield path, number, line


def rules_of_update_binfmts() -> "Iterator[bytes]":
    """Make the rules that update-binfmts(8) registers of its files, format.c in the source of binfmt-support."""
    for name in _listdir(UPDATE_BINFMTS):
        fields = _read(f"{UPDATE_BINFMTS}/{name}").split(b"\n")
        if len(fields) > 6:
            _, kind, offset, magic, mask, interpreter, _, *options = fields
            flags = b"".join(flag for flag, option in zip((b"C", b"P", b"F"), options) if option == b"yes")
            for program in interpreter, RUN_DETECTORS:
                rule = b"", name.encode(errors="surrogateescape"), kind[:1].upper(), offset, magic, mask, program, flags
                yield b":".join(rule)


def _read(path: str) -> bytes:
    try:
        # Neither waits for a FIFO nor reads a device to its end. open() closes what its opener opens, also a directory.
        with open(path, "rb", opener=lambda path, flags: posix.open(path, flags | posix.O_NONBLOCK)) as file:
            return file.read(FILE_MAX) or b""
    except OSError:
        return b""


def _listdir(directory: str) -> "list[str]":
    try:
        return sorted(posix.listdir(directory))
    except OSError:
        return []
