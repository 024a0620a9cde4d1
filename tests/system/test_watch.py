# SPDX-License-Identifier: MIT
"""What is removed or outranked is restored at once, whichever program did that, and nothing else is changed."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import bed
from checks import all_quiet, eventually, inodes, no_jobs, quiet, right

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bed import Distro, Vm

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system

RIVAL = ":wine:M::MZ::/bin/true:"
OURS = {"/etc/binfmt.d/ours.conf": ":ours:M::ours::/bin/true:\n"}
NO_BINFMT_D = {"/usr/lib/systemd/system/systemd-binfmt.service": "-> /dev/null"}


def inode(vm: Vm) -> int:
    return inodes(vm)["WSLInterop"]


@pytest.mark.kernel
def test_a_boot_into_a_wiped_table(any_vm: Vm, boot: Boot) -> None:
    any_vm.write("status", "-1")
    # Nothing else is there to bring it back, and it is there before sysinit.target.
    distro = boot(
        any_vm,
        files={
            **NO_BINFMT_D,
            "/etc/systemd/system/early.service": "[Unit]\nDefaultDependencies=no\nAfter=sysinit.target\n"
            "[Service]\nType=oneshot\nExecStart=/bin/cp /proc/sys/fs/binfmt_misc/WSLInterop /run/early\n",
            "/etc/systemd/system/multi-user.target.wants/early.service": "-> ../early.service",
        },
    )
    assert distro.path("/run/early").read_text() == any_vm.entry("WSLInterop")
    assert right(any_vm)
    assert distro.interop()


@pytest.mark.kernel
# Of what WSL adds, only the lock of 3.0 changes how a program can wipe the table.
@pytest.mark.parametrize("few_vm", ["none", "3.0"], indirect=True)
@pytest.mark.parametrize(
    "loss",
    [
        "echo -1 >{table}/WSLInterop",
        "echo -1 >{table}/status",
        "echo ':wine:M::MZ::/bin/true:' >{table}/register",
        "echo ':pe:M:128:PE::/bin/true:' >{table}/register",
        "echo -1 >{table}/WSLInterop; echo ':WSLInterop:M::MZ::/bin/echo:' >{table}/register",
        "echo -1 >{table}/WSLInterop; echo ':WSLInterop:M::MZ::/init:P' >{table}/register",
        "systemd-binfmt",
    ],
)
def test_a_loss_is_repaired(loss: str, few_vm: Vm, boot: Boot) -> None:
    distro, other = boot(few_vm), boot(few_vm, installed=False)
    eventually(lambda: quiet(distro))
    if few_vm.generation == "3.0":
        # No distro can wipe; a container with a mount of its own can.
        other.shell("umount /proc/sys/fs/binfmt_misc/status")
    lost = inode(few_vm)
    script = loss.format(table=bed.TABLE).replace("systemd-binfmt", "/lib/systemd/systemd-binfmt")
    # Where the watch is faster, a WSLInterop that another one is to replace is there already.
    other.shell(script, check=False)
    eventually(lambda: inodes(few_vm).get("WSLInterop", lost) != lost)
    assert eventually(lambda: right(few_vm) and distro.interop()) < 1
    eventually(lambda: quiet(distro))
    before = inode(few_vm)
    time.sleep(0.3)
    assert inode(few_vm) == before, "rewritten though right"
    assert distro.wait_until_up() == "running"


def test_a_container_with_its_own_mount_wipes(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    container = boot(vm, environment={"container": "docker"}, init=False)
    container.shell("mkdir /tmp/table; mount -t binfmt_misc binfmt_misc /tmp/table; echo -1 >/tmp/table/status")
    assert eventually(lambda: right(vm) and distro.interop()) < 1


@pytest.mark.kernel
def test_own_entries_come_back(any_vm: Vm, boot: Boot) -> None:
    distro = boot(
        any_vm,
        files={
            **OURS,
            "/var/lib/binfmts/theirs": "theirs\nmagic\n0\ntheirs\n\n/bin/true\n\n\n\n\n",
            **bed.BINFMT_SUPPORT,
        },
    )
    eventually(lambda: quiet(distro))
    before = set(any_vm.names()) - {"WSLInterop-late"}  # WSL's own affair
    assert {"ours", "theirs"} <= before
    for _ in range(3):
        any_vm.write("status", "-1")
        eventually(lambda: set(any_vm.names()) >= before and right(any_vm))
        eventually(lambda: quiet(distro))
    # What was removed on purpose stays so, also when all is lost later.
    any_vm.write("ours", "-1")
    distro.systemctl("stop", "binfmt-support.service")
    eventually(lambda: "theirs" not in any_vm.names())
    eventually(lambda: not [name for name in any_vm.names() if "leaving" in name])
    assert "ours" not in any_vm.names()
    before = set(any_vm.names())
    for _ in range(2):
        any_vm.write("status", "-1")
        eventually(lambda: set(any_vm.names()) == before and right(any_vm) and quiet(distro))
        any_vm.write("register", RIVAL)
        eventually(lambda: right(any_vm) and any_vm.names()[0] == "WSLInterop")
    # A start of the service registers what its files say.
    distro.systemctl("restart", "systemd-binfmt.service")
    assert "ours" in any_vm.names()


def late_boot(seconds: float) -> dict[str, str]:
    """Have sysinit.target wait, with what is started before it up."""
    return {
        "/etc/systemd/system/late.service": "[Unit]\nDefaultDependencies=no\nAfter=wsl-binfmt-watch.service\n"
        f"Before=sysinit.target\n[Service]\nType=oneshot\nExecStart=/bin/sleep {seconds}\n",
        "/etc/systemd/system/sysinit.target.wants/late.service": "-> ../late.service",
    }


def test_losses_while_booting(vm: Vm, boot: Boot) -> None:
    """A rival does not wait for sysinit.target, nor do own entries that have just been registered."""
    distro = boot(vm, files={**OURS, **late_boot(3)}, wait=False)
    # The watch has looked.
    eventually(distro.path("/run/wsl-binfmt/state").exists)
    assert "ours" in vm.names()
    vm.write("status", "-1")
    eventually(lambda: right(vm))
    vm.write("register", RIVAL)
    assert eventually(lambda: vm.names()[0] == "WSLInterop") < 1
    distro.wait_until_up()
    eventually(lambda: "ours" in vm.names() and right(vm) and quiet(distro))


def test_a_boot_while_every_repair_is_undone(vm: Vm, boot: Boot) -> None:
    """The boot does not wait for the end of that, and nothing fails."""
    stop = threading.Event()

    def undo() -> None:
        while not stop.is_set():
            # To make a file there is not permitted.
            with contextlib.suppress(PermissionError):
                vm.write("WSLInterop", "-1")

    undoing = threading.Thread(target=undo)
    undoing.start()
    try:
        distro = boot(vm)
        assert distro.wait_until_up() == "running"
        assert distro.systemctl("is-active", "wsl-binfmt-watch.service").strip() == "active"
        assert distro.systemctl("show", "--property=NRestarts", "--value", "wsl-binfmt-watch.service").strip() == "0"
    finally:
        stop.set()
        undoing.join()
    eventually(lambda: right(vm) and distro.interop())


def test_a_temporary_entry_is_removed(vm: Vm, boot: Boot) -> None:
    """That of another distro, which was killed in a repair."""
    distro = boot(vm, files=OURS)
    eventually(lambda: quiet(distro))
    vm.register(":WSLInterop-temporary:M::MZ::/init:FP")
    assert eventually(lambda: right(vm)) < 1


def test_a_full_run(vm: Vm, boot: Boot) -> None:
    """A state file that cannot be written keeps the watch from nothing else."""
    distro = boot(vm, files=OURS)
    eventually(lambda: quiet(distro))
    distro.shell("mount -o remount,size=4m /run; head -c 8m /dev/zero >/run/fill || :")
    vm.write("register", RIVAL)
    eventually(lambda: vm.names()[0] == "WSLInterop")
    distro.write("/etc/binfmt.d/wine2.conf", ":wine2:M::MZ::/bin/true:\n:other:M::oo::/bin/true:\n")
    distro.systemctl("restart", "systemd-binfmt.service")
    eventually(lambda: right(vm) and {"ours", "other", "wine2"} <= set(vm.names()))
    assert distro.interop()
    # The state is saved when the table has settled.
    eventually(lambda: "No space left" in distro.journal("wsl-binfmt-watch.service"))
    assert distro.wait_until_up() == "running"


def test_with_the_watch_masked(vm: Vm, boot: Boot) -> None:
    """Nothing in the distro removes WSLInterop all the same, and a start or reload of a service restores it."""
    distro = boot(vm, files={**OURS, "/etc/systemd/system/wsl-binfmt-watch.service": "-> /dev/null"})
    with distro.launching() as launches:
        for verb in "restart", "reload", "stop", "start":
            distro.systemctl(verb, "systemd-binfmt.service")
    assert launches.failed == 0
    for verb in "restart", "reload":
        vm.write("status", "-1")
        distro.systemctl(verb, "systemd-binfmt.service")
        eventually(lambda: right(vm) and "ours" in vm.names())


def test_the_watch_can_be_stopped(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    eventually(lambda: quiet(distro))
    distro.systemctl("stop", "wsl-binfmt-watch.service")
    vm.write("register", RIVAL)
    distro.systemctl("daemon-reload")
    time.sleep(1.5)
    assert vm.names()[0] == "wine"


@pytest.mark.parametrize(("drop_in", "scheduling"), [("", "RR -"), ("[Service]\nRestrictRealtime=yes\n", "TS -20")])
def test_the_watch_runs_before_other_programs(vm: Vm, boot: Boot, drop_in: str, scheduling: str) -> None:
    """Also where the kernel refuses SCHED_RR, as it does here for RestrictRealtime=."""
    distro = boot(vm, files={"/etc/systemd/system/wsl-binfmt-watch.service.d/x.conf": drop_in})
    eventually(lambda: quiet(distro))
    pid = distro.systemctl("show", "--property=MainPID", "--value", "wsl-binfmt-watch.service").strip()
    assert distro.run("ps", "-o", "cls=,ni=", "-p", pid).split() == scheduling.split()
    vm.write("status", "-1")
    eventually(lambda: right(vm))


def test_own_entries_come_back_beside_a_refused_rule(vm: Vm, boot: Boot) -> None:
    distro = boot(vm, files={"/etc/binfmt.d/ours.conf": ":ours:M::ours::/bin/true:\n:bad:M::\n"})
    assert "ours" in vm.names()
    vm.write("status", "-1")
    eventually(lambda: "ours" in vm.names() and right(vm))
    eventually(lambda: quiet(distro))


@pytest.mark.kernel
def test_disabled_by_hand_is_left_alone(any_vm: Vm, boot: Boot) -> None:
    distro = boot(any_vm)
    any_vm.write("WSLInterop", "0")
    any_vm.write("register", RIVAL)
    time.sleep(0.3)
    eventually(lambda: quiet(distro))
    assert (any_vm.entry("WSLInterop") or "").startswith("disabled\n")
    assert any_vm.names()[0] == "wine"
    # A wipe takes it, and not what the administrator wants.
    any_vm.write("status", "-1")
    eventually(lambda: (any_vm.entry("WSLInterop") or "").startswith("disabled\n") and quiet(distro))
    assert not distro.interop()
    any_vm.write("register", RIVAL)
    any_vm.write("WSLInterop", "1")
    eventually(lambda: any_vm.names()[0] == "WSLInterop")
    eventually(lambda: quiet(distro))
    any_vm.write("status", "-1")
    eventually(lambda: right(any_vm))


def test_flags_that_wsl_may_add_are_left_alone(vm: Vm, boot: Boot) -> None:
    """C is one that WSL does not give today."""
    distro = boot(vm)
    vm.write("WSLInterop", "-1")
    vm.register(":WSLInterop:M::MZ::/init:FPC")
    eventually(lambda: (vm.entry("WSLInterop") or "").count("flags: POCF\n"))
    before = inodes(vm)["WSLInterop"]
    distro.systemctl("restart", "systemd-binfmt.service")
    distro.run("wsl-binfmt", "restore")
    eventually(lambda: quiet(distro))
    assert inodes(vm)["WSLInterop"] == before


def test_a_users_lock_delays_nothing(vm: Vm, boot: Boot) -> None:
    """Any user may lock the table's directory; only root may open what we lock."""
    distro = boot(vm, start_limit=False)
    distro.systemctl("start", "systemd-binfmt.service")
    command_of_a_user = "setpriv", "--reuid=65534", "--clear-groups"
    with subprocess.Popen(distro.command(*command_of_a_user, "flock", bed.TABLE, "sleep", "60")):
        try:
            eventually(lambda: "65534" in distro.shell("ps -o uid= -C sleep", check=False))
            start = time.monotonic()
            for _ in range(5):
                distro.systemctl("restart", "systemd-binfmt.service")
            distro.run("wsl-binfmt", "restore")
            # 0.5 s is what each would wait for the lock, LOCK_MAX in table.py.
            assert time.monotonic() - start < 5 * 0.5
            vm.write("WSLInterop", "-1")
            assert eventually(lambda: right(vm)) < 0.5
        finally:
            distro.run("pkill", "-u", "65534", check=False)
    refused = distro.run(*command_of_a_user, "flock", f"{bed.TABLE}/register", "true", check=False)
    assert "Permission denied" in refused


