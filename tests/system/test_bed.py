# SPDX-License-Identifier: MIT
"""The test bed itself: its distros are as those of WSL are, and the machine is left as it was."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

import bed
from checks import foreign_program

if TYPE_CHECKING:
    from collections.abc import Callable

    from bed import Distro, Vm

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system

UNIT = "wsl-binfmt.service"


def test_the_machine_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has the same entries, a disabled one as well, and nothing of a Vm is left."""
    put_back = mock.Mock(wraps=bed.put_back)
    monkeypatch.setattr(bed, "put_back", put_back)
    rules = ":before:M:2:\\x00b\\x0a:\\xff\\xff\\xfe:/bin/true:PF", ":disabled:E::disabled::/bin/true:"
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
            assert all(path.exists() for path in (vm.directory, vm.cgroup, Path(f"/proc/{init}")))
    assert not any(path.exists() for path in (vm.directory, vm.cgroup, Path(f"/proc/{init}")))
    assert put_back.call_args_list == 2 * [mock.call(table, mock.ANY)]
    assert vm.directory.name not in Path("/proc/self/mountinfo").read_text()


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
    distro.shell("mount -t tmpfs of-this-test /run/lock")
    assert " of-this-test " in distro.shell(f"cat /proc/{pid}/mountinfo")
    for elsewhere in other.shell("cat /proc/self/mountinfo"), Path("/proc/1/mountinfo").read_text():
        assert "of-this-test" not in elsewhere


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
    wants = distro.path("/run/systemd/generator/sysinit.target.wants")
    with distro.replacing(bed.GENERATOR):
        distro.systemctl("daemon-reload")
        assert not wants.exists()
    distro.systemctl("daemon-reload")
    assert wants.exists()


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


@pytest.mark.parametrize("how", bed.INIT_ANSWERS)
def test_init_answers_in_another_way(vm: Vm, boot: Boot, how: str) -> None:
    distro = boot(vm, installed=False, emulators=0)
    status, seconds, _ = bed.INIT_ANSWERS[how]
    distro.init_answers(how, seconds and 0.2)
    start = time.monotonic()
    program = distro.windows_program()
    said = distro.shell(f"{program} hello || echo status $?")
    assert time.monotonic() - start >= min(seconds, 0.2)
    said = re.sub(r"\((\d+)", "(PID", said)
    assert said.endswith("status 1\n" if status else f"/init {program} {program} hello\n")
    expected = bed.INIT_ANSWERS[how][2].replace("%s", program).replace("%d", "PID")
    assert said.startswith(expected)
    distro.init_answers("")
    assert distro.interop()


def test_init_needs_a_socket(vm: Vm, boot: Boot) -> None:
    """The one that WSL_INTEROP names, if there is one; or else an ancestor's; or else it fails without a word."""
    distro = boot(vm, installed=False, emulators=0)
    program = distro.windows_program()
    with distro.interop_socket() as of_all, distro.interop_socket("7_interop") as of_a_session:
        assert distro.interop()
        for name in of_a_session, "/run/WSL/9_interop":
            assert "hello" in distro.run("env", f"WSL_INTEROP={name}", program, "hello")
        distro.path("/run/WSL/9_interop").touch()
        said = distro.run("env", "WSL_INTEROP=/run/WSL/9_interop", program, "hello", check=False)
        assert re.fullmatch(r"<3>WSL \(\d+\) ERROR: UtilConnectUnix:510: connect failed 111\n", said)
        distro.path(of_all).unlink()
        assert distro.shell(f"{program} hello || echo $?") == "1\n"
        assert "hello" in distro.run("env", f"WSL_INTEROP={of_a_session}", program, "hello")
        # A shell that has one of its own is the parent.
        assert "hello" in distro.shell(f"ln -s 7_interop /run/WSL/$$_interop; {program} hello; true")


def test_init_in_a_directory_that_was_removed(vm: Vm, boot: Boot) -> None:
    distro = boot(vm, installed=False, emulators=0)
    program = distro.windows_program()
    assert distro.shell(f"mkdir /tmp/x; cd /tmp/x; rmdir /tmp/x; {program} hello || echo $?") == "1\n"
