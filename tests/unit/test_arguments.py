# SPDX-License-Identifier: MIT
"""The generator's command line: arguments, exit status, and what goes to which channel."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import support

USAGE = """\
usage: wsl-binfmt-generator NORMAL-DIR [EARLY-DIR LATE-DIR]
       wsl-binfmt-generator --dry-run
"""
VERSION = re.search(r'^VERSION = "(.*)"$', support.GENERATOR.read_text(), re.MULTILINE)
NAME = "wsl-binfmt-generator: "


@pytest.mark.parametrize(
    "args",
    [
        [],
        [""],
        ["", "early", "late"],
        ["one", "two"],
        ["one", "two", "three", "four"],
        ["-x"],
        ["--unknown"],
        ["--versio"],
        ["-"],
        ["--"],
        ["-n"],
        ["--dry-run", "out"],
        ["--dry-run", "--help"],
        ["--help", "one"],
        ["--version", "one"],
        ["-hh"],
        ["--", "one"],
        ["\udcff", "two"],
    ],
)
def test_wrong(distro: support.Machine, args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong arguments: usage on stderr, exit status 2, nothing written anywhere."""
    monkeypatch.chdir(distro.out)
    done = support.run(*args, environment={"container": "wsl", "WSL_BINFMT_ROOT": str(distro.root)})
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        USAGE + "This needs 1 or 3 directories; see --help.\n",
    )
    assert distro.output() == {}


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option: str) -> None:
    """The help names each option, and is no wider than a terminal."""
    done = support.run(option, environment={})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(USAGE)
    for word in "--dry-run", "-h", "--help", "--version", "WSL_BINFMT_ROOT", "Exit status":
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_version() -> None:
    """The version is the one of the source."""
    assert VERSION
    done = support.run("--version", environment={})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wsl-binfmt-generator {VERSION[1]}\n", "")


def test_started_as_a_program(distro: support.Machine) -> None:
    """Its mode and its first line do: isolated Python, so that nothing in the environment changes what runs."""
    assert support.GENERATOR.read_text().startswith("#!/usr/bin/python3 -IS\n")
    distro.write("posix.py", "raise SystemExit('not isolated')")
    distro.environment["PYTHONPATH"] = str(distro.root)
    distro.environment["PYTHONSTARTUP"] = str(distro.root / "posix.py")
    done = distro.run(command=[str(support.GENERATOR)], cwd=distro.root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert support.GUARD in distro.output()


def test_three_directories(distro: support.Machine, tmp_path: Path) -> None:
    """As systemd starts it: drop-ins of others are masked in the second directory, the third is left alone."""
    early, late = tmp_path / "early", tmp_path / "late"
    early.mkdir()
    late.mkdir()
    done = distro.run(distro.out, early, late)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert distro.output().keys() >= {support.GUARD, support.SUPPORT}
    assert support.tree(late) == {}
    assert set(support.tree(early).values()) == {"-> /dev/null"}


def test_dry_run(distro: support.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints each file, whole, and each link with its target; or why there is none. It writes nothing."""
    monkeypatch.chdir(distro.out)
    for directory in "normal", "early", "late":
        (distro.out / directory).mkdir()
    distro.run("normal", "early", "late", cwd=distro.out)
    written = distro.output()
    assert len(written) > 5
    done = distro.run("--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    for name, text in written.items():
        if name != "late":
            assert (f"# {name} {text}\n" if text[:3] == "-> " else f"# {name}\n{text}\n") in done.stdout
    assert distro.output() == written
    distro.conf.write_text("[boot]\nprotectBinfmt=false\n")
    done = distro.run("--dry-run")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"{NAME}switched off: nothing to do\n"


def test_dry_run_that_cannot_be_printed(distro: support.Machine) -> None:
    """It says so by its exit status."""
    with Path("/dev/full").open("w") as full:
        assert distro.run("--dry-run", stdout=full).returncode == 1


def test_by_hand_in_a_container(distro: support.Machine) -> None:
    """The environment is that of a login then; systemd has written down its own."""
    distro.environment.clear()
    distro.write("run/systemd/container", "podman\n")
    assert distro.run("--dry-run").stderr == f"{NAME}a container, podman: nothing to do\n"
    distro.write("run/systemd/container", "wsl\n")
    distro.write("proc/sys/kernel/osrelease", "6.1.0")
    assert "wsl-binfmt-watch.service" in distro.run("--dry-run").stdout


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1"])
@pytest.mark.parametrize(
    ("args", "status", "status_unsaid"),
    # What is asked for on stdout fails if it cannot be said; all else does not depend on being heard.
    [(["--help"], 0, 1), (["--version"], 0, 1), (["--dry-run"], 0, 1), ([], 2, 2), (["out"], 0, 0), (["none"], 1, 1)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_nobody_listens(
    distro: support.Machine,
    redirection: str,
    args: list[str],
    status: int,
    status_unsaid: int,
) -> None:
    """Channels that are closed or full change nothing but what is said, and are no reason for a traceback."""
    distro.conf.write_text("[boot]\nprotectBinfmt=maybe\n")
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *support.COMMAND, *args],
        check=False,
        capture_output=True,
        text=True,
        timeout=support.TIMEOUT,
        cwd=distro.out.parent,
        env={"WSL_BINFMT_ROOT": str(distro.root), "container": "wsl"},
    )
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert done.returncode == (status_unsaid if redirection != "2>&-" else status)
    assert (support.GUARD in distro.output()) == ("out" in args)
    for text in distro.output().values():
        assert NAME not in text, "a message went into a file that took the number of a closed channel"


def test_unexpected(distro: support.Machine) -> None:
    """An exception that the program does not expect is one line as well, and exit status 1."""
    program = f"""
import runpy, sys, posix
sys.argv = ["wsl-binfmt-generator", {str(distro.out)!r}]
def fail(*_, **__): raise RuntimeError("on purpose")
posix.mkdir = fail
runpy.run_path({str(support.GENERATOR)!r}, run_name="__main__")
"""
    done = distro.run("-c", program, command=[sys.executable, "-IS"])
    assert done.stderr == f"{NAME}unexpected RuntimeError('on purpose'), please report it\n"
    assert (done.returncode, done.stdout) == (1, "")


def test_imports() -> None:
    """It imports no module that the interpreter does not have by itself: time at boot."""
    program = f"""
import sys
before = set(sys.modules)
sys.argv = ["wsl-binfmt-generator", "--version"]
code = compile(open({str(support.GENERATOR)!r}, "rb").read(), "generator", "exec")
exec(code, {{"__name__": "generator"}})
print(sorted(set(sys.modules) - before))
"""
    done = support.run("-c", program, environment={}, command=[sys.executable, "-IS"])
    assert done.stdout == "[]\n"
