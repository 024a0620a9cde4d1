# SPDX-License-Identifier: MIT
"""The test bed itself: its distros are as those of WSL are, and the machine is left as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bed
from checks import foreign_program

if TYPE_CHECKING:
    from collections.abc import Callable

    from bed import Distro, Vm

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system

UNIT = "wsl-binfmt.service"


def machine() -> list[str]:
    """What a test must leave as it was: mounts, loop devices, cgroups, and directories of the bed."""
    return [
        Path("/proc/1/mountinfo").read_text(),
        subprocess.run(["losetup", "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout,
        *map(str, [*bed.cgroup_root().glob(f"{bed.PREFIX}*"), *Path("/tmp").glob(f"{bed.PREFIX}*")]),
    ]


def test_the_machine_is_left_as_it_was() -> None:
    """The table has the same entries, a disabled one as well, and nothing of a Vm is left."""
    rules = ":before:M:2:\\x00b\\x0a:\\xff\\xff\\xfe:/bin/true:PF", ":disabled:E::disabled::/bin/true:"
    before = machine()
    with bed.Vm() as vm:
        table = vm.table
        bed.wipe(table)
        for rule in rules:
            (table / "register").write_text(rule)
        (table / "disabled").write_text("0")
        expected = bed.entries(table)
        bed.wipe(table)
        (table / "register").write_text(":later:M::later::/bin/true:")
        bed.put_back(table, expected)
        assert bed.entries(table) == expected
        with vm.distro() as distro:
            init = distro.pid
            distro.shell("mount -t tmpfs tmpfs /run/lock; sleep infinity >/dev/null 2>&1 &")
    assert machine() == before
    assert not Path(f"/proc/{init}").exists()


def test_what_wsl_mounts_is_shared(vm: Vm, boot: Boot) -> None:
    """A mount in a distro reaches a service with mounts of its own, and neither another distro nor the machine."""
    sandboxed = {"/etc/systemd/system/sandboxed.service": "[Service]\nPrivateTmp=yes\nExecStart=sleep infinity\n"}
    distro, other = boot(vm, installed=False, files=sandboxed), boot(vm, installed=False)
    shared = {
        fields[4]
        for fields in map(str.split, distro.shell("cat /proc/self/mountinfo").splitlines())
        if fields[6].startswith("shared:")
    }
    assert shared >= {"/proc", "/sys", "/run", "/dev", bed.TABLE}
    assert not shared & {"/", "/init", "/tmp"}
    distro.systemctl("start", "sandboxed.service")
    pid = distro.systemctl("show", "--property=MainPID", "--value", "sandboxed.service").strip()
    before = Path("/proc/1/mountinfo").read_text(), other.shell("cat /proc/self/mountinfo")
    distro.shell(f"mount --bind /dev/null {bed.TABLE}/status")
    assert f" {bed.TABLE}/status " in distro.shell(f"cat /proc/{pid}/mountinfo")
    assert (Path("/proc/1/mountinfo").read_text(), other.shell("cat /proc/self/mountinfo")) == before


def test_a_session_has_mounts_of_its_own(vm: Vm, boot: Boot) -> None:
    distro = boot(vm, installed=False)
    with distro.session() as session:
        distro.shell("mount --bind /etc /mnt; mount -t tmpfs tmpfs /run/lock")
        assert distro.path("/mnt/hostname").exists()
        assert not session.path("/mnt/hostname").exists()
        # What is shared reaches it.
        assert "/run/lock tmpfs" in session.shell("tail -n 1 /proc/mounts")
        assert session.interop() == distro.interop()
        session.shell("umount /init")
        assert session.path("/init").stat().st_size == 0
        assert distro.path("/init").stat().st_size > 0


@pytest.mark.parametrize("any_vm", ["2.0.9"], indirect=True)
@pytest.mark.parametrize("conf", ["", "[boot]\nprotectBinfmt=false\n"])
def test_the_unit_of_2_0_9(any_vm: Vm, boot: Boot, conf: str) -> None:
    """It is there when systemd starts, until the first daemon-reload."""
    distro = boot(any_vm, installed=False, files={"/etc/wsl.conf": conf})
    assert ("WSLInterop-late" in any_vm.names()) == (not conf)
    for expected in "not-found" if conf else "loaded", "not-found":
        assert distro.systemctl("show", "--property=LoadState", "--value", UNIT).strip() == expected
        distro.systemctl("daemon-reload")


@pytest.mark.parametrize("any_vm", ["3.0"], indirect=True)
def test_the_lock_of_3_0(any_vm: Vm, boot: Boot) -> None:
    """The service of systemd 252 fails, as its wipe is refused; by another mount, the table can be wiped."""
    distro = boot(any_vm, installed=False)
    assert distro.wait_until_up() == "degraded"
    assert "Read-only" in distro.shell(f"echo -1 >{bed.TABLE}/status", check=False)
    assert "WSLInterop" in any_vm.names()
    any_vm.write("status", "-1")
    assert any_vm.names() == []


@pytest.mark.parametrize("emulators", [0, 1, 30])
def test_rules_are_those_of_the_bed(vm: Vm, boot: Boot, emulators: int) -> None:
    """Whatever the machine has installed."""
    distro = boot(vm, emulators=emulators, installed=False)
    state = distro.systemctl("is-active", "systemd-binfmt.service", check=False).strip()
    assert state == ("active" if emulators else "inactive")
    rules = [bed.emulator_rule(number).split(":")[1] for number in range(emulators)]
    assert sorted(rules or ["WSLInterop"]) == sorted(vm.names())
    if emulators:
        program = foreign_program(distro)
        assert distro.shell(f"{program} hello || echo $?") == f"/usr/bin/emulator {program} {program} hello\n42\n"


def test_systemd_binfmt_run_directly(vm: Vm, boot: Boot) -> None:
    distro = boot(vm, installed=False)
    vm.register(bed.WSL_INTEROP)
    distro.systemd_binfmt()
    assert vm.names() == ["qemu-aarch64"]


def test_an_entry_of_a_container(vm: Vm, boot: Boot) -> None:
    """It works where no distro has its interpreter, after the container has ended."""
    vm.container_registers(":theirs:M::theirs::/usr/bin/theirs:PF")
    distro = boot(vm, installed=False, emulators=0)
    assert (vm.entry("theirs") or "").startswith("enabled\ninterpreter /usr/bin/theirs\nflags: PF\n")
    assert not distro.path("/usr/bin/theirs").exists()
    program = distro.windows_program("/tmp/theirs", b"theirs")
    assert distro.shell(f"{program} hello || echo $?") == f"/usr/bin/theirs {program} {program} hello\n42\n"


def test_a_generator_that_fails_once(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    with distro.replacing(bed.GENERATOR):
        distro.systemctl("daemon-reload")
        assert list(distro.path("/run/systemd/generator").glob("*status.mount")) == []
    distro.systemctl("daemon-reload")
    assert distro.path("/run/systemd/generator/sysinit.target.wants").exists()


def test_peoples_own_unit(vm: Vm, boot: Boot) -> None:
    distro = boot(vm, installed=False, files=bed.OWN_UNIT)
    assert distro.systemctl("is-active", UNIT).strip() == "active"
    assert "WSLInterop" in vm.names()
    distro = boot(vm, installed=False, files=bed.DANGLING_UNIT)
    assert distro.systemctl("show", "--property=LoadState", "--value", UNIT).strip() == "not-found"
    assert distro.wait_until_up() == "running"


def test_ape(vm: Vm, boot: Boot) -> None:
    """Its rule is registered after WSLInterop, and does not take ordinary Windows programs."""
    distro = boot(vm, installed=False, emulators=0, files=bed.APE)
    assert vm.names() == ["APE", "WSLInterop"]
    program = distro.windows_program("/tmp/x.llamafile", bed.APE_MAGIC)
    assert distro.answer(program) == f"/usr/bin/ape {program} hello"
    assert distro.interop()
