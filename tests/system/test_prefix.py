# SPDX-License-Identifier: MIT
"""Installed elsewhere than in /usr: as `make install PREFIX=/usr/local`, and as NixOS does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bed
from checks import right

if TYPE_CHECKING:
    from collections.abc import Callable

    Boot = Callable[..., bed.Distro]

pytestmark = pytest.mark.system

LOCAL = "/usr/local"
STORE = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-wsl-binfmt-generator"
# What NixOS's options systemd.generators and systemd.packages make, and its profile in PATH.
GENERATOR = "systemd/system-generators/wsl-binfmt-generator"
UNITS = [path.name for path in (bed.TREE / "units").iterdir() if path.suffix in (".mount", ".service")]
LINKS = {
    f"/etc/{GENERATOR}": f"-> {STORE}/lib/{GENERATOR}",
    **{f"/etc/systemd/system/{unit}": f"-> {STORE}/lib/systemd/system/{unit}" for unit in UNITS},
    "/usr/local/bin/wsl-binfmt": f"-> {STORE}/bin/wsl-binfmt",
}
# Of other packages: what packaging/README.md has a distribution replace that has it elsewhere, a name by which an entry
# of binfmt-support's is known, and what `wsl-binfmt` looks at or names as an example.
OTHERS = {
    "/bin/sh",
    "/lib/modules",
    "/lib/systemd/systemd",
    "/sbin/init",
    "/usr/bin/ape",
    "/usr/bin/python3",
    "/usr/bin/true",
    "/usr/lib/binfmt-support/run-detectors",
    "/usr/lib/systemd/systemd",
    "/usr/lib/systemd/systemd-binfmt",
    "/usr/sbin/update-binfmts",
}
# Directories that are searched for files of any package.
SEARCHED = "bin", "binfmt.d", "lib", "system", "system-generators"


def install(vm: bed.Vm, prefix: str) -> None:
    """Install elsewhere what the distros of a VM get."""
    vm.tree = vm.directory / "elsewhere"
    command = ["make", "--quiet", "-C", str(bed.TREE), "install", f"DESTDIR={vm.tree}", f"PREFIX={prefix}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(("prefix", "links"), [(LOCAL, {}), (STORE, LINKS)], ids=["local", "nix"])
def test_it_works(few_vm: bed.Vm, boot: Boot, prefix: str, links: dict[str, str]) -> None:
    install(few_vm, prefix)
    # Of another package: systemd's own directories are the same.
    rule = f"ExecStartPost=/bin/sh -c 'echo {bed.WSL_INTEROP} >{bed.TABLE}/register'\n"
    other = {"/usr/lib/systemd/system/systemd-binfmt.service.d/other.conf": f"[Service]\n{rule}"}
    distro = boot(few_vm, files={**links, **other})
    assert not distro.path("/usr/bin/wsl-binfmt").exists()
    assert distro.wait_until_up() == "running"
    with distro.launching() as launches:
        for _ in range(3):
            distro.systemctl("restart", "systemd-binfmt.service")
        distro.systemctl("reload", "systemd-binfmt.service")
    assert launches.count > 50
    assert launches.failed == 0
    assert right(few_vm)
    answer = distro.run("wsl-binfmt")
    assert re.findall(r"^(\w+): .* \[(.*)\]$", answer, re.MULTILINE) == [("note", "drop-in-set-aside")]
    distro.systemctl("is-active", "proc-sys-fs-binfmt_misc-status.mount", "wsl-binfmt-watch.service")


def test_without_the_entry_at_boot(vm: bed.Vm, boot: Boot) -> None:
    install(vm, STORE)
    vm.write("WSLInterop", "-1")
    distro = boot(vm, files=LINKS)
    assert right(vm)
    started = distro.systemctl("show", "--property=ExecMainStatus,ExecMainExitTimestampMonotonic", "wsl-binfmt-boot")
    assert re.fullmatch("ExecMainExitTimestampMonotonic=[1-9]\\d*\nExecMainStatus=0\n", started)


def test_what_is_not_below_it(vm: bed.Vm) -> None:
    install(vm, STORE)
    found: set[str] = set()
    for path in vm.tree.rglob("*"):
        # What is in share/ names paths for people.
        if path.is_file() and path.suffix != ".pyc" and "share" not in path.parts:
            found |= set(re.findall(r"(?<![\w/}])/(?:usr|bin|sbin|lib)/[\w./-]+\w", path.read_text()))
    searched = {path for path in found if Path(path).name in SEARCHED}
    assert found - searched == OTHERS
