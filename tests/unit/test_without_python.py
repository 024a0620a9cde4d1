# SPDX-License-Identifier: MIT
"""What is left out while a distro boots is what the command would find nothing to do for."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING, Callable

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import support
from wsl_binfmt import binfmt_d, interop, notes, table

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = (support.TREE / "units/without-python").read_text()
UNIT = "systemd-binfmt.service"
QEMU = rb":qemu-arm:M::\x7fELF\x01:\xff\xff\xff\xff\xff:/usr/bin/qemu-arm:F"
PYTHON = rb":python3.13:M::\xf3\x0d\x0d\x0a::/usr/bin/python3.13:"
Runs = Callable[..., str]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Run the script where a file of binfmt.d holds some bytes; returns what it would run then."""
    directories = ("etc/binfmt.d", "run/systemd/generator", "run/wsl-binfmt", "proc/sys/fs/binfmt_misc", "usr/bin")
    for directory in directories:
        (tmp_path / directory).mkdir(parents=True)
    command = tmp_path / "usr/bin/wsl-binfmt"
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    script = re.sub(r'(?<=[ "])/(?=etc/|lib/|proc/|run/|usr/)', f"{tmp_path}/", SCRIPT)

    def do(action: str, text: bytes = b"", **environment: str) -> str:
        (tmp_path / "etc/binfmt.d/x.conf").write_bytes(text)
        done = subprocess.run(
            ["sh", "-c", script, "without-python", action, UNIT],
            check=True,
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            timeout=support.TIMEOUT,
        )
        assert done.stderr == ""
        return done.stdout.strip()

    return do


@pytest.mark.parametrize("text", [b"", QEMU, PYTHON, b"# MZ\n\n; MZ\n" + QEMU + b"\n" + PYTHON + b"\n"])
def test_left_out(runs: Runs, tmp_path: Path, text: bytes) -> None:
    """What distributions have in binfmt.d is no reason to wait."""
    assert runs("hold", text) == ""
    assert runs("restore", text) == ""
    for directory in binfmt_d.DIRECTORIES:
        (tmp_path / directory[1:]).mkdir(parents=True, exist_ok=True)
        (tmp_path / directory[1:] / "y.conf").touch()
    assert runs("hold", text) == ""


def test_directories() -> None:
    """It looks where the command looks."""
    assert re.findall(r"(\S+)/\*\.conf", SCRIPT) == list(binfmt_d.DIRECTORIES)


def test_not_left_out(runs: Runs, tmp_path: Path) -> None:
    """WSL's own drop-in, what somebody holds, and the end of booting are reasons."""
    override = tmp_path / f"run/systemd/generator/{UNIT}.d/override.conf"
    override.parent.mkdir()
    override.write_text("[Service]\nExecStart=/bin/sh -c '(echo -1 > /proc/sys/fs/binfmt_misc/WSLInterop)'\n")
    assert runs("hold", QEMU) == f"hold {UNIT}"
    override.write_text("[Service]\nNice=1\n")
    assert runs("hold", QEMU) == ""
    (tmp_path / f"proc/sys/fs/binfmt_misc/{interop.stand_in()}").touch()
    assert runs("hold", QEMU) == ""
    assert runs("restore", QEMU) == f"restore {UNIT}"
    (tmp_path / f"run/wsl-binfmt/{interop.NAME}").touch()
    assert runs("hold", QEMU) == f"hold {UNIT}"


WINE = b":wine:M::MZ::/usr/bin/wine:"
FIELDS = QEMU.split(b":")[1:]
HARM = [
    WINE,
    rb":wine:M::\x4d\x5a::/usr/bin/wine:",
    rb":wine:M::\x7fELF:\x00\xff\xff\xff:/usr/bin/wine:",
    rb":wine:M::\x7f:\xfe:/usr/bin/wine:",
    b":wine:M:2:PE::/usr/bin/wine:",
    b":wine:E::exe::/usr/bin/wine:",
    b":WSLInterop:M::xx::/usr/bin/wine:",
    b" " + WINE,
    WINE.replace(b":", b","),
    WINE.replace(b":", b"x"),
    b"# comment\r" + WINE,
    QEMU + b"\r" + WINE,
    QEMU + b"\0" + WINE,
    QEMU[:-2] + b"\0" + WINE,
    # systemd ends lines there as well, in any field.
    *(
        b":" + b":".join([*FIELDS[:at], FIELDS[at] + b"\r" + WINE.replace(b":", b",") + b"\r", *FIELDS[at + 1 :]])
        for at in range(6)
    ),
    *(b":" + b":".join([*FIELDS[:at], b"\0" + WINE.replace(b":", b",") + b"\0", *FIELDS[at + 1 :]]) for at in range(6)),
    rb":x:M::\x" + b"\r" + WINE.replace(b":", b",") + b"::/x:",
    b":\r" + WINE.replace(b":", b",") + rb":M::\x7f::/x:",
]


@pytest.mark.parametrize("text", HARM)
def test_harm(runs: Runs, text: bytes) -> None:
    """What may concern Windows programs is not left out, wherever it stands."""
    for before in b"", QEMU + b"\n":
        for after in b"", b"\n" + QEMU + b"\n":
            assert runs("hold", before + text + after) == f"hold {UNIT}"


# Of rules, with a part or two in them that make them others.
PARTS = [
    b":",
    b"M",
    b"E",
    b"Z",
    rb"\x4d",
    rb"\x7f",
    rb"\xff",
    rb"\x00",
    b"\\",
    b"0",
    b"WSLInterop",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"#",
]
CUTS = st.tuples(st.integers(0, 30), st.integers(0, 3), st.sampled_from(PARTS))


def cut(rule: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Replace so many bytes at a place."""
    for at, length, part in cuts:
        rule = rule[:at] + part + rule[at + length :]
    return rule


RULES = st.builds(cut, st.sampled_from([QEMU, PYTHON]), st.lists(CUTS, max_size=2))
TEXTS = st.lists(RULES, min_size=1, max_size=2).map(b"\n".join)


@given(TEXTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_left_out_that_matters(runs: Runs, text: bytes) -> None:
    """Whatever a file holds: if it is left out, no rule may match a Windows program or has a name of ours."""
    if runs("hold", text):
        return
    event("left out")
    for _, rule in binfmt_d._rules(text):
        said = binfmt_d.entry_text(rule)
        # The kernel takes no mask of another length than the magic, which is what gives None here.
        found = table.parse(said)
        assert not said or not found.may_match(interop.WINDOWS) or (found.magic is None and b"\nmask " in said)
        assert not interop.is_ours(binfmt_d._name(rule))


def test_stopped(runs: Runs, tmp_path: Path) -> None:
    """After a stop there is nothing to do but to forget the formats; after a failure there may be."""
    noted = [tmp_path / "run/wsl-binfmt" / name for name in (UNIT, interop.NAME)]
    for note in noted:
        note.touch()
    assert runs("restore", SERVICE_RESULT="exit-code") == f"restore {UNIT}"
    assert runs("restore", SERVICE_RESULT="success") == ""
    assert [note.exists() for note in noted] == [False, True]
    assert runs("hold", SERVICE_RESULT="success") == f"hold {UNIT}"


def test_note(runs: Runs) -> None:
    """The note that ends booting is where it is looked for."""
    assert runs("restore") == ""
    assert f"{notes.DIRECTORY}/{interop.NAME}" in SCRIPT
