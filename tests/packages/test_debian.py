# SPDX-License-Identifier: MIT
"""The Debian package on a running distro: it takes effect at once, and goes without a trace."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

import bed
import roots
from checks import eventually, right
from managers import KILLED, MANAGERS, PREVIOUS_WATCH, assert_that_the_previous_release_is_gone
from wsl_binfmt import command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Boot = Callable[..., bed.Distro]

pytestmark = [pytest.mark.packages, pytest.mark.system]

DPKG = MANAGERS["dpkg"]
PACKAGE = "wsl-binfmt-generator"
GUARD = "proc-sys-fs-binfmt_misc-status.mount"
WATCH = "wsl-binfmt-watch.service"
SCRIPTS = bed.TREE / "packaging/debian/tests"


def dpkg(distro: bed.Distro, *args: str | Path) -> str:
    """Run dpkg in a distro; returns what it printed that is not its own."""
    packages = []
    for arg in args:
        if str(arg).endswith(".deb"):
            target = distro.path(f"/tmp/{os.path.basename(arg)}")
            shutil.copy(arg, target)
            arg = f"/tmp/{target.name}"
        packages.append(arg)
    return DPKG.beside_its_own(distro.run("dpkg", *packages))


def script(distro: bed.Distro, name: str) -> str:
    """Run a script of the autopkgtest in a distro."""
    return distro.run("sh", "-s", input=(SCRIPTS / name).read_text())


def services(distro: bed.Distro) -> str:
    """What the two services are for systemd."""
    names = "systemd-binfmt.service", "binfmt-support.service"
    return distro.systemctl("show", "--property=DropInPaths,NeedDaemonReload", *names) + distro.systemctl("cat", *names)


def mounts(distro: bed.Distro) -> str:
    """What is mounted in a distro."""
    return distro.run("cat", "/proc/self/mountinfo")


def lose(vm: bed.Vm) -> None:
    """Remove WSLInterop, if the boot of a distro has not."""
    if vm.entry("WSLInterop"):
        vm.write("WSLInterop", "-1")


@contextlib.contextmanager
def over_and_over(distro: bed.Distro, command: str) -> Iterator[None]:
    """Run a shell command in a distro for as long as this lasts."""
    stop = distro.path("/run/stop")
    with subprocess.Popen(distro.command("sh", "-ec", f"while [ ! -e /run/stop ]; do {command}; done")) as process:
        try:
            yield
            assert process.poll() is None
        finally:
            stop.touch()
            process.wait()
            stop.unlink()


def test_installation_takes_effect_at_once(few_vm: bed.Vm, boot: Boot, deb: Path) -> None:
    distro = boot(few_vm)
    lose(few_vm)
    assert not distro.interop()
    dpkg(distro, "--install", deb)
    assert right(few_vm)
    assert distro.interop()
    assert distro.systemctl("is-active", GUARD, WATCH).split() == ["active", "active"]
    assert distro.systemctl("is-system-running").strip() == "running"
    script(distro, "takes-effect")
    with distro.launching() as launches:
        for _ in range(3):
            distro.systemctl("restart", "systemd-binfmt.service")
    assert launches.count > 50
    assert launches.failed == 0
    assert distro.systemctl("is-system-running").strip() == "running"


def test_upgrade_without_a_failed_launch(few_vm: bed.Vm, boot: Boot, deb: Path, next_deb: Path) -> None:
    distro = boot(few_vm, files=bed.BINFMT_SUPPORT)
    dpkg(distro, "--install", deb)
    # As software does that would empty the table; it is told that it cannot.
    wipe = f"! sh -c 'echo -1 >{bed.TABLE}/status' 2>/dev/null"
    with over_and_over(distro, wipe), distro.launching() as launches:
        # The same again, a newer one, and an older one.
        for package in deb, next_deb, deb:
            assert dpkg(distro, "--install", package) == ""
            assert distro.systemctl("is-active", GUARD, WATCH).split() == ["active", "active"]
            assert (distro.run("wsl-binfmt", "--version") == "wsl-binfmt 99\n") == (package == next_deb)
    assert launches.count > 100
    assert launches.failed == 0
    assert right(few_vm)
    script(distro, "goes-away")


def test_upgrade_from_the_previous_release(few_vm: bed.Vm, boot: Boot, previous_deb: Path, deb: Path) -> None:
    distro = boot(few_vm, files={"/etc/binfmt.d/wine.conf": ":wine:M::MZ::/bin/true:\n"})
    dpkg(distro, "--install", previous_deb)
    distro.systemctl("restart", "systemd-binfmt.service")
    assert distro.systemctl("is-active", PREVIOUS_WATCH).strip() == "active"
    distro.shell(KILLED)
    with distro.launching() as launches:
        assert dpkg(distro, "--install", deb) == ""
    assert launches.count > 100
    assert launches.failed == 0
    assert_that_the_previous_release_is_gone(distro)
    assert right(few_vm)
    script(distro, "takes-effect")
    assert distro.systemctl("is-system-running").strip() == "running"
    script(distro, "goes-away")


@pytest.mark.parametrize("unit", [bed.OWN_UNIT, bed.DANGLING_UNIT], ids=["own", "dangling"])
def test_a_unit_of_the_name_that_the_watch_had_is_left_alone(
    vm: bed.Vm, boot: Boot, previous_deb: Path, deb: Path, unit: dict[str, str]
) -> None:
    """An administrator's unit by that name goes on, and nothing is said about one that is not there."""
    distro = boot(vm, files=unit)
    before = distro.systemctl("is-active", PREVIOUS_WATCH, check=False)
    dpkg(distro, "--install", previous_deb)
    assert dpkg(distro, "--install", deb) == ""
    assert distro.systemctl("is-active", GUARD, WATCH).split() == ["active", "active"]
    assert distro.systemctl("is-active", PREVIOUS_WATCH, check=False) == before
    assert dpkg(distro, "--purge", PACKAGE) == ""
    assert distro.systemctl("is-active", PREVIOUS_WATCH, check=False) == before


