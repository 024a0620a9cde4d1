# SPDX-License-Identifier: MIT
"""Machines that people have: units and drop-ins of WSL and of administrators, APE, what is broken for a moment."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

import bed
from checks import WATCH, eventually, inodes, knows_that_it_is_disabled, quiet, right

if TYPE_CHECKING:
    from collections.abc import Callable

    from bed import Distro, Vm

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system

SERVICE = "systemd-binfmt.service"
RIVAL = ":wine:M::MZ::/bin/true:"
REGISTER = f"ExecStart=/bin/sh -c 'echo {bed.WSL_INTEROP} >{bed.TABLE}/register'\n"
OTHER_UNIT = {
    "/etc/systemd/system/fix-interop.service": f"[Unit]\nAfter={SERVICE}\n[Service]\nType=oneshot\n{REGISTER}",
    f"{bed.WANTS}/fix-interop.service": "-> ../fix-interop.service",
}


@pytest.mark.parametrize("files", [bed.OWN_UNIT, bed.DANGLING_UNIT, OTHER_UNIT], ids=["own", "dangling", "other"])
def test_units_of_peoples_own(any_vm: Vm, boot: Boot, files: dict[str, str]) -> None:
    """The watch runs and repairs a wipe, and a unit that would fail as WSLInterop is there is not started."""
    distro = boot(any_vm, files=files)
    assert distro.wait_until_up() == "running"
    eventually(lambda: quiet(distro))
    any_vm.write("status", "-1")
    eventually(lambda: right(any_vm) and distro.interop() and "qemu-aarch64" in any_vm.names())


def test_wsls_own_override_is_masked_and_an_administrators_is_not(vm: Vm, boot: Boot) -> None:
    override = f"/etc/systemd/system/{SERVICE}.d/override.conf"
    distro = boot(vm, files={override: "[Service]\nEnvironment=X=1\n"})
    shown = distro.systemctl("show", "--property=DropInPaths,Environment", SERVICE)
    assert override in shown
    assert "X=1" in shown
    assert "/run/systemd/generator.early/binfmt-support.service.d/override.conf" in distro.systemctl(
        "show", "--property=DropInPaths", "binfmt-support.service"
    )


@pytest.mark.kernel
def test_ape_stays_in_front(few_vm: Vm, boot: Boot) -> None:
    """A llamafile runs natively, whatever is done to WSLInterop; /init handles ordinary Windows programs."""
    distro = boot(few_vm, files={**bed.APE, "/etc/binfmt.d/ours.conf": ":ours:M::ours::/bin/true:\n"})
    eventually(lambda: quiet(distro) and "APE" in few_vm.names())
    ape = distro.windows_program("/tmp/x.llamafile", bed.APE_MAGIC)
    programs = [
        distro.windows_program(f"/tmp/{number}.exe", start)
        for number, start in enumerate((b"MZ\x90\0\x03", b"MZP\0\x02", b"MZx\0\x01", b"MZ\0\0\0"))
    ]

    def is_right() -> bool:
        return (
            right(few_vm)
            and distro.answer(ape).startswith("/usr/bin/ape")
            and all(distro.answer(program).startswith("/init") for program in programs)
        )

    eventually(is_right)
    before = inodes(few_vm)
    time.sleep(0.3)
    assert inodes(few_vm) == before
    for verb in "restart", "reload":
        distro.systemctl(verb, SERVICE)
        eventually(is_right)
    few_vm.write("register", RIVAL)
    eventually(is_right)
    few_vm.write("WSLInterop", "-1")
    eventually(is_right)
    few_vm.write("WSLInterop", "-1")
    few_vm.write("register", RIVAL.replace("wine", "mono"))
    eventually(is_right)
    names = few_vm.names()
    assert names.index("APE") < names.index("WSLInterop") < min(names.index("wine"), names.index("mono"))
    distro.shutdown()
    distro = boot(few_vm, files=bed.APE)
    distro.windows_program("/tmp/x.llamafile", bed.APE_MAGIC)
    for number, start in enumerate((b"MZ\x90\0\x03", b"MZP\0\x02", b"MZx\0\x01", b"MZ\0\0\0")):
        distro.windows_program(f"/tmp/{number}.exe", start)
    eventually(is_right)


def test_apes_unit_does_not_fail(few_vm: Vm, boot: Boot) -> None:
    """The one of llamafile's documentation, where nothing has emptied the table since the distro ran before."""
    for _ in range(2):
        distro = boot(few_vm, files=bed.APE)
        assert distro.wait_until_up() == "running"
        eventually(lambda: "APE" in few_vm.names())
        distro.shutdown()


def test_a_unit_that_registers_more(few_vm: Vm, boot: Boot) -> None:
    """WSLInterop is there, and the next line counts all the same."""
    unit = next(path for path in bed.APE if path.endswith("/system/cosmo-binfmt.service"))
    files = {**bed.APE, unit: bed.APE[unit].replace("ExecStart=", f"{REGISTER}ExecStart=")}
    for _ in range(2):
        distro = boot(few_vm, files=files)
        assert distro.wait_until_up() == "running"
        assert right(few_vm)
        assert "APE" in few_vm.names()
        distro.shutdown()


