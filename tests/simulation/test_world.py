# SPDX-License-Identifier: MIT
"""The table of the simulation, and the programs that change it, do as the real ones do."""

from __future__ import annotations

import random
import re
import subprocess
from typing import TYPE_CHECKING, cast

import pytest

import actors
import kernel
import test_table
import world
from scheduler import Simulation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import promises

# An interpreter that is there: with F, the kernel opens it.
NAMES = "a", "b", "c"
RULES = [rf":{name}:M::{name}Z\x00:\xff\xff\x0f:/bin/true:{flags}" for name in NAMES for flags in ("", "F", "P", "OC")]
RULES += [f":{name}:E::{name}:{interpreter}:" for name in NAMES for interpreter in ("/bin/true", "")]
DATA = "1", "0", "-1", "0\n", "-1\n", "2", "read", "list"


def imitate(operations: list[tuple[str, str]]) -> list[int | str]:
    """Do operations on the imitation, as kernel.operate() does them on the table."""
    table = world.Table()
    answers: list[int | str] = []
    for name, data in operations:
        try:
            if data == "list":
                answers.append(" ".join(map(str, table.entries)))
            elif data == "read":
                answers.append(table.read(table.open(name)).decode("latin-1"))
            else:
                table.write(table.open(name), data.encode("latin-1"))
                answers.append(0)
        except OSError as e:
            answers.append(e.errno or 0)
    return answers


def test_table_as_the_kernel(tmp_path: Path) -> None:
    """The same operations have the same results."""
    drawn = random.Random(1)
    operations = [("register", rule.decode("latin-1")) for rule in test_table.RULES]
    operations += [("t", "read"), ("t", "-1"), ("status", "-1")]
    for _ in range(2000):
        if drawn.random() < 0.4:
            operations.append(("register", drawn.choice(RULES)))
        else:
            name = drawn.choice([*NAMES, *NAMES, *NAMES, "status"])
            operations.append((name, drawn.choice(DATA)))
        operations.append(("", "list"))
    answers = kernel.operate(operations, str(tmp_path))
    if isinstance(answers, str):
        pytest.skip(answers)
    imitated = imitate(operations)
    different = [(*what, *both) for what, *both in zip(operations, answers, imitated) if both[0] != both[1]]
    assert different == []


# Two with rules of both services, and what is in the table before.
FILES = {
    "/etc/binfmt.d/b.conf": b"# none\n:b:M::bZ\\x00::/bin/true:F\n;none\n\n:c:E::c::/bin/true:\n",
    "/etc/binfmt.d/a.conf": b":a:M::aZ::/bin/true:",
    "/var/lib/binfmts/d": world.file_of_update_binfmts(b":d:M:4:dZ\\x00:\\xff\\xff\\x0f:/bin/true:F"),
    "/var/lib/binfmts/a": world.file_of_update_binfmts(b":a:M::aZ::/bin/true:"),
}
BEFORE = ":a:M::other::/bin/true:"
RECORD = """
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
for directory in /etc/binfmt.d /usr/lib/binfmt.d /var/lib/binfmts; do
    mount -t tmpfs none $directory
done
cp "$0"/etc/binfmt.d/* /etc/binfmt.d
cp "$0"/var/lib/binfmts/* /var/lib/binfmts
echo "$1" >/proc/sys/fs/binfmt_misc/register
shift
exec strace -f -xx -s 4096 -o "$0/trace" -e trace=openat,write "$@"
"""
OPENED = re.compile(r'^\d+ +openat\(.*"([^"]*)", .*O_WRONLY.*\) = (\d+)$')
WRITTEN = re.compile(r'^\d+ +write\((\d+), "([^"]*)".* = \d+$')


def record(command: list[str], directory: Path) -> list[tuple[str, bytes]]:
    """Run a program with FILES, in a user namespace, and record what it writes to the table."""
    for path, text in FILES.items():
        (directory / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (directory / path[1:]).write_bytes(text)
    unshare = "unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", RECORD
    done = subprocess.run(
        [*unshare, directory, BEFORE, *command], check=False, capture_output=True, text=True, timeout=30
    )
    if not (directory / "trace").exists():
        pytest.skip(done.stderr)
    files: dict[str, str] = {}
    written = []
    for line in (directory / "trace").read_text().splitlines():
        opened, wrote = OPENED.match(line), WRITTEN.match(line)
        if opened:
            files[opened[2]] = bytes.fromhex(opened[1].replace("\\x", "")).decode()
        elif wrote and files.get(wrote[1], "").startswith("/proc/sys/fs/binfmt_misc/"):
            written.append((files[wrote[1]].rpartition("/")[2], bytes.fromhex(wrote[2].replace("\\x", "")).strip()))
    return written


class Written:
    """In place of promises: what was written."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, bytes]] = []

    def before_write(self, *_: object) -> None:
        """Nothing."""

    def after_write(self, _actor: object, file: object, data: bytes, failure: OSError | None) -> None:
        """Remember what was written."""
        if not failure:
            self.writes.append((str(file), data.strip()))


@pytest.mark.parametrize(
    ("command", "step"),
    [
        (["/usr/lib/systemd/systemd-binfmt"], lambda distro: actors.systemd_binfmt(distro, is_service=False)),
        (["/usr/lib/systemd/systemd-binfmt", "--unregister"], actors.wipe),
        (["/usr/sbin/update-binfmts", "--enable"], actors.update_binfmts),
        (["/usr/sbin/update-binfmts", "--disable"], actors.update_binfmts_disable),
    ],
)
def test_programs(tmp_path: Path, command: list[str], step: Callable[[world.Distro], actors.Step]) -> None:
    """What actors write is what the programs write."""
    recorded = record(command, tmp_path)
    simulation = Simulation("recorded")
    written = Written()
    simulation.promises = cast("promises.Promises", written)
    distro = world.Distro(0, world.WITHOUT, "2.0.9")
    distro.files.update(FILES)
    simulation.table.write("register", BEFORE.encode())
    simulation.start("program", None, "other", step(distro))
    simulation.run()
    assert written.writes == recorded
    assert recorded
