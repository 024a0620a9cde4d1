# SPDX-License-Identifier: MIT
"""The own entries of a distro: they end with it, come back after a wipe, and stay removed if removed on purpose."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bed
from checks import briefly, eventually, foreign_program, inodes, knows_that_it_is_disabled, quiet, right

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bed import Distro, Vm

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system

SERVICE = "systemd-binfmt.service"
X = "/etc/binfmt.d/x.conf"
X_RULE = ":x:M::xxxx::/bin/true:F\n"
OURS = {X: X_RULE, "/etc/binfmt.d/y.conf": ":y:M::yyyy::/bin/true:\n"}
OF_BINFMT_SUPPORT = {
    "/var/lib/binfmts/z": "z\nmagic\n0\nzzzz\n\n/bin/true\n\n\n\nyes\n",
    **bed.BINFMT_SUPPORT,
}


def gone(vm: Vm, *names: str, seconds: float = 2) -> None:
    """Wait until entries are gone."""
    eventually(lambda: not set(names) & set(vm.names()), seconds)


def test_the_last_rule_of_a_name(vm: Vm, boot: Boot) -> None:
    """It is what systemd-binfmt registers, and what comes back."""
    rules = {"/etc/binfmt.d/z.conf": ":y:M::zzzz::/bin/true:\n", X: ":y:M::xxxx::/bin/true:\n"}
    distro = boot(vm, files={**OURS, **rules})
    eventually(lambda: quiet(distro))
    before = vm.entry("y")
    vm.write("status", "-1")
    eventually(lambda: vm.entry("y"))
    assert vm.entry("y") == before
    assert "7a7a7a7a" in str(before)


@pytest.mark.kernel
def test_they_end_with_the_service(few_vm: Vm, boot: Boot) -> None:
    """The own entries are removed when it stops. Other entries stay, also one by the name of a rule."""
    few_vm.write("register", ":theirs:M::theirs::/bin/true:")
    few_vm.write("register", ":x:M::before::/bin/true:")
    distro = boot(few_vm, files=OURS, emulators=0)
    eventually(lambda: quiet(distro) and right(few_vm))
    before = inodes(few_vm)
    assert {"theirs", "x", "y"} <= set(before)
    few_vm.write("y", "-1")
    few_vm.write("register", ":y:M::another::/bin/true:")
    distro.systemctl("stop", SERVICE)
    gone(few_vm, "x")
    after = inodes(few_vm)
    assert before.keys() - after.keys() == {"x"}
    assert after["theirs"] == before["theirs"]
    assert after["WSLInterop"] == before["WSLInterop"]
    distro.systemctl("start", SERVICE)
    assert "x" in few_vm.names()
    assert right(few_vm)
    eventually(lambda: not [name for name in few_vm.names() if "leaving" in name])


def test_a_rule_that_is_gone(vm: Vm, boot: Boot) -> None:
    distro = boot(vm, files=OURS)
    for verb in "restart", "reload":
        distro.write(X, X_RULE)
        distro.systemctl(verb, SERVICE)
        assert "x" in vm.names()
        time.sleep(0.1)
        distro.write(X, "# nothing\n")
        distro.systemctl(verb, SERVICE)
        gone(vm, "x")
        assert "y" in vm.names()
    # Beside a rule that is refused, as well.
    distro.write(X, X_RULE)
    distro.systemctl("restart", SERVICE)
    time.sleep(0.1)
    distro.write(X, ":bad:M::\n")
    distro.systemctl("restart", SERVICE, check=False)
    gone(vm, "x")
    time.sleep(1.5)
    assert "y" in vm.names(), "a start that failed is not a stop"


def test_the_last_rule_is_gone(vm: Vm, boot: Boot) -> None:
    """A restart does not start the service if there is no file, or only a hidden one or a backup."""
    distro = boot(vm, files={X: X_RULE})
    eventually(lambda: quiet(distro))
    assert "x" in vm.names()
    distro.shell(f"mount -t tmpfs tmpfs /usr/lib/binfmt.d; rm {X}")
    distro.systemctl("restart", SERVICE)
    assert distro.systemctl("is-active", SERVICE, check=False).strip() == "inactive"
    gone(vm, "x")
    assert right(vm)
    distro.write(X, X_RULE)
    distro.systemctl("restart", SERVICE)
    assert distro.systemctl("is-active", SERVICE).strip() == "active"
    assert "x" in vm.names()
    for name in ".hidden.conf", "x.conf~":
        distro.write(f"/etc/binfmt.d/{name}", X_RULE)
    distro.path(X).unlink()
    distro.systemctl("restart", SERVICE)
    gone(vm, "x")


def test_of_a_start_that_failed(vm: Vm) -> None:
    """Own entries beside a refused rule stay as long as the distro, and no longer."""
    with vm.distro(files={**OURS, "/etc/binfmt.d/bad.conf": ":bad:M::\n"}) as distro:
        assert distro.wait_until_up() == "degraded"
        for _ in range(2):
            time.sleep(1.5)
            assert {"x", "y"} <= set(vm.names())
            distro.systemctl("restart", SERVICE, check=False)
        distro.shutdown()
    assert not {"x", "y"} & set(vm.names())


def test_changed_rules_of_update_binfmts(vm: Vm, boot: Boot) -> None:
    """A restart registers what has changed, which update-binfmts itself passes over."""
    distro = boot(vm, files=OF_BINFMT_SUPPORT)
    eventually(lambda: quiet(distro) and "z" in vm.names())
    time.sleep(0.1)
    distro.write("/var/lib/binfmts/z", "z\nmagic\n0\nZZZZ\n\n/bin/true\n\n\n\nyes\n")
    distro.systemctl("restart", "binfmt-support.service")
    eventually(lambda: "magic 5a5a5a5a" in (vm.entry("z") or ""))


def test_update_binfmts_by_hand(vm: Vm) -> None:
    """What an administrator disables stays removed. What a package imports comes back, and ends with the distro."""
    files = {"/usr/share/binfmts/p": "package p\ninterpreter /bin/true\nmagic pppp\n", **OURS, **OF_BINFMT_SUPPORT}
    files["/var/lib/binfmts/x"] = "x\nmagic\n0\nxxxx\n\n/bin/true\n\n\n\nyes\n"
    with vm.distro(files=files) as distro:
        eventually(lambda: quiet(distro) and {"x", "z"} <= set(vm.names()))
        distro.run("update-binfmts", "--disable", "z")
        distro.run("update-binfmts", "--disable", "x")  # of which binfmt.d has a rule as well
        distro.run("update-binfmts", "--import", "p")
        time.sleep(0.7)
        assert not {"x", "z"} & set(vm.names())
        vm.write("status", "-1")
        eventually(lambda: {"p", "y"} <= set(vm.names()))
        assert not {"x", "z"} & set(vm.names())
        distro.run("update-binfmts", "--enable", "z")
        assert "z" in vm.names()
        distro.shutdown()
    assert not {"p", "x", "y", "z"} & set(vm.names())


@pytest.mark.parametrize("conf", ["", "[interop]\nenabled=false\n"])
def test_they_end_with_the_distro(few_vm: Vm, conf: str) -> None:
    """After a shutdown, the entries of other distros are left; also of a distro that does not want WSLInterop."""
    files = {**OURS, **OF_BINFMT_SUPPORT, "/etc/wsl.conf": conf}
    ours = {"x", "y", "z"}
    with few_vm.distro(installed=False) as other, few_vm.distro(files=files) as distro:
        other.shell(f"echo ':theirs:M::theirs::/bin/true:' >{bed.TABLE}/register")
        if not conf:
            eventually(lambda: quiet(distro))
        assert ours <= set(few_vm.names())
        distro.shutdown()
        assert not ours & set(few_vm.names())
        assert "theirs" in few_vm.names()


def test_after_a_direct_run_of_systemd_binfmt(few_vm: Vm, boot: Boot) -> None:
    """The own entries end with the distro, whichever program has registered them; and the other distro has its own."""
    other = boot(few_vm, files=OURS)
    with few_vm.distro(files=OURS) as distro:
        eventually(lambda: quiet(distro) and quiet(other))
        distro.systemd_binfmt(check=False)
        eventually(lambda: right(few_vm))
        assert {"x", "y"} <= set(few_vm.names())
        before = inodes(few_vm)
        distro.shutdown()
        eventually(lambda: {"x", "y"} <= set(few_vm.names()), 1)
        assert inodes(few_vm)["x"] != before["x"], "the entry of the distro that has ended is still there"
        eventually(lambda: not [name for name in few_vm.names() if "leaving" in name])
        assert {"x", "y"} <= set(few_vm.names())


def test_reset_of_the_qemu_images(vm: Vm, boot: Boot) -> None:
    """`multiarch/qemu-user-static --reset`: it removes each qemu-* entry, then registers its own by the same names."""
    rules = {
        f"/etc/binfmt.d/qemu-{name}.conf": f":qemu-{name}:M::{name}::/bin/true:F\n" for name in ("a", "b", "c", "d")
    }
    distros = [boot(vm, files=rules, emulators=0) for _ in range(2)]
    for distro in distros:
        eventually(partial(quiet, distro))
    time.sleep(0.2)
    for name in [name for name in vm.names() if name.startswith("qemu-")]:
        vm.write(name, "-1")
        time.sleep(0.25)
    for name in "a", "b", "c", "d":
        vm.write("register", f":qemu-{name}:M::{name}::/bin/false:F")
        time.sleep(0.05)
    before = inodes(vm)
    time.sleep(1.2)
    assert inodes(vm) == before


def test_a_rule_that_matches_every_program(vm: Vm, boot: Boot) -> None:
    """After a wipe it is not registered again, WSL#12505: no program of any distro would start."""
    distro = boot(vm, files=OURS)
    eventually(lambda: quiet(distro))
    distro.write("/etc/binfmt.d/native.conf", ":native:M::\\x7fELF\\x02\\x01\\x01::/nowhere:\n")
    vm.write("register", ":native:M::\\x7fELF\\x02\\x01\\x01::/nowhere:")
    try:
        time.sleep(0.3)
    finally:
        vm.write("status", "-1")
    eventually(lambda: {"x", "y"} <= set(vm.names()))
    time.sleep(0.3)
    assert "native" not in vm.names()


