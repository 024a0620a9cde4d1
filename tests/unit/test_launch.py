# SPDX-License-Identifier: MIT
"""Starting a program: what is recorded of it. What that means is with the recorded machines."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from wsl_binfmt.diagnosis import launch
from wsl_binfmt.diagnosis import machine as m

if TYPE_CHECKING:
    from pathlib import Path


def run(path: Path, text: str, mode: int = 0o755) -> m.Launch:
    """Start a script."""
    path.write_text(text)
    path.chmod(mode)
    return launch.run(str(path), [], is_ours=False)


def test_what_is_recorded(tmp_path: Path) -> None:
    """The exit status, and lines of /init's; none of what the program says."""
    path = tmp_path / "x.exe"
    said = "<3>WSL (7) ERROR: UtilConnectUnix:530: connect failed 111"
    found = run(path, f"#!/bin/sh\necho secret; echo '{said}'; exit 1\n")
    assert found == m.Launch(str(path), status=1, said=[said])
    assert run(path, "#!/nowhere\n").errno == errno.ENOENT
    assert run(path, "x").errno == errno.ENOEXEC
    assert run(path, "#!/bin/sh\n", 0o644).errno == errno.EACCES


@pytest.mark.parametrize("script", ["exec sleep 100", "sleep 2"])
def test_one_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """It is ended, and what it said until then is recorded; so it is if a child of it goes on."""
    monkeypatch.setattr(launch, "LAUNCH_MAX", 0.2)
    line = "<3>init: (7) ERROR: x"
    found = run(tmp_path / "x", f"#!/bin/sh\necho '{line}'; {script}\n")
    assert (found.status, found.said) == (None, [line])


def test_longer_than_init_waits() -> None:
    """/init waits ten seconds for Windows, and then says so."""
    assert launch.LAUNCH_MAX > 12