def test_upgrade_during_repairs(vm: bed.Vm, boot: Boot, deb: Path, next_deb: Path) -> None:
    """Something outranks WSLInterop over and over: it answers as that does, so every launch has to work."""
    distro = boot(vm)
    dpkg(distro, "--install", deb)
    rival = f"echo :r:M::MZ::/init:P >{bed.TABLE}/register; echo -1 >{bed.TABLE}/r"
    with over_and_over(distro, rival), distro.launching() as launches:
        for package in next_deb, deb, next_deb:
            dpkg(distro, "--install", package)
        restored = distro.run("journalctl", "--output=cat", f"MESSAGE_ID={command.REPAIR}").count("\n")
    assert restored > 3
    assert launches.count > 100
    assert launches.failed == 0
    eventually(lambda: right(vm))
    assert distro.interop()
    script(distro, "takes-effect")


def test_removal_leaves_nothing(few_vm: bed.Vm, boot: Boot, deb: Path) -> None:
    distro = boot(few_vm, files=bed.BINFMT_SUPPORT)
    before = services(distro), mounts(distro)
    for how in "--remove", "--purge":
        dpkg(distro, "--install", deb)
        # As a watch leaves it that is killed while it replaces WSLInterop.
        distro.systemctl("kill", "--signal=STOP", WATCH)
        few_vm.register(bed.WSL_INTEROP.replace("WSLInterop", "WSLInterop-temporary"))
        few_vm.write("WSLInterop", "-1")
        with distro.launching() as launches:
            assert dpkg(distro, how, PACKAGE) == ""
        assert launches.failed == 0
        assert right(few_vm)
        assert (services(distro), mounts(distro)) == before
    dpkg(distro, "--install", deb)
    script(distro, "goes-away")
    assert (services(distro), mounts(distro)) == before
    assert distro.interop()