def test_a_killed_distro_leaves_its_entries(vm: Vm) -> None:
    """As wsl-binfmt-generator(8) says."""
    with vm.distro(files=OURS) as distro:
        distro.kill()
    assert {"x", "y"} <= set(vm.names())


def test_a_restart_is_not_a_stop(vm: Vm, boot: Boot) -> None:
    """A foreign program fails only while systemd-binfmt itself replaces its entry."""
    distro = boot(vm, start_limit=False)
    program = foreign_program(distro)
    with distro.launching(program) as launches:
        for _ in range(25):
            distro.systemctl("restart", SERVICE)
    assert launches.count > 100
    assert briefly(launches, 25)
    assert launches.outage < 100


def test_peers_with_the_same_rules(few_vm: Vm, boot: Boot) -> None:
    """When one of them stops, a foreign program runs again in the others within a second."""
    distros = [boot(few_vm) for _ in range(3)]
    program = foreign_program(distros[0])
    for distro in distros:
        eventually(partial(quiet, distro))
    for peer in reversed(distros[1:]):
        peer.shutdown()
        eventually(lambda: distros[0].shell(f"{program} || echo $?").strip() == "42", 1)
    time.sleep(0.2)
    assert right(few_vm)


def test_removed_by_hand_stays_removed(vm: Vm, boot: Boot) -> None:
    """As by `--reset` or `--uninstall` of the qemu images: one after the other."""
    distro = boot(vm, files=OURS)
    eventually(lambda: quiet(distro))
    for name in "x", "y":
        vm.write(name, "-1")
    vm.write("register", ":wine:M::MZ::/bin/true:")
    eventually(lambda: right(vm) and vm.names()[0] == "WSLInterop")
    time.sleep(0.7)
    distro.systemctl("kill", "--signal=KILL", "wsl-binfmt-watch.service")
    time.sleep(0.3)
    eventually(lambda: quiet(distro))
    time.sleep(0.7)
    assert not {"x", "y"} & set(vm.names())


