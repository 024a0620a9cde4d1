# SPDX-License-Identifier: MIT
"""The binfmt_misc table of the simulation in place of the kernel's, and the kernel's own in a user namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import world
from wsl_binfmt import state, table

if TYPE_CHECKING:
    import pytest

WSL = world.WSL


class Table(world.Table):
    """The table, with a clock. `writes` has all that was written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the kernel's."""
        super().__init__()
        self.writes: list[tuple[str, bytes]] = []
        self.now = 1e3
        self.state: dict[str, object] = {}
        monkeypatch.setattr(table, "_write", self._write)
        monkeypatch.setattr(table, "entries", lambda: {entry.name: entry.inode for entry in self.entries})
        monkeypatch.setattr(table, "_read", self._read)
        monkeypatch.setattr(table, "Lock", _NoLock)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(state, "load", lambda: self.state)
        monkeypatch.setattr(state, "save", self.state.update)

    @property
    def names(self) -> list[str]:
        """Names of the entries, the newest first."""
        return [entry.name for entry in self.entries]

    def entry(self, name: str) -> world.Entry:
        """Find an entry; raises FileNotFoundError."""
        entry = self.open(name)
        assert isinstance(entry, world.Entry)
        return entry

    def add(self, rule: bytes, *, enabled: bool = True) -> None:
        """Have another program register an entry."""
        self.write("register", rule)
        self.entries[0].enabled = enabled

    def drop(self, name: str) -> None:
        """Have another program remove an entry."""
        self.write(self.entry(name), b"-1")

    def _read(self, name: str) -> tuple[bytes, int]:
        return self.read(file := self.open(name)), getattr(file, "inode", 1)

    def _write(self, name: str, data: bytes, inode: int = 0) -> None:
        entry = self.get(name)
        if not entry or inode in (0, entry.inode):
            self.writes.append((name, data))
            self.write(self.open(name), data)


class _NoLock:
    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass


# Does each operation; answers with an errno, or with what was read.
OPERATE = """
import json, os, sys
answers = []
for name, data in json.load(sys.stdin):
    path = sys.argv[1] + "/" + name
    try:
        if data == "list":
            answers.append(" ".join(entry for entry in os.listdir(sys.argv[1]) if entry not in ("register", "status")))
        elif data == "read":
            with open(path, "rb") as file:
                answers.append(file.read().decode("latin-1"))
        else:
            file = os.open(path, os.O_WRONLY)
            try:
                os.write(file, data.encode("latin-1"))
            finally:
                os.close(file)
            answers.append(0)
    except OSError as e:
        answers.append(e.errno)
json.dump(answers, sys.stdout)
"""


def operate(operations: list[tuple[str, str]], directory: str) -> list[int | str] | str:
    """Have the kernel do operations: a name and what is written there, "read", or "list".

    In a user namespace, which has a table of its own since Linux 6.7: any user can do so, and this machine's table is
    not touched. directory: an empty one, to mount it on. Returns a reason where that is not possible.
    """
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"),
            'mount -t binfmt_misc none "$0"; test "$(ls "$0" | wc -l)" = 2; exec "$@"',
            *(directory, sys.executable, "-c", OPERATE, directory),
        ],
        check=False,
        input=json.dumps(operations),
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
    )
    if done.returncode != 0:
        return f"no binfmt_misc table in a user namespace: {done.stderr}"
    answers: list[int | str] = json.loads(done.stdout)
    return answers


def ask(rules: list[bytes], directory: str) -> list[bytes | None] | str:
    """Have the kernel say what it makes of rules, None for one that it refuses; see operate()."""
    operations = []
    for rule in rules:
        name = rule[1:].split(rule[:1])[0].decode("latin-1")
        operations += [("register", rule.decode("latin-1")), (name, "read"), (name, "-1")]
    answers = operate(operations, directory)
    if isinstance(answers, str):
        return answers
    registered = zip(answers[::3], answers[1::3])
    return [str(text).encode("latin-1") if status == 0 else None for status, text in registered]
