# SPDX-License-Identifier: MIT
"""The rules of this distro: the texts in binfmt.d(5) that make entries."""

import posix

TYPE_CHECKING = False  # in place of that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Iterator

# systemd's order: a file hides those of the same name in later directories.
BINFMT_D = "/etc/binfmt.d", "/run/binfmt.d", "/usr/local/lib/binfmt.d", "/usr/lib/binfmt.d", "/lib/binfmt.d"
UPDATE_BINFMTS = "/var/lib/binfmts"
SERVICES = ("systemd-binfmt.service", "binfmt-support.service")
FILE_MAX = 1 << 20  # bytes


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
