# SPDX-License-Identifier: MIT
"""What a distro notes."""

from __future__ import annotations

import os
import posix
from typing import TYPE_CHECKING

import pytest

import support
from wsl_binfmt import notes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The directory of notes, which is not there yet."""
    monkeypatch.setattr(notes, "DIRECTORY", str(tmp_path / "run/notes"))
    return tmp_path / "run/notes"


def test_notes(directory: Path) -> None:
    """What is written can be read until it is forgotten."""
    assert notes.read("x") is None
    notes.forget("x")
    for text in b"1", b"", b"22\0\xff":
        notes.write("x", text)
        assert notes.read("x") == text
    notes.write("folder/y", b"y")
    notes.forget("x")
    assert notes.read("x") is None
    assert support.tree(directory) == {"folder/y": "y"}
    notes.forget("folder")
    assert list(directory.iterdir()) == []


def test_whole_or_not_at_all(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note that cannot be written leaves the one before, and nothing else."""
    notes.write("x", b"before")

    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(posix, "rename", fail)
    with pytest.raises(OSError, match="No space"):
        notes.write("x", b"after")
    assert support.tree(directory) == {"x": "before"}


def test_long_name(directory: Path) -> None:
    """A note may have any name that a file may have."""
    notes.write("x" * 255, b"x")
    assert support.tree(directory) == {"x" * 255: "x"}


def test_nowhere(directory: Path) -> None:
    """Where nothing can be written, the error says so, and not what could not be cleared up."""
    directory.parent.mkdir()
    directory.write_text("")
    with pytest.raises(NotADirectoryError):
        notes.write("x", b"x")
