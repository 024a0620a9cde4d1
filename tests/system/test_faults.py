# SPDX-License-Identifier: MIT
"""Whatever call fails, and wherever a program is killed: see faults.py, of which this runs a part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import faults
from checks import BEFORE_THE_WATCH, eventually, quiet, right

if TYPE_CHECKING:
    from collections.abc import Callable

    from bed import Distro, Vm

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system


class Report:
    """What was wrong."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def __call__(self, program: str, fault: faults.Fault, wrong: str) -> None:
        """Take what faults.py tells."""
        if wrong:
            self.wrong.append(f"{program}, {fault.option}: {wrong}")


def test_generator() -> None:
    report = Report()
    assert faults.generator_faults(report) > 100
    assert report.wrong == []


@pytest.mark.parametrize("name", faults.COMMANDS)
def test_command(name: str) -> None:
    report = Report()
    assert faults.command_faults(name, report, every=31) > 5
    assert report.wrong == []


@pytest.mark.parametrize(
    ("fault", "options"), [("full", "size=4k"), ("out of inodes", "nr_inodes=1"), ("read-only", "ro,size=4k")]
)
def test_notes_that_cannot_be_written(vm: Vm, boot: Boot, fault: str, options: str) -> None:
    """Windows programs start, nothing fails, and it is said; what could not be noted is once it can."""
    distro = boot(vm, files={"/etc/binfmt.d/x.conf": ":x:M::xx::/bin/true:\n"}, start_limit=False)
    eventually(lambda: quiet(distro))
    distro.shell(f"mount -t tmpfs -o {options} tmpfs /run/wsl-binfmt")
    if fault == "full":
        distro.shell("cat /dev/zero >/run/wsl-binfmt/zero || true", check=False)
    with distro.launching() as launches:
        for _ in range(3):
            distro.systemctl("restart", "systemd-binfmt.service")
        assert launches.failed == 0
        vm.write("status", "-1")
        eventually(lambda: right(vm))
    assert launches.failed <= BEFORE_THE_WATCH
    assert distro.interop()
    assert distro.wait_until_up() == "running"
    distro.shell("umount /run/wsl-binfmt")
    distro.systemctl("restart", "systemd-binfmt.service")
    eventually(lambda: quiet(distro) and "x" in vm.names())
    distro.systemctl("stop", "systemd-binfmt.service")
    assert "x" not in vm.names()
    assert right(vm)