def test_what_happens_while_the_watch_is_down(vm: Vm, boot: Boot) -> None:
    """It is repaired when systemd has started the watch again, own entries included."""
    distro = boot(vm, files={**OURS, **OF_BINFMT_SUPPORT})
    eventually(lambda: quiet(distro) and {"x", "y", "z"} <= set(vm.names()))
    for _ in range(2):
        distro.systemctl("kill", "--signal=KILL", "wsl-binfmt-watch.service")
        vm.write("status", "-1")
        vm.write("register", ":wine:M::MZ::/bin/true:")
        eventually(lambda: {"x", "y", "z"} <= set(vm.names()) and right(vm) and quiet(distro), 2)
        assert vm.names().index("WSLInterop") < vm.names().index("wine")
    vm.write("WSLInterop", "0")
    eventually(lambda: knows_that_it_is_disabled(distro))
    distro.systemctl("kill", "--signal=KILL", "wsl-binfmt-watch.service")
    vm.write("status", "-1")
    eventually(lambda: (vm.entry("WSLInterop") or "").startswith("disabled") and "x" in vm.names(), 2)


def test_bringing_back_spends_no_start_limit(vm: Vm, boot: Boot) -> None:
    """Neither systemd nor the services are asked for it."""
    distro = boot(vm, files=OURS)
    eventually(lambda: quiet(distro))
    for _ in range(10):
        vm.write("status", "-1")
        eventually(lambda: {"x", "y"} <= set(vm.names()))
    distro.systemctl("restart", SERVICE)
    assert {"x", "y"} <= set(vm.names())


