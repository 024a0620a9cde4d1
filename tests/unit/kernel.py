# SPDX-License-Identifier: MIT
"""A binfmt_misc table in memory, in place of the kernel's, and the kernel's own in a user namespace."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Callable

from wsl_binfmt import state, table

if TYPE_CHECKING:
    import pytest

WSL = b":WSLInterop:M::MZ::/init:FP"


class Format:
    """An entry. It is kept as fields: its text is made from them."""

    def __init__(self, rule: bytes, inode: int) -> None:
        fields = rule[1:].split(rule[:1])
        self.name = fields[0].decode()
        self.by_extension = fields[1] == b"E"
        self.offset = int(fields[2] or b"0")
        self.magic = fields[3]
        self.mask = fields[4]
        self.interpreter = fields[5]
        self.flags = fields[6]
        self.enabled = True
        self.inode = inode

    @property
    def text(self) -> bytes:
        """What its file says."""
        lines = [b"enabled" if self.enabled else b"disabled", b"interpreter " + self.interpreter]
        lines.append(b"flags: " + bytes(flag for flag in b"POCF" if flag in self.flags))
        if self.by_extension:
            lines.append(b"extension ." + self.magic)
        else:
            lines += [b"offset %d" % self.offset, b"magic " + self.magic.hex().encode()]
            if self.mask:
                lines.append(b"mask " + self.mask.hex().encode())
        return b"\n".join(lines) + b"\n"

    def takes_windows(self) -> bool:
        """Whether the kernel gives it a file of NULs behind MZ."""
        start = b"MZ" + bytes(126)
        if self.by_extension or not self.enabled:
            return False
        there = start[self.offset : self.offset + len(self.magic)]
        mask = self.mask or b"\xff" * len(self.magic)
        return all((a ^ b) & m == 0 for a, b, m in zip(there, self.magic, mask))


class Table:
    """The table. `formats` has the newest first, `writes` all that was written.

    `after` is called after each of these, `before_read` before an entry is read.

    What the state file has is here as well, in `state`, and the time, in `now`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the kernel's."""
        self.formats: list[Format] = []
        self.writes: list[tuple[str, bytes]] = []
        self.state: dict[str, Any] = {}
        self.refused: set[bytes] = set()
        self.after: Callable[[], None] = lambda: None
        self.before_read: Callable[[], None] = lambda: None
        self.now = 1e3
        self._inodes = itertools.count(2)
        monkeypatch.setattr(table, "_write", self._write)
        monkeypatch.setattr(table, "entries", lambda: {entry.name: entry.inode for entry in self.formats})
        monkeypatch.setattr(table, "registration", self._registration)
        monkeypatch.setattr(table, "Lock", _NoLock)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(state, "load", lambda: dict(self.state))
        monkeypatch.setattr(state, "save", self.state.update)

    @property
    def names(self) -> list[str]:
        """Names of the entries, the newest first."""
        return [entry.name for entry in self.formats]

    def get(self, name: str) -> Format:
        """An entry; raises FileNotFoundError."""
        for entry in self.formats:
            if entry.name == name:
                return entry
        raise FileNotFoundError(name)

    def add(self, rule: bytes, *, enabled: bool = True) -> None:
        """Have an entry registered, as the newest."""
        entry = Format(rule, next(self._inodes))
        entry.enabled = enabled
        self.formats.insert(0, entry)

    def drop(self, name: str) -> None:
        """Have an entry removed by somebody."""
        self.formats.remove(self.get(name))

    def winner(self) -> Format | None:
        """Who is given a Windows program."""
        return next((entry for entry in self.formats if entry.takes_windows()), None)

    def _registration(self, name: str) -> tuple[bytes, int] | None:
        self.before_read()
        try:
            entry = self.get(name)
        except FileNotFoundError:
            return (b"enabled\n", 1) if name == "status" else None
        return entry.text, entry.inode

    def _write(self, name: str, data: bytes) -> None:
        if "\0" in name:
            raise ValueError("embedded null byte")
        self.writes.append((name, data))
        if name == "register":
            fields = data[1:].split(data[:1])
            rule_name = fields[0].decode()
            if data in self.refused or len(fields) != 7 or "/" in rule_name or rule_name in ("", ".", ".."):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            if rule_name in ("register", "status", *self.names):
                raise FileExistsError(rule_name)
            self.add(data)
        elif name == "status":
            assert data == b"-1"
            self.formats.clear()
        elif data == b"-1":
            self.drop(name)
        else:
            self.get(name).enabled = data == b"1"
        self.after()


class _NoLock:
    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass


# Registers each rule, reads what the entry says then, and removes it.
ASK = """
import json, sys
table = sys.argv[1]
answers = []
for rule in json.load(sys.stdin):
    rule = rule.encode("latin-1")
    name = rule[1:].split(rule[:1])[0].decode("latin-1")
    try:
        with open(table + "/register", "wb", buffering=0) as file:
            file.write(rule)
        with open(table + "/" + name, "rb") as file:
            answers.append(file.read().decode("latin-1"))
        with open(table + "/" + name, "wb", buffering=0) as file:
            file.write(b"-1")
    except OSError as e:
        answers.append(None)
json.dump(answers, sys.stdout)
"""


def ask(rules: list[bytes], directory: str) -> list[bytes | None] | str:
    """Have the kernel say what it makes of rules, None for one that it refuses.

    In a user namespace, which has a table of its own since Linux 6.7: any user
    can do so, and this machine's table is not touched. directory: an empty one,
    to mount it on. Returns a reason where that is not possible.
    """
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"),
            'mount -t binfmt_misc none "$0"; test "$(ls "$0" | wc -l)" = 2; exec "$@"',
            *(directory, sys.executable, "-c", ASK, directory),
        ],
        check=False,
        input=json.dumps([rule.decode("latin-1") for rule in rules]),
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
    )
    if done.returncode != 0:
        return f"no binfmt_misc table in a user namespace: {done.stderr}"
    return [None if said is None else said.encode("latin-1") for said in json.loads(done.stdout)]
