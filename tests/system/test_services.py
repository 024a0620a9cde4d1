# SPDX-License-Identifier: MIT
"""A Windows program starts, whatever happens to the two services that register entries."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from bed import BINFMT_SUPPORT, Vm
from checks import briefly, eventually, foreign_program, inodes, right

if TYPE_CHECKING:
    from collections.abc import Callable

    from bed import Distro

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system

SYSTEMD_BINFMT = "systemd-binfmt.service"
RIVAL = ":wine:M::MZ::/bin/true:\n"
BINFMT_D = {
    "as it is": {},
    "a rival": {"/etc/binfmt.d/wine.conf": RIVAL},
    "a rival with F": {"/etc/binfmt.d/wine.conf": ":wine:M::MZ::/bin/true:F\n"},
    "a rival for extensions": {"/etc/binfmt.d/exe.conf": ":exe:E::exe::/bin/true:\n"},
    "a rival in /usr": {"/usr/lib/binfmt.d/wine.conf": "# wine\n" + RIVAL + "\n:x:M::xx::/bin/true:\n"},
    "WSLInterop itself": {"/etc/binfmt.d/WSLInterop.conf": ":WSLInterop:M::MZ::/init:PF\n"},
    "WSLInterop without F": {"/usr/lib/binfmt.d/wsl.conf": ":WSLInterop:M::MZ::/init:P\n"},
    "WSLInterop as WSL's own test": {"/etc/binfmt.d/wsl.conf": ":WSLInterop:M::MZ::/bin/echo:PF\n"},
}

WINE_OF_BINFMT_SUPPORT = {
    **BINFMT_SUPPORT,
    "/var/lib/binfmts/wine": "wine\nmagic\n0\nMZ\n\n/bin/true\n\n\n\n\n",
}


# What else there is in binfmt.d is the same for systemd-binfmt, whatever WSL adds.
FOR_EACH_WSL = "a rival", "WSLInterop itself", "WSLInterop without F"


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("few_vm", "content"),
    [
        *(("none", content) for content in BINFMT_D),
        *((generation, content) for generation in ("2.6", "3.0") for content in FOR_EACH_WSL),
    ],
    indirect=["few_vm"],
)
def test_every_launch_works(few_vm: Vm, boot: Boot, content: str) -> None:
    distro = boot(few_vm, files=BINFMT_D[content], start_limit=False)
    assert distro.wait_until_up() == "running"
    assert distro.interop()
    with distro.launching() as launches:
        for _ in range(2):
            distro.systemctl("restart", SYSTEMD_BINFMT)
            assert right(few_vm)
            distro.systemctl("stop", SYSTEMD_BINFMT)
            assert right(few_vm)
            distro.systemctl("start", SYSTEMD_BINFMT)
            # A rule by the name of WSLInterop may be refused ("File exists") while the watch mends what it registered.
            eventually(lambda: right(few_vm))
            distro.systemctl("reload", SYSTEMD_BINFMT)
            assert right(few_vm)
            distro.systemctl("daemon-reload")
            distro.systemctl("restart", SYSTEMD_BINFMT)
    assert launches.count > 100
    # The service registers a rival anew each time, and one launch may come before the watch.
    assert launches.failed == 0 or (re.search("MZ|exe", "".join(BINFMT_D[content].values())) and briefly(launches, 8))
    assert distro.interop()
    # What is not WSL's is there as well, but for rules that call themselves so.
    for text in BINFMT_D[content].values():
        for line in text.splitlines():
            if line.startswith(":") and not line.startswith(":WSLInterop:"):
                assert few_vm.entry(line.split(":")[1])


@pytest.mark.parametrize(("content", "restarts"), [("as it is", 50), ("a rival", 25)])
def test_many_restarts(few_vm: Vm, boot: Boot, content: str, restarts: int) -> None:
    distro = boot(few_vm, files=BINFMT_D[content], start_limit=False, emulators=30)
    with distro.launching() as launches:
        distro.shell(f"for number in $(seq {restarts}); do systemctl restart {SYSTEMD_BINFMT}; done")
    assert launches.count > 10 * restarts
    assert launches.failed == 0 or (content == "a rival" and briefly(launches, restarts))


@pytest.mark.parametrize("generation", ["none", "2.6"])
def test_without_us_launches_fail(generation: str) -> None:
    """The test above can fail: what WSL does itself does not pass it."""
    with Vm(generation) as vm, vm.distro(installed=False) as distro, distro.launching() as launches:
        for _ in range(4):
            distro.systemctl("restart", SYSTEMD_BINFMT)
    assert launches.failed > 0


def test_a_read_only_table_is_left_alone(read_only_vm: Vm, boot: Boot) -> None:
    distro = boot(read_only_vm, files=WINE_OF_BINFMT_SUPPORT)
    assert distro.wait_until_up() == "running"
    for unit in SYSTEMD_BINFMT, "binfmt-support.service":
        distro.systemctl("restart", unit)
    assert distro.interop()
    assert "is read-only: nothing to do" in distro.run("wsl-binfmt", "restore")
    assert distro.systemctl("is-system-running").strip() == "running"


def test_without_the_table_nothing_fails(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    distro.systemctl("stop", SYSTEMD_BINFMT)
    distro.shell("umount -l /proc/sys/fs/binfmt_misc/status; umount -l /proc/sys/fs/binfmt_misc")
    distro.systemctl("start", SYSTEMD_BINFMT, "wsl-binfmt-watch.service")
    assert "is not mounted: nothing to do" in distro.run("wsl-binfmt", "restore")
    assert distro.systemctl("is-system-running").strip() == "running"


def test_a_refused_rule(few_vm: Vm, boot: Boot) -> None:
    distro = boot(few_vm, files={"/etc/binfmt.d/bad.conf": ":bad:M::\n:other:M::other::/bin/true:\n"})
    assert distro.wait_until_up() == "degraded"
    assert distro.interop()
    with distro.launching() as launches:
        for _ in range(3):
            assert "failed" in distro.systemctl("restart", SYSTEMD_BINFMT, check=False)
            assert right(few_vm)
    assert launches.failed == 0
    assert "/etc/binfmt.d/bad.conf:1: " in distro.journal(SYSTEMD_BINFMT)


@pytest.mark.parametrize("setting", ["ExecStart", "ExecStartPost"])
@pytest.mark.parametrize("path", ["/etc/{}/override.conf", "/usr/lib/{}/wsl.conf"])
@pytest.mark.parametrize("rule", [":WSLInterop:M::MZ::/init:PF", ":WSLInterop:M::MZ::/init:P"])
def test_beside_a_drop_in_that_registers_it(setting: str, path: str, rule: str, vm: Vm, boot: Boot) -> None:
    """As many have been advised to have; it fails if the entry is there. Its last line need not end with a newline."""
    drop_in = f"[Service]\n{setting}=/bin/sh -c 'echo {rule} >/proc/sys/fs/binfmt_misc/register'"
    distro = boot(vm, files={path.format(f"systemd/system/{SYSTEMD_BINFMT}.d"): drop_in}, start_limit=False)
    assert distro.wait_until_up() == "running"
    with distro.launching() as launches:
        for _ in range(5):
            distro.systemctl("restart", SYSTEMD_BINFMT)
            assert vm.entry("WSLInterop")
        assert eventually(lambda: right(vm)) < 2
    assert launches.failed == 0
    assert distro.interop()


def test_beside_a_drop_in_that_only_names_it(vm: Vm, boot: Boot) -> None:
    """A comment is no reason to remove the entry, which stays the one that it was."""
    comment = "# see :WSLInterop: in /proc/sys/fs/binfmt_misc/register\n[Unit]\n"
    distro = boot(vm, files={f"/etc/systemd/system/{SYSTEMD_BINFMT}.d/x.conf": comment})
    before = inodes(vm)["WSLInterop"]
    distro.systemctl("restart", SYSTEMD_BINFMT)
    distro.systemctl("mask", "--now", "wsl-binfmt-watch.service")
    distro.systemctl("restart", SYSTEMD_BINFMT)
    assert right(vm)
    assert inodes(vm)["WSLInterop"] == before


def test_a_rule_in_a_file_of_the_longest_name(vm: Vm, boot: Boot) -> None:
    """It is the name of a file that is shown to the service as well."""
    long = {f"/etc/binfmt.d/{'m' * 250}.conf": ":long:M::long::/bin/true:\n"}
    distro = boot(
        vm, files={**long, "/etc/binfmt.d/wine.conf": RIVAL, "/etc/binfmt.d/z.conf": ":z:M::zz::/bin/true:\n"}
    )
    assert {"long", "wine", "z"} <= set(vm.names())
    assert right(vm)
    assert distro.wait_until_up() == "running"


def test_a_reload_with_a_refused_rule_fails(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    distro.write("/etc/binfmt.d/bad.conf", ":bad:M::\n")
    assert "failed" in distro.systemctl("reload", SYSTEMD_BINFMT, check=False)
    assert right(vm)


def test_beside_an_administrators_override(few_vm: Vm, boot: Boot) -> None:
    distro = boot(
        few_vm,
        files={
            f"/etc/systemd/system/{SYSTEMD_BINFMT}.d/override.conf": "[Service]\nExecStartPost=/bin/touch /run/edited\n"
        },
    )
    assert distro.path("/run/edited").exists()
    distro.systemctl("restart", SYSTEMD_BINFMT)
    assert right(few_vm)


def test_the_documented_condition_override(any_vm: Vm, boot: Boot) -> None:
    distro = boot(
        any_vm,
        files={f"/etc/systemd/system/{SYSTEMD_BINFMT}.d/override.conf": "[Unit]\nConditionVirtualization=!wsl\n"},
    )
    assert "inactive" in distro.systemctl("is-active", SYSTEMD_BINFMT, check=False)
    distro.systemctl("restart", SYSTEMD_BINFMT)
    assert "inactive" in distro.systemctl("is-active", SYSTEMD_BINFMT, check=False)
    assert distro.interop()


def test_an_entry_disabled_by_hand_stays_so(any_vm: Vm, boot: Boot) -> None:
    distro = boot(any_vm, files=BINFMT_D["WSLInterop itself"])
    distro.shell("echo 0 >/proc/sys/fs/binfmt_misc/WSLInterop")
    for verb in "restart", "reload", "restart", "stop", "start":
        distro.systemctl(verb, SYSTEMD_BINFMT)
        assert (any_vm.entry("WSLInterop") or "").startswith("disabled\n")
        assert any_vm.entry("WSLInterop-temporary") is None
    assert "was disabled by hand, and stays so" in distro.run("wsl-binfmt", "restore")
    assert (any_vm.entry("WSLInterop") or "").startswith("disabled\n")
    if any_vm.generation != "2.0.9":  # which has one more entry that /init handles Windows programs by
        assert not distro.interop()
    distro.shell("echo 1 >/proc/sys/fs/binfmt_misc/WSLInterop")
    assert distro.interop()


@pytest.mark.kernel
def test_programs_that_see_no_init(any_vm: Vm, boot: Boot) -> None:
    """F keeps /init open: for a chroot, a mount namespace, and when the distro that registered is gone."""
    with any_vm.distro() as registrar:
        any_vm.write("WSLInterop", "-1")
        eventually(lambda: right(any_vm))
        registrar.systemctl("restart", SYSTEMD_BINFMT)
    distro = boot(any_vm, installed=False, files={f"/etc/systemd/system/{SYSTEMD_BINFMT}": "-> /dev/null"})
    assert right(any_vm)
    assert distro.interop()
    if any_vm.entry("WSLInterop-late"):  # WSL's own, which comes first where no watch is, and has no F
        any_vm.write("WSLInterop-late", "-1")
    distro.path("/tmp/elsewhere").mkdir()
    program = distro.windows_program("/tmp/elsewhere/program.exe")
    assert distro.run("chroot", "/tmp/elsewhere", "/program.exe", "hello").startswith("/init /program.exe")
    answer = distro.run(
        "unshare", "--mount", "sh", "-c", f"umount /init; mount --bind /dev/null /init; {program} hello"
    )
    assert answer.startswith(f"/init {program}")


def test_nothing_but_what_is_wrong_is_rewritten(any_vm: Vm, boot: Boot) -> None:
    distro = boot(any_vm)
    any_vm.write("register", ":theirs:M::theirs::/bin/true:")
    before = {name: (any_vm.table / name).stat().st_ino for name in any_vm.names()}
    distro.run("wsl-binfmt", "restore")
    assert {name: (any_vm.table / name).stat().st_ino for name in any_vm.names()} == before
    any_vm.write("register", RIVAL.strip())
    distro.run("wsl-binfmt", "restore")
    after = {name: (any_vm.table / name).stat().st_ino for name in any_vm.names()}
    assert {name for name in before if after[name] != before[name]} == {"WSLInterop"}
    assert "wine" in after
    distro.systemctl("restart", SYSTEMD_BINFMT)
    assert {"theirs", "wine"} <= set(any_vm.names())


def test_binfmt_support(few_vm: Vm, boot: Boot) -> None:
    distro = boot(few_vm, files=WINE_OF_BINFMT_SUPPORT)
    assert distro.wait_until_up() == "running"
    assert few_vm.entry("wine")
    assert distro.interop()
    for verb in "restart", "reload", "stop", "start":
        distro.systemctl(verb, "binfmt-support.service")
        assert right(few_vm)
        assert distro.interop()
    assert few_vm.entry("wine")


def test_an_emulator_works_too(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    program = foreign_program(distro)
    for _ in range(2):
        assert distro.shell(f"{program} hello || echo $?") == f"/usr/bin/emulator {program} {program} hello\n42\n"
        distro.systemctl("restart", SYSTEMD_BINFMT)
    assert distro.interop()
