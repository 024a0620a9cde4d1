# SPDX-License-Identifier: MIT
"""The main points again on the oldest and the newest systemd and Python that this is for."""

from __future__ import annotations

import glob
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

import bed
from checks import briefly, eventually, quiet, right
from roots import SUITES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Boot = Callable[..., bed.Distro]

pytestmark = pytest.mark.system

# The tested versions whose systemd-binfmt.service fails if it may not empty the table. All of 250 to 261 do, WSL#41226.
FAILS_WHEN_REFUSED = 252, 254, 257


def version(root: Path) -> int:
    return next(version for suite, version in SUITES.items() if suite == root.name)


def test_it_is_the_systemd_that_it_should_be(vm: bed.Vm, boot: Boot, root: Path) -> None:
    distro = boot(vm, root=root)
    # sid moves on.
    assert int(distro.systemctl("--version").split()[1].partition(".")[0].partition("~")[0]) >= version(root)


RIVAL = ":wine:M::MZ::/bin/true:\n"
# WSL's override, and its lock: what systemd makes of them differs from version to version.
OLD_AND_NEW = pytest.mark.parametrize("few_vm", ["2.6", "3.0"], indirect=True)


@pytest.mark.parametrize(
    ("few_vm", "content"),
    [("none", RIVAL), ("2.6", ":WSLInterop:M::MZ::/bin/echo:PF\n"), ("3.0", RIVAL)],
    indirect=["few_vm"],
)
def test_every_launch_works(few_vm: bed.Vm, boot: Boot, root: Path, content: str) -> None:
    files = {"/etc/binfmt.d/x.conf": content + ":x:M::xx::/bin/true:\n"}
    distro = boot(few_vm, root=root, files=files, start_limit=False)
    assert distro.wait_until_up() == "running"
    with distro.launching() as launches:
        for _ in range(3):
            distro.systemctl("restart", "systemd-binfmt.service")
            assert right(few_vm)
            distro.systemctl("reload", "systemd-binfmt.service")
            assert right(few_vm)
    assert launches.count > 50
    # Each start registers what is to be outranked anew.
    assert briefly(launches, 6)
    assert distro.interop()
    assert "x" in few_vm.names()


def test_a_refused_rule(vm: bed.Vm, boot: Boot, root: Path) -> None:
    distro = boot(vm, root=root, files={"/etc/binfmt.d/x.conf": ":bad:M::\n:wine:M::MZ::/bin/true:\n"})
    distro.systemctl("restart", "systemd-binfmt.service", check=False)
    assert distro.interop()


@OLD_AND_NEW
def test_a_wipe_is_repaired_and_the_watch_lives(few_vm: bed.Vm, boot: Boot, root: Path) -> None:
    distro = boot(few_vm, root=root, files={"/etc/binfmt.d/x.conf": ":x:M::xx::/bin/true:\n"})
    for _ in range(3):
        eventually(lambda: quiet(distro))
        few_vm.write("status", "-1")
        assert eventually(lambda: right(few_vm) and distro.interop()) < 1
        eventually(lambda: "x" in few_vm.names())
    for number in range(300):
        few_vm.write("register", f":burst{number}:M::burst{number}::/bin/true:")
    few_vm.write("register", ":wine:M::MZ::/bin/true:")
    assert eventually(lambda: few_vm.names()[0] == "WSLInterop") < 1
    assert distro.wait_until_up() == "running"


@OLD_AND_NEW
def test_a_shutdown_is_not_felt_by_others(few_vm: bed.Vm, boot: Boot, root: Path) -> None:
    distro = boot(few_vm)
    with distro.launching() as launches, few_vm.distro(root=root) as peer:
        assert "Read-only" in peer.shell(f"echo -1 >{bed.TABLE}/status", check=False)
        peer.shutdown()
    assert launches.failed == 0


def test_a_read_only_table(read_only_vm: bed.Vm, boot: Boot, root: Path) -> None:
    distro = boot(read_only_vm, root=root, files=bed.BINFMT_SUPPORT)
    assert distro.wait_until_up() == "running"
    assert distro.interop()


@pytest.mark.parametrize("any_vm", ["3.0"], indirect=True)
def test_what_a_refused_wipe_does(any_vm: bed.Vm, boot: Boot, root: Path) -> None:
    """On which versions the drop-ins are needed beside WSL's own lock."""
    files = {"/etc/binfmt.d/x.conf": ":x:M::xx::/bin/true:\n"}
    distro = boot(any_vm, root=root, installed=False, files=files)
    state = distro.systemctl("is-active", "systemd-binfmt.service", check=False).strip()
    assert state == ("failed" if version(root) in FAILS_WHEN_REFUSED else "active")
    distro = boot(any_vm, root=root, files=files)
    assert distro.systemctl("is-active", "systemd-binfmt.service").strip() == "active"


# Of pyenv, beside those of the suites: 3.9, 3.11, 3.13 and sid's, which is 3.14 now.
PYTHONS = {
    os.path.basename(os.path.realpath(path)): os.path.realpath(path)
    for path in ["/usr/bin/python3", *glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python3"))]
    if subprocess.run([path, "-c", "import sys; sys.exit(sys.version_info < (3, 8))"]).returncode == 0
}


@pytest.mark.parametrize("python", PYTHONS)
def test_each_python(vm: bed.Vm, boot: Boot, python: str) -> None:
    """The generator, the watch and `status` run on it."""
    files = {
        "/usr/bin/python3": f"-> {PYTHONS[python]}",
        "/etc/binfmt.d/x.conf": ":wine:M::MZ::/bin/true:\n:x:M::xx::/bin/true:\n",
    }
    distro = boot(vm, files=files)
    eventually(lambda: quiet(distro))
    watch = distro.systemctl("show", "--property=MainPID", "--value", "wsl-binfmt-watch.service").strip()
    assert distro.run("readlink", f"/proc/{watch}/exe").strip() == PYTHONS[python]
    distro.systemctl("restart", "systemd-binfmt.service")
    assert right(vm)
    eventually(lambda: quiet(distro))
    vm.write("status", "-1")
    eventually(lambda: right(vm) and distro.interop() and "x" in vm.names())
    assert distro.wait_until_up() == "running"
    distro.run("wsl-binfmt", "status")
    distro.systemctl("stop", "systemd-binfmt.service")
    eventually(lambda: "x" not in vm.names())