def test_with_interop_disabled(few_vm: bed.Vm, boot: Boot, deb: Path) -> None:
    distro = boot(few_vm, files={"/etc/wsl.conf": "[interop]\nenabled=false\n"})
    entries = few_vm.names()
    before = mounts(distro)
    dpkg(distro, "--install", deb)
    assert "inactive" in distro.systemctl("is-active", WATCH, check=False)
    assert f" {bed.TABLE}/status " in mounts(distro)
    distro.systemctl("restart", "systemd-binfmt.service")
    assert few_vm.names() == entries
    dpkg(distro, "--purge", PACKAGE)
    assert mounts(distro) == before
    assert few_vm.names() == entries


def test_on_another_machine_nothing_happens(vm: bed.Vm, boot: Boot, deb: Path) -> None:
    distro = boot(vm, environment={"container": "other"})
    before = vm.names(), services(distro), mounts(distro)
    assert dpkg(distro, "--install", deb) == ""
    script(distro, "elsewhere")
    assert (vm.names(), services(distro), mounts(distro)) == before
    assert dpkg(distro, "--purge", PACKAGE) == ""
    assert vm.names() == before[0]


def files_of_run(distro: bed.Distro) -> str:
    """What is in /run, and since when; the journal goes on."""
    return distro.shell("find /run ! -path '/run/systemd/journal/*' -printf '%p %T@\\n' | sort")


@pytest.mark.parametrize("has_run", ["its own", "that of the distro"])
def test_in_a_chroot(vm: bed.Vm, boot: Boot, deb: Path, next_deb: Path, has_run: str) -> None:
    """As in an image that is being built; the distro around it, whose /usr, /etc and /var it has, notices nothing."""
    distro = boot(vm)
    entries = vm.names()
    shutil.copy(deb, distro.path("/root/1.deb"))
    shutil.copy(next_deb, distro.path("/root/2.deb"))
    shared = "usr etc var dev proc root" + ("" if has_run == "its own" else " run")
    distro.shell(
        "mkdir /run/wsl-binfmt; mount -t tmpfs tmpfs /mnt; "
        "cd /mnt; mkdir tmp run; cp -P /bin /sbin /lib* .; touch init; "
        f"for name in {shared}; do mkdir -p $name; mount --rbind /$name $name; done; mount --bind /init init"
    )
    before = files_of_run(distro)
    for arguments in (
        ["--install", "/root/1.deb"],
        ["--install", "/root/2.deb"],
        ["--remove", PACKAGE],
        ["--install", "/root/1.deb"],
        ["--purge", PACKAGE],
    ):
        printed = distro.run("chroot", "/mnt", "dpkg", *arguments)
        assert DPKG.beside_its_own(printed) == ""
        if arguments[0] == "--install":
            assert distro.path("/usr/lib/wsl-binfmt-generator/wsl_binfmt/__pycache__").exists()
    assert not distro.path("/usr/lib/wsl-binfmt-generator").exists()
    if has_run == "its own":
        assert not any(distro.path("/mnt/run").iterdir())
    assert files_of_run(distro) == before
    assert vm.names() == entries


def test_policy_rc_d_is_asked(vm: bed.Vm, boot: Boot, deb: Path) -> None:
    """Where it forbids to start services, the installation starts none; the generator is run."""
    policy = "#!/bin/sh\necho $2 $1 >>/tmp/asked\nexit 101\n"
    actions = f"start {GUARD}", "start wsl-binfmt-boot.service", f"restart {WATCH}"
    distro = boot(vm, files={"/usr/sbin/policy-rc.d": policy})
    lose(vm)
    refused = dpkg(distro, "--install", deb).splitlines()
    assert [line.rpartition("not running ")[2] for line in refused] == [f"'{action}'" for action in actions]
    assert distro.systemctl("is-active", GUARD, WATCH, check=False).split() == ["inactive", "inactive"]
    assert "/50-wsl-binfmt.conf" in services(distro)
    assert "WSLInterop" not in vm.names()
    assert distro.run("cat", "/tmp/asked").splitlines() == [*actions]
    distro.write("/usr/sbin/policy-rc.d", policy.replace("101", "104"))
    distro.run("dpkg-reconfigure", PACKAGE)
    assert distro.systemctl("is-active", GUARD, WATCH).split() == ["active", "active"]
    assert right(vm)
    script(distro, "goes-away")


