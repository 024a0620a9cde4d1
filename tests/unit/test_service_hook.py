# SPDX-License-Identifier: MIT
"""service-hook: when it leaves Python out, and what it asks for otherwise. The table is a directory here."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

import support

if TYPE_CHECKING:
    from pathlib import Path

SERVICE = "systemd-binfmt.service"
STAND_IN = "WSLInterop-held-by-id"
WSL = "enabled\ninterpreter /init\nflags: PF\noffset 0\nmagic 4d5a\n"


class Hook(NamedTuple):
    """The script, with the directory `at` in place of each that it uses."""

    at: Path

    def write(self, path: str, text: str) -> None:
        """Write a file below the directory."""
        (self.at / path).write_text(text)
        (self.at / path).chmod(0o755 if text.startswith("#!") else 0o644)

    def run(self, action: str, interop: str = "yes", jobs: str = "") -> str:
        """Run it; returns what wsl-binfmt was asked to do. jobs: what systemctl says of the service."""
        self.write("wsl-binfmt", f'#!/bin/sh\necho "$@" >>{self.at}/asked\n')
        self.write("systemctl", f"#!/bin/sh\necho '{jobs}'\n")
        self.write("asked", "")
        done = subprocess.run(
            ["sh", self.at / "service-hook", action, SERVICE, interop],
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": f"{self.at}:/usr/bin:/bin", "INVOCATION_ID": "id"},
        )
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
        return (self.at / "asked").read_text().strip()

    def table(self, *names: str) -> dict[str, str]:
        """Text of files of the table; "" for one that is not there."""
        files = {name: self.at / "table" / name for name in names}
        return {name: path.read_text() if path.exists() else "" for name, path in files.items()}


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    """A distro in which nothing is wrong, whose service has never started."""
    text = (support.TREE / "generator/service-hook").read_text()
    for path, name in (
        ("/proc/sys/fs/binfmt_misc", "table"),
        ("/run/wsl-binfmt", "run"),
        ("/usr/bin/wsl-binfmt", "wsl-binfmt"),
        ("/init ]", "init ]"),
        ("/etc/systemd/system", "etc"),
        ("/run/systemd/system", "runtime"),
        ("/etc /run /usr/local/lib /usr/lib /lib;", "lib;"),
    ):
        assert path in text
        text = text.replace(path, f"{tmp_path}/{name}")
    (tmp_path / "run").mkdir()
    (tmp_path / "lib/binfmt.d").mkdir(parents=True)
    (tmp_path / "lib/binfmt.d/x.conf").touch()
    made = Hook(tmp_path)
    made.write("service-hook", text)
    made.write("init", "#!")
    (tmp_path / "table").mkdir()
    for name, content in ("WSLInterop", WSL), (STAND_IN, WSL), ("register", ""), ("status", "enabled\n"):
        made.write(f"table/{name}", content)
    return made


def test_starting(hook: Hook) -> None:
    """It lists the entries, and holds a stand-in."""
    assert hook.run("starting") == ""
    listed = (hook.at / f"run/{SERVICE}.before").read_text()
    assert f"{(hook.at / 'table/WSLInterop').stat().st_ino} WSLInterop\n" in listed
    assert hook.table("register", STAND_IN, "WSLInterop") == {
        "register": f":{STAND_IN}:M::MZ::/init:FP\n",
        STAND_IN: WSL,
        "WSLInterop": WSL,
    }


@pytest.mark.parametrize(("status", "is_whole"), [(0, True), (1, True), (2, False)])
def test_listing(hook: Hook, status: int, is_whole: bool) -> None:
    """An entry that is removed while ls(1) lists it makes that exit with 1, and is not there; 2 is serious trouble."""
    hook.write("ls", f"#!/bin/sh\necho '7 WSLInterop'\necho '? gone'\nexit {status}\n")
    hook.run("starting")
    assert (hook.at / f"run/{SERVICE}.before").read_text().endswith("end\n") is is_whole


def test_starting_while_disabled(hook: Hook) -> None:
    """The stand-in is disabled, too."""
    hook.write("table/WSLInterop", WSL.replace("enabled", "disabled"))
    hook.run("starting")
    assert hook.table(STAND_IN)[STAND_IN] == "0\n"


def test_starting_for_an_administrators_line(hook: Hook) -> None:
    """It fails if WSLInterop is there; which is removed only if there is a stand-in."""
    hook.run("starting", "replaced")
    assert hook.table("WSLInterop")["WSLInterop"] == "-1\n"
    hook.write("table/WSLInterop", WSL)
    (hook.at / "table/register").unlink()
    (hook.at / "table/register").mkdir()
    hook.run("starting", "replaced")
    assert hook.table("WSLInterop")["WSLInterop"] == WSL


@pytest.mark.parametrize("case", ["not wanted", "no init"])
def test_starting_without_interop(hook: Hook, case: str) -> None:
    """Nothing is registered where the user does not want it, or there is nothing to register."""
    if case == "no init":
        (hook.at / "init").unlink()
    hook.run("starting", "no" if case == "not wanted" else "yes")
    assert hook.table("register")["register"] == ""
    assert (hook.at / f"run/{SERVICE}.before").exists()


def test_started(hook: Hook) -> None:
    """After a first start in which nothing went wrong, Python is left out: the watch notes the formats."""
    hook.run("starting")
    assert hook.run("started") == ""
    assert (hook.at / f"run/{SERVICE}.after").exists()
    assert hook.table(STAND_IN)[STAND_IN] == "-1\n"
    # Nobody has noted it, and the service starts once more.
    assert hook.run("starting") == f"started {SERVICE} {STAND_IN}"


def test_started_again(hook: Hook) -> None:
    """There are formats to compare with what it has registered now."""
    hook.run("starting")
    hook.write(f"run/{SERVICE}.formats", "")
    assert hook.run("started") == f"started {SERVICE} {STAND_IN}"
    assert hook.run("started", "no") == f"started {SERVICE}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("WSLInterop", WSL.replace("/init", "/bin/echo")),
        ("WSLInterop", WSL.replace("enabled", "disabled")),
        ("WSLInterop", ""),
        (STAND_IN, WSL.replace("enabled", "disabled")),
        (STAND_IN, ""),
    ],
)
def test_something_is_wrong(hook: Hook, name: str, text: str) -> None:
    """WSLInterop leads elsewhere, is not as it was, or is not there."""
    hook.run("starting")
    hook.write(f"table/{name}", text)
    assert hook.run("started") == f"started {SERVICE} {STAND_IN}"
    assert hook.run("started", "no") == ""


@pytest.mark.parametrize("directory", ["etc", "runtime"])
def test_the_watch_is_masked(hook: Hook, directory: str) -> None:
    """Then nobody else looks at what the service has done."""
    (hook.at / directory).mkdir()
    (hook.at / directory / "wsl-binfmt.service").symlink_to("/dev/null")
    hook.run("starting")
    assert hook.run("started") == f"started {SERVICE} {STAND_IN}"


NOTED, LISTED, HALF = [f"{SERVICE}.formats"], [f"{SERVICE}.before", f"{SERVICE}.after"], [f"{SERVICE}.before"]


@pytest.mark.parametrize(
    ("notes", "job", "asked"),
    [
        ([], "stop", ""),  # nothing is this distro's
        (NOTED, "stop", "stopped"),
        (NOTED, "restart", ""),  # compared after the start
        (NOTED, "", "stopped"),  # systemd could not be asked
        (LISTED, "stop", "stopped"),
        (LISTED, "restart", ""),
        (HALF, "start", "failed"),
        (HALF, "", "failed"),
        ([*NOTED, *HALF], "restart", "failed"),
        ([*NOTED, *HALF], "stop", "stopped"),
    ],
)
def test_stopped(hook: Hook, notes: list[str], job: str, asked: str) -> None:
    """Formats end with a service that stops; one that is restarted, or failed to start, keeps them."""
    for note in notes:
        hook.write(f"run/{note}", "")
    expected = f"{asked} {SERVICE} {STAND_IN}" if asked else ""
    assert hook.run("stopped", jobs=f" 102 {SERVICE} {job} running" if job else "") == expected


@pytest.mark.parametrize(
    ("files", "asked"), [([], "stopped"), (["x.conf~", ".x.conf"], "stopped"), ([".x.conf", "x"], "")]
)
def test_a_restart_that_systemd_skips(hook: Hook, files: list[str], asked: str) -> None:
    """No start follows, which would compare: ConditionDirectoryNotEmpty=, for which only some files count."""
    (hook.at / "lib/binfmt.d/x.conf").unlink()
    for name in files:
        hook.write(f"lib/binfmt.d/{name}", "")
    hook.write(f"run/{SERVICE}.formats", "")
    expected = f"{asked} {SERVICE} {STAND_IN}" if asked else ""
    assert hook.run("stopped", jobs=f" 102 {SERVICE} restart running") == expected
