# SPDX-License-Identifier: MIT
"""tests/on-wsl/check.sh, which is for a real WSL, tried with scripts in place of cmd.exe and wsl.exe."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bed
from checks import eventually, quiet, right

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bed import Distro, Vm

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system

SCRIPT = bed.TREE / "tests/on-wsl/check.sh"
# Asks the test for what Windows does: it starts and ends another distro.
WSL_EXE = """#!/bin/sh
case $1 in
--version) printf 'W\\0S\\0L\\0: 2\\0.6\\r\\0\\n' ;;
*) echo "$*" >/run/wsl-asks; read -r _ </run/wsl-answers ;;
esac
"""
# Two seconds are for another distro to start or to end, which this wsl.exe waits for.
SLEEP = """#!/bin/sh
[ "$1" = 2 ] || exec /bin/sleep "$1"
"""


@pytest.fixture
def wsl(boot: Boot) -> Callable[[Vm], Distro]:
    """Boot a distro that has the script, and what it needs of Windows."""

    def do(vm: Vm, **options: object) -> Distro:
        files = {
            "/usr/local/bin/wsl.exe": WSL_EXE,
            "/usr/local/bin/sleep": SLEEP,
            "/usr/local/bin/check.sh": SCRIPT.read_text(),
        }
        distro = boot(vm, files=files, **options)
        distro.windows_program("/usr/local/bin/cmd.exe")
        eventually(lambda: quiet(distro))
        return distro

    return do


@contextlib.contextmanager
def windows(vm: Vm, distro: Distro) -> Iterator[list[str]]:
    """Do what wsl.exe asks for; yields what that was."""
    distro.shell("mkfifo /run/wsl-asks /run/wsl-answers")
    asked: list[str] = []

    def serve() -> None:
        with contextlib.ExitStack() as peers:
            while True:
                said = distro.path("/run/wsl-asks").read_text().strip()
                asked.append(said)
                if said.startswith("-d "):
                    peer = peers.enter_context(vm.distro())
                elif said.startswith("--terminate "):
                    peer.shutdown()
                distro.path("/run/wsl-answers").write_text("done\n")
                if said == "end":
                    return

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield asked
    finally:
        distro.run("wsl.exe", "end")
        server.join()


def check(distro: Distro, *args: str, said: str = "") -> tuple[int, str]:
    """Run the script; returns its exit status, and the report."""
    text, _, code = distro.run("sh", "-c", 'check.sh "$@" 2>&1; echo exit $?', "sh", *args, input=said).rpartition(
        "exit "
    )
    return int(code), text


def test_all_holds(any_vm: Vm, wsl: Callable[..., Distro]) -> None:
    distro = wsl(any_vm)
    before = any_vm.names()
    with windows(any_vm, distro) as asked:
        code, report = check(distro, "-y", "--wipe", "--second", "other")
    assert (code, [line for line in report.splitlines() if line.startswith(("FAILED", "skipped"))]) == (0, [])
    assert report.count("\nok ") == 22
    assert re.search(r"^a restart takes +\d+ ms, ", report, re.MULTILINE)
    assert json.loads(report.partition("```json\n")[2].removesuffix("```\n"))
    assert asked[:2] == ["-d other -e true", "--terminate other"]
    assert "WSL: 2.6" in report
    eventually(lambda: right(any_vm) and set(any_vm.names()) == set(before))


def test_it_can_fail(vm: Vm, wsl: Callable[..., Distro]) -> None:
    distro = wsl(vm)
    distro.systemctl("mask", "--now", "wsl-binfmt-watch.service", "proc-sys-fs-binfmt_misc-status.mount")
    code, report = check(distro, "-y", "--wipe")
    failed = {line.split(maxsplit=1)[1].partition(" (")[0] for line in report.splitlines() if line.startswith("FAILED")}
    assert code == 1
    assert failed >= {"wsl-binfmt finds nothing wrong", "a rival is outranked", "WSLInterop removed by hand is back"}
    assert failed >= {"another distro empties the table", "nothing in this distro can empty the table"}


def test_nothing_is_changed_unasked(vm: Vm, wsl: Callable[..., Distro]) -> None:
    distro = wsl(vm)
    before = {name: (vm.table / name).stat().st_ino for name in vm.names()}
    code, report = check(distro, said="n\n")
    assert (code, "Nothing was changed." in report) == (0, True)
    assert "ok " not in report
    assert {name: (vm.table / name).stat().st_ino for name in vm.names()} == before
    assert check(distro, "--no")[0] == 2
    distro.run("systemctl", "mask", "--now", "wsl-binfmt-watch.service")
    distro.write("/etc/wsl.conf", "[boot]\nprotectBinfmt=false\n")
    distro.systemctl("daemon-reload")
    assert check(distro, "-y")[0] == 3


# While it has a rule in binfmt.d, has a rival registered, and has WSLInterop disabled.
@pytest.mark.parametrize(
    "after", ["daemon-reexec", "the entry ends with its rule", "WSLInterop removed by hand is back"]
)
def test_it_is_interrupted(vm: Vm, wsl: Callable[..., Distro], after: str) -> None:
    distro = wsl(vm)
    before = set(vm.names())
    with subprocess.Popen(distro.command("check.sh", "-y"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any(re.match(f"ok +{after}", line) for line in process.stdout)
        time.sleep(0.01)
        # nsenter forks for the PID namespace.
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        os.kill(child, signal.SIGINT)
        process.communicate()
    eventually(lambda: right(vm) and set(vm.names()) == before)
    assert distro.shell("ls -d /run/binfmt.d/on-wsl* /tmp/tmp.* 2>/dev/null || true") == ""
    assert distro.systemctl("is-active", "wsl-binfmt-watch.service").strip() == "active"
