# SPDX-License-Identifier: MIT
"""Whom the generator acts for, seen on the running system."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from checks import eventually, right

if TYPE_CHECKING:
    from collections.abc import Callable

    from bed import Distro, Vm

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system

WSL_KERNEL = "5.15.167.4-microsoft-standard-WSL2"
OUR_UNITS = ("proc-sys-fs-binfmt_misc-status.mount", "wsl-binfmt-watch.service")
# Each as systemd finds it: the environment, the kernel, and what its manager left.
CONTAINERS: dict[str, dict[str, object]] = {
    "docker": {"environment": {}, "kernel": WSL_KERNEL, "files": {"/.dockerenv": ""}},
    "docker that says so": {"environment": {"container": "docker"}, "kernel": WSL_KERNEL},
    "podman": {"environment": {"container": "podman"}, "kernel": WSL_KERNEL, "files": {"/run.wsl/.containerenv": ""}},
    "lxc": {"environment": {"container": "lxc"}, "kernel": WSL_KERNEL},
    "nspawn": {"environment": {"container": "systemd-nspawn"}, "kernel": WSL_KERNEL},
    "not WSL": {"environment": {}},
}


def drop_ins(distro: Distro) -> str:
    return distro.run("find", "/run/systemd", "-path", "*/generator*", "-iname", "*binfmt*").strip()


def active(distro: Distro) -> list[str]:
    return [unit for unit in OUR_UNITS if distro.systemctl("is-active", unit, check=False).strip() == "active"]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_nothing_happens_in(kind: str, vm: Vm, boot: Boot) -> None:
    distro = boot(vm, **CONTAINERS[kind])
    assert drop_ins(distro) == ""
    assert active(distro) == []
    vm.write("status", "-1")
    assert "nothing to do" in distro.run("wsl-binfmt", "restore")
    distro.systemctl("restart", "systemd-binfmt.service")
    assert vm.entry("WSLInterop") is None


def test_wsl_that_sets_no_environment(vm: Vm, boot: Boot) -> None:
    """The kernel's release tells where WSL does not set `container`."""
    distro = boot(vm, environment={}, kernel=WSL_KERNEL)
    assert active(distro) == list(OUR_UNITS)
    distro.systemctl("restart", "systemd-binfmt.service")
    assert distro.interop()


def test_protect_binfmt_off(vm: Vm, boot: Boot) -> None:
    distro = boot(vm, files={"/etc/wsl.conf": "[boot]\nprotectBinfmt=false\n"})
    assert drop_ins(distro) == ""
    assert active(distro) == []
    distro.systemctl("restart", "systemd-binfmt.service")
    assert vm.entry("WSLInterop") is None


def test_interop_off(vm: Vm, boot: Boot) -> None:
    """The distro neither empties the table nor registers WSLInterop, and removes its own entries."""
    distro = boot(vm, files={"/etc/wsl.conf": "[interop]\nenabled=false\n"})
    assert active(distro) == ["proc-sys-fs-binfmt_misc-status.mount"]
    assert distro.systemctl("is-system-running").strip() == "running"
    inode = (vm.table / "WSLInterop").stat().st_ino
    for verb in "restart", "stop", "start":
        distro.systemctl(verb, "systemd-binfmt.service")
    assert (vm.table / "WSLInterop").stat().st_ino == inode
    vm.write("WSLInterop", "-1")
    distro.systemctl("restart", "systemd-binfmt.service")
    assert "switches Windows programs off" in distro.run("wsl-binfmt", "restore")
    assert vm.entry("WSLInterop") is None
    vm.write("register", ":theirs:M::theirs::/bin/true:")
    distro.shutdown()
    assert [name for name in vm.names() if "leaving" not in name] == ["theirs"], (
        "its shutdown wiped the table, or left own entries"
    )


def test_a_change_of_wsl_conf_counts_at_daemon_reload(vm: Vm, boot: Boot) -> None:
    distro = boot(vm, files={"/etc/wsl.conf": "[boot]\nsystemd=true\n"})
    distro.write("/etc/wsl.conf", "[boot]\nprotectBinfmt=false\n")
    os.utime(distro.path("/etc/wsl.conf"), (2**31, 2**31))
    # The change takes effect at the next start of the distro, so that systemd need not ask for a reload.
    assert "NeedDaemonReload=no" in distro.systemctl("show", "systemd-binfmt.service")
    distro.systemctl("daemon-reload")
    assert drop_ins(distro) == ""


def test_a_bad_file_is_told_to_the_kernel_log(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    distro.write("/etc/wsl.conf", "[boot]\nprotectBinfmt=maybe\n; comment\n")
    # Nothing reads the machine's own, and it would keep what a test wrote.
    os.mkfifo(distro.path("/dev/kmsg"))
    log = os.open(distro.path("/dev/kmsg"), os.O_RDWR | os.O_NONBLOCK)
    try:
        distro.systemctl("daemon-reload")
        lines = [line for line in os.read(log, 65536).decode().splitlines() if "wsl-binfmt-generator" in line]
    finally:
        os.close(log)
    assert len(lines) == 2
    assert all(line.startswith("<28>wsl-binfmt-generator[") for line in lines)
    assert "/etc/wsl.conf:2: boot.protectbinfmt is neither true nor false" in lines[0]
    assert "/etc/wsl.conf:3: not a [section], name=value" in lines[1]
    assert distro.interop()


def test_units_verify(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    said = distro.run(
        "systemd-analyze", "verify", "systemd-binfmt.service", "binfmt-support.service",
        *OUR_UNITS, "--man=no",
    )  # fmt: skip
    assert said == ""


def test_the_watch_is_sandboxed(vm: Vm, boot: Boot) -> None:
    """The bound, in tenths, is what systemd 252 says of it; of a service without any sandbox it says 96."""
    distro = boot(vm)
    distro.run("systemd-analyze", "security", "--threshold=34", "--no-pager", "wsl-binfmt-watch.service")


def test_the_guard_can_be_lifted(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    assert "Read-only" in distro.shell("echo -1 >/proc/sys/fs/binfmt_misc/status", check=False)
    distro.systemctl("stop", "proc-sys-fs-binfmt_misc-status.mount")
    distro.shell("echo -1 >/proc/sys/fs/binfmt_misc/status")
    eventually(lambda: right(vm))
    distro.systemctl("start", "proc-sys-fs-binfmt_misc-status.mount")
    assert "Read-only" in distro.shell("echo -1 >/proc/sys/fs/binfmt_misc/status", check=False)
