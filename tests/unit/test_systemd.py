# SPDX-License-Identifier: MIT
"""systemd's own opinion of what is written, where systemd is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import support

UNITS = [Path("/usr/lib/systemd/system"), Path("/lib/systemd/system")]
# Of services that need not be installed: what a drop-in is about is theirs.
STAND_IN = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nExecStop=/bin/true\n"
# Settings that systemd did not know before these versions; it says so and goes on.
KNOWN_SINCE: dict[str, int] = {}


def systemd_version() -> int:
    """Version of the systemd that is here."""
    said = subprocess.run(["systemd-analyze", "--version"], check=True, capture_output=True, text=True).stdout
    match = re.match(r"systemd (\d+)", said)
    assert match
    return int(match[1])


def verify(directory: Path, units: list[str]) -> list[str]:
    """What `systemd-analyze verify` has against units of a directory, which stand for all there are."""
    done = subprocess.run(
        # Dependencies of the units are those of any system, and are not there.
        ["systemd-analyze", "verify", "--man=no", *(directory / unit for unit in units)],
        check=False,
        capture_output=True,
        text=True,
        env={"SYSTEMD_UNIT_PATH": f"{directory}:", "LC_ALL": "C", "SYSTEMD_LOG_COLOR": "0"},
    )
    known = systemd_version()
    ignored = [
        # We are not installed here.
        r"Command /usr/bin/wsl-binfmt is not executable",
        # The machine's own units, of which some directory names are old.
        r"Unit uses KillMode=none|references a path below legacy directory|RequiresMountsFor",
        *(f"Unknown key( name)? '{key}'" for key, since in KNOWN_SINCE.items() if known < since),
    ]
    names = [directory.name, *units]
    return [
        line
        for line in done.stderr.splitlines()
        if any(name in line for name in names) and not any(re.search(pattern, line) for pattern in ignored)
    ]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A directory with the two services, and with our units."""
    directory = tmp_path / "verified"
    directory.mkdir()
    found = [path / "systemd-binfmt.service" for path in UNITS if (path / "systemd-binfmt.service").exists()]
    text = found[0].read_text() if found else STAND_IN
    (directory / "systemd-binfmt.service").write_text(text)
    (directory / "binfmt-support.service").write_text(STAND_IN)
    for unit in (support.TREE / "units").iterdir():
        if unit.suffix in (".mount", ".service"):
            shutil.copy(unit, directory)
    return directory


needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")


@needs_systemd
@pytest.mark.parametrize("conf", [None, "[interop]\nenabled=false\n", "[boot]\nsystemd=true\n"])
def test_drop_ins(distro: support.Machine, units: Path, conf: str | None) -> None:
    """The services with our drop-ins are fine."""
    if conf:
        distro.conf.write_text(conf)
    assert distro.run(units).returncode == 0
    assert (units / support.GUARD).exists()
    assert verify(units, ["systemd-binfmt.service", "binfmt-support.service"]) == []


@needs_systemd
def test_units(units: Path) -> None:
    """So are our units."""
    ours = sorted(path.name for path in (support.TREE / "units").iterdir() if path.suffix in (".mount", ".service"))
    assert ours
    assert verify(units, ours) == []


@needs_systemd
def test_verify_sees(units: Path) -> None:
    """What is wrong in a drop-in is seen by these tests."""
    drop_in = units / support.GUARD
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nBindPath=/dev/null\nExecReload=relative\n")
    assert len(verify(units, ["systemd-binfmt.service"])) >= 2
