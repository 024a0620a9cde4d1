# SPDX-License-Identifier: MIT
"""The packages for RPM and Arch on a running distro: their scripts do what those of Debian do."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

import pytest

import bed
from checks import right

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Boot = Callable[..., bed.Distro]

pytestmark = [pytest.mark.packages, pytest.mark.system]

GOES_AWAY = (bed.TREE / "packaging/debian/tests/goes-away").read_text()


class Manager(NamedTuple):
    """How a package manager is used where it has installed nothing else."""

    packages: str
    install: tuple[str, ...]
    remove: tuple[str, ...]


RPM = "rpm", "--force-debian", "--nodeps"
PACMAN = "pacman", "--noconfirm", "--nodeps", "--nodeps"
MANAGERS = {
    "rpm": Manager("*.noarch.rpm", (*RPM, "--upgrade"), (*RPM, "--erase")),
    "pacman": Manager("*.pkg.tar.*", (*PACMAN, "--upgrade"), (*PACMAN, "--remove")),
}


@pytest.mark.parametrize("name", MANAGERS)
def test_it_comes_is_upgraded_and_goes(
    any_vm: bed.Vm, boot: Boot, release: Path, next_release: Path, name: str
) -> None:
    manager = MANAGERS[name]
    distro = boot(any_vm)
    distro.shell("mkdir -p /var/lib/pacman /var/cache/pacman/pkg")
    if any_vm.entry("WSLInterop"):
        any_vm.write("WSLInterop", "-1")
    # The first time, to see it take effect; then with programs that start all the time.
    install(distro, manager, release)
    assert right(any_vm)
    assert distro.systemctl("is-system-running").strip() == "running"
    with distro.launching() as launches:
        install(distro, manager, next_release)
        units = "proc-sys-fs-binfmt_misc-status.mount", "wsl-binfmt.service"
        assert distro.systemctl("is-active", *units).split() == ["active", "active"]
        assert distro.run("wsl-binfmt", "--version") == "wsl-binfmt 99\n"
        distro.run("sh", "-s", "--", *manager.remove, "wsl-binfmt-generator", input=GOES_AWAY)
    assert launches.count > 100
    assert launches.failed == 0
    assert distro.interop()


def install(distro: bed.Distro, manager: Manager, release: Path) -> None:
    """Install what was built, or upgrade to it."""
    (package,) = (release / "dist").glob(manager.packages)
    shutil.copy(package, distro.path(f"/tmp/{package.name}"))
    distro.run(*manager.install, f"/tmp/{package.name}")