@pytest.mark.parametrize("line", [REGISTER, REGISTER.replace("Start=", "StartPost=")], ids=["start", "start-post"])
def test_a_copy_of_the_service(vm: Vm, boot: Boot, line: str) -> None:
    """As `systemctl edit --full` makes one, that registers WSLInterop as well."""
    distro = boot(vm)
    copy = distro.path(f"/usr/lib/systemd/system/{SERVICE}").read_text()
    last = [start for start in copy.splitlines(keepends=True) if start.startswith("ExecStart=")][-1]
    distro.shutdown()
    distro = boot(vm, files={f"/etc/systemd/system/{SERVICE}": copy.replace(last, last + line)})
    assert distro.wait_until_up() == "running"
    inode = (vm.table / "WSLInterop").stat().st_ino
    vm.write("qemu-aarch64", "-1")
    for verb in "restart", "reload":
        distro.systemctl(verb, SERVICE)
        eventually(lambda: quiet(distro) and "qemu-aarch64" in vm.names())
    assert (vm.table / "WSLInterop").stat().st_ino == inode


def test_an_entry_for_ape_of_another_distro(vm: Vm, boot: Boot) -> None:
    """A distro in which its interpreter is not there restores WSLInterop; the one that has it puts APE in front."""
    distro, _ = boot(vm, files=bed.APE), boot(vm)
    ape = distro.windows_program("/tmp/x.llamafile", bed.APE_MAGIC)
    for _ in range(3):
        vm.write("register", RIVAL)
        eventually(lambda: distro.answer(ape).startswith("/usr/bin/ape") and right(vm) and distro.interop())
        vm.write("wine", "-1")


def test_disabled_at_every_instant(few_vm: Vm, boot: Boot) -> None:
    """After `echo 0 >WSLInterop`, no program starts because of the watch, through wipes, losses and restarts."""
    distros = [boot(few_vm, start_limit=False) for _ in range(2)]
    for distro in distros:
        eventually(partial(quiet, distro))
    few_vm.write("WSLInterop", "0")
    if few_vm.entry("WSLInterop-late"):
        few_vm.write("WSLInterop-late", "-1")
    # If the table is emptied before a watch has seen that, nothing says so any more.
    for distro in distros:
        eventually(partial(knows_that_it_is_disabled, distro))
    with distros[0].launching() as launches:
        for _ in range(10):
            few_vm.write("status", "-1")
            eventually(lambda: (few_vm.entry("WSLInterop") or "").startswith("disabled"))
            few_vm.write("WSLInterop", "-1")
            eventually(lambda: (few_vm.entry("WSLInterop") or "").startswith("disabled"))
            # Where the other distro brings an entry of the same name back at this instant, the service fails.
            distros[0].systemctl("restart", SERVICE, check=False)
            distros[0].systemctl("reload", SERVICE, check=False)
    assert launches.count > 100
    assert launches.failed == launches.count
    few_vm.write("WSLInterop", "1")
    eventually(lambda: right(few_vm) and distros[0].interop())
    time.sleep(0.2)
    assert right(few_vm)


def test_the_generator_fails_once(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    eventually(lambda: quiet(distro))
    with distro.replacing(bed.GENERATOR):
        distro.systemctl("daemon-reload")
        assert quiet(distro)
        vm.write("status", "-1")
        eventually(lambda: right(vm))
    distro.systemctl("daemon-reload")
    assert quiet(distro)


def test_python_is_broken_for_a_moment(vm: Vm, boot: Boot) -> None:
    """As during an upgrade: the watch that runs goes on, and one that was killed is back afterwards."""
    distro = boot(vm)
    eventually(lambda: quiet(distro))
    with distro.replacing("/usr/bin/python3"):
        vm.write("status", "-1")
        eventually(lambda: right(vm))
        distro.systemctl("kill", "--signal=KILL", WATCH)
        time.sleep(1)
    vm.write("status", "-1")
    eventually(lambda: right(vm) and quiet(distro))
    assert distro.wait_until_up() == "running"


def test_a_repair_during_a_daemon_reload(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    eventually(lambda: quiet(distro))
    distro.write("/run/systemd/system-generators/slow", "#!/bin/sh\nsleep 2\n")
    distro.path("/run/systemd/system-generators/slow").chmod(0o755)
    distro.systemctl("daemon-reload", "--no-block")
    time.sleep(0.3)
    start = time.monotonic()
    vm.write("status", "-1")
    eventually(lambda: right(vm))
    assert time.monotonic() - start < 1


def test_what_the_journal_says_of_a_repair(vm: Vm, boot: Boot) -> None:
    """A repair has an ID, and neither it nor what the watch cannot do is an error."""
    distro = boot(vm)
    eventually(lambda: quiet(distro))
    vm.write("status", "-1")
    eventually(lambda: right(vm))

    def repairs() -> list[dict[str, str]]:
        said = distro.run("journalctl", "--quiet", "--output=json", "MESSAGE_ID=8f9b5d1c6a5e4d0f9d2c7f3b1e6a4c58")
        return [json.loads(line) for line in said.splitlines()]

    eventually(repairs)
    assert repairs()[0]["MESSAGE"] == "WSLInterop is missing: restored"
    assert repairs()[0]["_SYSTEMD_UNIT"] == WATCH
    assert repairs()[0]["PRIORITY"] == "5"


def test_entries_of_a_container_stay(vm: Vm) -> None:
    """No rule of the distro makes them: README says so."""
    vm.container_registers(":qemu-arm:M::xxxx::/usr/bin/qemu-arm-static:F")
    with vm.distro() as distro:
        eventually(lambda: quiet(distro))
        distro.shutdown()
    assert "qemu-arm" in vm.names()
    assert "qemu-aarch64" not in vm.names()
