# SPDX-License-Identifier: MIT
"""The rules of a distro are those that its services register; the state file is read whatever is in it."""

from __future__ import annotations

import marshal
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import world
from wsl_binfmt import rules, state, table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Directories in place of those of a distro."""
    monkeypatch.setattr(rules, "BINFMT_D", tuple(str(tmp_path) + directory for directory in rules.BINFMT_D))
    monkeypatch.setattr(rules, "UPDATE_BINFMTS", str(tmp_path) + rules.UPDATE_BINFMTS)
    monkeypatch.setattr(state, "FILE", str(tmp_path / "state"))
    return tmp_path


def write(root: Path, files: Mapping[str, bytes]) -> None:
    """Write files."""
    for path, text in files.items():
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).write_bytes(text)


def test_binfmt_d(root: Path) -> None:
    """Files are read in the order of their names, of the first directory; comments and empty lines are no rules."""
    write(
        root,
        {
            "/etc/binfmt.d/b.conf": b"# no\n;no\n\n \t:b:M::b::/b: \r\n:c:E::c::/c:\0:d:E::d::/d:\f",
            "/usr/lib/binfmt.d/b.conf": b":hidden:M::h::/h:",
            "/usr/lib/binfmt.d/a.conf": b",a,M,,a,,/a,F",
            "/run/binfmt.d/c.conf": b":b:M::other::/b:\n:WSLInterop:M::MZ::/init:P\n:broken\n",
            "/etc/binfmt.d/.hidden.conf": b":hidden:M::h::/h:",
            "/etc/binfmt.d/backup.conf~": b":hidden:M::h::/h:",
        },
    )
    os.symlink("/dev/null", root / "etc/binfmt.d/d.conf")
    os.symlink("nowhere", root / "etc/binfmt.d/e.conf")
    os.mkfifo(root / "etc/binfmt.d/f.conf")
    (root / "etc/binfmt.d/g.conf").mkdir()
    write(root, {"/usr/lib/binfmt.d/d.conf": b":hidden:M::h::/h:"})
    found = [(os.path.basename(path), number, rule) for path, number, rule in rules.rules_of_binfmt_d()]
    assert found == [
        ("a.conf", 1, b",a,M,,a,,/a,F"),
        ("b.conf", 4, b":b:M::b::/b:"),
        ("b.conf", 5, b":c:E::c::/c:"),
        ("b.conf", 6, b":d:E::d::/d:\f"),
        ("c.conf", 1, b":b:M::other::/b:"),
        ("c.conf", 2, b":WSLInterop:M::MZ::/init:P"),
        ("c.conf", 3, b":broken"),
    ]
    service = rules.SYSTEMD_BINFMT
    known = rules.read()
    assert list(known) == ["b", "d", "c", "a"]
    assert known["b"] == [(service, b":b:M::other::/b:"), (service, b":b:M::b::/b:")]  # the last one counts


def test_directory(root: Path) -> None:
    """A directory in the place of a file is passed over, and does not stay open."""
    (root / "etc/binfmt.d/a.conf").mkdir(parents=True)
    before = os.listdir("/proc/self/fd")
    assert rules.read() == {}
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    "rule", [b":a:M:4:aZ\\x00:\\xff\\xff\\x0f:/bin/a:CPF", b":a:M:0:aZ::/bin/a:", b":a:E:0:a::/bin/a:P"]
)
def test_update_binfmts(root: Path, rule: bytes) -> None:
    """Its files make the rules that it registers; with detectors, its own program is the interpreter."""
    write(root, {"/var/lib/binfmts/a": world.file_of_update_binfmts(rule), "/var/lib/binfmts/short": b"a\nmagic\n"})
    detectors = rule.replace(b"/bin/a", rules.RUN_DETECTORS)
    assert rules.read() == {"a": [(rules.BINFMT_SUPPORT, rule), (rules.BINFMT_SUPPORT, detectors)]}


BYTES = st.binary(min_size=1, max_size=20).filter(
    lambda text: b"\0" not in text and b"/" not in text and b"\n" not in text
)


@given(
    BYTES,
    BYTES,
    BYTES,
    st.binary(min_size=1, max_size=8),
    st.integers(0, 99),
    st.sampled_from([b"", b"F", b"PF", b"OC"]),
)
def test_rule_and_back(
    name: bytes, extension: bytes, interpreter: bytes, magic: bytes, offset: int, flags: bytes
) -> None:
    """A rule that is made of an entry makes that entry, in the kernel's imitation and when it is parsed."""
    for entry in (
        table.Entry(enabled=True, interpreter=interpreter, flags=flags, extension=extension),
        table.Entry(enabled=True, interpreter=interpreter, flags=flags, magic=magic, mask=magic[::-1], offset=offset),
    ):
        try:
            rule = entry.rule(os.fsdecode(name))
        except ValueError:
            continue
        assert table.parse_rule(rule)[0] == os.fsdecode(name)
        assert table.parse_rule(rule)[1].says() == entry.says()
        try:
            registered = world.Entry(rule)
        except OSError:
            assert name in (b".", b"..") or len(rule) < 11
            continue
        assert table.parse(registered.text).says() == entry.says()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=st.binary(max_size=50), cut=st.integers(0, 100))
def test_hostile_state(root: Path, data: bytes, cut: int) -> None:
    """A state file that is not understood is none."""
    known = {"inode": 1, "own": {"a": ("service", b"rule")}, "disabled own": {"a"}}
    state.save(known)
    assert state.load() == known
    (root / "state").write_bytes((root / "state").read_bytes()[:cut])
    assert state.load() in ({}, known)
    (root / "state").write_bytes(data)
    assert isinstance(state.load(), dict)
    for of_another_version in known, (state.SHAPE + 1, known):
        (root / "state").write_bytes(marshal.dumps(of_another_version))
        assert state.load() == {}
    (root / "state").unlink()
    assert state.load() == {}
