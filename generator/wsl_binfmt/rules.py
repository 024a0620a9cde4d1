# SPDX-License-Identifier: MIT
"""The rules of this distro: what its two services register, binfmt.d(5) and update-binfmts(8)."""

import posix

TYPE_CHECKING = False  # in place of that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Dict, List, Tuple

SYSTEMD_BINFMT, BINFMT_SUPPORT = SERVICES = "systemd-binfmt.service", "binfmt-support.service"
# systemd's order: a file hides those of the same name in later directories.
BINFMT_D = "/etc/binfmt.d", "/run/binfmt.d", "/usr/local/lib/binfmt.d", "/usr/lib/binfmt.d", "/lib/binfmt.d"
UPDATE_BINFMTS = "/var/lib/binfmts"
# What binfmt-support registers in place of interpreters of which a detector has to choose one.
RUN_DETECTORS = b"/usr/lib/binfmt-support/run-detectors"
FILE_MAX = 1 << 20  # bytes


class Rules:
    """The rules of both services by the names of their entries; read again when a file has changed."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._files: "List[Tuple[str, int, int, int]]" = []
        self._rules: "Dict[str, List[Tuple[str, bytes]]]" = {}

    def read(self) -> "Dict[str, List[Tuple[str, bytes]]]":
        """Return for each name of an entry the rules that make it, each with the service that registers it."""
        paths = [*_files_of_binfmt_d(), *(f"{UPDATE_BINFMTS}/{name}" for name in _listdir(UPDATE_BINFMTS))]
        files = [(path, *_version(path)) for path in paths]
        if files != self._files:
            self._files, self._rules = files, {}
            for _, _, rule in rules_of_binfmt_d():
                self._add(SYSTEMD_BINFMT, name_in(rule), rule)
            for rule in rules_of_update_binfmts():
                self._add(BINFMT_SUPPORT, name_in(rule), rule)
        return self._rules

    def _add(self, service: str, name: bytes, rule: bytes) -> None:
        self._rules.setdefault(name.decode(errors="surrogateescape"), []).append((service, rule))


def name_in(rule: bytes) -> bytes:
    """Read the name in a rule: what is between its first two delimiters."""
    return rule[1:].split(rule[:1], 1)[0]


def rules_of_binfmt_d() -> "Iterator[Tuple[str, int, bytes]]":
    """Read the rules of binfmt.d(5), the lines that are no comments: file, number of the line, rule."""
    for path in _files_of_binfmt_d():
        for number, line in enumerate(_read(path).replace(b"\0", b"\n").splitlines(), 1):
            # Not a form feed, which strip() takes away as well: systemd has it as part of the rule.
            line = line.strip(b" \t\r\n")
            if line and line[:1] not in b"#;":
                yield path, number, line


def rules_of_update_binfmts() -> "Iterator[bytes]":
    """Make the rules that update-binfmts(8) registers of its files, format.c in the source of binfmt-support."""
    for name in _listdir(UPDATE_BINFMTS):
        fields = _read(f"{UPDATE_BINFMTS}/{name}").split(b"\n")
        if len(fields) < 7:
            continue
        _, kind, offset, magic, mask, interpreter, detector, *options = fields
        flags = b"".join(flag for flag, option in zip((b"C", b"P", b"F"), options) if option == b"yes")
        for each in [RUN_DETECTORS] if detector else [interpreter, RUN_DETECTORS]:
            start = [b"", name.encode(errors="surrogateescape"), kind[:1].upper(), offset, magic, mask]
            yield b":".join([*start, each, flags])


def _files_of_binfmt_d() -> "List[str]":
    """List the files of binfmt.d(5) in systemd's order: by name, in whichever directory they are."""
    paths: "Dict[str, str]" = {}
    for directory in BINFMT_D:
        for file in _listdir(directory):
            if file.endswith(".conf") and file[0] != ".":
                paths.setdefault(file, f"{directory}/{file}")
    return [path for _, path in sorted(paths.items())]


def _version(path: str) -> "Tuple[int, int, int]":
    """Tell one content of a file from another, without reading it."""
    try:
        status = posix.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: str) -> bytes:
    try:
        # Neither waits for a FIFO nor reads a device to its end.
        with open(posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC), "rb") as file:
            return file.read(FILE_MAX) or b""
    except OSError:
        return b""


def _listdir(directory: str) -> "List[str]":
    try:
        return sorted(posix.listdir(directory))
    except OSError:
        return []
