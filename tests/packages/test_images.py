# SPDX-License-Identifier: MIT
"""An image for WSL: a package that was installed where no systemd runs has started nothing, and works from boot on."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

import bed
from checks import inodes, right
from managers import MANAGERS, MODULES, compiled_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Boot = Callable[..., bed.Distro]

pytestmark = [pytest.mark.packages, pytest.mark.system]

UNITS = "proc-sys-fs-binfmt_misc-status.mount", "wsl-binfmt-watch.service"
# PID 1 is this shell. Debian's policy-rc.d of a container, which would forbid to start anything, is not for the image.
BUILD = """
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/layer,workdir=$1/work" "$1/root"
cd "$1/root"
mount --rbind /dev dev
mount -t proc proc proc
mount -t binfmt_misc binfmt_misc proc/sys/fs/binfmt_misc
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p var/lib/pacman var/cache/pacman/pkg
rm -f usr/sbin/policy-rc.d var/lib/man-db/auto-update
cp "$2" tmp
shift 2
chroot . "$@"
echo left:
ls -A run
echo proc/[0-9]*
"""
# On the first boot of an image, systemd enables what is to be by default: here nothing, as on Fedora.
FILES = {
    "/etc/wsl.conf": "[boot]\nsystemd=true\n",
    "/etc/machine-id": "uninitialized\n",
    "/etc/systemd/system-preset/00-none.preset": "disable *\n",
}
DISTRIBUTION_CONF = """\
[oobe]
command = /etc/oobe.sh
defaultUid = 1000
defaultName = my-distro
[shortcut]
icon = /usr/share/wsl/my-distro.ico
[windowsterminal]
ProfileTemplate = /usr/share/wsl/terminal-profile.json
"""


class Image(NamedTuple):
    """What an installation added to the root file system, and was seen to do."""

    manager: str
    layer: Path
    printed: str
    table: tuple[dict[str, int], dict[str, int]]


@pytest.fixture(scope="session", params=MANAGERS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, release: Path) -> Iterator[Image]:
    """An image in which a package was installed, on a machine that is not WSL and has entries of its own."""
    manager = MANAGERS[request.param]
    (package,) = (release / "dist").glob(manager.packages)
    directory = tmp_path_factory.mktemp("image")
    with contextlib.ExitStack() as stack:
        bed.private_mounts()
        bed.mount(stack, "tmpfs", directory)
        for name in "layer", "work", "root":
            (directory / name).mkdir()
        with bed.Vm() as vm:
            vm.register(":x:M::xx::/init:F")
            vm.write("WSLInterop", "-1")
            before = inodes(vm)
            done = subprocess.run(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", BUILD, "-", directory, package,
                 *manager.install, f"/tmp/{package.name}"],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            after = inodes(vm)
        assert done.returncode == 0, done.stdout
        yield Image(request.param, directory / "layer", manager.beside_its_own(done.stdout), (before, after))


def test_the_installation_starts_nothing(image: Image) -> None:
    """It says no more than that it compiles, writes nothing into /run, and only its shell runs after it."""
    said, _, left = image.printed.partition("left:\n")
    assert left == "proc/1\n"
    assert image.table[0] == image.table[1]
    assert list(image.table[0]) == ["x"]
    assert not (image.layer / "etc/systemd").exists()
    if image.manager == "pacman":
        assert said.splitlines()[0].startswith("On WSL, this package takes effect when the distro starts again. ")
        assert said.splitlines()[2:] == ["(1/1) Compiling the modules of wsl-binfmt..."]
    else:
        assert said == ""


def test_it_works_from_the_first_boot_on(few_vm: bed.Vm, boot: Boot, image: Image) -> None:
    distro = boot(few_vm, layers=[image.layer], files=FILES)
    assert distro.wait_until_up() == "running"
    for _ in range(2):
        assert right(few_vm)
        assert distro.interop()
        assert distro.systemctl("is-active", *UNITS).split() == ["active", "active"]
        assert "\nNo problem found.\n" in distro.run("wsl-binfmt")
        assert json.loads(distro.run("wsl-binfmt", "--json"))["problems"] == []
        distro.systemctl("restart", "systemd-binfmt.service")
    assert distro.wait_until_up() == "running"
    # The modules were compiled at the installation, none when it ran.
    compiled_for(distro)
    assert distro.run("find", MODULES, "-newer", "/etc/wsl.conf") == ""


@pytest.mark.parametrize("image", ["dpkg"], indirect=True)
def test_wsl_distribution_conf_changes_nothing(vm: bed.Vm, boot: Boot, image: Image) -> None:
    written = []
    for more in {}, {"/etc/wsl-distribution.conf": DISTRIBUTION_CONF, "/etc/oobe.sh": "#!/bin/sh\n/tmp/program.exe\n"}:
        distro = boot(vm, layers=[image.layer], files={**FILES, **more})
        assert distro.wait_until_up() == "running"
        assert right(vm)
        assert distro.interop()
        written.append(distro.shell("cd /run/systemd; grep -r '' generator generator.early generator.late | sort"))
    assert "wsl-binfmt" in written[0]
    assert written[0] == written[1]
    # What is run at the first start may be a Windows program.
    assert distro.run("/etc/oobe.sh").startswith("/init /tmp/program.exe ")
