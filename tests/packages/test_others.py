# SPDX-License-Identifier: MIT
"""The packages for RPM and Arch on a running distro, as their package managers and hooks of systemd's treat them."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

import bed
from checks import eventually, right
from managers import (
    KILLED,
    MANAGERS,
    MODULES,
    PREVIOUS_WATCH,
    Manager,
    assert_that_the_previous_release_is_gone,
    compiled_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Boot = Callable[..., bed.Distro]

pytestmark = [pytest.mark.packages, pytest.mark.system]

GOES_AWAY = (bed.TREE / "packaging/debian/tests/goes-away").read_text()
WATCH = "wsl-binfmt-watch.service"
UNITS = "proc-sys-fs-binfmt_misc-status.mount", WATCH
# What two hooks do that come with Arch's systemd.
HOOK = """\
[Trigger]
Type = Path
Operation = Install
Operation = Upgrade
Operation = Remove
Target = usr/lib/systemd/system/*

[Action]
When = PostTransaction
Exec = /usr/bin/systemctl {command}
"""
HOOKS = {
    f"/usr/share/libalpm/hooks/{name}.hook": HOOK.format(command=command)
    for name, command in {
        "30-systemd-daemon-reload-system": "daemon-reload",
        "35-systemd-restart-marked": "reload-or-restart --marked",
    }.items()
}


@pytest.mark.parametrize("name", ["rpm", "pacman"])
def test_it_comes_is_upgraded_and_goes(
    few_vm: bed.Vm, boot: Boot, release: Path, next_release: Path, name: str
) -> None:
    manager = MANAGERS[name]
    distro = boot(few_vm, files=HOOKS)
    if few_vm.entry("WSLInterop"):
        few_vm.write("WSLInterop", "-1")
    # The first time, to see it take effect; then with programs that start all the time.
    said = install(distro, manager, release)
    # These packages start nothing.
    assert distro.systemctl("is-active", WATCH, check=False).strip() == "inactive"
    assert few_vm.entry("WSLInterop") is None
    if name == "pacman":
        assert f"systemctl start {' '.join(UNITS)}\n" in said
    else:
        # As a file trigger of Fedora's systemd does.
        distro.systemctl("daemon-reload")
    distro.systemctl("start", *UNITS)
    # On WSL 3.0, systemd-binfmt.service of Debian 12 has failed at boot, which newer ones do not.
    distro.systemctl("reset-failed")
    eventually(lambda: right(few_vm))
    assert distro.systemctl("is-active", *UNITS).split() == ["active", "active"]
    assert distro.systemctl("is-system-running").strip() == "running"
    with distro.launching() as launches:
        before = watch(distro)
        install(distro, manager, next_release)
        assert distro.systemctl("is-active", *UNITS).split() == ["active", "active"]
        assert watch(distro) != before
        assert distro.run("wsl-binfmt", "--version") == "wsl-binfmt 99\n"
        distro.run("sh", "-s", "--", *manager.remove, "wsl-binfmt-generator", input=GOES_AWAY)
    assert launches.count > 100
    assert launches.failed == 0
    assert distro.interop()
    assert not distro.path(MODULES).parent.exists()


@pytest.mark.parametrize("name", ["rpm", "pacman"])
def test_upgrade_from_the_previous_release(
    vm: bed.Vm, boot: Boot, previous_release: Path, release: Path, name: str
) -> None:
    manager = MANAGERS[name]
    distro = boot(vm, files=HOOKS)
    install(distro, manager, previous_release)
    distro.systemctl("daemon-reload")
    distro.systemctl("start", UNITS[0], PREVIOUS_WATCH)
    distro.shell(KILLED)
    with distro.launching() as launches:
        install(distro, manager, release)
    assert launches.count > 100
    assert launches.failed == 0
    assert_that_the_previous_release_is_gone(distro)
    compiled_for(distro)
    assert right(vm)


@pytest.mark.parametrize("name", ["rpm", "pacman"])
def test_another_python_comes(
    vm: bed.Vm, boot: Boot, release: Path, next_release: Path, tmp_path: Path, name: str
) -> None:
    """The modules are compiled for the Python that there is, at each time, and go."""
    manager = MANAGERS[name]
    distro = boot(vm)
    binary = distro.path("/usr/bin/python3").read_bytes()
    (tag,) = set(re.findall(rb"cpython-3\d+\0", binary))
    # It takes nothing that was compiled for another, and is another Python in this.
    distro.path("/usr/bin/python3.99").write_bytes(binary.replace(tag, b"cpython-399\0"))
    distro.path("/usr/bin/python3.99").chmod(0o755)
    this = distro.path("/usr/bin/python3").readlink().name
    install_file(distro, manager, python_package(tmp_path, name, "3.1", this))
    install(distro, manager, release)
    assert compiled_for(distro) == tag.decode().rstrip("\0")
    install_file(distro, manager, python_package(tmp_path, name, "3.99", "python3.99"))
    assert compiled_for(distro) == "cpython-399"
    install(distro, manager, next_release)
    assert compiled_for(distro) == "cpython-399"
    distro.run(*manager.remove, "wsl-binfmt-generator")
    assert not distro.path(MODULES).parent.exists()


def python_package(directory: Path, name: str, version: str, program: str) -> Path:
    """Make a package that is python3 as far as triggers are concerned: the link /usr/bin/python3."""
    root = directory / version
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/python3").symlink_to(program)
    if name == "pacman":
        information = {"pkgname": "python", "pkgver": f"{version}-1", "arch": "any"}
        (root / ".PKGINFO").write_text("".join(f"{key} = {value}\n" for key, value in information.items()))
        package = directory / f"python-{version}-1-any.pkg.tar.gz"
        subprocess.run(["tar", "-c", "-z", "-f", package, "-C", root, ".PKGINFO", "usr"], check=True)
        return package
    spec = directory / f"python-{version}.spec"
    spec.write_text(
        f"Name: python3\nVersion: {version}\nRelease: 1\nSummary: Python\nLicense: none\nBuildArch: noarch\n"
        f"%description\n%install\ncp -r {root}/usr %{{buildroot}}\n%files\n/usr/bin/python3\n"
    )
    subprocess.run(
        ["rpmbuild", "--quiet", "-bb", "--define", f"_topdir {directory}/rpm", spec], check=True, capture_output=True
    )
    return directory / f"rpm/RPMS/noarch/python3-{version}-1.noarch.rpm"


def watch(distro: bed.Distro) -> str:
    """The process that is the watch."""
    return distro.systemctl("show", "--value", "--property=MainPID", WATCH)


def install(distro: bed.Distro, manager: Manager, release: Path) -> str:
    """Install what was built, or upgrade to it; returns what was printed."""
    (package,) = (release / "dist").glob(manager.packages)
    return install_file(distro, manager, package)


def install_file(distro: bed.Distro, manager: Manager, package: Path) -> str:
    """Install a package file."""
    distro.shell("mkdir -p /var/lib/pacman /var/cache/pacman/pkg")
    shutil.copy(package, distro.path(f"/tmp/{package.name}"))
    return distro.run(*manager.install, f"/tmp/{package.name}")