@contextlib.contextmanager
def loop_disk(vm: Vm) -> Iterator[str]:
    """Make an ext4 file system on a loop device; yields the device's name."""
    image = vm.directory / "image"
    subprocess.run(["truncate", "--size=8M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    device = subprocess.run(
        ["losetup", "--find", "--show", image], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        image.unlink()


def in_use(device: str) -> bool:
    """Whether the kernel has the file system of a device mounted, wherever."""
    return Path(f"/sys/fs/ext4/{Path(device).name}").exists()


@pytest.mark.kernel
@pytest.mark.parametrize("installed", [True, False])
def test_a_stopped_distros_disk_is_not_in_use(few_vm: Vm, boot: Boot, installed: bool) -> None:
    """An own entry with F on a disk: the disk is released, while other distros start Windows and foreign programs."""
    second, third = boot(few_vm), boot(few_vm)
    foreign = foreign_program(third)
    with loop_disk(few_vm) as device, few_vm.distro(installed=installed) as distro:
        number = Path(device).stat().st_rdev
        distro.shell(f"mknod /dev/disk b {os.major(number)} {os.minor(number)}")
        distro.shell("mkdir /mnt/disk; mount -t ext4 /dev/disk /mnt/disk")
        distro.shell("cp /bin/true /mnt/disk/interpreter")
        distro.write("/etc/binfmt.d/disk.conf", ":disk:M::disk::/mnt/disk/interpreter:F\n")
        # Without us, WSL 3.0's own guard makes it fail.
        distro.systemctl("restart", SERVICE, check=installed)
        eventually(lambda: right(few_vm))
        assert "disk" in few_vm.names()
        assert in_use(device)
        with second.launching() as launches:
            distro.shutdown()
            eventually(lambda: third.shell(f"{foreign} || echo $?").strip() == "42", 1)
        if installed:
            eventually(lambda: not in_use(device), 1)
            assert "disk" not in few_vm.names()
            assert launches.failed == 0
        else:
            # This test can fail: WSL 3.0's own guard has the same effect as ours, and nothing removes the entry.
            assert in_use(device) == (few_vm.generation == "3.0")


@pytest.mark.kernel
def test_the_table_switched_off(any_vm: Vm, boot: Boot) -> None:
    """`echo 0 >status` by another distro: the watch says how to end it, and does not end it."""
    distro = boot(any_vm)
    eventually(lambda: quiet(distro))
    any_vm.write("status", "0")
    eventually(lambda: "`sudo wsl-binfmt restore` switches it on" in distro.journal("wsl-binfmt-watch.service"))
    any_vm.write("register", ":wine:M::MZ::/bin/true:")
    distro.systemctl("restart", SERVICE)
    time.sleep(0.2)
    assert not distro.interop()
    assert distro.run("wsl-binfmt", "restore") == ("the whole table was switched off (echo 0 >status): switched on\n")
    assert distro.interop()
    assert "nothing to do" in distro.run("wsl-binfmt", "restore")
    eventually(lambda: "is switched on again" in distro.journal("wsl-binfmt-watch.service"))
    assert distro.journal("wsl-binfmt-watch.service").count("switched off") == 1
