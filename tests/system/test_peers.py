# SPDX-License-Identifier: MIT
"""What happens to one distro is not felt in another."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

import bed
from checks import briefly, eventually, no_jobs, quiet, right

if TYPE_CHECKING:
    from collections.abc import Callable

    from bed import Distro, Vm

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system

# As many writes as a restore of the worst case takes, and one more, which is after its end.
WRITES = range(1, 7)


@pytest.mark.kernel
def test_protected_peers_shut_down(few_vm: Vm, boot: Boot) -> None:
    distro = boot(few_vm)
    with distro.launching() as launches:
        for _ in range(3):
            with few_vm.distro() as peer:
                peer.shutdown()
        with few_vm.distro(files={"/etc/wsl.conf": "[interop]\nenabled=false\n"}) as peer:
            peer.shutdown()
    assert launches.count > 100
    assert launches.failed == 0
    assert right(few_vm)


def test_peers_crash_and_boot(few_vm: Vm, boot: Boot) -> None:
    distro = boot(few_vm)
    with distro.launching() as launches:
        for _ in range(3):
            with few_vm.distro():
                pass
            with few_vm.distro(wait=False):
                time.sleep(0.1)
    assert launches.failed == 0
    eventually(lambda: right(few_vm))


@pytest.mark.kernel
def test_an_unprotected_peer_shuts_down(any_vm: Vm, boot: Boot) -> None:
    distro = boot(any_vm)
    eventually(lambda: quiet(distro))
    before = set(any_vm.names()) - {"WSLInterop-late"}  # which is WSL's to bring back
    inode = (any_vm.table / "WSLInterop").stat().st_ino
    with distro.launching() as launches:
        with any_vm.distro(installed=False) as peer:
            peer.shutdown()
        eventually(lambda: set(any_vm.names()) >= before and right(any_vm))
    if any_vm.generation != "3.0":
        assert (any_vm.table / "WSLInterop").stat().st_ino != inode, "it did not wipe: this test shows nothing"
    assert briefly(launches)
    assert distro.interop()


def test_without_us_a_peers_shutdown_is_felt(vm: Vm, boot: Boot) -> None:
    """The tests above can fail."""
    distro = boot(vm, installed=False)
    vm.register(bed.WSL_INTEROP)
    with distro.launching() as launches, vm.distro(installed=False) as peer:
        peer.shutdown()
    assert launches.failed > 0
    assert vm.entry("WSLInterop") is None


@pytest.mark.parametrize("names", ["one", "two"])
def test_two_restart_at_once(few_vm: Vm, boot: Boot, names: str) -> None:
    """Two distros that have rules of the same name, or of their own."""
    distros = [
        boot(
            few_vm,
            files={"/etc/binfmt.d/wine.conf": f":wine{number if names == 'two' else ''}:M::MZ::/bin/true:\n"},
            emulators=0,
            start_limit=False,
        )
        for number in range(2)
    ]
    with distros[0].launching() as one, distros[1].launching() as other:
        for _ in range(20):
            for distro in distros:
                distro.systemctl("restart", "--no-block", "systemd-binfmt.service")
        for distro in distros:
            eventually(partial(no_jobs, distro), 30)
    # Each start registers a rival anew.
    assert briefly(one, 40)
    assert briefly(other, 40)
    eventually(lambda: right(few_vm))
    # A rule fails where another distro has registered its name in between; so does WSL's own of override.conf.
    if names == "two" and few_vm.generation in ("none", "2.0.9", "3.0"):
        for distro in distros:
            assert distro.wait_until_up() == "running"


def test_two_with_the_same_rule_start_at_once(vm: Vm, boot: Boot) -> None:
    """When one of them stops its service, the entry of the other is there again within a second."""
    files = {"/etc/binfmt.d/x.conf": ":x:M::xxxx::/bin/true:F\n"}
    distros = [boot(vm, files=files, emulators=0, start_limit=False) for _ in range(2)]
    for _ in range(20):
        for distro in distros:
            distro.systemctl("restart", "--no-block", "systemd-binfmt.service")
        for distro in distros:
            eventually(partial(quiet, distro))
        distros[1].systemctl("stop", "systemd-binfmt.service")
        eventually(lambda: "x" in vm.names(), 1)
    # Of two starts at once one may fail ("File exists"), and no stop follows a failed start.
    distros[0].systemctl("restart", "systemd-binfmt.service")
    distros[0].systemctl("stop", "systemd-binfmt.service")
    # Until the marks have gone, the other distro counts its service as restarting.
    eventually(lambda: vm.names() == ["WSLInterop"])
    time.sleep(0.2)
    assert "x" not in vm.names(), "a distro in which the service has been stopped has brought it back"


def test_shutdown_takes_no_longer(vm: Vm, boot: Boot) -> None:
    boot(vm)
    with vm.distro() as peer:
        start = time.monotonic()
        peer.shutdown()
        assert time.monotonic() - start < 10, "something waited for a timeout"


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("command", ["restore", "watch"])
def test_killed_at_any_step(command: str, write: int, vm: Vm, boot: Boot) -> None:
    """A repair that is killed at a write leaves an entry for Windows programs, and the next repair mends all."""
    distro = boot(vm)
    distro.systemctl("stop", "wsl-binfmt-watch.service")
    eventually(lambda: right(vm))
    # WSL answers, but its entry is to be replaced: no F.
    vm.register(":spare:M::MZ::/init:PF")
    vm.write("WSLInterop", "-1")
    vm.write("register", ":WSLInterop:M::MZ::/init:P")
    with distro.launching() as launches:
        said = distro.run(
            "timeout", "--signal=TERM", "1", "strace", "-f", "-e", "trace=write",
            "-e", f"inject=write:signal=SIGKILL:when={write}", "wsl-binfmt", command, check=False,
        )  # fmt: skip
    assert "killed by SIGKILL" in said or write > 4
    assert launches.failed == 0
    distro.systemctl("start", "wsl-binfmt-watch.service")
    assert eventually(lambda: right(vm)) < 1.5
    assert distro.interop()