def test_update_binfmts_imports_a_rival(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    distro.write("/usr/share/binfmts/mono", "package mono\ninterpreter /bin/true\nmagic MZ\n")
    distro.run("update-binfmts", "--import", "mono")
    assert vm.entry("mono")
    assert eventually(lambda: vm.names()[0] == "WSLInterop" and distro.interop()) < 1


def test_a_thousand_registrations(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    for number in range(1000):
        vm.write("register", f":burst{number}:M::burst{number}::/bin/true:")
    vm.write("register", RIVAL)
    assert eventually(lambda: right(vm) and vm.names()[0] == "WSLInterop") < 1
    eventually(lambda: quiet(distro))
    vm.write("WSLInterop", "-1")
    assert eventually(lambda: right(vm)) < 1
    assert distro.wait_until_up() == "running"


def test_a_table_with_50000_entries(vm: Vm, boot: Boot) -> None:
    """Root of another distro may register so many: a look takes longer, and all works."""
    distro = boot(vm)
    for number in range(50_000):
        vm.write("register", f":f{number}:M::f{number}::/bin/true:")
    vm.write("register", RIVAL)
    eventually(lambda: distro.interop() and os.listdir(vm.table)[0] == "WSLInterop")
    distro.systemctl("restart", "systemd-binfmt.service")
    assert "No problem found" in distro.run("wsl-binfmt", "status")
    vm.write("status", "-1")
    eventually(lambda: right(vm) and distro.interop())
    assert distro.wait_until_up() == "running"


def test_without_init_nothing_is_touched(vm: Vm, boot: Boot) -> None:
    distro = boot(vm, init=False)
    eventually(lambda: quiet(distro))
    vm.write("WSLInterop", "-1")
    vm.write("register", RIVAL)
    distro.systemctl("restart", "systemd-binfmt.service")
    time.sleep(0.3)
    assert "wine" in vm.names()
    assert not [name for name in vm.names() if name.startswith("WSLInterop")]
    assert distro.journal("wsl-binfmt-watch.service").count("/init cannot be run") == 1
    assert "/init cannot be run" in distro.run("wsl-binfmt", "restore", check=False)
    assert distro.wait_until_up() == "running"


def inotify_instances(distro: Distro) -> int:
    """How many its systemd has."""
    links = [descriptor.readlink() for descriptor in Path(f"/proc/{distro.pid}/fd").iterdir()]
    return links.count(Path("anon_inode:inotify"))


def test_inotify_instances(vm: Vm, boot: Boot) -> None:
    """The watch takes none: twenty distros share what the kernel gives to root."""
    with vm.distro(installed=False) as other:
        before = inotify_instances(other)
    distro = boot(vm)
    eventually(lambda: quiet(distro))
    assert inotify_instances(distro) == before


def test_twenty_distros(vm: Vm, boot: Boot) -> None:
    distros = [boot(vm) for _ in range(20)]
    all_quiet(distros, 60)
    for file, text in ("register", RIVAL), ("status", "-1"):
        vm.write(file, text)
        eventually(lambda: right(vm) and distros[0].interop())
        all_quiet(distros, 60)
        before = inode(vm)
        time.sleep(0.5)
        assert inode(vm) == before
        assert right(vm)
        assert distros[0].interop()


STEPS = st.sampled_from(
    [
        "wipe",
        "remove WSLInterop",
        "remove another",
        "register a rival",
        "register a rival WSLInterop",
        "restart systemd-binfmt",
        "reload systemd-binfmt",
        "restart binfmt-support",
        "bare systemd-binfmt",
        "daemon-reload",
        "wait",
    ]
)


def step(vm: Vm, distros: list[Distro], action: str, rng: random.Random) -> None:
    """Do one thing to the table, in some distro, as fast as can be."""
    distro = rng.choice(distros)
    try:
        if action == "wipe":
            vm.write("status", "-1")
        elif action == "remove WSLInterop":
            vm.write("WSLInterop", "-1")
        elif action == "remove another":
            vm.write(rng.choice(vm.names()), "-1")
        elif action == "register a rival":
            vm.write("register", f":rival{rng.random()}:M::MZ::/bin/true:")
        elif action == "register a rival WSLInterop":
            vm.write("WSLInterop", "-1")
            vm.write("register", ":WSLInterop:M::MZ::/bin/true:")
    except (OSError, IndexError):
        # Another distro was faster, which is what this is about.
        return
    if action.startswith(("restart", "reload")):
        verb, unit = action.split()
        distro.systemctl("--no-block", verb, f"{unit}.service", check=False)
    elif action == "bare systemd-binfmt":
        distro.run("/lib/systemd/systemd-binfmt", check=False)
    elif action == "daemon-reload":
        distro.systemctl("daemon-reload")
    elif action == "wait":
        time.sleep(rng.random() / 10)


@pytest.fixture
def stormy() -> Iterator[tuple[Vm, list[Distro]]]:
    """Three distros in which all examples of a test storm, one after the other."""
    with contextlib.ExitStack() as stack:
        vm = stack.enter_context(bed.Vm())
        files = bed.NO_START_LIMIT
        yield (
            vm,
            [
                stack.enter_context(vm.distro(files=files, emulators=30)),
                stack.enter_context(vm.distro(files={**files, **bed.BINFMT_SUPPORT}, emulators=30)),
                stack.enter_context(vm.distro(files=files, installed=False)),
            ],
        )


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # Shrinking what hangs on timing takes hours and shows nothing.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(steps=st.lists(STEPS, min_size=3, max_size=25), seed=st.integers(0, 2**16))
def test_after_any_storm_the_table_is_right(stormy: tuple[Vm, list[Distro]], steps: list[str], seed: int) -> None:
    vm, distros = stormy
    # Not drawn from hypothesis: what there is to choose from depends on the table.
    rng = random.Random(seed)
    for action in steps:
        step(vm, distros, action, rng)
    for distro in distros:
        eventually(partial(no_jobs, distro), 20)
    assert eventually(lambda: right(vm)) < 1
    all_quiet(distros[:2])
    assert right(vm)
    assert all(distro.interop() for distro in distros)
    names = vm.names()
    for name in names:
        if name.startswith("rival"):
            assert names.index(name) > names.index("WSLInterop")
            vm.write(name, "-1")


def test_a_loss_during_a_daemon_reload(vm: Vm, boot: Boot) -> None:
    """What the generator has written is not there for a moment then."""
    distro = boot(vm)
    eventually(lambda: quiet(distro))
    # A generator that causes the loss is as much "during" as can be.
    distro.write("/run/systemd/system-generators/zz", f"#!/bin/sh\necho -1 >{bed.TABLE}/WSLInterop\n")
    distro.path("/run/systemd/system-generators/zz").chmod(0o755)
    distro.systemctl("daemon-reload")
    eventually(lambda: right(vm))
    eventually(lambda: quiet(distro))


def test_two_distros_with_other_rules_of_one_name(vm: Vm, boot: Boot) -> None:
    """Neither watch replaces the entry of the other distro."""
    distros = [
        boot(vm, files={"/etc/binfmt.d/wine.conf": f":wine:M::MZ::/bin/{name}:\n"}, emulators=0)
        for name in ("true", "false")
    ]
    for _ in range(3):
        vm.write("status", "-1")
        eventually(lambda: right(vm) and "wine" in vm.names())
        all_quiet(distros)
        before = inode(vm)
        time.sleep(0.5)
        assert inode(vm) == before


def test_a_change_of_wsl_conf_counts_from_the_next_start(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    eventually(lambda: quiet(distro))
    distro.write("/etc/wsl.conf", "[interop]\nenabled=false\n")
    distro.systemctl("daemon-reload")
    vm.write("WSLInterop", "-1")
    eventually(lambda: right(vm))