def test_ubuntus_former_drop_in_is_lifted(few_vm: bed.Vm, boot: Boot, deb: Path) -> None:
    """As packaging/README.md says."""
    drop_in = "/usr/lib/systemd/system/systemd-binfmt.service.d/wsl.conf"
    distro = boot(few_vm, files={drop_in: "[Unit]\nConditionVirtualization=!wsl\n"})
    dpkg(distro, "--install", deb)
    assert "qemu-aarch64" not in few_vm.names()
    readme = (bed.TREE / "packaging/README.md").read_text()
    (commands,) = (block for block in re.findall("```sh\n(.*?)```", readme, re.DOTALL) if "/dev/null" in block)
    with distro.launching() as launches:
        distro.shell(commands)
    assert launches.failed == 0
    assert "qemu-aarch64" in few_vm.names()
    assert distro.systemctl("is-system-running").strip() == "running"


# Of what the package depends on: a directory of debconf, and what usrmerge writes on Debian 11.
LEFT_BY_OTHERS = "/var/cache/debconf/tmp.ci/", "/etc/shells"


def test_piuparts(tmp_path: Path, root: Path, previous_deb: Path, deb: Path) -> None:
    """An upgrade from the previous release, removal and purge leave the root of a suite as it was."""
    archive = tmp_path / "archive"
    archive.mkdir()
    shutil.copy(previous_deb, archive)
    with open(archive / "Packages", "wb") as index:
        subprocess.run(["dpkg-scanpackages", "."], cwd=archive, stdout=index, stderr=subprocess.DEVNULL, check=True)
    done = subprocess.run(
        [
            # It ends all processes that have a file of its root, also those that have it from elsewhere.
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
            "piuparts", f"--distribution={root.name.partition('-')[0]}", f"--mirror={roots.MIRROR} main",
            f"--existing-chroot={root}", f"--bindmount={archive}",
            f"--extra-repo=deb [trusted=yes] file://{archive} ./",
            "--no-check-valid-until", "--no-install-purge-test", *(f"--ignore={path}" for path in LEFT_BY_OTHERS), deb,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "PASS: Installation, upgrade and purging tests." in done.stdout


IN_A_ROOT = """
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
for directory in proc sys dev; do
        mount --rbind /$directory root/$directory
done
mount -t tmpfs tmpfs root/run
mount -t tmpfs tmpfs root/tmp
# Of the test bed, for one on a machine.
mkdir root/run/lock
mount --bind /run/lock root/run/lock
cp "$2"/dist/*.dsc "$2"/dist/*_* root/root
# Not chroot: nsenter(1), in the test bed, goes to the root of the mounts.
cd root
# man-db would read all pages, three times.
rm -f var/lib/man-db/auto-update
mkdir old
pivot_root . old
umount -l old
rmdir old
cd /root
exec autopkgtest --no-built-binaries ./*.deb ./*.dsc -- null
"""


def test_the_autopkgtest(tmp_path: Path, release: Path) -> None:
    """Of the source package, in a root of its own."""
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-ec", IN_A_ROOT, "-", tmp_path, release],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    summary = re.findall(r"^(\S+) +(PASS|FAIL|SKIP)", done.stdout.rpartition(" summary")[2], re.MULTILINE)
    # No systemd runs in that root, which `elsewhere` is about.
    assert summary == [("wsl", "PASS"), ("not-wsl", "SKIP")], done.stdout
